"""Draw the values of a dialogue's slots: products, prices, order numbers, e-mails and addresses.

Identifiers vary without end, so that a model has to copy them and cannot learn them by heart.
Order numbers of two splits differ in their last digit, e-mails in the names behind them.
"""

import random
import re
import unicodedata
from datetime import date, timedelta

from crawl2cart.shop.data_model import Customer, Line, Order, Split
from crawl2cart.shop.db import ShopDB
from crawl2cart.shop.env import ScenarioOrder

# Remainders by ten that belong to a split: of an order's number, of a customer's place in the file.
DIGITS = {"train": (0, 1, 2, 3, 4, 5, 6), "validation": (7,), "test": (8, 9)}
ORDER_SIZES = (1, 1, 1, 2, 2, 3)
SHIPPED_STATES = ("shipped", "delayed", "delivered", "partly_returned")
ARRIVED_STATES = ("delivered", "partly_returned")
# Days since an order in this state was placed: at least, below.
DAYS_SINCE_PLACED = {
    "placed": (0, 3),
    "packed": (1, 4),
    "shipped": (2, 6),
    "delayed": (6, 14),
    "cancelled": (2, 60),
}


class Resample(Exception):
    """The drawn values do not fit the template; draw again."""


class EntitySampler:
    """Draws entities for one dialogue of a split.

    store: the catalogue of that dialogue. customers: those whose names and towns are combined anew.
    """

    def __init__(self, store: ShopDB, split: Split, customers: list[Customer], rng: random.Random):
        self.store, self.split, self.rng = store, split, rng
        self._customers = customers
        own = [customer for place, customer in enumerate(customers) if place % 10 in DIGITS[split]]
        # In a shop with few customers the splits share names. Then a digit tells the e-mails apart.
        self._name_sources, self._has_own_names = own or customers, bool(own)
        row = store.one("SELECT id FROM orders ORDER BY id LIMIT 1")
        self._prefix, digits = row["id"].split("-") if row else ("ORD", "00000")
        self._digit_count = len(digits)

    def order_number(self) -> str:
        """Draw a number of this split that no order of the store has. Raises Resample."""
        low = 10 ** (self._digit_count - 2)
        number = self.rng.randrange(low, low * 10)
        order = f"{self._prefix}-{number}{self.rng.choice(DIGITS[self.split])}"
        if self.store.order(order):
            raise Resample
        return order

    def email(self) -> str:
        """Draw an e-mail address with the name of a customer of this split."""
        rng = self.rng
        first, last = (ascii_name(rng.choice(self._name_sources).name, word) for word in (0, -1))
        user = rng.choice(
            (
                f"{first}.{last}",
                f"{first[0]}{last}",
                f"{last}{rng.randrange(2, 99)}",
                f"{first}_{last[0]}{rng.randrange(3, 99)}",
                f"{first}{rng.randrange(1948, 2009)}",
                f"{last}.{first[0]}",
                f"{first}-{last}",
                f"{last}.family",
            )
        )
        if not self._has_own_names:
            user += str(rng.choice(DIGITS[self.split]))
        return f"{user}@{rng.choice(self._customers).email.partition('@')[2]}"

    def address(self) -> str:
        """Draw an address: a new house number, a known street, a known town with its postcode."""
        rng = self.rng
        street = re.sub(r"^\d+\w? ", "", rng.choice(self._name_sources).address.street)
        town = rng.choice(self._customers).address
        house = f"{rng.randrange(1, 240)}{rng.choice(('', '', '', '', 'a', 'b'))}"
        return f"{house} {street}, {town.town} {town.postcode}"

    def product_mention(self, name: str) -> str:
        """Draw how a customer writes a product: its name, two words of it, or in lower case."""
        mentions = (name, " ".join(name.split()[:2]), name.lower())
        return self.rng.choices(mentions, (0.76, 0.12, 0.12))[0]

    def unknown_product(self, category: str) -> str:
        """Draw a product name that sounds like the shop's and is not. Raises Resample."""
        rows = self.store.all("SELECT name FROM products ORDER BY id")
        names = [row["name"].split() for row in rows]
        name = f"{self.rng.choice(names)[0]} {self.rng.choice(names)[1]} {category}"
        prefix = " ".join(name.split()[:2])
        if self.store.one("SELECT 1 FROM products WHERE name LIKE ?", prefix + "%"):
            raise Resample
        return name

    def budget(self, price: float, low: float, high: float) -> str:
        """Draw a sum between low and high times a price, rounded as people round it."""
        amount = price * self.rng.uniform(low, high)
        if self.rng.random() < 0.12:
            return f"{max(1, int(amount))}.{self.rng.choice(('99', '95'))}"
        step = 1 if amount < 40 else self.rng.choice((1, 5, 5, 10))
        return str(max(step, round(amount / step) * step))

    def siblings(self, product: str, count: int) -> list[str]:
        """Draw ids of other products of the same category. Raises Resample if there are too few."""
        rows = self.store.all(
            "SELECT o.id FROM products p JOIN products o "
            "ON o.category = p.category AND o.id != p.id WHERE p.id = ? ORDER BY o.id",
            product,
        )
        if len(rows) < count:
            raise Resample
        return [row["id"] for row in self.rng.sample(rows, count)]

    def order(
        self,
        state: str,
        product: str,
        email: str,
        number: str,
        intent: str,
        alone: bool,
        variant: str | None = None,
    ) -> ScenarioOrder:
        """Draw an order in this state that holds the product, with dates that fit the state.

        alone: the order has no other line. variant: that of the product; any by default.
        Three delivered orders of four are young enough to be returned.
        """
        rng, today, rules = self.rng, self.store.shop.today, self.store.shop.rules
        lines, returned = self._lines(state, product, alone, one_each=intent == "exchange")
        if variant:
            lines[0] = lines[0].model_copy(update={"variant": variant})
        items = [lines[place] for place in rng.sample(range(len(lines)), len(lines))]
        goods = round(sum(line.price * line.quantity for line in lines), 2)
        shipping = 0.0 if goods >= rules.free_shipping_from else rules.shipping_fee
        placed, arrival = self._dates(state, today)
        sent, arrived = state in SHIPPED_STATES, state in ARRIVED_STATES
        carrier, letters = self._carrier() if sent else (None, "")
        # Both are drawn whatever the state: a draw less would change all dialogues that follow.
        days_left = {"shipped": rng.randrange(1, 7), "delayed": rng.randrange(1, 10)}
        expected = today + timedelta(days_left[state]) if state in days_left else arrival
        order = Order(
            order=number,
            customer=email,
            placed=placed,
            state=state,
            items=items,
            shipping=shipping,
            total=round(goods + shipping, 2),
            carrier=carrier,
            tracking=f"{letters}{rng.randrange(10**8, 10**9)}" if sent else None,
            expected=expected if sent else None,
            delivered=arrival if arrived else None,
            returned=returned,
        )
        return ScenarioOrder(order=order, email=email, address=self.address())

    def _lines(
        self, state: str, product: str, alone: bool, one_each: bool
    ) -> tuple[list[Line], list[str]]:
        """Draw the lines of an order, the given product first, and which of them were returned."""
        products, returned = [product], []
        if not alone:
            rows = self.store.all("SELECT id FROM products WHERE id != ? ORDER BY id", product)
            others = [row["id"] for row in rows]
            products += self.rng.sample(others, self.rng.choice(ORDER_SIZES) - 1)
        if state == "partly_returned":
            rows = self.store.all("SELECT id FROM products ORDER BY id")
            others = [row["id"] for row in rows if row["id"] not in products]
            returned.append(self.rng.choice(others))
            products += returned
        return [self._line(product, one_each) for product in products], returned

    def _line(self, product: str, one_each: bool) -> Line:
        row = self.store.one("SELECT price FROM products WHERE id = ?", product)
        quantity = 1 if one_each else self.rng.choice((1, 1, 1, 1, 1, 2, 3))
        variant = self.rng.choice(list(self.store.stock(product)))
        return Line(product=product, variant=variant, quantity=quantity, price=row["price"])

    def _dates(self, state: str, today: date) -> tuple[date, date]:
        """Draw when an order in this state was placed, and when it arrived if it did."""
        rng, return_days = self.rng, self.store.shop.rules.return_days
        if rng.random() < 0.75:
            days_since_arrival = rng.randint(1, max(return_days - 2, 1))
        else:
            days_since_arrival = rng.randrange(return_days + 2, return_days + 90)
        if state in ARRIVED_STATES:
            days_since_placed = days_since_arrival + rng.randrange(2, 8)
        else:
            days_since_placed = rng.randrange(*DAYS_SINCE_PLACED[state])
        return today - timedelta(days_since_placed), today - timedelta(days_since_arrival)

    def _carrier(self) -> tuple[str | None, str]:
        """Draw a carrier of the shop and the letters that its tracking numbers begin with."""
        rows = self.store.all("SELECT carrier, tracking FROM orders WHERE tracking IS NOT NULL")
        carriers = {(row["carrier"], re.sub(r"\d", "", row["tracking"])) for row in rows}
        return self.rng.choice(sorted(carriers)) if carriers else (None, "")


def ascii_name(name: str, word: int) -> str:
    """Return the first (0) or last (-1) word of a name in a-z, as it stands in e-mail addresses."""
    part = name.replace("ø", "o").replace("ł", "l").replace("ı", "i").replace("æ", "ae")
    part = unicodedata.normalize("NFKD", part.split()[word].casefold())
    return re.sub("[^a-z]", "", part) or "post"
