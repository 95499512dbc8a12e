"""The shop as one conversation finds it: which products are known, the day's prices and stock, the orders on file.

A scene is data (a line of data/sft holds it), so that whoever reads a recorded dialogue can open the same session again.
"""

import json
import random
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from crawl2cart.shop.data_model import Hostile, Order, Review, Split
from crawl2cart.shop.db import ShopDB, open_store
from crawl2cart.shop.loader import own_or_shipped, read_lines, rows
from crawl2cart.shop.tools import Session

DAYS = 60


class ScenarioOrder(BaseModel):
    """An order on file for this conversation only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: Order
    email: str
    address: str


class Scenario(BaseModel):
    """catalogue: the split whose held-out products are for sale beside all others. day: 0 is the store as its files say; on days
    1 to DAYS prices, ratings, stock, warranties and sizes are others, so that a model learns to read them and not to know them.
    review: a product and the text that is pinned to it. stock: [product, variant, number]. faults: first calls that fail.
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
        """The scene of a line of data/sft."""
        return cls.model_validate_json(json.dumps(dialogue["session"]))


class ShopSessions:
    """Opens sessions on a shop's folder.

    Held-out products are dealt in turn to validation and test; no other split's catalogue has them. Reviews that give instructions
    are dealt in the same way, half of them to train; texts of hostile.jsonl, which fit any product, join those of their split.
    """

    def __init__(self, folder: Path | str):
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
        attacks = [
            review.text for review in rows(Path(folder) / "reviews", Review) if review.instructs
        ]
        self._catalogues: dict[tuple[Split, int], ShopDB] = {}
        self.attacks: dict[Split, list[str]] = {
            "train": attacks[::2],
            "validation": attacks[1::6],
            "test": attacks[3::6] + attacks[5::6],
        }
        for _, hostile in read_lines(own_or_shipped(Path(folder), "hostile.jsonl"), Hostile):
            self.attacks[hostile.split].append(hostile.text)

    def catalogue(self, split: Split, day: int = 0) -> ShopDB:
        """The store with this split's products and reviews on this day. Not to be changed: take a copy."""
        if (split, day) not in self._catalogues:
            store = self.store.copy()
            store.remove_products(
                {
                    product
                    for other in self.held_out
                    if other != split
                    for product in self.held_out[other]
                }
            )
            store.remove_reviews(
                {text for other in self.attacks if other != split for text in self.attacks[other]}
            )
            if day:
                another_day(store, day)
            self._catalogues[split, day] = store
        return self._catalogues[split, day]

    def session(self, scene: Scenario) -> Session:
        store = self.catalogue(scene.catalogue, scene.day).copy()
        for filed in scene.orders:
            store.add_order(filed.order, filed.email, filed.address)
        if scene.review:
            store.pin_review(*scene.review)
        for product, variant, number in scene.stock:
            store.set_stock(product, variant, number)
        return Session(store, scene.signed_in, scene.faults)


def another_day(store: ShopDB, day: int) -> None:
    """Draws new prices (within a third), ratings, stock, warranties and the numbers in attributes, from the day alone."""
    draw = random.Random(day)
    with store.db:
        for row in store.all("SELECT id, price FROM products ORDER BY id"):
            price = round(row["price"] * draw.uniform(0.7, 1.3), draw.choice((0, 1, 1, 2, 2)))
            store.db.execute(
                "UPDATE products SET price = ?, rating = ?, warranty_months = ? WHERE id = ?",
                (
                    max(price, 1.0),
                    draw.randint(31, 49) / 10,
                    draw.choice((6, 12, 18, 24, 30, 36, 48, 60, 84, 120)),
                    row["id"],
                ),
            )
        for row in store.all("SELECT rowid, value FROM attributes ORDER BY rowid"):
            number, space, unit = row["value"].partition(" ")
            if number.isdecimal() and len(number) > 1 and not any(map(str.isdigit, unit)):
                store.db.execute(
                    "UPDATE attributes SET value = ? WHERE rowid = ?",
                    (f"{round(int(number) * draw.uniform(0.6, 1.5))}{space}{unit}", row["rowid"]),
                )
        for row in store.all("SELECT product, name FROM variants ORDER BY rowid"):
            number = draw.choice(
                (0, draw.randint(1, 9), draw.randint(10, 60), draw.randint(1, 200))
            )
            store.db.execute(
                "UPDATE variants SET stock = ? WHERE product = ? AND name = ?",
                (number, row["product"], row["name"]),
            )
