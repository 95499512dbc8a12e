"""Count the shipped data and its crawl from the files: `python -m tools.data_stats`.

Prints Markdown tables, which `tools/render_docs.py` puts into the docs.
"""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from crawl2cart.core.files import read_jsonl
from crawl2cart.core.params import read_params
from crawl2cart.crawl.embedded_web.sites import Page, gold_text, plain_text, read_sites
from crawl2cart.crawl.evaluate import Label, read_labels, read_spans
from crawl2cart.dialogues.generator import CASES
from crawl2cart.shop.data_model import Customer, Order, Product, Review
from crawl2cart.shop.loader import read_departments, read_policy, rows
from tools.repro import ROOT
from tools.text_stats import names_of, short, unique_share, xz_ratio

SPLITS = ("train", "validation", "test")
Row = dict[str, int]


def by_split(lines: Iterable[dict]) -> Row:
    counts = Counter(line["split"] for line in lines)
    return {"all": counts.total()} | {split: counts[split] for split in SPLITS}


def shop_sizes(folder: Path) -> dict[str, Row]:
    """Count what data/store holds, by split where a line belongs to one."""
    departments = read_departments(folder / "departments.json")
    products, reviews, customers, orders = (
        rows(folder / name, kind)
        for name, kind in (
            ("products", Product),
            ("reviews", Review),
            ("customers", Customer),
            ("orders", Order),
        )
    )
    policies = [read_policy(file) for file in (folder / "policies").glob("*.md")]
    wordings = {file.stem: read_jsonl(file) for file in (folder / "wordings").glob("*.jsonl")}
    plans, follow_ups, replies, reasons, hostile, tone = (
        read_jsonl(folder / f"{name}.jsonl")
        for name in ("plans", "follow_ups", "replies", "reasons", "hostile", "tone")
    )
    wording_counts = [by_split(lines) for lines in wordings.values()]
    review_counts = Counter(review.product for review in reviews)
    totals = {
        "departments": len(departments),
        "categories": sum(len(entry.categories) for entry in departments.values()),
        "products": len(products),
        "products held out": sum(product.held_out for product in products),
        "reviews": len(reviews),
        "fewest reviews of a product": min(review_counts[product.id] for product in products),
        "reviews with orders to a machine": sum(review.instructs for review in reviews),
        "customers": len(customers),
        "orders": len(orders),
        "states of orders": len({order.state for order in orders}),
        "policies": len(policies),
        "sections of policies": sum(map(len, policies)),
        "fragments of replies": len(replies),
        "acts that they serve": len({reply["act"] for reply in replies}),
        "fewest fragments of an act in a register": min(
            Counter((reply["act"], reply["register"]) for reply in replies).values()
        ),
        "intents": len(wordings),
    }
    return {what: {"all": count} for what, count in totals.items()} | {
        "wordings": by_split(line for lines in wordings.values() for line in lines),
        "fewest wordings of an intent": {
            column: min(counts[column] for counts in wording_counts) for column in ("all", *SPLITS)
        },
        "plans of several turns": by_split(plans),
        "answers, yeses, noes and thanks": by_split(follow_ups),
        "reasons to return": by_split(reasons),
        "hostile texts that fit any product": by_split(hostile),
        "situations with replies in five tones": by_split(tone),
    }


def safety_sizes(profile: str = "cpu") -> dict[str, Row]:
    """Count the dialogues of each case that tests the agent's safety."""
    profiles = read_params(ROOT / "params.yaml").profiles
    count = getattr(profiles, profile).build_sft.safety_dialogues
    return {f"dialogues of the safety case {case}": {"all": count, "test": count} for case in CASES}


def query_sizes(folder: Path) -> dict[str, Row]:
    queries = [
        line | {"split": split}
        for split in SPLITS
        for line in read_jsonl(folder / f"{split}.jsonl")
    ]
    other = [query for query in queries if query["label"] == "other"]
    return {
        "shopping queries": by_split(query for query in queries if query["label"] == "shopping"),
        "other queries": by_split(other),
        "hard other queries": by_split(query for query in other if query["hard"]),
    }


def sizes(data: Path = ROOT / "data") -> dict[str, Row]:
    return shop_sizes(data / "store") | safety_sizes() | query_sizes(data / "queries")


def table(head: Iterable[str], body: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table. Whole numbers get commas between thousands."""
    lines = [list(head)]
    lines += [["---"] * len(lines[0])]
    lines += [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in body]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def sizes_table() -> str:
    columns = ("all", *SPLITS)
    return table(
        ["what", *columns],
        [[what, *(row.get(column, "") for column in columns)] for what, row in sizes().items()],
    )


def page_text(page: Page) -> str:
    """Return all text that people wrote on a page: the main text and the comments below it."""
    return "\n".join([gold_text(page), *(plain_text(comment.body) for comment in page.comments)])


def read_crawl(folder: Path) -> list[tuple[Page, Label]]:
    labels = read_labels(folder / "labels.csv")
    return [(page, labels[page.url]) for page in read_sites(folder / "sites")]


def crawl_table(folder: Path = ROOT / "data" / "web") -> str:
    """Count the pages of the embedded crawl by label, on the tuning and the held-out sites."""
    kinds: dict[str, list[Page]] = {}
    for page, label in read_crawl(folder):
        kinds.setdefault("keep" if label.keep else label.reason.replace("_", " "), []).append(page)
    order = sorted(kinds, key=lambda kind: (kind != "keep", kind))
    body = [crawl_row(kind, kinds[kind]) for kind in order]
    body += [crawl_row("all", [page for pages in kinds.values() for page in pages])]
    label = "pages to keep, and why others go"
    return table([label, "pages", "to tune on", "held out", "sites", "KB of text"], body)


def crawl_row(kind: str, pages: list[Page]) -> list[object]:
    held_out = sum(page.site.held_out for page in pages)
    size = sum(len(page_text(page).encode()) for page in pages)
    return [
        kind,
        len(pages),
        len(pages) - held_out,
        held_out,
        len({page.host for page in pages}),
        f"{size / 1000:,.1f}",
    ]


@cache
def prose_sizes(data: Path = ROOT / "data") -> dict[str, float | int]:
    """Measure the crawl and the prose on its pages to keep. Shares are between 0 and 1."""
    crawl = read_crawl(data / "web")
    texts = [page_text(page) for page, label in crawl if label.keep]
    products = rows(data / "store" / "products", Product)
    product_name = re.compile("|".join(re.escape(short(product)) for product in products))
    size = sum(len(text.encode()) for text in texts)
    about_products = sum(len(text.encode()) for text in texts if product_name.search(text))
    names = names_of(products, rows(data / "store" / "customers.jsonl", Customer))
    pages = read_spans(data / "web" / "personal.csv").values()
    spans = [span for page in pages for span in page]
    return {
        "bytes of prose to keep": size,
        "share on pages that name a product of the shop": about_products / size,
        "share of sentences that differ, names and numbers masked": unique_share(texts, names),
        "times smaller by xz -9": xz_ratio(texts),
        "page designs": len({page.site.design for page, _ in crawl}),
        "languages besides English": len({label.language for _, label in crawl}) - 1,
        "spans of personal data": sum(span.mask for span in spans),
        "look-alikes that must stay": sum(not span.mask for span in spans),
    }


def prose_table() -> str:
    def format_value(what: str, value: float | int) -> object:
        if what.startswith("share"):
            return f"{value:.1%}"
        return f"{value:.1f}" if isinstance(value, float) else value

    body = [[what, format_value(what, value)] for what, value in prose_sizes().items()]
    return table(["of the crawl", "measured"], body)


if __name__ == "__main__":
    print(sizes_table(), crawl_table(), prose_table(), sep="\n\n")
