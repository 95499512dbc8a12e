"""Keep the filtered pages of each WARC or WET file in one parquet file, a shard.

A shard is made once and used until the file, the parameters of the rules for one page, or the code
change. Its columns are those of `page_filters.SHARD`; its metadata hold what the reader counted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crawl2cart.core.files import atomic_file, read_json, write_json
from crawl2cart.crawl.executor import Task, run_tasks
from crawl2cart.crawl.filters.page_filters import SHARD, filter_page
from crawl2cart.crawl.filters.topic_classifier import Weights
from crawl2cart.crawl.params import Filter
from crawl2cart.crawl.warc.records import read_records

COUNTS = b"counts"
BATCH_CHARACTERS = 1 << 24
BATCH_ROWS = 2000
# Runs whose shards stay: going back to earlier parameters is free, and the disk does not fill.
KEPT_RUNS = 8
# Parameters of the engine and of the rules that compare pages. Shards do not depend on them.
NOT_OF_SHARDS = {
    "engine",
    "ray_address",
    "workers",
    "minhash",
    "repeated_line_pages",
    "repeated_line_letters",
    "decontamination",
    "rejects_per_reason",
    "validation_share",
}


def make_shards(
    raw: Path,
    files: list[dict],
    limits: Filter,
    hosts: frozenset[str],
    topic: Weights | None,
    code: dict[str, str],
    cache: Path,
    log: Path,
) -> list[Path]:
    """Make the shards that are missing in `cache`; return those of all files, in their order.

    raw: the folder of the files. files: entries of the manifest, with `file` and `sha256`. Equal
    files share a shard. hosts, topic: see `filter_page`. code: sha256 of the code by file name.
    log: see `run_tasks`, which raises UserError for files that cannot be filtered.
    """
    targets = {
        entry["sha256"]: cache / f"{shard_key(entry['sha256'], limits, hosts, topic, code)}.parquet"
        for entry in files
    }
    sources = {entry["sha256"]: raw / entry["file"] for entry in reversed(files)}
    tasks = [
        Task(str(sources[digest].resolve()), str(target.resolve()))
        for digest, target in targets.items()
    ]
    run_tasks(
        partial(write_shard, limits=limits, hosts=hosts, topic=topic),
        tasks,
        limits,
        "filtering",
        log,
    )
    return [targets[entry["sha256"]] for entry in files]


def prune(cache: Path, shards: list[Path]) -> None:
    """Record which shards this run uses; remove those that none of the last KEPT_RUNS used."""
    record = cache / "runs.json"
    runs = read_json(record) if record.exists() else []
    used = sorted({shard.name for shard in shards})
    runs = [*(run for run in runs if run != used), used][-KEPT_RUNS:]
    write_json(record, runs)
    kept = {name for run in runs for name in run}
    for shard in cache.glob("*.parquet"):
        if shard.name not in kept:
            shard.unlink()


def shard_key(
    digest: str, limits: Filter, hosts: frozenset[str], topic: Weights | None, code: dict[str, str]
) -> str:
    """Hash what a shard depends on (32 hex digits); the arguments are those of `make_shards`."""
    text = json.dumps(
        [digest, limits.model_dump(exclude=NOT_OF_SHARDS), sorted(hosts), topic, code],
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_shard(
    source: Path, target: Path, limits: Filter, hosts: frozenset[str], topic: Weights | None
) -> None:
    """Filter all pages of one file into one shard. It needs nothing but its arguments."""
    counts: Counter[str] = Counter()
    rows, characters = [], 0
    with (
        atomic_file(target) as temporary,
        pq.ParquetWriter(temporary, SHARD, compression="zstd") as writer,
    ):
        for record in read_records(source, limits.max_page_bytes, counts):
            rows.append(filter_page(record, limits, hosts, topic))
            characters += len(rows[-1]["text"])
            counts["page_bytes"] += len(record.body)
            if characters >= BATCH_CHARACTERS or len(rows) >= BATCH_ROWS:
                writer.write_table(pa.Table.from_pylist(rows, SHARD))
                rows, characters = [], 0
        writer.write_table(pa.Table.from_pylist(rows, SHARD))
        writer.add_key_value_metadata({COUNTS: json.dumps(counts, sort_keys=True).encode()})


def read_counts(shards: list[Path]) -> Counter[str]:
    """Add up what the readers of all files counted, see `read_records`, and `page_bytes`."""
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(json.loads(pq.read_metadata(shard).metadata[COUNTS]))
    return counts


def by_reason(counts: Counter[str], name: str) -> dict[str, int]:
    """Return the counts below `name` by reason; name: `recovered` or `dropped`."""
    return {
        key.removeprefix(f"{name}."): count
        for key, count in counts.items()
        if key.startswith(f"{name}.")
    }


def batches(shards: list[Path], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all shards in order, at most BATCH_ROWS at a time."""
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            yield from file.iter_batches(BATCH_ROWS, columns=columns)
