"""The sizes of the data that ships, counted from its files, as a Markdown table: `python -m setup.sizes`.

`setup/readme.py` puts the table between the marks of README.md.
"""

import csv
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from setup.repro import ROOT
from stages.common.files import read_jsonl
from stages.common.params import read_params
from stages.shop.folder import read_departments, read_policy, rows
from stages.shop.maker import CASES
from stages.shop.records import Customer, Order, Product, Review

SPLITS = ("train", "validation", "test")
Row = dict[str, int]


def by_split(lines: Iterable[dict]) -> Row:
    counts = Counter(line["split"] for line in lines)
    return {"all": counts.total()} | {split: counts[split] for split in SPLITS}


def shop_sizes(folder: Path) -> dict[str, Row]:
    """What data/store holds. Lines that belong to a split are counted by it, all others only together."""
    departments = read_departments(folder / "departments.json")
    products, reviews, customers, orders = (rows(folder / name, kind) for name, kind in (
        ("products", Product), ("reviews", Review), ("customers", Customer), ("orders", Order)))
    policies = [read_policy(file) for file in (folder / "policies").glob("*.md")]
    wordings = {file.stem: read_jsonl(file) for file in (folder / "wordings").glob("*.jsonl")}
    plans, replies, reasons, hostile, tone = (
        read_jsonl(folder / f"{name}.jsonl") for name in ("plans", "replies", "reasons", "hostile", "tone"))
    ways = [by_split(lines) for lines in wordings.values()]
    reviewed = Counter(review.product for review in reviews)
    alone = {
        "departments": len(departments), "categories": sum(len(entry.categories) for entry in departments.values()),
        "products": len(products), "products held out": sum(product.held_out for product in products),
        "reviews": len(reviews), "fewest reviews of a product": min(reviewed[product.id] for product in products),
        "reviews with orders to a machine": sum(review.instructs for review in reviews),
        "customers": len(customers), "orders": len(orders), "states of orders": len({order.state for order in orders}),
        "policies": len(policies), "sections of policies": sum(map(len, policies)),
        "fragments of replies": len(replies), "acts that they serve": len({reply["act"] for reply in replies}),
        "fewest fragments of an act in a register": min(Counter((reply["act"], reply["register"]) for reply in replies).values()),
        "intents": len(wordings),
    }
    return {what: {"all": count} for what, count in alone.items()} | {
        "wordings": by_split(line for lines in wordings.values() for line in lines),
        "fewest wordings of an intent": {column: min(way[column] for way in ways) for column in ("all", *SPLITS)},
        "plans of several turns": by_split(plans),
        "reasons to return": by_split(reasons),
        "hostile texts that fit any product": by_split(hostile),
        "situations with replies in five tones": by_split(tone),
    }


def safety_sizes(profile: str = "cpu") -> dict[str, Row]:
    """Dialogues that build_sft makes of each case in which a tempted agent has to stand firm."""
    count = getattr(read_params(ROOT / "params.yaml").profiles, profile).build_sft.safety_dialogues
    return {f"dialogues of the safety case {case}": {"all": count, "test": count} for case in CASES}


def query_sizes(folder: Path) -> dict[str, Row]:
    queries = [line | {"split": split} for split in SPLITS for line in read_jsonl(folder / f"{split}.jsonl")]
    other = [query for query in queries if query["label"] == "other"]
    return {"shopping queries": by_split(query for query in queries if query["label"] == "shopping"),
            "other queries": by_split(other), "hard other queries": by_split(query for query in other if query["hard"])}


def web_sizes(folder: Path) -> dict[str, Row]:
    pages = list((folder / "sites").glob("*/*.md"))
    with (folder / "labels.csv").open(newline="") as file:
        kept = [label for label in csv.DictReader(file) if label["verdict"] == "keep"]
    return {"web sites": {"all": len({page.parent for page in pages})}, "web pages": {"all": len(pages)},
            "web pages to keep": {"all": len(kept)}}


def sizes(data: Path = ROOT / "data") -> dict[str, Row]:
    return shop_sizes(data / "store") | safety_sizes() | query_sizes(data / "queries") | web_sizes(data / "web")


def sizes_table() -> str:
    columns = ("all", *SPLITS)
    lines = [["what", *columns], ["---"] * 5]
    lines += [[what, *(f"{row[column]:,}" if column in row else "" for column in columns)] for what, row in sizes().items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def crawl_table(folder: Path = ROOT / "data" / "web") -> str:
    """What the embedded crawl is made of: pages by verdict, on the sites the filter may be tuned on and on the held-out ones."""
    held_out = {file.parent.name for file in (folder / "sites").glob("*/site.toml") if tomllib.loads(file.read_text())["held_out"]}
    counts: dict[str, Counter] = {}
    with (folder / "labels.csv").open(newline="") as file:
        for label in csv.DictReader(file):
            kind = label["reason"].replace("_", " ") or "keep"
            counts.setdefault(kind, Counter())[label["url"].split("/")[2] in held_out] += 1
    order = sorted(counts, key=lambda kind: (kind != "keep", kind))
    rows = [f"| {kind} | {counts[kind].total()} | {counts[kind][False]} | {counts[kind][True]} |" for kind in order]
    return "\n".join(["| pages to keep, and why others go | all | to tune on | held out |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    print(sizes_table(), crawl_table(), sep="\n\n")
