"""Find the texts that are nearly the same: MinHash signatures, compared where a band is equal.

Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900; banding as in Leskovec et al., Mining of
Massive Datasets, chapter 3. Two texts that share a part s of their shingles meet in a band with
probability 1 - (1 - s^rows)^bands. Daft computes the signatures and groups the bands. One pass
takes as many bands, or as large a part of one band, as fit in memory.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from crawl2cart.crawl.executor import daft, in_thread

SEED = 1
# Memory for one band of one text while a pass groups them: 300 MB for two million.
BYTES_PER_BAND = 150
# Bands of all texts together that one pass groups where no limit of memory is given.
BANDS_PER_PASS = 2_000_000
# Pairs whose signatures are compared at a time: at most 450 bytes for each of two texts.
PAIRS_PER_BATCH = 200_000
ROWS_PER_BATCH = 20_000


class Pairs(NamedTuple):
    """Pairs of near-equal texts: three arrays of equal length, sorted by id.

    first, second: ids, uint64, first < second; no pair occurs twice.
    similarity: the estimated share of common shingles, float64.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray


def near_pairs(
    texts: daft.DataFrame,
    scratch: Path,
    *,
    ngram: int,
    bands: int,
    rows: int,
    threshold: float,
    memory_bytes: int | None = None,
) -> Pairs:
    """Find the pairs of texts that meet in a band and whose signatures agree well enough.

    texts: columns `id` (a non-negative integer; equal texts may share one) and `text`. Case,
    punctuation and accents are ignored. No texts give no pairs.
    scratch: a folder that all machines see. The signatures lie there meanwhile, 4 bytes a hash.
    ngram: words in a shingle. bands, rows: bands of a signature, and hashes in a band.
    threshold: the least share of equal values in both signatures.
    memory_bytes: what grouping may take on all machines together. Less memory means more passes
    over the signatures and the same pairs.

    Within a bucket each text is compared only with the one of the smallest id, so that the work
    grows with the number of texts and not with that of pairs. Join the pairs by `components`.
    """
    bands_per_pass = BANDS_PER_PASS
    if memory_bytes is not None:
        bands_per_pass = max(1, memory_bytes // BYTES_PER_BAND)
    folder = scratch / "signatures"
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    folder.mkdir(parents=True)
    try:
        files = write_signatures(texts, folder, ngram, bands * rows)
        count = sum(pq.read_metadata(file).num_rows for file in files)
        if not count:
            return Pairs(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0))
        signatures = daft.read_parquet([str(file) for file in files])
        pairs = np.empty((0, 2), np.uint64)
        for band_numbers, part, parts in passes(count, bands, bands_per_pass):
            candidates = candidate_pairs(signatures, band_numbers, rows, part, parts)
            pairs = np.unique(np.concatenate([pairs, candidates]), axis=0)
        similarity = np.concatenate(
            [
                np.empty(0),
                *(
                    agreement(files, pairs[start : start + PAIRS_PER_BATCH], bands * rows)
                    for start in range(0, len(pairs), PAIRS_PER_BATCH)
                ),
            ]
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    near = similarity >= threshold
    return Pairs(pairs[near, 0], pairs[near, 1], similarity[near])


def write_signatures(texts: daft.DataFrame, folder: Path, ngram: int, hashes: int) -> list[Path]:
    """Write ids and signatures of all texts to parquet files and return their paths, sorted."""
    signed = texts.select(
        daft.col("id").cast(daft.DataType.uint64()), signature(ngram, hashes).alias("signature")
    )
    in_thread(lambda: signed.write_parquet(str(folder), compression="zstd"))
    return sorted(folder.rglob("*.parquet"))


def signature(ngram: int, hashes: int) -> daft.Expression:
    """Return the expression for the MinHash signature of the column `text`: uint32[hashes].

    Each value is the least hash of all shingles under one of `hashes` hash functions. A text of
    fewer words than `ngram` is one shingle.
    """
    plain = daft.functions.normalize(
        daft.col("text"), remove_punct=True, lowercase=True, nfd_unicode=True, white_space=True
    )
    return daft.functions.minhash(
        plain, num_hashes=hashes, ngram_size=ngram, seed=SEED, hash_function="xxhash3_64"
    )


def passes(count: int, bands: int, bands_per_pass: int) -> Iterator[tuple[list[int], int, int]]:
    """Split the grouping of `count` texts into passes of about `bands_per_pass` bands in all.

    Yields the numbers of the bands to group together, and which of how many parts of their buckets.
    """
    at_once = max(1, min(bands, bands_per_pass // count))
    parts = -(-count // bands_per_pass)
    for start in range(0, bands, at_once):
        for part in range(parts):
            yield list(range(start, min(bands, start + at_once))), part, parts


def candidate_pairs(
    signatures: daft.DataFrame, bands: list[int], rows: int, part: int, parts: int
) -> np.ndarray:
    """Pair the smallest id of each bucket of these bands with every other id in it: uint64[n, 2].

    part, parts: only buckets whose number is `part` modulo `parts` are looked at.
    """
    column, hash_of = daft.col("signature"), daft.functions.hash
    buckets = [
        hash_of(daft.functions.slice(column, band * rows, (band + 1) * rows), seed=daft.lit(band))
        for band in bands
    ]
    placed = signatures.select("id", daft.functions.to_list(*buckets).alias("bucket"))
    placed = placed.explode("bucket")
    if parts > 1:
        placed = placed.where(daft.col("bucket") % parts == part)
    ids = daft.col("id")
    pairs = (
        placed.groupby("bucket")
        .agg(
            ids.min().alias("first"),
            ids.max().alias("last"),
            daft.functions.list_agg(ids).alias("ids"),
        )
        .where(daft.col("first") < daft.col("last"))
        .select("first", "ids")
        .explode("ids")
        .where(daft.col("first") < daft.col("ids"))
    )
    table = in_thread(pairs.to_arrow)
    return np.stack([table["first"].to_numpy(), table["ids"].to_numpy()], axis=1).astype(np.uint64)


def agreement(files: list[Path], pairs: np.ndarray, hashes: int) -> np.ndarray:
    """Return the share of equal values in the signatures of each pair: float64[n].

    pairs: ids, uint64[n, 2]. The share estimates the common share of shingles with a standard
    deviation of at most 0.5 / sqrt(hashes).
    """
    wanted = np.unique(pairs)
    values = np.full((len(wanted), hashes), np.iinfo(np.uint32).max, np.uint32)
    for file in files:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(ROWS_PER_BATCH):
                ids = batch["id"].to_numpy()
                places = np.searchsorted(wanted, ids).clip(max=len(wanted) - 1)
                is_wanted = wanted[places] == ids
                signatures = batch["signature"].flatten().to_numpy().reshape(-1, hashes)
                np.minimum.at(values, places[is_wanted], signatures[is_wanted])
    left, right = (values[np.searchsorted(wanted, side)] for side in pairs.T)
    return (left == right).mean(axis=1)


def components(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return for each of `count` nodes the smallest node of its connected component: int[count].

    first, second: the two ends of each edge, integers below `count`.
    """
    lowest = np.arange(count)
    while True:
        low = np.minimum(lowest[first], lowest[second])
        before = lowest.copy()
        for side in (first, second):
            np.minimum.at(lowest, side, low)
        lowest = lowest[lowest]
        if np.array_equal(lowest, before):
            return lowest
