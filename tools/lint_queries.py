"""Check the labelled queries of data/queries: splits that share nothing, labels, keys."""

from collections import defaultdict
from pathlib import Path

from crawl2cart.core.files import read_jsonl
from crawl2cart.router.local import LABELS, tokenize_words

SPLITS = ("train", "validation", "test")
MEASURED = ("validation", "test")
NEAR = 0.6  # Jaccard similarity of their words at which two queries are nearly equal
FIELDS = {"text": str, "label": str, "topic": str, "hard": bool}


def lint_queries(data: Path) -> list[str]:
    """Return every fault of data/queries, each with its file and line."""
    folder = data / "queries"
    rows = {split: read_jsonl(folder / f"{split}.jsonl") for split in SPLITS}
    faults = [
        f"{folder / split}.jsonl:{number}: {fault}"
        for split in SPLITS
        for number, row in enumerate(rows[split], 1)
        for fault in row_faults(row)
    ]
    if faults:
        return faults
    for split in SPLITS:
        missing = set(LABELS) - {row["label"] for row in rows[split]}
        faults += [f"{folder / split}.jsonl: no query has the label {name}" for name in missing]
    return faults + shared_texts(folder, rows) + shared_topics(folder, rows) + near(folder, rows)


def row_faults(row: dict) -> list[str]:
    """Return what is wrong with the keys and values of one query."""
    if set(row) != set(FIELDS):
        return [f"expected the keys {', '.join(FIELDS)}, got {', '.join(row)}"]
    faults = [
        f"{name}: expected {kind.__name__}, got {row[name]!r}"
        for name, kind in FIELDS.items()
        if not isinstance(row[name], kind)
    ]
    if row["label"] not in LABELS:
        faults.append(f"label: expected one of {', '.join(LABELS)}, got {row['label']!r}")
    return faults


def shared_texts(folder: Path, rows: dict[str, list[dict]]) -> list[str]:
    """Return the queries that occur more than once, in one split or in two."""
    places = defaultdict(list)
    for split, split_rows in rows.items():
        for number, row in enumerate(split_rows, 1):
            places[row["text"].casefold().strip()].append(f"{folder / split}.jsonl:{number}")
    return [f"{', '.join(lines)}: the same text" for lines in places.values() if len(lines) > 1]


def shared_topics(folder: Path, rows: dict[str, list[dict]]) -> list[str]:
    """Return the topics of `other` that occur in two splits: they must be unseen when measured."""
    splits = defaultdict(set)
    for split, split_rows in rows.items():
        for row in split_rows:
            if row["label"] == "other":
                splits[row["topic"]].add(split)
    return [
        f"{folder}: the topic {topic} of `other` is in {', '.join(sorted(names))}"
        for topic, names in splits.items()
        if len(names) > 1
    ]


def near(folder: Path, rows: dict[str, list[dict]]) -> list[str]:
    """Return the training queries that nearly equal a measured one, by the words they share."""
    measured = [
        (f"{split}.jsonl:{number}", frozenset(tokenize_words(row["text"])))
        for split in MEASURED
        for number, row in enumerate(rows[split], 1)
    ]
    by_word = defaultdict(set)  # near queries share a word, so only those are compared
    for place, (_, words) in enumerate(measured):
        for word in words:
            by_word[word].add(place)
    faults = []
    for number, row in enumerate(rows["train"], 1):
        words = frozenset(tokenize_words(row["text"]))
        for place in sorted(set().union(*(by_word[word] for word in words))):
            name, other = measured[place]
            if len(words & other) >= NEAR * len(words | other):
                faults.append(f"{folder}/train.jsonl:{number}: nearly the query of {name}")
    return faults
