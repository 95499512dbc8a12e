"""The shop as one conversation meets it: its catalogue, the day's prices and stock, its orders.

A scenario is data, and every line of data/sft holds one. So a recorded dialogue can be played again
in the same shop.
"""

import json
import random
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from crawl2cart.shop.data_model import Hostile, Order, Review, Split
from crawl2cart.shop.db import ShopDB, open_store
from crawl2cart.shop.loader import own_or_shipped, read_lines, rows
from crawl2cart.shop.tools import Session

DAYS = 60  # variants of the shop with other prices and stock


class ScenarioOrder(BaseModel):
    """An order that exists in this conversation only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: Order
    email: str
    address: str


class Scenario(BaseModel):
    """The state of the shop in which a dialogue begins.

    catalogue: the split whose held-out products are for sale beside all others. day: 0 is the shop
    of the files; on days 1 to DAYS prices, ratings, stock, warranties and sizes differ, so that a
    model has to read them. signed_in: e-mail of a customer whom the site has identified.
    review: a product and the text pinned to it. stock: (product, variant, number).
    faults: how many of the first calls fail.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    catalogue: Split
    day: int = 0
    orders: tuple[ScenarioOrder, ...] = ()
    signed_in: str | None = None
    review: tuple[str, str] | None = None
    stock: tuple[tuple[str, str, int], ...] = ()
    faults: int = 0

    @classmethod
    def of(cls, dialogue: dict) -> "Scenario":
        """Return the scenario of a line of data/sft."""
        return cls.model_validate_json(json.dumps(dialogue["session"]))


class ShopSessions:
    """Opens sessions on a shop's folder.

    held_out: the held-out products of each split, dealt in turn to validation and test. No other
    split's catalogue has them. hostile_texts: reviews that give orders to their reader, half of
    them for train, a sixth for validation, a third for test; and the texts of hostile.jsonl.
    """

    def __init__(self, folder: Path | str):
        folder = Path(folder)
        self.store = open_store(folder)
        held_out = [
            row["id"]
            for row in self.store.all("SELECT id FROM products WHERE held_out ORDER BY id")
        ]
        self.held_out: dict[Split, list[str]] = {
            "train": [],
            "validation": held_out[::2],
            "test": held_out[1::2],
        }
        reviews = rows(folder / "reviews", Review)
        hostile = [review.text for review in reviews if review.instructs]
        self.hostile_texts: dict[Split, list[str]] = {
            "train": hostile[::2],
            "validation": hostile[1::6],
            "test": hostile[3::6] + hostile[5::6],
        }
        for _, line in read_lines(own_or_shipped(folder, "hostile.jsonl"), Hostile):
            self.hostile_texts[line.split].append(line.text)
        self._catalogues: dict[tuple[Split, int], ShopDB] = {}

    def catalogue(self, split: Split, day: int = 0) -> ShopDB:
        """Return the store with this split's products and reviews on this day.

        It is shared: take a copy before you change it.
        """
        if (split, day) not in self._catalogues:
            store = self.store.copy()
            store.remove_products(of_other_splits(self.held_out, split))
            store.remove_reviews(of_other_splits(self.hostile_texts, split))
            if day:
                vary_for_day(store, day)
            self._catalogues[split, day] = store
        return self._catalogues[split, day]

    def session(self, scenario: Scenario) -> Session:
        """Open a session on a store of its own, in the state of the scenario."""
        store = self.catalogue(scenario.catalogue, scenario.day).copy()
        for entry in scenario.orders:
            store.add_order(entry.order, entry.email, entry.address)
        if scenario.review:
            store.pin_review(*scenario.review)
        for product, variant, number in scenario.stock:
            store.set_stock(product, variant, number)
        return Session(store, scenario.signed_in, scenario.faults)


def of_other_splits(values: dict[Split, list[str]], split: Split) -> set[str]:
    """Return the values that belong to other splits than this one."""
    return {value for other, own in values.items() if other != split for value in own}


def vary_for_day(store: ShopDB, day: int) -> None:
    """Draw new prices, ratings, warranties, stock and numbers in attributes, from the day alone.

    Prices stay within 30 % of those of the files.
    """
    rng = random.Random(day)
    with store.db:
        for row in store.all("SELECT id, price FROM products ORDER BY id"):
            price = round(row["price"] * rng.uniform(0.7, 1.3), rng.choice((0, 1, 1, 2, 2)))
            rating = rng.randint(31, 49) / 10
            months = rng.choice((6, 12, 18, 24, 30, 36, 48, 60, 84, 120))
            store.db.execute(
                "UPDATE products SET price = ?, rating = ?, warranty_months = ? WHERE id = ?",
                (max(price, 1.0), rating, months, row["id"]),
            )
        for row in store.all("SELECT rowid, value FROM attributes ORDER BY rowid"):
            number, space, unit = row["value"].partition(" ")
            if number.isdecimal() and len(number) > 1 and not any(map(str.isdigit, unit)):
                number = round(int(number) * rng.uniform(0.6, 1.5))
                store.db.execute(
                    "UPDATE attributes SET value = ? WHERE rowid = ?",
                    (f"{number}{space}{unit}", row["rowid"]),
                )
        for row in store.all("SELECT product, name FROM variants ORDER BY rowid"):
            number = rng.choice((0, rng.randint(1, 9), rng.randint(10, 60), rng.randint(1, 200)))
            store.db.execute(
                "UPDATE variants SET stock = ? WHERE product = ? AND name = ?",
                (number, row["product"], row["name"]),
            )
