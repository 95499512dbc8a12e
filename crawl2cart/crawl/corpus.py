"""Turn filtered shards into a corpus: apply the rules across pages, split, write parquet files."""

import math
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crawl2cart.core.errors import UserError
from crawl2cart.crawl.dedup.fingerprint import unit_interval
from crawl2cart.crawl.filters.corpus_filters import CorpusFilters
from crawl2cart.crawl.filters.page_filters import SHARD
from crawl2cart.crawl.parquet_parts import PartWriter
from crawl2cart.crawl.shards import batches
from crawl2cart.crawl.stats import RemovalStats

CORPUS = pa.schema([SHARD.field(name) for name in ("url", "text", "language_score", "key")])
REJECTS = pa.schema(
    [
        ("url", pa.string()),
        ("reason", pa.string()),
        ("score", pa.float32()),
        ("because", pa.string()),
        ("text", pa.string()),
    ]
)
PARTS = 100
MIN_PART_BYTES = 1 << 28  # of text


def numbered_pages(shards: list[Path]) -> Iterator[tuple[int, list[dict]]]:
    """Yield the rows of all shards in batches, each with the number of its first page."""
    number = 0
    for batch in batches(shards, SHARD.names):
        yield number, batch.to_pylist()
        number += len(batch)


def assign_splits(
    shards: list[Path],
    corpus_filters: CorpusFilters,
    stats: RemovalStats,
    decisions: pq.ParquetWriter,
) -> np.ndarray:
    """Apply the rules across pages and hash each kept page to its place in the split.

    stats: counts every page. decisions: takes what these rules did, see `explain.DECISIONS`.
    Returns float64[pages]: a hash of the text in [0, 1), NaN for a removed page.
    """
    split_hashes = array("d")
    for first, rows in numbered_pages(shards):
        decided = []
        for page, row in enumerate(rows, first):
            if not row["reason"]:
                row = corpus_filters.apply_corpus_filters(page, row)
                if row["reason"] or row["cut"]:
                    decided.append(row | {"page": page})
            stats.add(row)
            split_hashes.append(math.nan if row["reason"] else unit_interval(row["key"]))
        decisions.write_table(pa.Table.from_pylist(decided, decisions.schema))
    return np.frombuffer(split_hashes)


def check_enough(stats: RemovalStats) -> None:
    """Raise UserError unless there is a page to train on and one to validate with."""
    kept, count = stats.pages[""], stats.pages.total()
    if kept >= 2:
        return
    if not count:
        raise UserError(
            "data/raw holds no page at all: no response, resource or conversion record. Look at "
            "data/raw/manifest.json and at download.paths in params.yaml."
        )
    (reason, removed), *_ = stats.removed().most_common(1)
    raise UserError(
        f"Only {kept} of {count:,} pages remain; a corpus needs two. The rule `{reason}` removed "
        f"most, {removed:,}. Loosen it under `filter:` in params.yaml, or download other pages."
    )


def split_threshold(split_hashes: np.ndarray, validation_share: float) -> float:
    """Return the hash up to which kept pages are validation: one page at least on each side."""
    hashes = np.sort(split_hashes[~np.isnan(split_hashes)])
    return min(max(validation_share, hashes[0]), hashes[-2])


def write_corpus(
    folder: Path,
    shards: list[Path],
    corpus_filters: CorpusFilters,
    split_hashes: np.ndarray,
    threshold: float,
    part_bytes: int,
) -> dict[str, dict]:
    """Write the kept pages to folder/train and folder/val, in the order of the crawl.

    part_bytes: text of a parquet file. Returns documents and bytes of text of each split.
    """
    train = PartWriter(folder / "train", CORPUS, part_bytes)
    validation = PartWriter(folder / "val", CORPUS, part_bytes)
    number = 0
    for batch in batches(shards, SHARD.names):
        hashes = split_hashes[number : number + len(batch)]
        number += len(batch)
        # Most pages went: their rows need not become Python's.
        rows = batch.filter(pa.array(~np.isnan(hashes))).to_pylist()
        kept = list(zip(hashes[~np.isnan(hashes)], map(corpus_filters.clean, rows), strict=True))
        validation.write([row for split_hash, row in kept if split_hash <= threshold])
        train.write([row for split_hash, row in kept if split_hash > threshold])
    train.close()
    validation.close()
    return {"train": train.counts, "val": validation.counts}
