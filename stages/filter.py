"""Keep the readable pages of the crawl in the wanted language and count why the others went.

in   data/raw/ (WARC or WET files and manifest.json), data/web/blocked_hosts.txt; data/store/wordings and plans.jsonl, of
     which no page may hold what is for testing; data/web/labels.csv, data/web/personal.csv and data/web/sites for the
     measured quality; data/web/topics.csv, from which `keep: shopping` learns
out  data/corpus/{train,val}/part-*.parquet (url, text, language_score, key), data/rejects/part-00000.parquet (url,
     reason, score, because, text: its first 200 characters; a sample of each reason), metrics/filter.json,
     metrics/filter.tsv (the steps of the waterfall: pages left, and pages, bytes and words removed)

Each page passes the rules one after the other and the first that fails names the reason: first those that need no
other page, one task a file, then copies, repeated lines and held-out wordings. Penedo et al. 2023 (RefinedWeb),
https://arxiv.org/abs/2306.01116. `python -m stages.filter --explain URL` shows one page's way in the last run, and
`python -m stages.filter --files` what of each file could be read.
"""

import math
import sys
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, read_json
from crawl2cart.core.metrics import write_curve, write_metrics
from crawl2cart.core.params import read_params
from crawl2cart.core.stage import Stage, exclusive, run
from crawl2cart.crawl.dedup.fingerprint import unit_interval
from crawl2cart.crawl.embedded_web.sites import Page, gold_text, read_sites
from crawl2cart.crawl.evaluate import (
    Label,
    copy_quality,
    keep_errors,
    keep_quality,
    measure_pii,
    read_labels,
    read_spans,
    read_topics,
    token_f1,
)
from crawl2cart.crawl.explain import explain, files_read, last_run
from crawl2cart.crawl.filters.blocklist import read_hosts
from crawl2cart.crawl.filters.corpus_filters import CorpusFilters, build_corpus_filters
from crawl2cart.crawl.filters.decontaminate import HeldOut, read_held_out
from crawl2cart.crawl.filters.page_filters import SHARD
from crawl2cart.crawl.filters.pii import mask
from crawl2cart.crawl.filters.topic_classifier import Weights, learn_topic
from crawl2cart.crawl.params import Filter
from crawl2cart.crawl.parquet_parts import Parts
from crawl2cart.crawl.shards import batches, by_reason, make_shards, prune, read_counts
from crawl2cart.crawl.stats import RemovalStats, copy_counts

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
SMALLEST_PART = 1 << 28  # bytes of text
# What `dvc metrics` shows of the metrics.
HEADLINES = (
    "documents.in",
    "documents.kept",
    "bytes.train",
    "keep.precision",
    "keep.recall",
    "extraction.f1",
)


def wanted_topic(limits: Filter, topics: dict[str, bool]) -> Weights | None:
    """The topic model, learnt from the labelled pages of sites that are not held out; None with `keep: all`."""
    if limits.topic_filter == "all":
        return None
    pages = [
        page
        for page in read_sites(Path("data/web/sites"))
        if page.url in topics and not page.site.held_out
    ]
    if {topics[page.url] for page in pages} != {True, False}:
        raise UserError(
            "data/web/topics.csv must name pages of both topics on sites of data/web that are not held out: "
            "filter.topic_filter learns from them. Add some, or set `topic_filter: all`."
        )
    return learn_topic([gold_text(page) for page in pages], [topics[page.url] for page in pages])


def blocks(shards: list[Path]) -> Iterator[tuple[int, list[dict]]]:
    """All judged pages of the crawl in order, some at a time, with the number of the first."""
    number = 0
    for batch in batches(shards, SHARD.names):
        yield number, batch.to_pylist()
        number += len(batch)


def assign_splits(
    shards: list[Path], cross_page: CorpusFilters, stats: RemovalStats, note: pq.ParquetWriter
) -> np.ndarray:
    """Lets the rules across pages judge every page that is still there. Returns for each page its place in [0, 1), by
    a hash of its text, or NaN if it goes.

    stats: gets every page. note: gets what these rules did, for --explain.
    """
    places = array("d")
    for number, rows in blocks(shards):
        noted = []
        for page, row in enumerate(rows, number):
            if not row["reason"]:
                row = cross_page.apply_corpus_filters(page, row)
                if row["reason"] or row["cut"]:
                    noted.append(row | {"page": page})
            stats.add(row)
            places.append(math.nan if row["reason"] else unit_interval(row["key"]))
        note.write_table(pa.Table.from_pylist(noted, note.schema))
    return np.frombuffer(places)


def check_enough(stats: RemovalStats) -> None:
    """Raises UserError unless there is a page to train on and one to validate with."""
    kept, count = stats.pages[""], stats.pages.total()
    if kept >= 2:
        return
    if not count:
        raise UserError(
            "data/raw holds no page at all: no response, resource or conversion record. Look at data/raw/"
            "manifest.json and at download.paths in params.yaml."
        )
    (reason, most), *_ = stats.removed().most_common(1)
    raise UserError(
        f"Of {count:,} pages {kept} remain, and two are the least. The rule `{reason}` removed most, "
        f"{most:,}. Loosen it under `filter:` in params.yaml, or give other pages to `download`."
    )


def validation_border(places: np.ndarray, share: float) -> float:
    """Kept pages up to this place are held out for validation: about `share` of them, and at least one on each side."""
    kept = np.sort(places[~np.isnan(places)])
    return min(max(share, kept[0]), kept[-2])


def write_corpus(
    folder: Path,
    shards: list[Path],
    cross_page: CorpusFilters,
    places: np.ndarray,
    border: float,
    part_bytes: int,
) -> dict:
    """Writes the kept pages in the order of the crawl. Returns documents and bytes of text of both sides."""
    train, validation = (
        Parts(folder / "train", CORPUS, part_bytes),
        Parts(folder / "val", CORPUS, part_bytes),
    )
    number = 0
    for batch in batches(shards, SHARD.names):
        at = places[number : number + len(batch)]
        rows = batch.filter(
            pa.array(~np.isnan(at))
        ).to_pylist()  # most pages went: their rows need not become Python's
        kept = list(zip(at[~np.isnan(at)], map(cross_page.clean, rows), strict=True))
        number += len(batch)
        validation.write([row for place, row in kept if place <= border])
        train.write([row for place, row in kept if place > border])
    train.close()
    validation.close()
    return {"train": train.counts, "val": validation.counts}


def measure(
    stats: RemovalStats, cross_page: CorpusFilters, labels: dict[str, Label], sites: list[Page]
) -> dict:
    """How near the filter comes to what people said about the embedded pages of held-out sites.

    keep.false_positives, keep.false_negatives: the errors behind its precision and its recall, see keep_errors.
    extraction.f1: mean token F1 of the text with the page's gold text, both masked, over its pages labelled keep.
    """
    held_out = {page.url: page for page in sites if page.site.held_out}
    good = [page for url, page in held_out.items() if url in labels and labels[url].keep]
    scores = [token_f1(stats.texts.get(page.url, ""), mask(gold_text(page))[0]) for page in good]
    extraction = {"f1": sum(scores) / len(scores)} if scores else {}
    keep = keep_quality(stats.kept, labels, set(held_out)) | keep_errors(
        stats.reasons, labels, set(held_out)
    )
    return {
        "keep": keep,
        "extraction": extraction | {"n": len(scores)},
        "near_duplicates": copy_quality(
            cross_page.copies.urls, stats.compared, labels, set(held_out)
        ),
        "pii": measure_pii(good, read_spans(Path("data/web/personal.csv")))
        | {"masked": dict(stats.masked)},
    }


def main(stage: Stage) -> None:
    limits = stage.params.filter
    manifest = read_json("data/raw/manifest.json")
    topics = read_topics(Path("data/web/topics.csv"))
    topic = wanted_topic(limits, topics)
    code = {
        file: digest
        for group, found in stage.inputs.items()
        if not group.startswith("data/")
        for file, (_, _, digest) in found.items()
    }
    held_out = HeldOut(
        read_held_out(Path("data/store/wordings"), Path("data/store/plans.jsonl")),
        limits.decontamination.ngram,
        limits.decontamination.min_ngram,
    )
    # DVC may run another experiment at the same time, in a folder of its own but with this cache.
    with exclusive(stage.cache_dir / "lock", "a filter with the same .cache"):
        shards = make_shards(
            Path("data/raw"),
            manifest["files"],
            limits,
            read_hosts(Path(limits.blocked_hosts)),
            topic,
            code,
            stage.cache_dir,
            stage.repo_root / "runs/filter-errors.log",
        )
        prune(stage.cache_dir, shards)
        cross_page = build_corpus_filters(shards, held_out, limits, stage.cache_dir)
    labels = read_labels(Path("data/web/labels.csv")) if manifest["source"] == "embedded" else {}
    stats = RemovalStats(limits.rejects_per_reason, labels.keys())
    with last_run(stage.repo_root, manifest["files"], shards) as note:
        places = assign_splits(shards, cross_page, stats, note)
    check_enough(stats)

    with atomic_directory("data/corpus") as folder:
        written = write_corpus(
            folder,
            shards,
            cross_page,
            places,
            validation_border(places, limits.validation_share),
            max(SMALLEST_PART, stats.text_bytes[""] // PARTS),
        )
    with atomic_directory("data/rejects") as folder:
        pq.write_table(
            pa.Table.from_pylist(stats.rejects(), REJECTS),
            folder / "part-00000.parquet",
            compression="zstd",
        )
    counts = read_counts(shards)
    metrics = stats.metrics() | {
        "documents": {"in": len(places), "kept": stats.pages[""]}
        | {side: written[side]["documents"] for side in written},
        "records": {
            "read": counts["records"],
            "recovered": counts["recovered"],
            "dropped": counts["lost"],
            "recovered_by": by_reason(counts, "recovered"),
            "dropped_by": by_reason(counts, "lost"),
        },
        "bytes": {
            "raw": sum(entry["bytes"] for entry in manifest["files"]),
            "pages": counts["page_bytes"],
        }
        | {side: written[side]["bytes"] for side in written},
        "copies": copy_counts(cross_page.copies),
        "contamination": {"n": len(held_out), "pages": stats.pages["contaminated"]},
    }
    if labels:
        sites = read_sites(Path("data/web/sites"))
        # With `keep: shopping` a page that reads well is wanted only if it is about that.
        judged = (
            {
                url: replace(
                    labels[url], keep=topics[url], reason="" if topics[url] else "other_topic"
                )
                for url in topics.keys() & labels.keys()
            }
            if topic
            else {}
        )
        metrics |= measure(stats, cross_page, labels | judged, sites)
        if topic:
            metrics["topic"] = keep_quality(
                stats.kept, judged, {page.url for page in sites if page.site.held_out}
            )
    write_metrics("metrics/filter.json", metrics, HEADLINES)
    write_curve("metrics/filter.tsv", stats.waterfall())
    print(
        f"{counts['records']:,} records ({counts['recovered']:,} mended), {counts['lost']:,} lost; "
        f"kept {stats.pages['']:,} of {len(places):,} pages"
    )
    if counts["records.conversion"]:
        print(
            "These are WET files: about half of their text is navigation and banners. WARC files give cleaner text."
        )


def show_files() -> str | None:
    """Prints what was read of each file; returns what was wrong, in words."""
    try:
        print("\n".join(files_read(Path.cwd())))
    except UserError as problem:
        return f"filter: {problem}"
    return None


def show(urls: list[str]) -> str | None:
    """Prints the way of each page; returns what was wrong, in words."""
    if not urls:
        return "filter: --explain needs the URL of a page."
    try:
        limits = read_params(Path("params.yaml")).filter
        hosts, topic = (
            read_hosts(Path(limits.blocked_hosts)),
            wanted_topic(limits, read_topics(Path("data/web/topics.csv"))),
        )
        for url in urls:
            print("\n".join(explain(url, Path.cwd(), limits, hosts, topic)))
    except UserError as problem:
        return f"filter: {problem}"
    return None


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--explain", *urls]:
            sys.exit(show(urls))
        case ["--files"]:
            sys.exit(show_files())
        case _:
            run(main)
