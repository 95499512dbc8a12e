"""Explain in words what the last run of the filter did with one page, or read of each file.

The rules for one page measure its record again, with the parameters as they are now. What the run
decided stands in its shards and, for the rules across pages, in a file below runs/.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_file
from crawl2cart.crawl.filters.page_filters import Page, checks
from crawl2cart.crawl.filters.topic_classifier import Weights
from crawl2cart.crawl.params import Filter
from crawl2cart.crawl.shards import batches, by_reason, read_counts
from crawl2cart.crawl.warc.records import read_records

DECISIONS_FILE = "runs/filter-pages.parquet"
SHARDS = b"shards"
# Pages that the rules across pages removed or cut: number, reason or "", and the lines cut.
DECISIONS = pa.schema(
    [
        ("page", pa.int64()),
        ("url", pa.string()),
        ("reason", pa.string()),
        ("score", pa.float32()),
        ("because", pa.string()),
        ("cut", pa.list_(pa.string())),
    ]
)
SHOWN_CHARACTERS = 2000


@contextlib.contextmanager
def write_decisions(
    root: Path, files: list[dict], shards: list[Path]
) -> Iterator[pq.ParquetWriter]:
    """Yield a writer for rows of DECISIONS; `explain` reads them.

    files: entries of the manifest; the file's metadata list each with its shard.
    """
    names = [entry["file"] for entry in files]
    listed = json.dumps([*map(list, zip(names, map(str, shards), strict=True))])
    with (
        atomic_file(root / DECISIONS_FILE) as temporary,
        pq.ParquetWriter(temporary, DECISIONS, compression="zstd") as writer,
    ):
        writer.add_key_value_metadata({SHARDS: listed.encode()})
        yield writer


def files_and_shards(root: Path) -> list[tuple[str, Path]]:
    """Return each file of the last run with its shard.

    Raises UserError if there was no run, or if a shard is gone.
    """
    if not (root / DECISIONS_FILE).exists():
        raise UserError(
            "The filter has not run here. `python -m stages.filter` (or `dvc repro filter`) "
            "runs it."
        )
    listed = json.loads(pq.read_metadata(root / DECISIONS_FILE).metadata[SHARDS])
    pairs = [(file, Path(shard)) for file, shard in listed]
    if missing := [shard for _, shard in pairs if not shard.exists()]:
        raise UserError(
            f"{missing[0]} of the last run is gone. Run `python -m stages.filter` again."
        )
    return pairs


def file_table(root: Path) -> Iterator[str]:
    """Yield a table of the files of the last run, line by line.

    Columns: records read, damaged records among them, records or stretches dropped, pages, and
    what the damage was. Raises UserError as `files_and_shards` does.
    """
    yield f"{'records':>9} {'recovered':>9} {'dropped':>9} {'pages':>9}  file"
    for file, shard in files_and_shards(root):
        counts = read_counts([shard])
        numbers = [counts[name] for name in ("records", "recovered", "dropped")]
        numbers.append(pq.read_metadata(shard).num_rows)
        damage = [
            f"{name} {reason} {count}"
            for name in ("recovered", "dropped")
            for reason, count in sorted(by_reason(counts, name).items())
        ]
        columns = " ".join(f"{number:>9,}" for number in numbers)
        yield f"{columns}  {file}" + (f" ({', '.join(damage)})" if damage else "")


def find_pages(url: str, files: list[tuple[str, Path]]) -> Iterator[tuple[int, str, int, dict]]:
    """Yield each page of this URL: its number, its file, its turn, and its row.

    The turn tells which of the pages of this URL in the file it is, from 0 on.
    """
    number = 0
    for file, shard in files:
        turn = 0
        for batch in batches([shard], pq.read_schema(shard).names):
            for row in pc.indices_nonzero(pc.equal(batch["url"], url)).to_pylist():
                yield number + row, file, turn, batch.slice(row, 1).to_pylist()[0]
                turn += 1
            number += len(batch)


def explain(
    url: str, root: Path, limits: Filter, hosts: frozenset[str], topic: Weights | None
) -> Iterator[str]:
    """Yield what became of a page and why, line by line.

    Raises UserError if the last run has not seen the URL, or if there was no run.
    """
    pages = list(find_pages(url, files_and_shards(root)))
    if not pages:
        raise UserError(
            f"The last run of the filter saw no page {url}. URLs are compared letter by letter; "
            "data/rejects and data/corpus list some."
        )
    table = pq.read_table(root / DECISIONS_FILE, filters=[("url", "=", url)])
    decisions = {row["page"]: row for row in table.to_pylist()}
    for number, file, turn, row in pages:
        yield f"{url}: page {number:,} of the crawl, in {file}"
        if (root / "data/raw" / file).exists():
            yield from measured(root / "data/raw" / file, url, turn, limits, hosts, topic)
        yield from decided(row, decisions.get(number), limits)
        yield ""
        yield row["text"][:SHOWN_CHARACTERS] or "(no text was extracted)"
        yield ""


def measured(
    path: Path, url: str, turn: int, limits: Filter, hosts: frozenset[str], topic: Weights | None
) -> Iterator[str]:
    """Yield the score and bounds of each rule for one page, measured on the record again."""
    records = read_records(path, limits.max_page_bytes, Counter())
    record = next(islice((record for record in records if record.url == url), turn, None), None)
    if record is None:
        return
    content_type = record.content_type or "no content type"
    yield f"  record: status {record.status}, {content_type}, {len(record.body):,} bytes"
    for check in checks(Page(record), limits, hosts, topic):
        bounds = f" ({check.low:g} to {check.high:g})"
        verdict = "passes" if check.ok else "FAILS "
        is_plain = check.ok and check.low == check.high
        yield f"  {verdict} {check.rule}: {check.score:.4g}{'' if is_plain else bounds}"


def decided(row: dict, decision: dict | None, limits: Filter) -> Iterator[str]:
    """Yield what was masked and cut on a page, and which rule removed it.

    decision: the page's row of DECISIONS, None if the rules across pages did nothing to it.
    """
    masked = {
        name.removeprefix("pii_"): row[name]
        for name in row
        if name.startswith("pii_") and row[name]
    }
    if masked:
        counts = ", ".join(f"{kind} {count}" for kind, count in masked.items())
        yield f"  personal data masked: {counts}"
    if row["reason"]:
        yield f"-> removed by the rule {row['reason']}, score {row['score']:.4g}"
        return
    if decision is None:
        yield "  copies, repeated lines, held-out wordings: none"
        yield "-> kept"
        return
    for line in decision["cut"]:
        yield f"  a line of many pages was cut: {line}"
    reason, because, score = decision["reason"], decision["because"], decision["score"]
    match reason:
        case "duplicate":
            why = f"an exact copy of {because}, which stays"
        case "near_duplicate":
            why = (
                f"shares {score:.2f} of its shingles with a page of its cluster (a copy from "
                f"{limits.minhash.threshold} on); {because} stays"
            )
        case "repeated_lines":
            why = (
                f"{score:.0f} words are left without repeated lines, at least {limits.min_words} "
                "are needed"
            )
        case "contaminated":
            why = f'shares "{because}" with a held-out wording or plan'
        case _:
            yield "-> kept, without these lines"
            return
    yield f"-> removed by the rule {reason}: {why}"
