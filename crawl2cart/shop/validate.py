"""Check the facts of a shop's folder; name every fault by file, line and field."""

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
# An order of three lines, one of which came back, and one more product to ask about.
MIN_PRODUCTS = 4
MIN_HELD_OUT = 2  # one for validation, one for test
NAMES: dict[type[Record], str] = {
    Product: "products",
    Review: "reviews",
    Customer: "customers",
    Order: "orders",
}
Result = TypeVar("Result")


class Faults(list[str]):
    """What is wrong, each as `file:line: field: expected …, found …`."""

    def expect(self, holds: bool, place: object, fault: str) -> None:
        """Add the fault unless the condition holds."""
        if not holds:
            self.append(f"{place}: {fault}")

    def expect_unique(self, field: str, entries: Iterable[tuple[object, str]]) -> None:
        """Add a fault for each value that an earlier one equals, whatever its case and spaces.

        entries: places and values.
        """
        first: dict[str, object] = {}
        for place, value in entries:
            key = " ".join(value.casefold().split())
            self.expect(
                key not in first,
                place,
                f"{field}: expected another than that of {first.get(key)}, found {value!r}",
            )
            first.setdefault(key, place)

    def collect(self, read: Callable[[], Result], default: Result | None = None) -> Result | None:
        """Return what `read` returns; if it raises UserError, add its faults, return `default`."""
        try:
            return read()
        except UserError as error:
            lines = str(error).splitlines()
            self += [line for line in lines if line not in self and not line.startswith("`")]
            return default


class Check:
    """Reads and checks the facts of a shop.

    `faults` is what is wrong, `counts` what was read, `notes` what the shop goes without.
    """

    def __init__(self, folder: Path):
        self.folder, self.faults = folder, Faults()
        self.notes: list[str] = []
        self.shop: Shop | None = self.faults.collect(lambda: read_one(folder / "shop.json", Shop))
        file = folder / "departments.json"
        self.departments = self.faults.collect(lambda: read_departments(file), {})
        self.categories: dict[str, Category] = {
            name: category
            for department in self.departments.values()
            for name, category in department.categories.items()
        }
        sections = self._count_sections()
        # Kinds with lines that cannot be read. What refers to them may be right.
        self.unreadable: set[type] = set()
        self.lines = {kind: self._read(kind) for kind in NAMES}
        self.products = {product.id: product for _, product in self.lines[Product]}
        self._check_departments()
        self._check_products()
        self._check_reviews()
        self._check_customers()
        self._check_orders()
        self.counts = {kind.__name__.lower(): len(lines) for kind, lines in self.lines.items()} | {
            "section": sections,
            "department": len(self.departments),
            "category": len(self.categories),
        }

    def _count_sections(self) -> int:
        files = sorted((self.folder / "policies").glob("*.md"))
        self.faults.expect(
            bool(files),
            self.folder / "policies",
            "missing; expected at least one file topic.md with numbered sections",
        )
        return sum(
            len(self.faults.collect(lambda file=file: read_policy(file), [])) for file in files
        )

    def _read(self, kind: type[Record]) -> list[tuple[str, Record]]:
        """Return each record of a kind with its place, `file:line`."""
        name, faults_before = NAMES[kind], len(self.faults)
        files = self.faults.collect(lambda: files_of(self.folder / name), [])
        lines = [
            (f"{file}:{number}", record)
            for file in files
            for number, record in read_lines(file, kind, self.faults)
        ]
        if files and not lines and len(self.faults) == faults_before:
            what = kind.__name__.lower()
            self.faults.append(f"{self.folder / name}: expected at least one {what}, found none")
        if len(self.faults) > faults_before:
            self.unreadable.add(kind)
            if kind in (Product, Customer):
                self.notes.append(
                    f"references to {name} were not checked: mend the faults of {name} first"
                )
        return lines

    def _expect_known(
        self, place: str, field: str, kind: type[Record], known: set[str], value: str
    ) -> None:
        """Expect the id of a record of this kind."""
        self.faults.expect(
            kind in self.unreadable or value in known,
            place,
            f"{field}: expected the id of a {kind.__name__.lower()}, found {value!r}",
        )

    def _expect_cents(self, place: str, field: str, amount: float) -> None:
        self.faults.expect(
            abs(amount - round(amount, 2)) < 1e-9,
            place,
            f"{field}: expected at most two decimals, found {amount}",
        )

    # Departments and rules

    def _check_departments(self) -> None:
        file = self.folder / "departments.json"
        entries = [
            (f"{file}: {key}", name)
            for key, department in self.departments.items()
            for name in department.categories
        ]
        self.faults.expect_unique("category", entries)
        names = {name.casefold() for name in self.categories}
        for name, category in self.categories.items():
            plural = category.plural.casefold()
            self.faults.expect(
                plural == name.casefold() or plural not in names,
                file,
                f"{name}.plural: expected no other category's name, found {category.plural!r}",
            )
        if self.shop:
            self._check_shop(self.shop)

    def _check_shop(self, shop: Shop) -> None:
        file = self.folder / "shop.json"
        text = read_text(file)
        names = shop.rules.non_returnable_categories if self.categories else ()
        for number, name in enumerate(names):
            line = line_of(text, ("non_returnable_categories", name), "")
            self.faults.expect(
                name in self.categories,
                f"{file}:{line}",
                f"rules.non_returnable_categories.{number}: expected a category of "
                f"departments.json, found {name!r}",
            )
        self.faults.expect(
            shop.currency.endswith("D"),
            f"{file}:{line_of(text, ('currency',), '')}",
            "currency: expected a dollar such as USD, since the texts write prices with $, "
            f"found {shop.currency!r}",
        )

    # Products and reviews

    def _check_products(self) -> None:
        lines = self.lines[Product]
        self.faults.expect_unique("id", ((place, product.id) for place, product in lines))
        # Customers, tools and checks tell products apart by these (confirmation.short_name).
        self.faults.expect_unique(
            "the first two words of name",
            ((place, " ".join(product.name.split()[:2])) for place, product in lines),
        )
        for place, product in lines:
            self._check_product(place, product)
        held_out = sum(product.held_out for _, product in lines)
        others = len(lines) - held_out
        self.faults.expect(
            not lines or held_out >= MIN_HELD_OUT,
            self.folder / "products",
            f"held_out: expected true for at least {MIN_HELD_OUT} products, one for validation and "
            f"one for test (a sixth is better), found {held_out}",
        )
        self.faults.expect(
            not lines or others >= MIN_PRODUCTS,
            self.folder / "products",
            f"held_out: expected false for at least {MIN_PRODUCTS} products, found {others}",
        )

    def _check_product(self, place: str, product: Product) -> None:
        expect = self.faults.expect
        expect(
            len(product.name.split()) > 1,
            place,
            f"name: expected at least two words, found {product.name!r}",
        )
        department = self.departments.get(product.department)
        expect(
            not self.departments or department is not None,
            place,
            f"department: expected one of departments.json ({', '.join(self.departments)}), "
            f"found {product.department!r}",
        )
        category = department.categories.get(product.category) if department else None
        known = ", ".join(department.categories if department else ())
        expect(
            not department or category is not None,
            place,
            f"category: expected one of the department {product.department!r} ({known}), "
            f"found {product.category!r}",
        )
        if category:
            self._check_attributes(place, product, category)
        self._expect_cents(place, "price", product.price)
        expect(
            not self.shop or product.currency == self.shop.currency,
            place,
            f"currency: expected {self.shop and self.shop.currency!r}, as in shop.json, "
            f"found {product.currency!r}",
        )
        variants = ((place, variant.name) for variant in product.variants)
        self.faults.expect_unique("variants", variants)
        others = set(self.products) - {product.id}
        for number, other in enumerate(product.related):
            self._expect_known(place, f"related.{number}", Product, others, other)

    def _check_attributes(self, place: str, product: Product, category: Category) -> None:
        for name, value in product.attributes.items():
            self.faults.expect(
                name in category.attributes,
                place,
                f"attributes.{name}: expected one that departments.json lists for "
                f"{product.category} ({', '.join(category.attributes)})",
            )
            unit = category.attributes.get(name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            self.faults.expect(
                not unit or is_number,
                place,
                f"attributes.{name}: expected a number of {unit}, found {value!r}",
            )

    def _check_reviews(self) -> None:
        lines = self.lines[Review]
        for place, review in lines:
            self._expect_known(place, "product", Product, set(self.products), review.product)
        texts = ((place, f"{review.product} {review.text}") for place, review in lines)
        self.faults.expect_unique("text", texts)

    # Customers and orders

    def _check_customers(self) -> None:
        for field in ("id", "email"):
            values = ((place, getattr(line, field)) for place, line in self.lines[Customer])
            self.faults.expect_unique(field, values)

    def _check_orders(self) -> None:
        lines = self.lines[Order]
        customers = {customer.id for _, customer in self.lines[Customer]}
        self.faults.expect_unique("order", ((place, order.order) for place, order in lines))
        for place, order in lines:
            self._expect_known(place, "customer", Customer, customers, order.customer)
            self._check_items(place, order)
            self._check_returned(place, order)
            self._check_dates(place, order)
        self.faults.expect(
            not lines or any(order.tracking for _, order in lines),
            self.folder / "orders",
            "tracking: expected at least one order with a carrier and a number, as a pattern for "
            "those of the dialogues",
        )

    def _check_items(self, place: str, order: Order) -> None:
        self.faults.expect_unique("items", ((place, line.product) for line in order.items))
        for number, line in enumerate(order.items):
            field, product = f"items.{number}", self.products.get(line.product)
            self._expect_known(place, f"{field}.product", Product, set(self.products), line.product)
            variants = [entry.name for entry in product.variants] if product else [line.variant]
            self.faults.expect(
                line.variant in variants,
                place,
                f"{field}.variant: expected one of {', '.join(variants)}, found {line.variant!r}",
            )
            self._expect_cents(place, f"{field}.price", line.price)
        total = round(sum(line.price * line.quantity for line in order.items) + order.shipping, 2)
        self.faults.expect(
            abs(total - order.total) < 0.005,
            place,
            f"total: expected {total:.2f}, to which lines and shipping add up, "
            f"found {order.total:.2f}",
        )

    def _check_returned(self, place: str, order: Order) -> None:
        """Expect the returned products that fit the order's state."""
        bought, returned = {line.product for line in order.items}, set(order.returned)
        names = ", ".join(order.returned) or "none"
        self.faults.expect(
            returned <= bought,
            place,
            f"returned: expected only products of the order, found {names}",
        )
        match order.state:
            case "partly_returned":
                fits, expected = bool(returned) and returned != bought, "some of the products"
                expected += ", not all"
            case "returned":
                fits, expected = returned == bought, "all products"
            case _:
                fits, expected = not returned, "none"
        self.faults.expect(
            fits, place, f"returned: expected {expected} when {order.state}, found {names}"
        )

    def _check_dates(self, place: str, order: Order) -> None:
        """Expect the dates, the carrier and the tracking number that fit the order's state."""
        expect, arrived = self.faults.expect, order.state in ARRIVED
        expect(
            (order.delivered is not None) == arrived,
            place,
            f"delivered: expected {'a date' if arrived else 'null'} when {order.state}, "
            f"found {order.delivered}",
        )
        expect(
            (order.carrier is None) == (order.tracking is None),
            place,
            f"tracking: expected together with carrier, found {order.tracking!r} with "
            f"{order.carrier!r}",
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
