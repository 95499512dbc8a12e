"""What people said about the embedded pages, and how near the filter comes to it.

data/web/labels.csv: url,verdict,reason,language,duplicate_of,personal_data. data/web/personal.csv: the spans behind the
last column, and those that only look so. Only pages of sites that are held out count: nothing of the filter was chosen
by looking at them. data/web/README.md says what each label means.
"""

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from stages.common.metrics import share_interval
from stages.common.problem import Problem

COLUMNS = ["url", "verdict", "reason", "language", "duplicate_of", "personal_data"]
SPAN_COLUMNS = ["url", "kind", "text", "mask"]
KINDS = ("email", "phone", "ip", "card")


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
    """The labels by URL. A line that is not one is a Problem that gives its number."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != COLUMNS:
        raise Problem(f"{path}:1: the first line must be {','.join(COLUMNS)}.")
    labels: dict[str, Label] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(COLUMNS) or row[1] not in ("keep", "drop") or not row[5].isdecimal():
            raise Problem(f"{path}:{number}: {','.join(row)!r} is no label: it needs {len(COLUMNS)} fields, keep or "
                          "drop in the second and a count in the last.")
        if row[0] in labels:
            raise Problem(f"{path}:{number}: {row[0]} has a label above already. Keep one of them.")
        labels[row[0]] = Label(row[1] == "keep", row[2], row[3], row[4], int(row[5]))
    return labels


def read_spans(path: Path) -> dict[str, list[Span]]:
    """What is personal data and what only looks like it, by URL. A line that says neither is a Problem with its number."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != SPAN_COLUMNS:
        raise Problem(f"{path}:1: the first line must be {','.join(SPAN_COLUMNS)}.")
    spans: dict[str, list[Span]] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(SPAN_COLUMNS) or row[1] not in KINDS or not row[2] or row[3] not in ("yes", "no"):
            raise Problem(f"{path}:{number}: {','.join(row)!r} is no span: it needs {len(SPAN_COLUMNS)} fields, one of "
                          f"{', '.join(KINDS)} in the second, and yes or no in the last.")
        spans.setdefault(row[0], []).append(Span(row[1], row[2], row[3] == "yes"))
    return spans


def keep_quality(kept: set[str], labels: dict[str, Label], urls: set[str]) -> dict[str, float | int]:
    """Precision and recall of keeping, over the labelled pages among `urls`, with 95 % intervals; n pages.

    Shares over no page are left out.
    """
    judged = {url: labels[url].keep for url in urls if url in labels}
    right = sum(keep for url, keep in judged.items() if url in kept)
    quality: dict[str, float | int] = {"n": len(judged)}
    for name, among in (("precision", sum(url in kept for url in judged)), ("recall", sum(judged.values()))):
        if among:
            low, high = share_interval(right, among)
            quality |= {name: right / among, f"{name}_low": low, f"{name}_high": high}
    return quality


def token_f1(text: str, gold: str) -> float:
    """F1 of the words of two texts as multisets: how much of one is in the other, order aside."""
    words, wanted = Counter(re.findall(r"\w+", text.lower())), Counter(re.findall(r"\w+", gold.lower()))
    return 2 * (words & wanted).total() / max(1, words.total() + wanted.total())
