"""Measure how well the extractors find the main text of real pages, and how fast they are.

in   ../shared/data/extraction_gold: pages, and the text that people took out of them
out  metrics/speed/extraction.json: for each extractor token F1, pages a second, and pages a second
     through all rules for one page; trafilatura by itself

    python -m benchmarks.extraction
"""

import gzip
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lxml.html
import trafilatura

from benchmarks.report import write_report
from crawl2cart.core.metrics import rounded
from crawl2cart.core.params import read_params
from crawl2cart.crawl.evaluate import token_f1
from crawl2cart.crawl.extract.extract import html_to_text
from crawl2cart.crawl.filters.blocklist import read_hosts
from crawl2cart.crawl.filters.page_filters import filter_page
from crawl2cart.crawl.warc.records import Record

GOLD = Path("../shared/data/extraction_gold")
EXTRACTORS = ("resiliparse", "cascade", "trafilatura")


def read_gold(folder: Path) -> list[tuple[bytes, str]]:
    """Read pairs of a page and its gold text."""
    pages = []
    for source in sorted(folder.glob("*__source.html.gz")):
        expected = source.with_name(source.name.replace("__source", "__expected"))
        gold = lxml.html.fromstring(gzip.decompress(expected.read_bytes()).decode())
        pages.append((gzip.decompress(source.read_bytes()), gold.text_content()))
    return pages


def measure(pages: list[tuple[bytes, str]], extract: Callable[[bytes], str]) -> dict[str, float]:
    """Return the mean token F1, and pages per second of processor time."""
    started = time.process_time()
    texts = [extract(page) for page, _ in pages]
    seconds = time.process_time() - started
    scores = [token_f1(text, gold) for text, (_, gold) in zip(texts, pages, strict=True)]
    return {"f1": sum(scores) / len(scores), "pages_per_s": len(pages) / seconds}


def main() -> None:
    pages = read_gold(GOLD)
    if not pages:
        sys.exit(
            f"{GOLD} holds no page. Put pairs of *__source.html.gz and *__expected.html.gz there."
        )
    limits = read_params(Path("params.yaml")).filter
    hosts = read_hosts(Path(limits.blocked_hosts))
    records = [
        Record("https://gold.example/", 200, "text/html", "utf-8", page, False) for page, _ in pages
    ]
    filter_page(records[0], limits, hosts)  # loads the language model
    report = {
        "pages": len(pages),
        "kilobytes_per_page": sum(len(page) for page, _ in pages) / len(pages) / 1000,
    }
    for extractor in EXTRACTORS:
        report[extractor] = measure(
            pages, lambda page, extractor=extractor: html_to_text(page, "utf-8", extractor)
        )
        changed = limits.model_copy(update={"extractor": extractor})
        started = time.process_time()
        rows = [filter_page(record, changed, hosts) for record in records]
        report[extractor]["judged_per_s"] = len(records) / (time.process_time() - started)
    report["english"] = sum(row["language"] == "en" for row in rows) / len(rows)
    report["trafilatura_by_itself"] = measure(
        pages, lambda page: trafilatura.extract(page, fast=True, include_comments=False) or ""
    )
    write_report("extraction", report, ("resiliparse", "trafilatura", "lxml"))
    print(json.dumps(rounded(report), indent=2))


if __name__ == "__main__":
    main()
