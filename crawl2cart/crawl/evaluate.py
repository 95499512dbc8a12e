"""What people said about the embedded pages, and how near the filter comes to it.

data/web/labels.csv: url,verdict,reason,language,duplicate_of,personal_data. data/web/personal.csv: the spans behind the
last column, and those that only look so. data/web/topics.csv: url,topic of the pages to keep. Only pages of sites that
are held out count: nothing of the filter was chosen by looking at them. data/web/README.md says what each label means.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.core.metrics import share_interval
from crawl2cart.crawl.embedded_web.sites import Page, plain_text
from crawl2cart.crawl.filters.pii import FINDERS

COLUMNS = ["url", "verdict", "reason", "language", "duplicate_of", "personal_data"]
SPAN_COLUMNS = ["url", "kind", "text", "mask"]
TOPIC_COLUMNS = ["url", "topic"]


@dataclass(frozen=True)
class Label:
    """keep: whether a reader of the corpus wants the page. reason: why not. personal_data: spans to mask."""

    keep: bool
    reason: str
    language: str
    duplicate_of: str
    personal_data: int


@dataclass(frozen=True)
class Span:
    """text: exactly as it stands on the page, where it stands once. mask: whether it is personal; else it must stay."""

    kind: str
    text: str
    mask: bool


def read_labels(path: Path) -> dict[str, Label]:
    """The labels by URL. A line that is not one is a UserError that gives its number."""
    labels: dict[str, Label] = {}
    for number, row in numbered_rows(path, COLUMNS):
        if len(row) != len(COLUMNS) or row[1] not in ("keep", "drop") or not row[5].isdecimal():
            raise UserError(
                f"{path}:{number}: {','.join(row)!r} is no label: it needs {len(COLUMNS)} fields, keep or "
                "drop in the second and a count in the last."
            )
        if row[0] in labels:
            raise UserError(
                f"{path}:{number}: {row[0]} has a label above already. Keep one of them."
            )
        labels[row[0]] = Label(row[1] == "keep", row[2], row[3], row[4], int(row[5]))
    return labels


def read_spans(path: Path) -> dict[str, list[Span]]:
    """What is personal data and what only looks like it, by URL. A line that says neither is a UserError with its number."""
    spans: dict[str, list[Span]] = {}
    for number, row in numbered_rows(path, SPAN_COLUMNS):
        if (
            len(row) != len(SPAN_COLUMNS)
            or row[1] not in FINDERS
            or not row[2]
            or row[3] not in ("yes", "no")
        ):
            raise UserError(
                f"{path}:{number}: {','.join(row)!r} is no span: it needs {len(SPAN_COLUMNS)} fields, one of "
                f"{', '.join(FINDERS)} in the second, and yes or no in the last."
            )
        spans.setdefault(row[0], []).append(Span(row[1], row[2], row[3] == "yes"))
    return spans


def read_topics(path: Path) -> dict[str, bool]:
    """Whether a page is about shopping, by URL. A line that does not say so is a UserError with its number."""
    topics: dict[str, bool] = {}
    for number, row in numbered_rows(path, TOPIC_COLUMNS):
        if len(row) != len(TOPIC_COLUMNS) or row[1] not in ("shopping", "other"):
            raise UserError(
                f"{path}:{number}: {','.join(row)!r} is no topic: it needs a URL, and shopping or other."
            )
        if row[0] in topics:
            raise UserError(
                f"{path}:{number}: {row[0]} has a topic above already. Keep one of them."
            )
        topics[row[0]] = row[1] == "shopping"
    return topics


def numbered_rows(path: Path, columns: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file below its first line, which must name these columns, with their line numbers."""
    with path.open(newline="") as file:
        reader = csv.reader(file)
        if next(reader, None) != columns:
            raise UserError(f"{path}:1: the first line must be {','.join(columns)}.")
        for row in reader:
            yield reader.line_num, row


def keep_quality(
    kept: set[str], labels: dict[str, Label], urls: set[str]
) -> dict[str, float | int]:
    """Precision and recall of keeping, over the labelled pages among `urls`; n pages."""
    judged = {url: labels[url].keep for url in urls if url in labels}
    right = sum(keep for url, keep in judged.items() if url in kept)
    return {"n": len(judged)} | precision_recall(
        right, sum(url in kept for url in judged), sum(judged.values())
    )


def keep_errors(
    reasons: dict[str, str], labels: dict[str, Label], urls: set[str]
) -> dict[str, dict[str, int]]:
    """How many labelled pages among `urls` stay that should not, by the reason of their label, and go that should stay, by
    the rule that took them.

    reasons: why each page went, "" if it stays.
    """
    judged = [
        (reason, labels[url]) for url, reason in reasons.items() if url in urls and url in labels
    ]
    return {
        "false_positives": dict(
            Counter(label.reason for reason, label in judged if not reason and not label.keep)
        ),
        "false_negatives": dict(
            Counter(reason for reason, label in judged if reason and label.keep)
        ),
    }


def measure_pii(pages: list[Page], marked: dict[str, list[Span]]) -> dict[str, float | int]:
    """Precision and recall of finding personal data in what was written on these pages, comments included; n marked.

    A text counts once a page, and only under its own kind.
    """
    n = found = right = 0
    for page in pages:
        text = "\n".join(
            plain_text(said)
            for said in [page.body, *(spoken.body for spoken in page.posts + page.comments)]
        )
        spans = {
            (kind, text[start:end])
            for kind, finder in FINDERS.items()
            for start, end in finder(text)
        }
        wanted = {(span.kind, span.text) for span in marked.get(page.url, []) if span.mask}
        n, found, right = n + len(wanted), found + len(spans), right + len(spans & wanted)
    return {"n": n} | precision_recall(right, found, n)


def precision_recall(right: int, found: int, wanted: int) -> dict[str, float]:
    """Both shares with 95 % intervals. Shares over nothing are left out."""
    quality = {}
    for name, among in (("precision", found), ("recall", wanted)):
        if among:
            low, high = share_interval(right, among)
            quality |= {name: right / among, f"{name}_low": low, f"{name}_high": high}
    return quality


def copy_quality(
    clusters: list[list[str]], compared: set[str], labels: dict[str, Label], urls: set[str]
) -> dict:
    """How many of the copies that people marked among `urls` were found, and how many pages went that are no copies.

    clusters: URLs of pages found to say the same, the one that stays first. recall: over the n labelled copies that
    were compared with their originals (another rule may have removed either before), those in one cluster with them,
    whichever of the two stays. false_merges: pages of a cluster that no label joins to the page that stays, where
    either is among `urls`.
    """

    def source(url: str) -> str:
        return labels[url].duplicate_of or url if url in labels else url

    cluster_of = {url: number for number, cluster in enumerate(clusters) for url in cluster}
    marked = [
        (url, source(url)) for url in sorted(urls & labels.keys()) if labels[url].duplicate_of
    ]
    marked = [(copy, original) for copy, original in marked if {copy, original} <= compared]
    found = sum(
        cluster_of.get(copy, -1) == cluster_of.get(original, -2) for copy, original in marked
    )
    false = sum(
        source(url) != source(stays)
        for stays, *others in clusters
        for url in others
        if {url, stays} & urls
    )
    return {"n": len(marked), "false_merges": false} | (
        {"recall": found / len(marked)} if marked else {}
    )


def token_f1(text: str, gold: str) -> float:
    """F1 of the words of two texts as multisets: how much of one is in the other, order aside."""
    words, wanted = (
        Counter(re.findall(r"\w+", text.lower())),
        Counter(re.findall(r"\w+", gold.lower())),
    )
    return 2 * (words & wanted).total() / max(1, words.total() + wanted.total())
