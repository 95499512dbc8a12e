"""What a customer's words stand for: products, prices, order numbers, e-mails and addresses, drawn anew for each dialogue.

A model that is to copy must not be able to learn them by heart, so identifiers vary without end; those of the splits differ in
a digit class (order numbers) and in the names behind them (e-mails), and never meet.
"""

import random
import re
import unicodedata
from datetime import timedelta

from crawl2cart.shop.data_model import Customer, Line, Order, Split
from crawl2cart.shop.db import ShopDB
from crawl2cart.shop.env import ScenarioOrder

# Which remainders by ten belong to a split: of an order's number, and of a customer's place in customers.jsonl.
CLASSES = {"train": (0, 1, 2, 3, 4, 5, 6), "validation": (7,), "test": (8, 9)}
ORDER_SIZES = (1, 1, 1, 2, 2, 3)


class Resample(Exception):
    """These words and this draw do not go together; draw again."""


class EntitySampler:
    """Draws for one dialogue of a split. store: the catalogue that the dialogue will meet."""

    def __init__(self, store: ShopDB, split: Split, customers: list[Customer], draw: random.Random):
        self.store, self.split, self.draw = store, split, draw
        self._customers = customers
        own = [customer for place, customer in enumerate(customers) if place % 10 in CLASSES[split]]
        # A shop with few customers shares their names between splits; a digit of the split then tells the e-mails apart.
        self._names, self._own_names = own or customers, bool(own)
        row = store.one("SELECT id FROM orders ORDER BY id LIMIT 1")
        self._prefix, digits = row["id"].split("-") if row else ("ORD", "00000")
        self._digits = len(digits)

    def order_number(self) -> str:
        """A number of this split that no order of the store has."""
        low = 10 ** (self._digits - 2)
        number = f"{self._prefix}-{self.draw.randrange(low, low * 10)}{self.draw.choice(CLASSES[self.split])}"
        if self.store.order(number):
            raise Resample
        return number

    def email(self) -> str:
        draw = self.draw
        first, last = (plain(draw.choice(self._names).name, part) for part in (0, -1))
        local = draw.choice(
            (
                f"{first}.{last}",
                f"{first[0]}{last}",
                f"{last}{draw.randrange(2, 99)}",
                f"{first}_{last[0]}{draw.randrange(3, 99)}",
                f"{first}{draw.randrange(1948, 2009)}",
                f"{last}.{first[0]}",
                f"{first}-{last}",
                f"{last}.family",
            )
        )
        if not self._own_names:
            local += str(draw.choice(CLASSES[self.split]))
        return f"{local}@{draw.choice(self._customers).email.partition('@')[2]}"

    def address(self) -> str:
        draw = self.draw
        street = re.sub(r"^\d+\w? ", "", draw.choice(self._names).address.street)
        place = draw.choice(self._customers).address
        return f"{draw.randrange(1, 240)}{draw.choice(('', '', '', '', 'a', 'b'))} {street}, {place.town} {place.postcode}"

    def product_words(self, name: str) -> str:
        """A product as a customer writes it: mostly its whole name, sometimes its first two words or in small letters."""
        return self.draw.choices(
            (name, " ".join(name.split()[:2]), name.lower()), (0.76, 0.12, 0.12)
        )[0]

    def unknown_product(self, category: str) -> str:
        """A name that sounds like the shop's and that it does not have."""
        names = [
            row["name"].split() for row in self.store.all("SELECT name FROM products ORDER BY id")
        ]
        name = f"{self.draw.choice(names)[0]} {self.draw.choice(names)[1]} {category}"
        if self.store.one(
            "SELECT 1 FROM products WHERE name LIKE ?", " ".join(name.split()[:2]) + "%"
        ):
            raise Resample
        return name

    def budget(self, price: float, low: float, high: float) -> str:
        """A sum as one says it, between low and high times a price."""
        amount = price * self.draw.uniform(low, high)
        if self.draw.random() < 0.12:
            return f"{max(1, int(amount))}.{self.draw.choice(('99', '95'))}"
        step = 1 if amount < 40 else self.draw.choice((1, 5, 5, 10))
        return str(max(step, round(amount / step) * step))

    def siblings(self, product: str, count: int) -> list[str]:
        """Ids of other products of its category."""
        rows = self.store.all(
            "SELECT o.id FROM products p JOIN products o ON o.category = p.category AND o.id != p.id "
            "WHERE p.id = ? ORDER BY o.id",
            product,
        )
        if len(rows) < count:
            raise Resample
        return [row["id"] for row in self.draw.sample(rows, count)]

    def filed(
        self,
        state: str,
        product: str,
        email: str,
        number: str,
        intent: str,
        alone: bool,
        variant: str | None = None,
    ) -> ScenarioOrder:
        """An order in this state that holds the product, dated so that the state makes sense today.

        alone: with no other line. variant: of the product; any by default. A delivered order is within its days three times of four.
        """
        draw, today = self.draw, self.store.shop.today
        products = [product]
        if not alone:
            others = [
                row["id"]
                for row in self.store.all(
                    "SELECT id FROM products WHERE id != ? ORDER BY id", product
                )
            ]
            products += draw.sample(others, draw.choice(ORDER_SIZES) - 1)
        returned = ()
        if state == "partly_returned":
            others = [row["id"] for row in self.store.all("SELECT id FROM products ORDER BY id")]
            products.append(draw.choice([other for other in others if other not in products]))
            returned = (products[-1],)
        lines = [self._line(product, single=intent == "exchange") for product in products]
        if variant:
            lines[0] = lines[0].model_copy(update={"variant": variant})
        shown = [lines[place] for place in draw.sample(range(len(lines)), len(lines))]
        rules = self.store.shop.rules
        goods = round(sum(line.price * line.quantity for line in lines), 2)
        shipping = 0.0 if goods >= rules.free_shipping_from else rules.shipping_fee
        last = max(rules.return_days - 2, 1)
        arrived = (
            draw.randint(1, last)
            if draw.random() < 0.75
            else draw.randrange(rules.return_days + 2, rules.return_days + 90)
        )
        ages = {
            "placed": (0, 3),
            "packed": (1, 4),
            "shipped": (2, 6),
            "delayed": (6, 14),
            "cancelled": (2, 60),
        }
        days = (
            arrived + draw.randrange(2, 8)
            if state in ("delivered", "partly_returned")
            else draw.randrange(*ages[state])
        )
        sent = state in ("shipped", "delayed", "delivered", "partly_returned")
        carriers = (
            sorted(
                {
                    (row["carrier"], re.sub(r"\d", "", row["tracking"]))
                    for row in self.store.all(
                        "SELECT carrier, tracking FROM orders WHERE tracking IS NOT NULL"
                    )
                }
            )
            if sent
            else []
        )
        carrier, letters = draw.choice(carriers) if carriers else (None, "")
        due = {"shipped": draw.randrange(1, 7), "delayed": draw.randrange(1, 10)}.get(
            state, -arrived
        )
        order = Order(
            order=number,
            customer=email,
            placed=today - timedelta(days),
            state=state,
            items=shown,
            shipping=shipping,
            total=round(goods + shipping, 2),
            carrier=carrier,
            tracking=f"{letters}{draw.randrange(10**8, 10**9)}" if sent else None,
            expected=today + timedelta(due) if sent else None,
            delivered=today - timedelta(arrived)
            if state in ("delivered", "partly_returned")
            else None,
            returned=list(returned),
        )
        return ScenarioOrder(order=order, email=email, address=self.address())

    def _line(self, product: str, single: bool) -> Line:
        row = self.store.one("SELECT price FROM products WHERE id = ?", product)
        quantity = 1 if single else self.draw.choice((1, 1, 1, 1, 1, 2, 3))
        return Line(
            product=product,
            variant=self.draw.choice(list(self.store.stock(product))),
            quantity=quantity,
            price=row["price"],
        )


def plain(name: str, part: int) -> str:
    """The first or last word of a name in small ASCII letters, as it stands in an e-mail address."""
    name = (
        name.replace("ø", "o")
        .replace("ł", "l")
        .replace("ı", "i")
        .replace("æ", "ae")
        .split()[part]
        .casefold()
    )
    return re.sub("[^a-z]", "", unicodedata.normalize("NFKD", name)) or "post"
