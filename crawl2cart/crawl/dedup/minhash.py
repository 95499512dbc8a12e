"""Which texts are nearly the same: MinHash signatures of word shingles, compared where a band of them is equal.

Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900; banding as in Leskovec et al., Mining of Massive Datasets,
chapter 3. Two texts that share a part s of their shingles meet in a band with probability 1 - (1 - s^rows)^bands.
Daft computes signatures and groups bands; one pass takes as many bands, or as large a part of one, as fit in memory.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from crawl2cart.crawl.executor import apart, daft

SEED = 1
# Bytes of memory for each band of a text while a pass groups them: 300 MB for two million.
BYTES_A_BAND = 150
# Of the bands of all texts, one pass groups about this many unless told otherwise.
BANDS_A_PASS = 2_000_000
# Pairs whose signatures are held and compared at once: at most 450 bytes for each of two texts.
PAIRS_AT_ONCE = 200_000
ROWS_AT_ONCE = 20_000


class Pairs(NamedTuple):
    """Pairs of near-equal texts by their ids (first < second, unique) and the estimated share of common shingles."""

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray


def near_pairs(
    texts: daft.DataFrame,
    words: int,
    bands: int,
    rows: int,
    similarity: float,
    scratch: Path,
    memory: int | None = None,
) -> Pairs:
    """The pairs of texts that meet in a band and whose signatures agree in at least `similarity` of their values.

    texts: columns id (uint64, one for each text; equal texts may share one) and text. Within a band's bucket every
    text is compared with the one of the smallest id only, so the work grows with the texts and not with the pairs.
    scratch: a folder that all machines see; the signatures lie there while this runs, 4 bytes a hash.
    memory: bytes that grouping may take, on all machines together; with more of it there are fewer passes over the
    signatures, and the pairs are the same. None: those of BANDS_A_PASS.
    """
    bands_a_pass = BANDS_A_PASS if memory is None else max(1, memory // BYTES_A_BAND)
    folder = scratch / "signatures"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        signed = texts.select("id", signature(words, bands * rows).alias("signature"))
        apart(lambda: signed.write_parquet(str(folder), compression="zstd"))
        files = sorted(folder.rglob("*.parquet"))
        count = sum(pq.read_metadata(file).num_rows for file in files)
        if not count:
            return Pairs(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0))
        signatures = daft.read_parquet([str(file) for file in files])
        found = np.empty((0, 2), np.uint64)
        for some, part, parts in passes(count, bands, bands_a_pass):
            found = np.unique(
                np.concatenate([found, meet(signatures, some, rows, part, parts)]), axis=0
            )
        share = np.concatenate(
            [
                np.empty(0),
                *(
                    agreement(files, found[start : start + PAIRS_AT_ONCE], bands * rows)
                    for start in range(0, len(found), PAIRS_AT_ONCE)
                ),
            ]
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    near = share >= similarity
    return Pairs(found[near, 0], found[near, 1], share[near])


def signature(words: int, hashes: int) -> daft.Expression:
    """The least hash of the column text's shingles of so many words under each of so many hash functions.

    Case, punctuation and accents are set aside. A text shorter than a shingle is one.
    """
    plain = daft.functions.normalize(
        daft.col("text"), remove_punct=True, lowercase=True, nfd_unicode=True, white_space=True
    )
    return daft.functions.minhash(
        plain, num_hashes=hashes, ngram_size=words, seed=SEED, hash_function="xxhash3_64"
    )


def passes(count: int, bands: int, bands_a_pass: int) -> Iterator[tuple[list[int], int, int]]:
    """Bands to group together, and which of how many parts of their buckets, so that a pass groups about bands_a_pass."""
    at_once = max(1, min(bands, bands_a_pass // count))
    parts = -(-count // bands_a_pass)
    for start in range(0, bands, at_once):
        for part in range(parts):
            yield list(range(start, min(bands, start + at_once))), part, parts


def meet(
    signatures: daft.DataFrame, bands: list[int], rows: int, part: int, parts: int
) -> np.ndarray:
    """Pairs of ids that are in one bucket of these bands: the bucket's smallest id with each other one."""
    column, hash_of = daft.col("signature"), daft.functions.hash
    buckets = [
        hash_of(daft.functions.slice(column, band * rows, (band + 1) * rows), seed=daft.lit(band))
        for band in bands
    ]
    placed = signatures.select("id", daft.functions.to_list(*buckets).alias("bucket")).explode(
        "bucket"
    )
    if parts > 1:
        placed = placed.where(daft.col("bucket") % parts == part)
    ids = daft.col("id")
    full = (
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
    table = apart(full.to_arrow)
    return np.stack([table["first"].to_numpy(), table["ids"].to_numpy()], axis=1).astype(np.uint64)


def agreement(files: list[Path], pairs: np.ndarray, hashes: int) -> np.ndarray:
    """The share of equal values in the signatures of each pair, an estimate of their common share of shingles whose
    standard deviation is at most 0.5 / sqrt(hashes)."""
    wanted = np.unique(pairs)
    values = np.full((len(wanted), hashes), np.iinfo(np.uint32).max, np.uint32)
    for file in files:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(ROWS_AT_ONCE):
                ids = batch["id"].to_numpy()
                places = np.searchsorted(wanted, ids).clip(max=len(wanted) - 1)
                ours = wanted[places] == ids
                np.minimum.at(
                    values,
                    places[ours],
                    batch["signature"].flatten().to_numpy().reshape(-1, hashes)[ours],
                )
    left, right = (values[np.searchsorted(wanted, side)] for side in pairs.T)
    return (left == right).mean(axis=1)


def components(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For each of `count` places the smallest place of its cluster: what pairs join, directly or over others, is one."""
    lowest = np.arange(count)
    while True:
        low = np.minimum(lowest[first], lowest[second])
        before = lowest.copy()
        for side in (first, second):
            np.minimum.at(lowest, side, low)
        lowest = lowest[lowest]
        if np.array_equal(lowest, before):
            return lowest


def minhash_dedup(
    files: list[Path], hashes: int, bands: int, words: int, similarity: float, out: Path
) -> dict[str, int]:
    """Copies those of the text files to `out` that say what no other says: of near-equal ones the first by name.

    hashes: values in a signature, a multiple of bands. words: in a shingle. similarity: the least share of common
    shingles of copies, estimated. Returns counts: documents, kept, clusters (of two or more) and largest.
    """
    if hashes % bands:
        raise ValueError(f"{hashes} hashes do not divide into {bands} bands")
    files = sorted(map(Path, files), key=lambda file: (file.name, str(file)))
    ids = np.array([xxhash.xxh3_64_intdigest(str(file).encode()) for file in files], np.uint64)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="minhash-") as scratch:
        table = Path(scratch) / "texts.parquet"
        with pq.ParquetWriter(
            table, pa.schema([("id", pa.uint64()), ("text", pa.large_string())])
        ) as writer:
            for number, file in zip(ids, files, strict=True):
                writer.write_batch(
                    pa.record_batch(
                        {
                            "id": pa.array([number], pa.uint64()),
                            "text": pa.array([file.read_text()], pa.large_string()),
                        }
                    )
                )
        pairs = near_pairs(
            daft.read_parquet(str(table)), words, bands, hashes // bands, similarity, Path(scratch)
        )
    order = np.argsort(ids)
    first, second = (order[np.searchsorted(ids[order], side)] for side in pairs[:2])
    clusters = components(len(files), first, second)
    stays = np.unique(clusters)  # the smallest place is the first name
    for place in stays:
        shutil.copyfile(files[place], out / files[place].name)
    sizes = np.bincount(clusters)
    return {
        "documents": len(files),
        "kept": len(stays),
        "clusters": int((sizes > 1).sum()),
        "largest": int(sizes.max()),
    }
