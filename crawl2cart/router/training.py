"""Train the local classifier on labelled queries and on how this shop's customers speak."""

import random
import re
from collections import Counter
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_jsonl
from crawl2cart.dialogues.templates import TemplateStore
from crawl2cart.router.local import Lexicon, LocalRouter, tokenize_words
from crawl2cart.shop.data_model import (
    Category,
    Customer,
    Order,
    Product,
    Reason,
    Review,
    Split,
    Wording,
)
from crawl2cart.shop.loader import read_departments, read_policy, rows

SPLITS = ("train", "validation", "test")
FREQUENT_WORD = 5  # occurrences in the shop's texts
WORDING_COUNT = 3  # copies of a train wording per query: the shop's own customers are likeliest


def read_categories(store: Path) -> dict[str, Category]:
    """Return all categories of a shop's departments by name."""
    departments = read_departments(store / "departments.json").values()
    return {name: category for entry in departments for name, category in entry.categories.items()}


def read_lexicon(store: Path) -> Lexicon:
    """Collect a shop's own words from its files, without those of held-out products."""
    products = [product for product in rows(store / "products", Product) if not product.held_out]
    ids = {product.id for product in products}
    texts = [
        f"{product.description} {' '.join(variant.name for variant in product.variants)}"
        for product in products
    ]
    texts += [review.text for review in rows(store / "reviews", Review) if review.product in ids]
    for file in sorted((store / "policies").glob("*.md")):
        texts += [section.text for section in read_policy(file)]
    counts = Counter(word for text in texts for word in tokenize_words(text))
    names = [f"{name} {category.plural}" for name, category in read_categories(store).items()]
    return Lexicon(
        things=frozenset(word for name in names for word in tokenize_words(name)),
        brands=frozenset(word for product in products for word in tokenize_words(product.brand)),
        used=frozenset(counts),
        often=frozenset(word for word, count in counts.items() if count >= FREQUENT_WORD),
    )


def wording_queries(store: Path, split: Split) -> list[dict]:
    """Return a shop's wordings of one split as labelled queries: text, topic, label, hard.

    The slots are filled with facts of the shop at random, the same ones on every call. Held-out
    products appear outside of train only.
    """
    random_slots = random.Random(split)
    everything = rows(store / "products", Product)
    in_split = [product for product in everything if product.held_out == (split != "train")]
    products = in_split or everything
    categories = read_categories(store)
    customers, orders = rows(store / "customers", Customer), rows(store / "orders", Order)
    templates = TemplateStore(store)
    reasons = [
        reason.text
        for _, _, reason in templates.lines("reasons.jsonl", Reason)
        if reason.split == split
    ]

    def draw_slots() -> dict[str, str]:
        product, second, third = random_slots.choices(products, k=3)
        customer, price = random_slots.choice(customers), round(product.price)
        article = "an" if product.category[0] in "aeiou" else "a"
        return {
            "product": product.name,
            "product_2": second.name,
            "product_3": third.name,
            "product_id": product.id,
            "category": product.category,
            "categories": categories[product.category].plural,
            "brand": product.brand,
            "a_category": f"{article} {product.category}",
            "department": product.department,
            "min_price": str(price // 2),
            "max_price": str(price + 5),
            "variant": product.variants[0].name,
            "variant_2": product.variants[-1].name,
            "attribute": random_slots.choice(sorted(product.attributes) or [""]),
            "order": random_slots.choice(orders).order,
            "email": customer.email,
            "address": str(customer.address),
            "reason": random_slots.choice(reasons or [""]),
        }

    queries = []
    for file, _, wording in templates.lines("wordings", Wording):
        if wording.split == split:
            slots, intent = draw_slots(), file.stem
            text = re.sub(r"\{(\w+)\}", lambda slot, slots=slots: slots[slot[1]], wording.text)
            label = "other" if intent == "out_of_scope" else "shopping"
            queries.append({"text": text, "topic": intent, "label": label, "hard": False})
    return queries


def train(queries: Path, store: Path, C: float, abstain_threshold: float) -> LocalRouter:
    """Train on a folder of labelled queries and the shop in `store`.

    Wordings of the intent `out_of_scope` are left out: test queries are about the same topics.
    Raise UserError if a file of queries lacks one of the labels.
    """
    by_split = {split: read_jsonl(queries / f"{split}.jsonl") for split in SPLITS}
    for split, split_rows in by_split.items():
        if {row["label"] for row in split_rows} != {"shopping", "other"}:
            raise UserError(
                f"{queries / split}.jsonl lacks a label. It needs queries of both: shopping, other."
            )
    wordings = [row for row in wording_queries(store, "train") if row["label"] == "shopping"]
    return LocalRouter.fit(
        by_split["train"] + WORDING_COUNT * wordings,
        by_split["validation"],
        read_lexicon(store),
        C,
        abstain_threshold,
    )
