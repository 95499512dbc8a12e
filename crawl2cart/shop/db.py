"""The shop as a SQLite database: products with full-text search, orders, stock and policies.

`open_store(folder)` builds it in memory from a folder like data/store. Each conversation works on a copy of its own, which
can be hashed and reset. All SQL is parametrised. FTS5 and bm25: https://sqlite.org/fts5.html
"""

import hashlib
import re
import sqlite3
from datetime import date
from functools import cached_property
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.shop.data_model import (
    SORTS,
    Customer,
    Department,
    Order,
    Product,
    Review,
    Shop,
    format_value,
)
from crawl2cart.shop.loader import read_departments, read_one, read_policy, rows

SCHEMA = """
CREATE TABLE products (id TEXT PRIMARY KEY, name TEXT COLLATE NOCASE UNIQUE, brand TEXT COLLATE NOCASE, department TEXT, category TEXT,
                       price REAL, rating REAL, warranty_months INT, held_out INT);
CREATE TABLE attributes (product TEXT, name TEXT, value TEXT);
CREATE TABLE variants (product TEXT, name TEXT COLLATE NOCASE, stock INT CHECK (stock >= 0), PRIMARY KEY (product, name));
CREATE TABLE reviews (product TEXT, rating INT, text TEXT, pinned INT DEFAULT 0);
CREATE TABLE customers (id TEXT PRIMARY KEY, email TEXT COLLATE NOCASE UNIQUE, address TEXT);
CREATE TABLE orders (id TEXT PRIMARY KEY COLLATE NOCASE, customer TEXT, placed TEXT, state TEXT, shipping REAL, total REAL,
                     carrier TEXT, tracking TEXT, expected TEXT, delivered TEXT, address TEXT);
CREATE TABLE lines ("order" TEXT, product TEXT, variant TEXT COLLATE NOCASE, quantity INT, price REAL, returned INT, exchanged INT);
CREATE TABLE policies (topic TEXT, title TEXT, section TEXT, heading TEXT, text TEXT, PRIMARY KEY (topic, section));
CREATE TABLE tickets (reason TEXT);
CREATE VIRTUAL TABLE catalogue USING fts5 (product UNINDEXED, name, brand, kind, details, description, tokenize = 'porter unicode61');
"""
# What a conversation can change. No rows go or come but at the end, so the order of rows is fixed.
STATE = (
    "SELECT id, state, address FROM orders",
    "SELECT stock FROM variants",
    "SELECT variant, returned, exchanged FROM lines",
    "SELECT reason FROM tickets",
)
# Weights of the columns of `catalogue` in bm25: a word of the name counts more than one of the description.
WEIGHTS = "0, 10, 6, 6, 3, 1"
ORDER_BY = {
    "rating": "rating DESC, price",
    "price_low": "price, rating DESC",
    "price_high": "price DESC, rating DESC",
}
assert set(ORDER_BY) == set(SORTS)


class NoSuchProduct(LookupError):
    """No product, or several, go by that name. `args[1]` lists the names of several."""


class ShopDB:
    """One copy of the shop's database. `shop` holds its name, today's date and its rules."""

    def __init__(self, database: bytes, shop: Shop, departments: dict[str, Department]):
        self.shop, self.departments = shop, departments
        self._start = database
        self.db = sqlite3.connect(":memory:", check_same_thread=False)
        self.reset()

    def reset(self) -> None:
        """Back to the state in which this copy was made."""
        self.db.deserialize(self._start)
        self.db.row_factory = sqlite3.Row

    def copy(self) -> "ShopDB":
        """A store of its own with the present state of this one."""
        return ShopDB(self.db.serialize(), self.shop, self.departments)

    def state_hash(self) -> str:
        """Equal hashes mean equal orders, stock and tickets."""
        cursor, state = self.db.cursor(), hashlib.sha256()
        cursor.row_factory = None
        for query in STATE:
            state.update(repr(cursor.execute(f"{query} ORDER BY rowid").fetchall()).encode())
        return state.hexdigest()[:16]

    def one(self, sql: str, *values: object) -> sqlite3.Row | None:
        return self.db.execute(sql, values).fetchone()

    def all(self, sql: str, *values: object) -> list[sqlite3.Row]:
        return self.db.execute(sql, values).fetchall()

    # Products

    def product(self, reference: str) -> sqlite3.Row:
        """The product with this id or name, or the only one whose name, brand and kind hold all the words.

        Raises NoSuchProduct.
        """
        reference = " ".join(reference.split())
        row = self.one(
            "SELECT * FROM products WHERE id = ? OR name = ?", reference.upper(), reference
        )
        if row:
            return row
        words = re.findall(r"\w+", reference)
        match = "{name brand kind} : (" + " AND ".join(f'"{word}"' for word in words) + ")"
        found = (
            self.all(
                "SELECT p.* FROM catalogue c JOIN products p ON p.id = c.product WHERE catalogue MATCH ? ORDER BY p.id",
                match,
            )
            if words
            else []
        )
        if len(found) != 1:
            raise NoSuchProduct(reference, [row["name"] for row in found])
        return found[0]

    def categories(self, word: str) -> list[str]:
        """The categories that a word of the customer's names: singular, plural, part of it (`lamps`), or a department."""
        word = " ".join(word.casefold().split())
        inside = {}
        for key, department in self.departments.items():
            if word in (key.casefold(), department.title.casefold()):
                return list(department.categories)
            for name, category in department.categories.items():
                if word in (name.casefold(), category.plural.casefold()):
                    return [name]
                inside[name] = set(f"{name} {category.plural}".casefold().split())
        words = set(word.split())
        return [name for name, known in inside.items() if words and words <= known]

    def search(
        self,
        query: str | None = None,
        category: str | None = None,
        brand: str | None = None,
        min_price: float | None = None,
        max_price: float | None = None,
        variant: str | None = None,
        sort: str | None = None,
        limit: int = 3,
    ) -> list[sqlite3.Row]:
        """Products that meet every condition, at most `limit`; columns of `products` and `stock` over all variants.

        With a query the best match stands first (bm25; all words if some product has them all, else any), otherwise the best rated.
        variant: only products that have it in stock. A category that the shop does not know is searched for as words.
        """
        conditions, values = ["1"], []
        if category:
            known = self.categories(category)
            if known:
                conditions.append(f"p.category IN ({', '.join('?' * len(known))})")
                values += known
            else:
                query = f"{category} {query or ''}"
        for condition, value in (
            ("p.brand = ? COLLATE NOCASE", brand),
            ("p.price >= ?", min_price),
            ("p.price <= ?", max_price),
            (
                "EXISTS (SELECT 1 FROM variants v WHERE v.product = p.id AND v.name = ? AND v.stock > 0)",
                variant,
            ),
        ):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        stock = "(SELECT SUM(stock) FROM variants v WHERE v.product = p.id) AS stock"
        where = " AND ".join(conditions)
        words = re.findall(r"\w+", query or "")
        if not words:
            order = ORDER_BY[sort or "rating"]
            return self.all(
                f"SELECT p.*, {stock} FROM products p WHERE {where} ORDER BY {order}, p.id LIMIT ?",
                *values,
                limit,
            )
        order = ORDER_BY[sort] if sort else f"bm25(catalogue, {WEIGHTS})"
        for joint in (" AND ", " OR "):
            match = joint.join(f'"{word}"' for word in words)
            found = self.all(
                f"SELECT p.*, {stock} FROM catalogue JOIN products p ON p.id = catalogue.product WHERE {where} "
                f"AND catalogue MATCH ? ORDER BY {order}, p.id LIMIT ?",
                *values,
                match,
                limit,
            )
            if found:
                return found
        return []

    def attributes(self, product: str) -> dict[str, str]:
        found = self.all(
            "SELECT name, value FROM attributes WHERE product = ? ORDER BY rowid", product
        )
        return {row["name"]: row["value"] for row in found}

    def stock(self, product: str) -> dict[str, int]:
        found = self.all(
            "SELECT name, stock FROM variants WHERE product = ? ORDER BY rowid", product
        )
        return {row["name"]: row["stock"] for row in found}

    def review(self, product: str) -> str | None:
        """The review that the shop has pinned to the product, if any: the newest."""
        row = self.one(
            "SELECT text FROM reviews WHERE product = ? AND pinned ORDER BY rowid DESC LIMIT 1",
            product,
        )
        return row["text"] if row else None

    # Orders

    def order(self, number: str) -> sqlite3.Row | None:
        """The order with its customer's e-mail, or None."""
        return self.one(
            "SELECT o.*, c.email FROM orders o JOIN customers c ON c.id = o.customer WHERE o.id = ?",
            number.strip(),
        )

    def orders_of(self, email: str) -> list[sqlite3.Row]:
        """The customer's orders, newest first."""
        return self.all(
            "SELECT o.* FROM orders o JOIN customers c ON c.id = o.customer WHERE c.email = ? "
            "ORDER BY o.placed DESC, o.id",
            email,
        )

    def lines(self, order: str) -> list[sqlite3.Row]:
        return self.all(
            "SELECT l.*, p.name, p.category FROM lines l JOIN products p ON p.id = l.product "
            'WHERE l."order" = ? ORDER BY l.rowid',
            order,
        )

    def days_since(self, day: str) -> int:
        return (self.shop.today - date.fromisoformat(day)).days

    def return_blocked_reason(
        self, order: sqlite3.Row, line: sqlite3.Row, exchange: bool = False
    ) -> str | None:
        """Why the rules do not let this line come back, as a clause; None if they do."""
        rules = self.shop.rules
        states, days = (
            (rules.exchange_states, rules.exchange_days)
            if exchange
            else (rules.return_states, rules.return_days)
        )
        if order["state"] == "cancelled":
            return "the order was cancelled"
        if line["returned"]:
            return "it was already returned"
        if order["state"] not in states:
            return "it is not delivered yet"
        if line["category"] in rules.non_returnable_categories:
            return f"{self.plural(line['category'])} cannot come back"
        if self.days_since(order["delivered"]) > days:
            return f"the {days} days are over"
        return "it was exchanged before" if exchange and line["exchanged"] else None

    def plural(self, category: str) -> str:
        return next(
            d.categories[category].plural
            for d in self.departments.values()
            if category in d.categories
        )

    def cancel(self, order: str) -> float:
        """Cancels the order, puts its goods back on sale and returns what is refunded."""
        with self.db:
            self.db.execute("UPDATE orders SET state = 'cancelled' WHERE id = ?", (order,))
            for line in self.lines(order):
                self.db.execute(
                    "UPDATE variants SET stock = stock + ? WHERE product = ? AND name = ?",
                    (line["quantity"], line["product"], line["variant"]),
                )
        return self.order(order)["total"]

    def return_items(self, order: str, products: list[str]) -> float:
        """Marks the lines of these products as returned and returns the refund. Delivery is not refunded."""
        with self.db:
            marks = ", ".join("?" * len(products))
            self.db.execute(
                f'UPDATE lines SET returned = 1 WHERE "order" = ? AND product IN ({marks})',
                (order, *products),
            )
            lines = self.lines(order)
            state = "returned" if all(line["returned"] for line in lines) else "partly_returned"
            self.db.execute("UPDATE orders SET state = ? WHERE id = ?", (state, order))
        return sum(
            line["price"] * line["quantity"] for line in lines if line["product"] in products
        )

    def exchange(self, order: str, product: str, variant: str) -> None:
        """Reserves the new variant for the order's line of this product. Raises sqlite3.IntegrityError if too few are left."""
        with self.db:
            self.db.execute(
                'UPDATE variants SET stock = stock - (SELECT quantity FROM lines WHERE "order" = ? AND product = ?) '
                "WHERE product = ? AND name = ?",
                (order, product, product, variant),
            )
            self.db.execute(
                'UPDATE lines SET variant = ?, exchanged = 1 WHERE "order" = ? AND product = ?',
                (variant, order, product),
            )

    def change_address(self, order: str, address: str) -> None:
        with self.db:
            self.db.execute("UPDATE orders SET address = ? WHERE id = ?", (address, order))

    def open_ticket(self, reason: str) -> None:
        with self.db:
            self.db.execute("INSERT INTO tickets VALUES (?)", (reason,))

    # Policies

    def policy(self, topic: str) -> list[sqlite3.Row]:
        return self.all(
            "SELECT * FROM policies WHERE topic = ? ORDER BY CAST(section AS INT)",
            topic.casefold().strip().replace(" ", "-"),
        )

    @cached_property
    def topics(self) -> list[str]:
        return [
            row["topic"] for row in self.all("SELECT DISTINCT topic FROM policies ORDER BY topic")
        ]

    # What the dialogues' builder changes in a copy

    def remove_products(self, products: set[str]) -> None:
        """Takes products out of the catalogue, together with every order that holds one."""
        with self.db:
            for product in sorted(products):
                self.db.execute(
                    'DELETE FROM orders WHERE id IN (SELECT "order" FROM lines WHERE product = ?)',
                    (product,),
                )
                for table, column in (
                    ("products", "id"),
                    ("attributes", "product"),
                    ("variants", "product"),
                    ("reviews", "product"),
                    ("catalogue", "product"),
                ):
                    self.db.execute(f"DELETE FROM {table} WHERE {column} = ?", (product,))
            self.db.execute('DELETE FROM lines WHERE "order" NOT IN (SELECT id FROM orders)')

    def remove_reviews(self, texts: set[str]) -> None:
        with self.db:
            self.db.executemany(
                "DELETE FROM reviews WHERE text = ?", [(text,) for text in sorted(texts)]
            )

    def add_order(self, order: Order, email: str, address: str) -> None:
        """Files an order, and its customer with this e-mail if there is none yet. Raises sqlite3.IntegrityError if the number is taken."""
        with self.db:
            self.db.execute(
                "INSERT OR IGNORE INTO customers VALUES (?, ?, ?)", (order.customer, email, address)
            )
            self.db.execute(
                "INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    order.order,
                    order.customer,
                    order.placed.isoformat(),
                    order.state,
                    order.shipping,
                    order.total,
                    order.carrier,
                    order.tracking,
                    order.expected and order.expected.isoformat(),
                    order.delivered and order.delivered.isoformat(),
                    address,
                ),
            )
            for line in order.items:
                self.db.execute(
                    "INSERT INTO lines VALUES (?, ?, ?, ?, ?, ?, 0)",
                    (
                        order.order,
                        line.product,
                        line.variant,
                        line.quantity,
                        line.price,
                        line.product in order.returned,
                    ),
                )

    def set_stock(self, product: str, variant: str, number: int) -> None:
        with self.db:
            self.db.execute(
                "UPDATE variants SET stock = ? WHERE product = ? AND name = ?",
                (number, product, variant),
            )

    def pin_review(self, product: str, text: str) -> None:
        with self.db:
            self.db.execute("INSERT INTO reviews VALUES (?, 5, ?, 1)", (product, text))


def open_store(folder: Path | str) -> ShopDB:
    """Reads a shop's folder into a new store. Raises UserError with file, line and field of what is wrong."""
    folder = Path(folder)
    shop = read_one(folder / "shop.json", Shop)
    departments = read_departments(folder / "departments.json")
    db = sqlite3.connect(":memory:")
    db.executescript(SCHEMA)
    units = {
        name: category.attributes
        for department in departments.values()
        for name, category in department.categories.items()
    }
    plurals = {
        name: category.plural
        for department in departments.values()
        for name, category in department.categories.items()
    }
    try:
        for p in rows(folder / "products", Product):
            if p.category not in units:
                raise UserError(
                    f"{folder}/products: {p.id} is of category {p.category}, which departments.json does not have."
                )
            attributes = {
                name: format_value(value, units[p.category].get(name, ""))
                for name, value in p.attributes.items()
            }
            db.execute(
                "INSERT INTO products VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    p.id,
                    p.name,
                    p.brand,
                    p.department,
                    p.category,
                    p.price,
                    p.rating,
                    p.warranty_months,
                    p.held_out,
                ),
            )
            db.executemany(
                "INSERT INTO attributes VALUES (?, ?, ?)",
                [(p.id, *pair) for pair in attributes.items()],
            )
            db.executemany(
                "INSERT INTO variants VALUES (?, ?, ?)",
                [(p.id, v.name, v.stock) for v in p.variants],
            )
            details = " ".join(
                [
                    *(f"{name} {value}" for name, value in attributes.items()),
                    *(v.name for v in p.variants),
                ]
            )
            db.execute(
                "INSERT INTO catalogue VALUES (?, ?, ?, ?, ?, ?)",
                (
                    p.id,
                    p.name,
                    p.brand,
                    f"{p.category} {plurals[p.category]} {p.department}",
                    details,
                    p.description,
                ),
            )
        db.executemany(
            "INSERT INTO reviews VALUES (?, ?, ?, 0)",
            [(r.product, r.rating, r.text) for r in rows(folder / "reviews", Review)],
        )
        for file in sorted((folder / "policies").glob("*.md")):
            db.executemany(
                "INSERT INTO policies VALUES (:topic, :title, :section, :heading, :text)",
                [section.model_dump() for section in read_policy(file)],
            )
        db.commit()
        store = ShopDB(db.serialize(), shop, departments)
        customers = {c.id: c for c in rows(folder / "customers", Customer)}
        for order in rows(folder / "orders", Order):
            customer = customers.get(order.customer)
            if not customer:
                raise UserError(
                    f"{folder}/orders: {order.order} is of customer {order.customer}, who is not among the customers."
                )
            store.add_order(order, customer.email, str(customer.address))
    except sqlite3.IntegrityError as error:
        raise UserError(
            f"{folder}: two records share what must be unique ({error}). "
            f"`python -m crawl2cart.dialogues.validate {folder}` names them."
        ) from error
    return store.copy()
