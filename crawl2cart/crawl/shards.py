"""The judged pages of one WARC or WET file as one parquet file, kept as long as what it was made from stays the same."""

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
from crawl2cart.crawl.warc.records import read

COUNTS = b"counts"
CHARACTERS_AT_ONCE = 1 << 24
ROWS_AT_ONCE = 2000
KEPT_RUNS = 8  # of which the shards stay: going back to parameters of before costs nothing, and the disk does not fill
# Parameters of the rules that look at many pages, and of the engine: the judged pages do not depend on them.
ELSEWHERE = {
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
    """The shards of the files in their order, those made that an earlier run has not finished. Equal files share one.

    log: see `run_tasks`.
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
    """Notes which shards this run uses and removes those that none of the last KEPT_RUNS did."""
    note = cache / "runs.json"
    runs = read_json(note) if note.exists() else []
    used = sorted({shard.name for shard in shards})
    runs = [*(run for run in runs if run != used), used][-KEPT_RUNS:]
    write_json(note, runs)
    kept = {name for run in runs for name in run}
    for shard in cache.glob("*.parquet"):
        if shard.name not in kept:
            shard.unlink()


def shard_key(
    digest: str, limits: Filter, hosts: frozenset[str], topic: Weights | None, code: dict[str, str]
) -> str:
    """What a shard depends on: the file's sha256, the parameters of the rules for one page, the blocked hosts,
    the topic's weights and the code.

    code: sha256 by file name.
    """
    text = json.dumps(
        [digest, limits.model_dump(exclude=ELSEWHERE), sorted(hosts), topic, code], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_shard(
    source: Path, target: Path, limits: Filter, hosts: frozenset[str], topic: Weights | None
) -> None:
    """All pages of one file, judged, a block of rows at a time; what the reader counted stands in the file's metadata.

    It depends on nothing but its arguments, so that it can run anywhere.
    """
    counts: Counter = Counter()
    rows, characters = [], 0
    with (
        atomic_file(target) as temporary,
        pq.ParquetWriter(temporary, SHARD, compression="zstd") as writer,
    ):
        for record in read(source, limits.max_page_bytes, counts):
            rows.append(filter_page(record, limits, hosts, topic))
            characters += len(rows[-1]["text"])
            counts["page_bytes"] += len(record.body)
            if characters >= CHARACTERS_AT_ONCE or len(rows) >= ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(rows, SHARD))
                rows, characters = [], 0
        writer.write_table(pa.Table.from_pylist(rows, SHARD))
        writer.add_key_value_metadata({COUNTS: json.dumps(counts, sort_keys=True).encode()})


def read_counts(shards: list[Path]) -> Counter:
    """What the readers of all files counted, added up."""
    counts: Counter = Counter()
    for shard in shards:
        counts.update(json.loads(pq.read_metadata(shard).metadata[COUNTS]))
    return counts


def by_reason(counts: Counter, name: str) -> dict[str, int]:
    """How often it was for which reason that records were `recovered`, or `lost`."""
    return {
        key.removeprefix(f"{name}."): count
        for key, count in counts.items()
        if key.startswith(f"{name}.")
    }


def batches(shards: list[Path], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of all shards in order, a block at a time."""
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            yield from file.iter_batches(ROWS_AT_ONCE, columns=columns)
