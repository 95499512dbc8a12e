"""What became of one page, or of each file, in the last run of the filter, in words.

What each rule for one page measured is measured again on the page's record, with the parameters as they are now; how the
run decided stands in its shards and, for the rules across pages, in the note that it left in runs/.
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
from crawl2cart.crawl.warc.records import read

NOTE = "runs/filter-pages.parquet"
SHARDS = b"shards"
# What the rules across pages did: the page's number, why it went if it did, and the lines that were cut.
DECIDED = pa.schema(
    [
        ("page", pa.int64()),
        ("url", pa.string()),
        ("reason", pa.string()),
        ("score", pa.float32()),
        ("because", pa.string()),
        ("cut", pa.list_(pa.string())),
    ]
)
LONGEST_SHOWN = 2000


@contextlib.contextmanager
def last_run(root: Path, files: list[dict], shards: list[Path]) -> Iterator[pq.ParquetWriter]:
    """Yields a writer of the note that a run leaves for `explain`, rows as DECIDED says; its metadata lists each file
    of the crawl with its shard."""
    listed = json.dumps(
        [[entry["file"], str(shard)] for entry, shard in zip(files, shards, strict=True)]
    )
    with (
        atomic_file(root / NOTE) as temporary,
        pq.ParquetWriter(temporary, DECIDED, compression="zstd") as writer,
    ):
        writer.add_key_value_metadata({SHARDS: listed.encode()})
        yield writer


def files_and_shards(root: Path) -> list[tuple[str, Path]]:
    """Each file of the last run with its shard. Raises UserError if there was no run, or a shard is gone."""
    if not (root / NOTE).exists():
        raise UserError(
            "The filter has not run here. `python -m stages.filter` (or `dvc repro filter`) does it."
        )
    found = [
        (file, Path(shard))
        for file, shard in json.loads(pq.read_metadata(root / NOTE).metadata[SHARDS])
    ]
    if missing := [shard for _, shard in found if not shard.exists()]:
        raise UserError(
            f"{missing[0]} of the last run is gone. Run `python -m stages.filter` again."
        )
    return found


def files_read(root: Path) -> Iterator[str]:
    """A table of the files of the last run: records read, those among them that were damaged, records or stretches lost,
    pages among the records, and what the damage was. Raises UserError as `files_and_shards` does."""
    yield f"{'records':>9} {'recovered':>9} {'lost':>9} {'pages':>9}  file"
    for file, shard in files_and_shards(root):
        counts = read_counts([shard])
        numbers = (
            counts["records"],
            counts["recovered"],
            counts["lost"],
            pq.read_metadata(shard).num_rows,
        )
        why = [
            f"{name} {reason} {count}"
            for name in ("recovered", "lost")
            for reason, count in sorted(by_reason(counts, name).items())
        ]
        yield (
            " ".join(f"{number:>9,}" for number in numbers)
            + f"  {file}"
            + (f" ({', '.join(why)})" if why else "")
        )


def find(url: str, listed: list[tuple[str, Path]]) -> Iterator[tuple[int, str, int, dict]]:
    """Each page of this URL: its number, its file, which of the file's pages of this URL it is, and its row."""
    number = 0
    for file, shard in listed:
        turn = 0
        for batch in batches([shard], pq.read_schema(shard).names):
            for row in pc.indices_nonzero(pc.equal(batch["url"], url)).to_pylist():
                yield number + row, file, turn, batch.slice(row, 1).to_pylist()[0]
                turn += 1
            number += len(batch)


def explain(
    url: str, root: Path, limits: Filter, hosts: frozenset[str], topic: Weights | None
) -> Iterator[str]:
    """What to say about a page, line by line. Raises UserError if the last run has not seen it, or there was none."""
    found = list(find(url, files_and_shards(root)))
    if not found:
        raise UserError(
            f"The last run of the filter saw no page {url}. URLs are compared letter by letter; "
            "data/rejects and data/corpus list some."
        )
    decided = {
        row["page"]: row
        for row in pq.read_table(root / NOTE, filters=[("url", "=", url)]).to_pylist()
    }
    for number, file, turn, row in found:
        yield f"{url}: page {number:,} of the crawl, in {file}"
        if (root / "data/raw" / file).exists():
            yield from again(root / "data/raw" / file, url, turn, limits, hosts, topic)
        yield from ending(row, decided.get(number), limits)
        yield ""
        yield row["text"][:LONGEST_SHOWN] or "(no text was taken from it)"
        yield ""


def again(
    path: Path, url: str, turn: int, limits: Filter, hosts: frozenset[str], topic: Weights | None
) -> Iterator[str]:
    """What each rule for one page measures on the record, the turn-th of this URL in the file, and what it would take."""
    records = (found for found in read(path, limits.max_page_bytes, Counter()) if found.url == url)
    record = next(islice(records, turn, None), None)
    if record is None:
        return
    yield f"  the record: status {record.status}, {record.content_type or 'no content type'}, {len(record.body):,} bytes"
    page = Page(record)
    for check in checks(page, limits, hosts, topic):
        span = "" if check.ok and check.low == check.high else f" ({check.low:g} to {check.high:g})"
        yield f"  {'passes' if check.ok else 'FAILS '} {check.rule}: {check.score:.4g}{span}"


def ending(row: dict, decided: dict | None, limits: Filter) -> Iterator[str]:
    """Where the page's way ended, and what the rules across pages did to it before."""
    masked = {
        name.removeprefix("pii_"): row[name]
        for name in row
        if name.startswith("pii_") and row[name]
    }
    if masked:
        yield f"  personal data masked: {', '.join(f'{kind} {count}' for kind, count in masked.items())}"
    if row["reason"]:
        yield f"-> removed by the rule {row['reason']}, which measured {row['score']:.4g}"
        return
    if decided is None:
        yield "  copies, repeated lines, held-out wordings: none"
        yield "-> kept"
        return
    for line in decided["cut"]:
        yield f"  a line of many pages was cut: {line}"
    match decided["reason"]:
        case "duplicate":
            yield f"-> removed by the rule duplicate: word by word a copy of {decided['because']}, which stays"
        case "near_duplicate":
            yield (
                f"-> removed by the rule near_duplicate: shares {decided['score']:.2f} of its shingles with a page of "
                f"its cluster ({limits.minhash.threshold} make a copy); {decided['because']} stays"
            )
        case "repeated_lines":
            yield (
                f"-> removed by the rule repeated_lines: {decided['score']:.0f} words are left without them, and "
                f"{limits.min_words} are the least"
            )
        case "contaminated":
            yield f'-> removed by the rule contaminated: a held-out wording or plan has "{decided["because"]}" too'
        case _:
            yield "-> kept, without these lines"
