"""Checks the facts of a shop's folder and names every fault by file, line and field, with what is expected and what was found."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from crawl2cart.core.errors import UserError
from crawl2cart.shop.data_model import Category, Customer, Order, Product, Record, Review, Shop
from crawl2cart.shop.loader import (
    files_of,
    line_of,
    read_departments,
    read_lines,
    read_one,
    read_policy,
    read_text,
)

ARRIVED = ("delivered", "partly_returned", "returned")
# An order of three lines, one of which came back, and one product more to be asked about.
LEAST_PRODUCTS = 4
LEAST_HELD_OUT = 2
Found = TypeVar("Found")


class Faults(list[str]):
    """What is wrong, each as `file:line: field: what is expected, what was found`."""

    def expect(self, holds: bool, place: object, fault: str) -> None:
        if not holds:
            self.append(f"{place}: {fault}")

    def unique(self, field: str, entries: Iterable[tuple[object, str]]) -> None:
        """entries: places with the value that no two may share, whatever its case and spaces."""
        first: dict[str, object] = {}
        for place, value in entries:
            key = " ".join(value.casefold().split())
            self.expect(
                key not in first,
                place,
                f"{field}: expected another than that of {first.get(key)}, found {value!r}",
            )
            first.setdefault(key, place)

    def tried(self, read: Callable[[], Found], otherwise: Found | None = None) -> Found | None:
        """What `read` returns; a UserError is noted, and `otherwise` returned."""
        try:
            return read()
        except UserError as problem:
            self += [
                line
                for line in str(problem).splitlines()
                if line not in self and not line.startswith("`")
            ]
            return otherwise


class Check:
    """Reads a folder; `faults` and `counts` are what it found, `notes` what the shop goes without."""

    def __init__(self, folder: Path):
        self.folder, self.faults = folder, Faults()
        self.shop: Shop | None = self.faults.tried(lambda: read_one(folder / "shop.json", Shop))
        self.departments = self.faults.tried(
            lambda: read_departments(folder / "departments.json"), {}
        )
        self.categories: dict[str, Category] = {
            name: category
            for department in self.departments.values()
            for name, category in department.categories.items()
        }
        policies = sorted((folder / "policies").glob("*.md"))
        sections = [
            section
            for file in policies
            for section in self.faults.tried(lambda file=file: read_policy(file), [])
        ]
        self.faults.expect(
            bool(policies),
            folder / "policies",
            "missing; expected at least one file topic.md with numbered sections",
        )
        self.notes: list[str] = []
        self.unread: set[type] = (
            set()
        )  # kinds of which a line could not be read, so that what points at it is not known to be wrong
        self.lines = {
            kind: self._lines(name, kind)
            for kind, name in (
                (Product, "products"),
                (Review, "reviews"),
                (Customer, "customers"),
                (Order, "orders"),
            )
        }
        self.products = {product.id: product for _, product in self.lines[Product]}
        self._departments()
        self._products()
        self._reviews()
        self._orders()
        self.counts = {kind.__name__.lower(): len(found) for kind, found in self.lines.items()} | {
            "section": len(sections),
            "department": len(self.departments),
            "category": len(self.categories),
        }

    def _lines(self, name: str, kind: type[Record]) -> list[tuple[str, Record]]:
        """Each record with its place, `file:line`."""
        before = len(self.faults)
        files = self.faults.tried(lambda: files_of(self.folder / name), [])
        found = [
            (f"{file}:{number}", record)
            for file in files
            for number, record in read_lines(file, kind, self.faults)
        ]
        if files and not found and len(self.faults) == before:
            self.faults.append(
                f"{self.folder / name}: expected at least one {kind.__name__.lower()}, found none"
            )
        if len(self.faults) > before:
            self.unread.add(kind)
            if kind in (Product, Customer):
                self.notes.append(
                    f"what points at {name} was not checked: all of them have to be read first"
                )
        return found

    def _refers(
        self, place: str, field: str, kind: type[Record], known: set[str], value: str
    ) -> None:
        """A value that has to be the id of a record of this kind."""
        self.faults.expect(
            kind in self.unread or value in known,
            place,
            f"{field}: expected the id of a {kind.__name__.lower()}, found {value!r}",
        )

    def _departments(self) -> None:
        place = self.folder / "departments.json"
        self.faults.unique(
            "category",
            (
                (f"{place}: {key}", name)
                for key, department in self.departments.items()
                for name in department.categories
            ),
        )
        names = {name.casefold() for name in self.categories}
        for name, category in self.categories.items():
            plural = category.plural.casefold()
            self.faults.expect(
                plural == name.casefold() or plural not in names,
                place,
                f"{name}.plural: expected no other category's name, found {category.plural!r}",
            )
        if self.shop:
            place, text = self.folder / "shop.json", read_text(self.folder / "shop.json")
            for number, name in enumerate(
                self.shop.rules.non_returnable_categories if self.categories else ()
            ):
                self.faults.expect(
                    name in self.categories,
                    f"{place}:{line_of(text, ('non_returnable_categories', name), '')}",
                    f"rules.non_returnable_categories.{number}: expected a category of departments.json, found {name!r}",
                )
            self.faults.expect(
                self.shop.currency.endswith("D"),
                f"{place}:{line_of(text, ('currency',), '')}",
                "currency: expected a "
                f"dollar such as USD, since all that is said writes prices with $, found {self.shop.currency!r}",
            )

    def _products(self) -> None:
        lines, expect = self.lines[Product], self.faults.expect
        self.faults.unique("id", ((place, product.id) for place, product in lines))
        # Customers, tools and checks tell products apart by these (consent.short).
        self.faults.unique(
            "the first two words of name",
            ((place, " ".join(product.name.split()[:2])) for place, product in lines),
        )
        for place, product in lines:
            expect(
                len(product.name.split()) > 1,
                place,
                f"name: expected at least two words, found {product.name!r}",
            )
            department = self.departments.get(product.department)
            expect(
                not self.departments or department is not None,
                place,
                f"department: expected one of departments.json ({', '.join(self.departments)}), found {product.department!r}",
            )
            category = department.categories.get(product.category) if department else None
            expect(
                not department or category is not None,
                place,
                f"category: expected one of the department {product.department!r} "
                f"({', '.join(department.categories if department else ())}), found {product.category!r}",
            )
            self._attributes(place, product, category)
            self._money(place, "price", product.price)
            expect(
                not self.shop or product.currency == self.shop.currency,
                place,
                f"currency: expected {self.shop and self.shop.currency!r}, as in shop.json, found {product.currency!r}",
            )
            self.faults.unique("variants", ((place, variant.name) for variant in product.variants))
            for number, other in enumerate(product.related):
                self._refers(
                    place, f"related.{number}", Product, set(self.products) - {product.id}, other
                )
        held_out = sum(product.held_out for _, product in lines)
        expect(
            not lines or held_out >= LEAST_HELD_OUT,
            self.folder / "products",
            f"held_out: expected true for at least {LEAST_HELD_OUT} "
            f"products, one for validation and one for test (a sixth is better), found {held_out}",
        )
        expect(
            not lines or len(lines) - held_out >= LEAST_PRODUCTS,
            self.folder / "products",
            f"held_out: expected false for at least {LEAST_PRODUCTS} products, found {len(lines) - held_out}",
        )

    def _attributes(self, place: str, product: Product, category: Category | None) -> None:
        for name, value in product.attributes.items() if category else ():
            self.faults.expect(
                name in category.attributes,
                place,
                f"attributes.{name}: expected one that departments.json lists for "
                f"{product.category} ({', '.join(category.attributes)})",
            )
            unit = category.attributes.get(name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            self.faults.expect(
                not unit or number,
                place,
                f"attributes.{name}: expected a number of {unit}, found {value!r}",
            )

    def _money(self, place: str, field: str, amount: float) -> None:
        self.faults.expect(
            abs(amount - round(amount, 2)) < 1e-9,
            place,
            f"{field}: expected at most two decimals, found {amount}",
        )

    def _reviews(self) -> None:
        for place, review in self.lines[Review]:
            self._refers(place, "product", Product, set(self.products), review.product)
        self.faults.unique(
            "text",
            ((place, f"{review.product} {review.text}") for place, review in self.lines[Review]),
        )

    def _orders(self) -> None:
        customers = {customer.id for _, customer in self.lines[Customer]}
        self.faults.unique("id", ((place, customer.id) for place, customer in self.lines[Customer]))
        self.faults.unique(
            "email", ((place, customer.email) for place, customer in self.lines[Customer])
        )
        self.faults.unique("order", ((place, order.order) for place, order in self.lines[Order]))
        for place, order in self.lines[Order]:
            self._refers(place, "customer", Customer, customers, order.customer)
            self._items(place, order)
            self._dates(place, order)
        tracked = any(order.tracking for _, order in self.lines[Order])
        self.faults.expect(
            tracked or not self.lines[Order],
            self.folder / "orders",
            "tracking: expected at least one order with a carrier and a number, as a pattern for those of the dialogues",
        )

    def _items(self, place: str, order: Order) -> None:
        expect, bought = self.faults.expect, [line.product for line in order.items]
        self.faults.unique("items", ((place, product) for product in bought))
        for number, line in enumerate(order.items):
            product = self.products.get(line.product)
            self._refers(
                place, f"items.{number}.product", Product, set(self.products), line.product
            )
            known = [variant.name for variant in product.variants] if product else [line.variant]
            expect(
                line.variant in known,
                place,
                f"items.{number}.variant: expected one of {', '.join(known)}, found {line.variant!r}",
            )
            self._money(place, f"items.{number}.price", line.price)
        total = round(sum(line.price * line.quantity for line in order.items) + order.shipping, 2)
        expect(
            abs(total - order.total) < 0.005,
            place,
            f"total: expected {total:.2f}, to which lines and shipping add up, found {order.total:.2f}",
        )
        back, some, all_back = (
            ", ".join(order.returned) or "none",
            bool(order.returned),
            set(order.returned) == set(bought),
        )
        expect(
            set(order.returned) <= set(bought),
            place,
            f"returned: expected only products of the order, found {back}",
        )
        fits, expected = {
            "partly_returned": (some and not all_back, "some of the products, not all"),
            "returned": (all_back, "all products"),
        }.get(order.state, (not some, "none"))
        expect(fits, place, f"returned: expected {expected} when {order.state}, found {back}")

    def _dates(self, place: str, order: Order) -> None:
        expect = self.faults.expect
        expect(
            (order.delivered is not None) == (order.state in ARRIVED),
            place,
            f"delivered: expected {'a date' if order.state in ARRIVED else 'null'} when {order.state}, found {order.delivered}",
        )
        expect(
            (order.carrier is None) == (order.tracking is None),
            place,
            f"tracking: expected together with carrier, found {order.tracking!r} with {order.carrier!r}",
        )
        if order.state in ("shipped", "delayed"):
            for field in ("carrier", "expected"):
                expect(
                    getattr(order, field) is not None,
                    place,
                    f"{field}: expected a value when {order.state}, found null",
                )
        for field in ("placed", "delivered"):
            day = getattr(order, field)
            expect(
                not self.shop or not day or day <= self.shop.today,
                place,
                f"{field}: expected no day after the shop's today, found {day}",
            )
        for field in ("expected", "delivered"):
            day = getattr(order, field)
            expect(
                not day or day >= order.placed,
                place,
                f"{field}: expected no day before it was placed, {order.placed}, found {day}",
            )
