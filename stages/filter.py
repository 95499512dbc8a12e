"""Keep the readable pages of the crawl in the wanted language and count why the others went.

in   data/raw/ (WARC or WET files and manifest.json), data/web/blocked_hosts.txt
     data/store/wordings, data/store/plans.jsonl: texts of the test splits, which no page may hold
     data/web/{labels,personal,topics}.csv, data/web/sites: to measure quality; the topic filter
     learns from topics.csv
out  data/corpus/{train,val}/part-*.parquet (url, text, language_score, key)
     data/rejects/part-00000.parquet (url, reason, score, because, text: its start): a sample
     metrics/filter.json, metrics/filter.tsv (the waterfall: pages left and what each rule removed)

The first rule that a page fails is the reason why it goes. Rules for one page run first, one task a
file, then the rules across pages: copies, repeated lines, held-out wordings.
Penedo et al. 2023 (RefinedWeb), https://arxiv.org/abs/2306.01116

`python -m stages.filter --explain URL` shows every rule's score for one page of the last run.
`python -m stages.filter --files` shows what could be read of each file.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, read_json
from crawl2cart.core.metrics import write_curve, write_metrics
from crawl2cart.core.params import read_params
from crawl2cart.core.stage import Stage, exclusive, run
from crawl2cart.crawl.corpus import (
    MIN_PART_BYTES,
    PARTS,
    REJECTS,
    assign_splits,
    check_enough,
    split_threshold,
    write_corpus,
)
from crawl2cart.crawl.embedded_web.sites import read_sites
from crawl2cart.crawl.evaluate import (
    keep_quality,
    labels_of_topics,
    measure,
    read_labels,
    read_spans,
    read_topics,
)
from crawl2cart.crawl.explain import explain, file_table, write_decisions
from crawl2cart.crawl.filters.blocklist import read_hosts
from crawl2cart.crawl.filters.corpus_filters import CorpusFilters, build_corpus_filters
from crawl2cart.crawl.filters.decontaminate import HeldOutNgrams, read_held_out
from crawl2cart.crawl.filters.topic_classifier import Weights, learn_from_sites
from crawl2cart.crawl.params import Filter
from crawl2cart.crawl.shards import by_reason, make_shards, prune, read_counts
from crawl2cart.crawl.stats import RemovalStats, copy_counts

RAW, SITES = Path("data/raw"), Path("data/web/sites")
TOPICS = Path("data/web/topics.csv")
# What `dvc metrics` shows of the metrics.
HEADLINES = (
    "documents.in",
    "documents.kept",
    "bytes.train",
    "keep.precision",
    "keep.recall",
    "extraction.f1",
)


def topic_weights(limits: Filter) -> Weights | None:
    """Train the topic classifier on the labelled sites; None if pages of all topics are kept."""
    topics = read_topics(TOPICS)  # a wrong line is an error even if no topic is filtered
    if limits.topic_filter == "all":
        return None
    return learn_from_sites(read_sites(SITES), topics)


def code_hashes(stage: Stage) -> dict[str, str]:
    """Return the sha256 of each file of code that the stage depends on."""
    return {
        file: digest
        for dependency, files in stage.inputs.items()
        if not dependency.startswith("data/")
        for file, (_, _, digest) in files.items()
    }


def filter_files(stage: Stage, files: list[dict]) -> tuple[list[Path], CorpusFilters]:
    """Make the shards of all files, and prepare the rules that compare their pages."""
    limits = stage.params.filter
    topic, hosts = topic_weights(limits), read_hosts(Path(limits.blocked_hosts))
    held_out = HeldOutNgrams(
        read_held_out(Path("data/store/wordings"), Path("data/store/plans.jsonl")),
        limits.decontamination.ngram,
        limits.decontamination.min_ngram,
    )
    code, log = code_hashes(stage), stage.repo_root / "runs/filter-errors.log"
    # DVC may run another experiment at the same time, in its own folder but with this cache.
    with exclusive(stage.cache_dir / "lock", "a filter with the same .cache"):
        shards = make_shards(RAW, files, limits, hosts, topic, code, stage.cache_dir, log)
        prune(stage.cache_dir, shards)
        return shards, build_corpus_filters(shards, held_out, limits, stage.cache_dir)


def count_metrics(
    stats: RemovalStats,
    corpus_filters: CorpusFilters,
    counts: dict[str, int],
    raw_bytes: int,
    splits: dict[str, dict],
) -> dict:
    """Return the metrics that need no labels.

    counts: of the reader, see `read_counts`. splits: documents and bytes of each split.
    """
    documents = {"in": stats.pages.total(), "kept": stats.pages[""]}
    return stats.metrics() | {
        "documents": documents | {name: split["documents"] for name, split in splits.items()},
        "bytes": {"raw": raw_bytes, "pages": counts["page_bytes"]}
        | {name: split["bytes"] for name, split in splits.items()},
        "records": {
            "read": counts["records"],
            "recovered": counts["recovered"],
            "dropped": counts["dropped"],
            "recovered_by": by_reason(counts, "recovered"),
            "dropped_by": by_reason(counts, "dropped"),
        },
        "copies": copy_counts(corpus_filters.copies),
        "contamination": {
            "n": len(corpus_filters.held_out),
            "pages": stats.pages["contaminated"],
        },
    }


def label_metrics(
    limits: Filter, stats: RemovalStats, clusters: list[list[str]], labels: dict
) -> dict:
    """Return the metrics by the labels of the embedded web, see `measure`."""
    pages, spans = read_sites(SITES), read_spans(Path("data/web/personal.csv"))
    if limits.topic_filter == "all":
        return measure(stats, clusters, labels, pages, spans)
    # A readable page about something else is not wanted.
    topic_labels = labels_of_topics(labels, read_topics(TOPICS))
    held_out = {page.url for page in pages if page.site.held_out}
    return measure(stats, clusters, labels | topic_labels, pages, spans) | {
        "topic": keep_quality(stats.kept_urls, topic_labels, held_out)
    }


def main(stage: Stage) -> None:
    limits, manifest = stage.params.filter, read_json(RAW / "manifest.json")
    shards, corpus_filters = filter_files(stage, manifest["files"])
    labels = read_labels(Path("data/web/labels.csv")) if manifest["source"] == "embedded" else {}
    stats = RemovalStats(limits.rejects_per_reason, labels.keys())
    with write_decisions(stage.repo_root, manifest["files"], shards) as decisions:
        split_hashes = assign_splits(shards, corpus_filters, stats, decisions)
    check_enough(stats)

    threshold = split_threshold(split_hashes, limits.validation_share)
    part_bytes = max(MIN_PART_BYTES, stats.text_bytes[""] // PARTS)
    with atomic_directory("data/corpus") as folder:
        splits = write_corpus(folder, shards, corpus_filters, split_hashes, threshold, part_bytes)
    with atomic_directory("data/rejects") as folder:
        rejects = pa.Table.from_pylist(stats.rejects(), REJECTS)
        pq.write_table(rejects, folder / "part-00000.parquet", compression="zstd")

    counts = read_counts(shards)
    raw_bytes = sum(entry["bytes"] for entry in manifest["files"])
    metrics = count_metrics(stats, corpus_filters, counts, raw_bytes, splits)
    if labels:
        metrics |= label_metrics(limits, stats, corpus_filters.copies.urls, labels)
    write_metrics("metrics/filter.json", metrics, HEADLINES)
    write_curve("metrics/filter.tsv", stats.waterfall())
    print(
        f"{counts['records']:,} records read ({counts['recovered']:,} of them damaged), "
        f"{counts['dropped']:,} dropped; "
        f"kept {stats.pages['']:,} of {len(split_hashes):,} pages"
    )
    if counts["records.conversion"]:
        print("These are WET files: half of their text is navigation. WARC gives cleaner text.")


def explain_pages(urls: list[str]) -> Iterable[str]:
    """Yield what became of each page in the last run, line by line."""
    if not urls:
        raise UserError("--explain needs the URL of a page.")
    limits = read_params(Path("params.yaml")).filter
    hosts, topic = read_hosts(Path(limits.blocked_hosts)), topic_weights(limits)
    for url in urls:
        yield from explain(url, Path.cwd(), limits, hosts, topic)


def show(lines: Callable[[], Iterable[str]]) -> str | None:
    """Print the lines; return the message of a UserError, None without one."""
    try:
        for line in lines():
            print(line)
    except UserError as error:
        return f"filter: {error}"
    return None


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--explain", *urls]:
            sys.exit(show(lambda: explain_pages(urls)))
        case ["--files"]:
            sys.exit(show(lambda: file_table(Path.cwd())))
        case _:
            run(main)
