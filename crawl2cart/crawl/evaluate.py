"""Measure the filter by the labels of the embedded web, on held-out sites only.

Nothing of the filter was chosen by looking at held-out sites. Three CSV files hold the labels, see
data/web/README.md for their meaning:

labels.csv    url,verdict,reason,language,duplicate_of,personal_data
personal.csv  url,kind,text,mask: spans of personal data, and look-alikes
topics.csv    url,topic: of the pages to keep
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.core.metrics import share_interval
from crawl2cart.crawl.embedded_web.sites import Page, gold_text, plain_text
from crawl2cart.crawl.filters.pii import FINDERS, mask
from crawl2cart.crawl.stats import RemovalStats

COLUMNS = ["url", "verdict", "reason", "language", "duplicate_of", "personal_data"]
SPAN_COLUMNS = ["url", "kind", "text", "mask"]
TOPIC_COLUMNS = ["url", "topic"]


@dataclass(frozen=True)
class Label:
    """The label of one page.

    keep: whether a reader of the corpus wants the page. reason: why not, "" if so.
    duplicate_of: the URL of the original, or "". personal_data: number of spans to mask.
    """

    keep: bool
    reason: str
    language: str
    duplicate_of: str
    personal_data: int


@dataclass(frozen=True)
class Span:
    """A text that stands once on its page. mask: whether it is personal data or must stay."""

    kind: str
    text: str
    mask: bool


def read_labels(path: Path) -> dict[str, Label]:
    """Read labels.csv, {url: label}. Raises UserError with the number of a line that is wrong."""
    labels: dict[str, Label] = {}
    for number, row in numbered_rows(path, COLUMNS):
        if len(row) != len(COLUMNS) or row[1] not in ("keep", "drop") or not row[5].isdecimal():
            raise UserError(
                f"{path}:{number}: {','.join(row)!r} is no label: it needs {len(COLUMNS)} fields, "
                "keep or drop in the second and a count in the last."
            )
        if row[0] in labels:
            raise UserError(f"{path}:{number}: {row[0]} has two labels. Keep one of them.")
        labels[row[0]] = Label(row[1] == "keep", row[2], row[3], row[4], int(row[5]))
    return labels


def read_spans(path: Path) -> dict[str, list[Span]]:
    """Read personal.csv, {url: spans}. Raises UserError with the number of a line that is wrong."""
    spans: dict[str, list[Span]] = {}
    for number, row in numbered_rows(path, SPAN_COLUMNS):
        is_span = len(row) == len(SPAN_COLUMNS) and row[1] in FINDERS and row[2]
        if not is_span or row[3] not in ("yes", "no"):
            raise UserError(
                f"{path}:{number}: {','.join(row)!r} is no span: it needs {len(SPAN_COLUMNS)} "
                f"fields, one of {', '.join(FINDERS)} in the second, and yes or no in the last."
            )
        spans.setdefault(row[0], []).append(Span(row[1], row[2], row[3] == "yes"))
    return spans


def read_topics(path: Path) -> dict[str, bool]:
    """Read topics.csv, {url: whether the page is about shopping}.

    Raises UserError with the number of a line that is wrong.
    """
    topics: dict[str, bool] = {}
    for number, row in numbered_rows(path, TOPIC_COLUMNS):
        if len(row) != len(TOPIC_COLUMNS) or row[1] not in ("shopping", "other"):
            raise UserError(
                f"{path}:{number}: {','.join(row)!r} is no topic: it needs a URL, and shopping or "
                "other."
            )
        if row[0] in topics:
            raise UserError(f"{path}:{number}: {row[0]} has two topics. Keep one of them.")
        topics[row[0]] = row[1] == "shopping"
    return topics


def numbered_rows(path: Path, columns: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file with their line numbers; its first line must name `columns`."""
    with path.open(newline="") as file:
        reader = csv.reader(file)
        if next(reader, None) != columns:
            raise UserError(f"{path}:1: the first line must be {','.join(columns)}.")
        for row in reader:
            yield reader.line_num, row


def labels_of_topics(labels: dict[str, Label], topics: dict[str, bool]) -> dict[str, Label]:
    """Return the labels of the pages with a topic: keep those about shopping, drop the others."""
    return {
        url: replace(labels[url], keep=topics[url], reason="" if topics[url] else "other_topic")
        for url in topics.keys() & labels.keys()
    }


def measure(
    stats: RemovalStats,
    clusters: list[list[str]],
    labels: dict[str, Label],
    pages: list[Page],
    spans: dict[str, list[Span]],
) -> dict:
    """Compare what the filter did with the labels, over the held-out ones of `pages`.

    stats: has watched the labelled URLs. clusters: URLs of copies, the one that stays first.
    extraction.f1: mean token F1 of text and gold text, both masked, over pages labelled keep.
    """
    held_out = {page.url: page for page in pages if page.site.held_out}
    urls = set(held_out)
    good = [page for url, page in held_out.items() if url in labels and labels[url].keep]
    scores = [token_f1(stats.texts.get(page.url, ""), mask(gold_text(page))[0]) for page in good]
    extraction = {"f1": sum(scores) / len(scores)} if scores else {}
    keep = keep_quality(stats.kept_urls, labels, urls)
    return {
        "keep": keep | keep_errors(stats.reasons, labels, urls),
        "extraction": extraction | {"n": len(scores)},
        "near_duplicates": copy_quality(clusters, stats.compared_urls, labels, urls),
        "pii": pii_quality(good, spans) | {"masked": dict(stats.masked)},
    }


def keep_quality(
    kept: set[str], labels: dict[str, Label], urls: set[str]
) -> dict[str, float | int]:
    """Return precision and recall of keeping, over the n labelled pages among `urls`."""
    wanted = {url: labels[url].keep for url in urls if url in labels}
    right = sum(keep for url, keep in wanted.items() if url in kept)
    kept_count = sum(url in kept for url in wanted)
    return {"n": len(wanted)} | precision_recall(right, kept_count, sum(wanted.values()))


def keep_errors(
    reasons: dict[str, str], labels: dict[str, Label], urls: set[str]
) -> dict[str, dict[str, int]]:
    """Count the errors of keeping over the labelled pages among `urls`.

    reasons: why each page went, "" if it stays.
    Returns false_positives, pages that stay and should not, by the reason of their label; and
    false_negatives, pages that go and should not, by the rule that removed them.
    """
    pairs = [
        (reason, labels[url]) for url, reason in reasons.items() if url in urls and url in labels
    ]
    stay = Counter(label.reason for reason, label in pairs if not reason and not label.keep)
    go = Counter(reason for reason, label in pairs if reason and label.keep)
    return {"false_positives": dict(stay), "false_negatives": dict(go)}


def pii_quality(pages: list[Page], marked: dict[str, list[Span]]) -> dict[str, float | int]:
    """Return precision and recall of finding personal data in these pages, comments included.

    n: marked texts. A text counts once a page, and only under its own kind.
    """
    marked_count = found_count = right = 0
    for page in pages:
        parts = [page.body, *(message.body for message in page.posts + page.comments)]
        text = "\n".join(map(plain_text, parts))
        spans = {
            (kind, text[start:end])
            for kind, finder in FINDERS.items()
            for start, end in finder(text)
        }
        wanted = {(span.kind, span.text) for span in marked.get(page.url, []) if span.mask}
        marked_count += len(wanted)
        found_count += len(spans)
        right += len(spans & wanted)
    return {"n": marked_count} | precision_recall(right, found_count, marked_count)


def precision_recall(right: int, retrieved: int, relevant: int) -> dict[str, float]:
    """Return both shares with 95 % intervals; a share of nothing is left out."""
    quality = {}
    for name, total in (("precision", retrieved), ("recall", relevant)):
        if total:
            low, high = share_interval(right, total)
            quality |= {name: right / total, f"{name}_low": low, f"{name}_high": high}
    return quality


def copy_quality(
    clusters: list[list[str]], compared: set[str], labels: dict[str, Label], urls: set[str]
) -> dict:
    """Compare clusters of copies with the labelled copies among `urls`.

    clusters: URLs of pages that are copies of each other, the one that stays first.
    compared: URLs that the search for copies has seen; another rule may have removed the rest.
    n: labelled copies that were compared with their originals. recall: the share of these in one
    cluster with their original, whichever of the two stays. false_merges: pages of a cluster that
    no label joins to the page that stays, where either is among `urls`.
    """

    def source(url: str) -> str:
        return labels[url].duplicate_of or url if url in labels else url

    cluster_of = {url: number for number, cluster in enumerate(clusters) for url in cluster}
    marked = [
        (url, source(url)) for url in sorted(urls & labels.keys()) if labels[url].duplicate_of
    ]
    marked = [(copy, original) for copy, original in marked if {copy, original} <= compared]
    joined = sum(
        cluster_of.get(copy, -1) == cluster_of.get(original, -2) for copy, original in marked
    )
    false_merges = sum(
        source(url) != source(stays)
        for stays, *others in clusters
        for url in others
        if {url, stays} & urls
    )
    recall = {"recall": joined / len(marked)} if marked else {}
    return {"n": len(marked), "false_merges": false_merges} | recall


def token_f1(text: str, gold: str) -> float:
    """Return the F1 of the words of two texts as multisets: case and order are ignored."""
    words, wanted = (Counter(re.findall(r"\w+", part.lower())) for part in (text, gold))
    return 2 * (words & wanted).total() / max(1, words.total() + wanted.total())
