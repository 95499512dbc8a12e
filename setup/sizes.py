"""The sizes of the data that ships, counted from its files, as a Markdown table: `python -m setup.sizes`.

`setup/readme.py` puts the table between the marks of README.md.
"""

import csv
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from setup.repro import ROOT
from stages.common.files import read_json, read_jsonl

SPLITS = ("train", "validation", "test")
Row = dict[str, int]


def lines_below(folder: Path) -> list[dict]:
    return [line for file in sorted(folder.glob("*.jsonl")) for line in read_jsonl(file)]


def by_split(lines: Iterable[dict]) -> Row:
    counts = Counter(line["split"] for line in lines)
    return {"all": counts.total()} | {split: counts[split] for split in SPLITS}


def shop_sizes(folder: Path) -> dict[str, Row]:
    """What data/store holds. Lines that belong to a split are counted by it, all others only together."""
    departments = read_json(folder / "departments.json")
    products, reviews, wordings = (lines_below(folder / name) for name in ("products", "reviews", "wordings"))
    orders, replies = (read_jsonl(folder / name) for name in ("orders.jsonl", "replies.jsonl"))
    policies = [file.read_text() for file in (folder / "policies").glob("*.md")]
    alone = {
        "departments": len(departments), "categories": sum(len(entry["categories"]) for entry in departments.values()),
        "products": len(products), "products held out": sum(product["held_out"] for product in products),
        "reviews": len(reviews), "reviews with orders to a machine": sum(review["instructs"] for review in reviews),
        "customers": len(read_jsonl(folder / "customers.jsonl")),
        "orders": len(orders), "states of orders": len({order["state"] for order in orders}),
        "policies": len(policies), "sections of policies": sum(len(re.findall("^## ", text, re.M)) for text in policies),
        "fragments of replies": len(replies), "acts that they serve": len({reply["act"] for reply in replies}),
        "intents": len(list((folder / "wordings").glob("*.jsonl"))),
    }
    return {what: {"all": count} for what, count in alone.items()} | {
        "wordings": by_split(wordings),
        "plans of several turns": by_split(read_jsonl(folder / "plans.jsonl")),
        "reasons to return": by_split(read_jsonl(folder / "reasons.jsonl")),
        "situations with replies in five tones": by_split(read_jsonl(folder / "tone.jsonl")),
    }


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
    return shop_sizes(data / "store") | query_sizes(data / "queries") | web_sizes(data / "web")


def sizes_table() -> str:
    columns = ("all", *SPLITS)
    rows = [["what", *columns], ["---"] * 5]
    rows += [[what, *(f"{row[column]:,}" if column in row else "" for column in columns)] for what, row in sizes().items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
