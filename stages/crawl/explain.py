"""One page's way through all rules in the last run of the filter, in words.

Nothing is judged by other rules than the run's: what each rule measured is measured again on the page's record, what
was decided across pages stands in the note that the run left in runs/.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.common.files import atomic_file
from stages.common.params import Filter
from stages.common.problem import Problem
from stages.crawl.quality import gopher_quality, gopher_repetition
from stages.crawl.shards import batches
from stages.crawl.warc import read

NOTE = "runs/filter-pages.parquet"
SHARDS = b"shards"
# What the rules across pages did: the page's number, why it went if it did, and the lines that were cut.
DECIDED = pa.schema([("page", pa.int64()), ("url", pa.string()), ("reason", pa.string()), ("score", pa.float32()),
                     ("because", pa.string()), ("cut", pa.list_(pa.string()))])
RULES_WITH_SCORES = (gopher_quality, gopher_repetition)
LONGEST_SHOWN = 2000


@contextlib.contextmanager
def last_run(root: Path, files: list[dict], shards: list[Path]) -> Iterator[pq.ParquetWriter]:
    """Yields a writer of the note that a run leaves for `explain`, rows as DECIDED says; its metadata lists each file
    of the crawl with its shard."""
    listed = json.dumps([[entry["file"], str(shard)] for entry, shard in zip(files, shards, strict=True)])
    with atomic_file(root / NOTE) as temporary, pq.ParquetWriter(temporary, DECIDED, compression="zstd") as writer:
        writer.add_key_value_metadata({SHARDS: listed.encode()})
        yield writer


def find(url: str, listed: list[list[str]]) -> Iterator[tuple[int, str, int, dict]]:
    """Each page of this URL: its number, its file, which of the file's pages of this URL it is, and its row."""
    number = 0
    for file, shard in listed:
        again = 0
        for batch in batches([Path(shard)], pq.read_schema(shard).names):
            for row in pc.indices_nonzero(pc.equal(batch["url"], url)).to_pylist():
                yield number + row, file, again, batch.slice(row, 1).to_pylist()[0]
                again += 1
            number += len(batch)


def explain(url: str, root: Path, limits: Filter) -> Iterator[str]:
    """What to say about a page, line by line. Raises Problem if the last run has not seen it, or there was none."""
    if not (root / NOTE).exists():
        raise Problem("The filter has not run here. `python -m stages.filter` (or `dvc repro filter`) does it.")
    note = pq.ParquetFile(root / NOTE)
    listed = json.loads(note.metadata.metadata[SHARDS])
    if missing := [shard for _, shard in listed if not Path(shard).exists()]:
        raise Problem(f"{missing[0]} of the last run is gone. Run `python -m stages.filter` again.")
    found = list(find(url, listed))
    if not found:
        raise Problem(f"The last run of the filter saw no page {url}. URLs are compared letter by letter; "
                      "data/rejects and data/corpus list some.")
    decided = {row["page"]: row for row in note.read().filter(pc.equal(note.read()["url"], url)).to_pylist()}
    for number, file, again, row in found:
        yield f"{url}: page {number:,} of the crawl, in {file}"
        yield from story(row, decided.get(number), limits)
        yield from record(root / "data/raw" / file, url, again, limits)
        yield ""
        yield row["text"][:LONGEST_SHOWN] or "(no text was taken from it)"
        yield ""


def record(path: Path, url: str, again: int, limits: Filter) -> Iterator[str]:
    if not path.exists():
        return
    records = (record for record in read(path, limits.max_page_bytes, Counter()) if record.url == url)
    for number, found in enumerate(records):
        if number == again:
            yield (f"  the record: status {found.status}, {found.content_type or 'no content type'}, "
                   f"{len(found.body):,} bytes{' or more' if len(found.body) > limits.max_page_bytes else ''}")
            return


def story(row: dict, decided: dict | None, limits: Filter) -> Iterator[str]:
    """The rules in their order, what each measured, and where the page's way ended."""
    for name, value in row.items():
        if name not in ("url", "text", "key", "reason", "score") and value not in ("", 0):
            yield f"  {name.replace('_', ' ')}: {value if isinstance(value, str | int) else round(value, 3)}"
    for rule in RULES_WITH_SCORES if row["text"] else ():
        verdict = rule(row["text"], limits)
        measured = ", ".join(f"{name} {round(score, 3):g}" for name, score in verdict.scores.items())
        yield f"  {rule.__name__}: {'passes' if verdict.ok else 'fails ' + verdict.reason}; {measured}"
        if not verdict.ok:
            break
    if row["reason"]:
        yield f"-> removed by the rule {row['reason']}, score {round(row['score'], 4):g}{bound(row['reason'], limits)}"
        return
    yield "  the rules for one page: passes all"
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
            yield (f"-> removed by the rule near_duplicate: shares {decided['score']:.2f} of its shingles with a page of "
                   f"its cluster ({limits.near_similarity} make a copy); {decided['because']} stays")
        case "repeated_lines":
            yield (f"-> removed by the rule repeated_lines: {decided['score']:.0f} words are left without them, and "
                   f"{limits.min_words} are the least")
        case "contaminated":
            yield f"-> removed by the rule contaminated: a held-out wording or plan has \"{decided['because']}\" too"
        case _:
            yield "-> kept, without these lines"


def bound(reason: str, limits: Filter) -> str:
    """The parameters that a rule compares its score with, as far as their names tell."""
    values = limits.model_dump()
    named = [f"{name} {values[name]}" for name in (f"min_{reason}", f"max_{reason}", f"{reason}_threshold") if name in values]
    return f" ({', '.join(named)})" if named else ""
