"""The shop as a SQLite database: products with full-text search, orders, stock and policies.

`open_store(folder)` builds it in memory. Each conversation works on its own copy, which can be
hashed and reset. All SQL is parametrised. FTS5 and bm25: https://sqlite.org/fts5.html
"""

import hashlib
import re
import sqlite3
from datetime import date
from functools import cached_property
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.shop.data_model import SORTS, Customer, Department, Order, Shop
from crawl2cart.shop.db_tables import CATALOGUE_WEIGHTS, fill_tables
from crawl2cart.shop.loader import read_departments, read_one, rows

# What a conversation can change. Rows are only added, at the end, so their order is fixed.
STATE_QUERIES = (
    "SELECT id, state, address FROM orders",
    "SELECT stock FROM variants",
    "SELECT variant, returned, exchanged FROM lines",
    "SELECT reason FROM tickets",
)
ORDER_BY = {
    "rating": "rating DESC, price",
    "price_low": "price, rating DESC",
    "price_high": "price DESC, rating DESC",
}
assert set(ORDER_BY) == set(SORTS)
PRODUCT_TABLES = {
    "products": "id",
    "attributes": "product",
    "variants": "product",
    "reviews": "product",
    "catalogue": "product",
}


class NoSuchProduct(LookupError):
    """No product, or several, go by that name. `args[1]` lists the names of several."""


class ShopDB:
    """One copy of the shop's database. `shop` holds its name, today's date and its rules."""

    def __init__(self, database: bytes, shop: Shop, departments: dict[str, Department]):
        self.shop, self.departments = shop, departments
        self._initial = database
        self.db = sqlite3.connect(":memory:", check_same_thread=False)
        self.reset()

    def reset(self) -> None:
        """Restore the state in which this copy was made."""
        self.db.deserialize(self._initial)
        self.db.row_factory = sqlite3.Row

    def copy(self) -> "ShopDB":
        """Return a store of its own with the present state of this one."""
        return ShopDB(self.db.serialize(), self.shop, self.departments)

    def state_hash(self) -> str:
        """Hash orders, stock and tickets. Equal hashes mean equal states."""
        cursor, state = self.db.cursor(), hashlib.sha256()
        cursor.row_factory = None
        for query in STATE_QUERIES:
            state.update(repr(cursor.execute(f"{query} ORDER BY rowid").fetchall()).encode())
        return state.hexdigest()[:16]

    def one(self, sql: str, *values: object) -> sqlite3.Row | None:
        """Return the first row of a query, or None."""
        return self.db.execute(sql, values).fetchone()

    def all(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """Return all rows of a query."""
        return self.db.execute(sql, values).fetchall()

    # Products

    def product(self, reference: str) -> sqlite3.Row:
        """Return the product with this id or name, or the only one whose words fit.

        Words fit if name, brand and kind hold all of them. Raises NoSuchProduct.
        """
        reference = " ".join(reference.split())
        row = self.one(
            "SELECT * FROM products WHERE id = ? OR name = ?", reference.upper(), reference
        )
        if row:
            return row
        words = re.findall(r"\w+", reference)
        matches = []
        if words:
            all_words = " AND ".join(f'"{word}"' for word in words)
            matches = self.all(
                "SELECT p.* FROM catalogue c JOIN products p ON p.id = c.product "
                "WHERE catalogue MATCH ? ORDER BY p.id",
                f"{{name brand kind}} : ({all_words})",
            )
        if len(matches) != 1:
            raise NoSuchProduct(reference, [row["name"] for row in matches])
        return matches[0]

    def categories(self, text: str) -> list[str]:
        """Return the categories that a customer's words name.

        They may be a singular, a plural, a part of it (`lamps`), or a department.
        """
        text = " ".join(text.casefold().split())
        words_of = {}
        for key, department in self.departments.items():
            if text in (key.casefold(), department.title.casefold()):
                return list(department.categories)
            for name, category in department.categories.items():
                if text in (name.casefold(), category.plural.casefold()):
                    return [name]
                words_of[name] = set(f"{name} {category.plural}".casefold().split())
        words = set(text.split())
        return [name for name, known in words_of.items() if words and words <= known]

    def plural(self, category: str) -> str:
        """Return the plural of a category."""
        return next(
            department.categories[category].plural
            for department in self.departments.values()
            if category in department.categories
        )

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
        """Return the products that meet every condition, at most `limit`.

        Columns: those of `products`, and `stock` over all variants. With a query the best match is
        first (bm25; products with all words, or with any if there are none), otherwise the best
        rated. variant: only products that have it in stock. A category that the shop does not know
        becomes part of the query.
        """
        conditions, values = ["1"], []
        if category:
            known = self.categories(category)
            if known:
                conditions.append(f"p.category IN ({', '.join('?' * len(known))})")
                values += known
            else:
                query = f"{category} {query or ''}"
        in_stock = "SELECT 1 FROM variants v WHERE v.product = p.id AND v.name = ? AND v.stock > 0"
        for condition, value in (
            ("p.brand = ? COLLATE NOCASE", brand),
            ("p.price >= ?", min_price),
            ("p.price <= ?", max_price),
            (f"EXISTS ({in_stock})", variant),
        ):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        stock = "(SELECT SUM(stock) FROM variants v WHERE v.product = p.id) AS stock"
        where = " AND ".join(conditions)
        words = re.findall(r"\w+", query or "")
        if not words:
            return self.all(
                f"SELECT p.*, {stock} FROM products p WHERE {where} "
                f"ORDER BY {ORDER_BY[sort or 'rating']}, p.id LIMIT ?",
                *values,
                limit,
            )
        order = ORDER_BY[sort] if sort else f"bm25(catalogue, {CATALOGUE_WEIGHTS})"
        for operator in (" AND ", " OR "):
            matches = self.all(
                f"SELECT p.*, {stock} FROM catalogue JOIN products p ON p.id = catalogue.product "
                f"WHERE {where} AND catalogue MATCH ? ORDER BY {order}, p.id LIMIT ?",
                *values,
                operator.join(f'"{word}"' for word in words),
                limit,
            )
            if matches:
                return matches
        return []

    def attributes(self, product: str) -> dict[str, str]:
        """Return the values of a product's attributes by name."""
        query = "SELECT name, value FROM attributes WHERE product = ? ORDER BY rowid"
        return {row["name"]: row["value"] for row in self.all(query, product)}

    def stock(self, product: str) -> dict[str, int]:
        """Return the stock of a product's variants by name."""
        query = "SELECT name, stock FROM variants WHERE product = ? ORDER BY rowid"
        return {row["name"]: row["stock"] for row in self.all(query, product)}

    def review(self, product: str) -> str | None:
        """Return the newest review that the shop has pinned to the product, if any."""
        row = self.one(
            "SELECT text FROM reviews WHERE product = ? AND pinned ORDER BY rowid DESC LIMIT 1",
            product,
        )
        return row["text"] if row else None

    # Orders

    def order(self, number: str) -> sqlite3.Row | None:
        """Return the order with its customer's e-mail, or None."""
        return self.one(
            "SELECT o.*, c.email FROM orders o JOIN customers c ON c.id = o.customer "
            "WHERE o.id = ?",
            number.strip(),
        )

    def orders_of(self, email: str) -> list[sqlite3.Row]:
        """Return the customer's orders, newest first."""
        return self.all(
            "SELECT o.* FROM orders o JOIN customers c ON c.id = o.customer WHERE c.email = ? "
            "ORDER BY o.placed DESC, o.id",
            email,
        )

    def lines(self, order: str) -> list[sqlite3.Row]:
        """Return the lines of an order with the product's name and category."""
        return self.all(
            "SELECT l.*, p.name, p.category FROM lines l JOIN products p ON p.id = l.product "
            'WHERE l."order" = ? ORDER BY l.rowid',
            order,
        )

    def days_since(self, day: str) -> int:
        """Return the days from an ISO date to the shop's today."""
        return (self.shop.today - date.fromisoformat(day)).days

    def return_blocked_reason(
        self, order: sqlite3.Row, line: sqlite3.Row, exchange: bool = False
    ) -> str | None:
        """Return why the rules do not let this line come back, as a clause; None if they do."""
        rules = self.shop.rules
        states, days = rules.return_states, rules.return_days
        if exchange:
            states, days = rules.exchange_states, rules.exchange_days
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

    def cancel(self, order: str) -> float:
        """Cancel the order, put its goods back on sale, and return the refund."""
        with self.db:
            self.db.execute("UPDATE orders SET state = 'cancelled' WHERE id = ?", (order,))
            for line in self.lines(order):
                self.db.execute(
                    "UPDATE variants SET stock = stock + ? WHERE product = ? AND name = ?",
                    (line["quantity"], line["product"], line["variant"]),
                )
        return self.order(order)["total"]

    def return_items(self, order: str, products: list[str]) -> float:
        """Mark the lines of these products as returned; return the refund, without delivery."""
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
        """Reserve the new variant for the order's line of this product.

        Raises sqlite3.IntegrityError if too few are left.
        """
        with self.db:
            self.db.execute(
                "UPDATE variants SET stock = stock - "
                '(SELECT quantity FROM lines WHERE "order" = ? AND product = ?) '
                "WHERE product = ? AND name = ?",
                (order, product, product, variant),
            )
            self.db.execute(
                'UPDATE lines SET variant = ?, exchanged = 1 WHERE "order" = ? AND product = ?',
                (variant, order, product),
            )

    def change_address(self, order: str, address: str) -> None:
        """Send an order to another address."""
        with self.db:
            self.db.execute("UPDATE orders SET address = ? WHERE id = ?", (address, order))

    def open_ticket(self, reason: str) -> None:
        """Note that a person has to take over."""
        with self.db:
            self.db.execute("INSERT INTO tickets VALUES (?)", (reason,))

    # Policies

    def policy(self, topic: str) -> list[sqlite3.Row]:
        """Return the sections of a policy in their order; none if there is no such topic."""
        return self.all(
            "SELECT * FROM policies WHERE topic = ? ORDER BY CAST(section AS INT)",
            topic.casefold().strip().replace(" ", "-"),
        )

    @cached_property
    def topics(self) -> list[str]:
        """The topics of all policies, sorted."""
        rows = self.all("SELECT DISTINCT topic FROM policies ORDER BY topic")
        return [row["topic"] for row in rows]

    # What a scenario changes in a copy

    def remove_products(self, products: set[str]) -> None:
        """Take products out of the catalogue, together with every order that holds one."""
        with self.db:
            for product in sorted(products):
                self.db.execute(
                    'DELETE FROM orders WHERE id IN (SELECT "order" FROM lines WHERE product = ?)',
                    (product,),
                )
                for table, column in PRODUCT_TABLES.items():
                    self.db.execute(f"DELETE FROM {table} WHERE {column} = ?", (product,))
            self.db.execute('DELETE FROM lines WHERE "order" NOT IN (SELECT id FROM orders)')

    def remove_reviews(self, texts: set[str]) -> None:
        """Delete the reviews with these texts."""
        with self.db:
            self.db.executemany(
                "DELETE FROM reviews WHERE text = ?", [(text,) for text in sorted(texts)]
            )

    def add_order(self, order: Order, email: str, address: str) -> None:
        """Add an order, and its customer if there is none with this id.

        Raises sqlite3.IntegrityError if the number is taken.
        """
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
                returned = line.product in order.returned
                self.db.execute(
                    "INSERT INTO lines VALUES (?, ?, ?, ?, ?, ?, 0)",
                    (order.order, line.product, line.variant, line.quantity, line.price, returned),
                )

    def set_stock(self, product: str, variant: str, number: int) -> None:
        """Set the stock of a product's variant."""
        with self.db:
            self.db.execute(
                "UPDATE variants SET stock = ? WHERE product = ? AND name = ?",
                (number, product, variant),
            )

    def pin_review(self, product: str, text: str) -> None:
        """Add a review that `get_products` shows."""
        with self.db:
            self.db.execute("INSERT INTO reviews VALUES (?, 5, ?, 1)", (product, text))


def open_store(folder: Path | str) -> ShopDB:
    """Read a shop's folder into a new store.

    Raises UserError with the file, line and field of what is wrong.
    """
    folder = Path(folder)
    shop = read_one(folder / "shop.json", Shop)
    departments = read_departments(folder / "departments.json")
    db = sqlite3.connect(":memory:")
    try:
        fill_tables(db, folder, departments)
        store = ShopDB(db.serialize(), shop, departments)
        customers = {customer.id: customer for customer in rows(folder / "customers", Customer)}
        for order in rows(folder / "orders", Order):
            customer = customers.get(order.customer)
            if not customer:
                raise UserError(
                    f"{folder}/orders: {order.order} is of customer {order.customer}, who is not "
                    "among the customers. Add the customer, or correct the order."
                )
            store.add_order(order, customer.email, str(customer.address))
    except sqlite3.IntegrityError as error:
        raise UserError(
            f"{folder}: two records share what must be unique ({error}). "
            f"`crawl2cart shop check {folder}` names them."
        ) from error
    return store.copy()
