"""Keep the readable pages of the crawl in the wanted language and count why the others went.

in   data/raw/ (WARC or WET files and manifest.json), data/web/blocked_hosts.txt; data/web/labels.csv, data/web/personal.csv
     and data/web/sites for the measured quality
out  data/corpus/{train,val}/part-00000.parquet (url, text, language_score, key), data/rejects/part-00000.parquet (url,
     reason, score, text: its first 200 characters), metrics/filter.json

Each page passes the rules one after the other and the first that fails names the reason: HTTP, size, language,
Gopher's quality and repetition, equal texts. Penedo et al. 2023 (RefinedWeb), https://arxiv.org/abs/2306.01116
"""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.common.files import atomic_directory, atomic_file, read_json
from stages.common.metrics import write_metrics
from stages.common.params import Filter
from stages.common.problem import Problem
from stages.common.progress import progress
from stages.common.stage import Stage, run
from stages.crawl.blocklist import read_hosts
from stages.crawl.dedup import first_copies, unit_interval
from stages.crawl.judge import SHARD, judge
from stages.crawl.labels import keep_quality, measure_pii, read_labels, read_personal, token_f1
from stages.crawl.pii import mask
from stages.crawl.sites import gold_text, read_sites
from stages.crawl.warc import read

COUNTS = b"counts"
HEAD_CHARACTERS = 200


def filter_warc(path: Path, limits: Filter, hosts: frozenset[str]) -> pa.Table:
    """All pages of one WARC or WET file, judged. What the reader counted stands in the table's metadata.

    It depends on nothing but its arguments, so that one task a file can run anywhere.
    """
    counts: Counter = Counter()
    rows = []
    for record in read(path, limits.max_page_bytes, counts):
        rows.append(judge(record, limits, hosts))
        counts["page_bytes"] += len(record.body)
    return pa.Table.from_pylist(rows, SHARD.with_metadata({COUNTS: json.dumps(counts, sort_keys=True).encode()}))


def shard_key(digest: str, limits: Filter, hosts: frozenset[str], code: dict[str, str]) -> str:
    """What a shard depends on: the file's sha256, the parameters, the blocked hosts and the code."""
    text = json.dumps([digest, limits.model_dump(), sorted(hosts), code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def filter_all(raw: Path, files: list[dict], limits: Filter, code: dict[str, str], cache: Path) -> list[pa.Table]:
    """The judged pages of every file; a file that an earlier run has finished is read from the cache."""
    hosts = read_hosts(Path(limits.blocked_hosts))
    shards = []
    for entry in progress(files, "filtering", "file"):
        shard = cache / f"{shard_key(entry['sha256'], limits, hosts, code)}.parquet"
        if not shard.exists():
            with atomic_file(shard) as temporary:
                pq.write_table(filter_warc(raw / entry["file"], limits, hosts), temporary, compression="zstd")
        shards.append(pq.read_table(shard))
    return shards


def drop_copies(pages: pa.Table) -> pa.Table:
    """Gives the reason `duplicate` to kept pages whose text another kept page has."""
    urls, keys, reasons = (pages[name].to_pylist() for name in ("url", "key", "reason"))
    rows = [row for row, reason in enumerate(reasons) if not reason]
    stays = first_copies([urls[row] for row in rows], [keys[row] for row in rows])
    for row, first in zip(rows, stays, strict=True):
        if not first:
            reasons[row] = "duplicate"
    return pages.set_column(pages.schema.get_field_index("reason"), "reason", pa.array(reasons, pa.string()))


def split(corpus: pa.Table, validation_share: float) -> tuple[pa.Table, pa.Table]:
    """Training and validation pages, by a hash of the text. Each gets at least one."""
    places = [unit_interval(key) for key in corpus["key"].to_pylist()]
    border = min(max(validation_share, min(places)), sorted(places)[-2])
    held_out = pa.array([place <= border for place in places])
    return corpus.filter(pc.invert(held_out)), corpus.filter(held_out)


def check_enough(pages: pa.Table, kept: int) -> None:
    """Raises Problem unless there is a page to train on and one to validate with."""
    if kept >= 2:
        return
    if not len(pages):
        raise Problem("data/raw holds no page at all: no response, resource or conversion record. Look at data/raw/"
                      "manifest.json and at download.paths in params.yaml.")
    (reason, count), *_ = Counter(filter(None, pages["reason"].to_pylist())).most_common(1)
    raise Problem(f"Of {len(pages):,} pages {kept} remain, and two are the least. The rule `{reason}` removed most, "
                  f"{count:,}. Loosen it under `filter:` in params.yaml, or give other pages to `download`.")


def read_counts(shards: list[pa.Table]) -> Counter:
    return sum((Counter(json.loads(shard.schema.metadata[COUNTS])) for shard in shards), Counter())


def by_reason(counts: Counter, name: str) -> dict[str, int]:
    return {key.removeprefix(f"{name}."): count for key, count in counts.items() if key.startswith(f"{name}.")}


def measure(pages: pa.Table, labels: Path, personal: Path, sites: Path) -> dict:
    """How near the filter comes to what people said about the embedded pages of held-out sites.

    extraction.f1: mean token F1 of the text with the page's gold text, both masked, over its pages labelled keep.
    """
    said = read_labels(labels)
    held_out = {page.url: page for page in read_sites(sites) if page.site.held_out}
    texts = dict(zip(pages["url"].to_pylist(), pages["text"].to_pylist(), strict=True))
    kept = set(pages.filter(pc.equal(pages["reason"], ""))["url"].to_pylist())
    good = [page for url, page in held_out.items() if url in said and said[url].keep]
    scores = [token_f1(texts.get(page.url, ""), mask(gold_text(page))[0]) for page in good]
    extraction = {"f1": sum(scores) / len(scores)} if scores else {}
    return {"keep": keep_quality(kept, said, set(held_out)), "extraction": extraction | {"n": len(scores)},
            "pii": measure_pii(good, read_personal(personal))}


def main(stage: Stage) -> None:
    limits = stage.params.filter
    raw = Path("data/raw")
    manifest = read_json(raw / "manifest.json")
    files = manifest["files"]
    code = {file: digest for group, found in stage.inputs.items() if not group.startswith("data/")
            for file, (_, _, digest) in found.items()}
    shards = filter_all(raw, files, limits, code, stage.cache)
    counts = read_counts(shards)
    pages = drop_copies(pa.concat_tables(shard.replace_schema_metadata() for shard in shards))
    pages = pages.sort_by([("url", "ascending"), ("key", "ascending"), ("reason", "ascending")])
    kept = pages.filter(pc.equal(pages["reason"], ""))
    rejected = pages.filter(pc.not_equal(pages["reason"], ""))
    check_enough(pages, len(kept))
    train, validation = split(kept.select(["url", "text", "language_score", "key"]), limits.validation_share)

    with atomic_directory("data/corpus") as folder:
        for name, part in (("train", train), ("val", validation)):
            (folder / name).mkdir()
            pq.write_table(part, folder / name / "part-00000.parquet", compression="zstd")
    with atomic_directory("data/rejects") as folder:
        head = pc.utf8_slice_codeunits(rejected["text"], 0, HEAD_CHARACTERS)
        pq.write_table(rejected.select(["url", "reason", "score"]).append_column("text", head),
                       folder / "part-00000.parquet", compression="zstd")
    text_bytes = {name: sum(len(text.encode()) for text in part["text"].to_pylist())
                  for name, part in (("train", train), ("val", validation))}
    metrics = {
        "documents": {"in": len(pages), "kept": len(kept), "train": len(train), "val": len(validation)},
        "removed": dict(Counter(rejected["reason"].to_pylist())),
        "read": {name: counts[name] for name in ("records", "recovered", "lost")}
        | {f"{name}_by": by_reason(counts, name) for name in ("recovered", "lost")},
        "bytes": {"raw": sum(entry["bytes"] for entry in files), "pages": counts["page_bytes"]} | text_bytes,
    }
    if manifest["source"] == "embedded":
        metrics |= measure(pages, Path("data/web/labels.csv"), Path("data/web/personal.csv"), Path("data/web/sites"))
    write_metrics("metrics/filter.json", metrics)
    print(f"{counts['records']:,} records ({counts['recovered']:,} mended), {counts['lost']:,} lost; "
          f"kept {len(kept):,} of {len(pages):,} pages")
    if counts["records.conversion"]:
        print("These are WET files: about half of their text is navigation and banners. WARC files give cleaner text.")


if __name__ == "__main__":
    run(main)
