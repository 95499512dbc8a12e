"""The tables of a shop's database, and how they are filled from the shop's folder."""

import sqlite3
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.shop.data_model import Category, Department, Product, Review, format_value
from crawl2cart.shop.loader import read_policy, rows

SCHEMA = """
CREATE TABLE products (
    id TEXT PRIMARY KEY, name TEXT COLLATE NOCASE UNIQUE, brand TEXT COLLATE NOCASE,
    department TEXT, category TEXT, price REAL, rating REAL, warranty_months INT, held_out INT
);
CREATE TABLE attributes (product TEXT, name TEXT, value TEXT);
CREATE TABLE variants (
    product TEXT, name TEXT COLLATE NOCASE, stock INT CHECK (stock >= 0),
    PRIMARY KEY (product, name)
);
CREATE TABLE reviews (product TEXT, rating INT, text TEXT, pinned INT DEFAULT 0);
CREATE TABLE customers (id TEXT PRIMARY KEY, email TEXT COLLATE NOCASE UNIQUE, address TEXT);
CREATE TABLE orders (
    id TEXT PRIMARY KEY COLLATE NOCASE, customer TEXT, placed TEXT, state TEXT, shipping REAL,
    total REAL, carrier TEXT, tracking TEXT, expected TEXT, delivered TEXT, address TEXT
);
CREATE TABLE lines (
    "order" TEXT, product TEXT, variant TEXT COLLATE NOCASE, quantity INT, price REAL,
    returned INT, exchanged INT
);
CREATE TABLE policies (
    topic TEXT, title TEXT, section TEXT, heading TEXT, text TEXT, PRIMARY KEY (topic, section)
);
CREATE TABLE tickets (reason TEXT);
CREATE VIRTUAL TABLE catalogue USING fts5 (
    product UNINDEXED, name, brand, kind, details, description, tokenize = 'porter unicode61'
);
"""
# Weights of the columns of `catalogue` in bm25: a word of the name counts more than one of the
# description.
CATALOGUE_WEIGHTS = "0, 10, 6, 6, 3, 1"


def fill_tables(db: sqlite3.Connection, folder: Path, departments: dict[str, Department]) -> None:
    """Create the tables and insert products, reviews and policies; orders have a store method.

    Raises UserError, and sqlite3.IntegrityError if two records share what must be unique.
    """
    db.executescript(SCHEMA)
    categories = {
        name: category
        for department in departments.values()
        for name, category in department.categories.items()
    }
    for product in rows(folder / "products", Product):
        if product.category not in categories:
            raise UserError(
                f"{folder}/products: {product.id} is of category {product.category}, which "
                "departments.json does not have. Add it there, or correct the product."
            )
        insert_product(db, product, categories[product.category])
    reviews = rows(folder / "reviews", Review)
    db.executemany(
        "INSERT INTO reviews VALUES (?, ?, ?, 0)",
        [(review.product, review.rating, review.text) for review in reviews],
    )
    for file in sorted((folder / "policies").glob("*.md")):
        db.executemany(
            "INSERT INTO policies VALUES (:topic, :title, :section, :heading, :text)",
            [section.model_dump() for section in read_policy(file)],
        )
    db.commit()


def insert_product(db: sqlite3.Connection, product: Product, category: Category) -> None:
    """Insert a product with its attributes and variants, and index its words for the search."""
    attributes = {
        name: format_value(value, category.attributes.get(name, ""))
        for name, value in product.attributes.items()
    }
    db.execute(
        "INSERT INTO products VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            product.id,
            product.name,
            product.brand,
            product.department,
            product.category,
            product.price,
            product.rating,
            product.warranty_months,
            product.held_out,
        ),
    )
    db.executemany(
        "INSERT INTO attributes VALUES (?, ?, ?)",
        [(product.id, name, value) for name, value in attributes.items()],
    )
    db.executemany(
        "INSERT INTO variants VALUES (?, ?, ?)",
        [(product.id, variant.name, variant.stock) for variant in product.variants],
    )
    kind = f"{product.category} {category.plural} {product.department}"
    details = [f"{name} {value}" for name, value in attributes.items()]
    details += [variant.name for variant in product.variants]
    db.execute(
        "INSERT INTO catalogue VALUES (?, ?, ?, ?, ?, ?)",
        (product.id, product.name, product.brand, kind, " ".join(details), product.description),
    )
