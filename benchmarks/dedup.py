"""Measure how fast near-copies are found, and estimate a whole snapshot of Common Crawl from it.

    python -m benchmarks.dedup             # measure with 4,000 texts: metrics/speed/dedup.json
    python -m benchmarks.dedup --model     # print the table of estimates from the measured rates

The model: a share of all pages is left to compare (see tools/estimate_resources.py). Signatures are
computed once and lie on a disk that all machines see. A pass reads all of them and groups as many
bands as fit in memory. A last reading compares the candidate pairs. Work that is linear in the
texts is divided by the cores, except for the rules across pages and the writing of the corpus,
which one process does alone. Waiting for other machines or for the disk is not counted, so that
the hours are a lower bound.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import daft
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.report import FOLDER, write_report
from crawl2cart.core.files import read_json
from crawl2cart.core.params import read_params
from crawl2cart.crawl.corpus import MIN_PART_BYTES, assign_splits, write_corpus
from crawl2cart.crawl.dedup.clusters import Copies, read_keys
from crawl2cart.crawl.dedup.fingerprint import text_key
from crawl2cart.crawl.dedup.minhash import (
    BYTES_PER_BAND,
    agreement,
    candidate_pairs,
    passes,
    write_signatures,
)
from crawl2cart.crawl.explain import write_decisions
from crawl2cart.crawl.filters.corpus_filters import CorpusFilters
from crawl2cart.crawl.filters.decontaminate import HeldOutNgrams, read_held_out
from crawl2cart.crawl.filters.page_filters import SHARD
from crawl2cart.crawl.stats import PII_COLUMNS, RemovalStats
from tools.data_stats import table
from tools.estimate_resources import KEPT, PAGES_A_SECOND, TEXT_BYTES

ROOT = Path(__file__).parent.parent
WORDS = TEXT_BYTES // 6  # of about five letters and a space
VOCABULARY = 50_000
# Held by the stage's own process for each page (crawl2cart/crawl/dedup/clusters.py).
BYTES_PER_PAGE = 30
# Pages, and the machines for them: nodes, cores of each, GiB of memory of each for grouping bands.
PLANS = (
    (3_000_000, 1, 16, 8),
    (300_000_000, 4, 64, 16),
    (3_000_000_000, 16, 64, 64),
    (3_000_000_000, 16, 64, 16),
)


def texts(count: int) -> list[str]:
    """Draw texts of random words, as long as the mean kept page.

    Every tenth text is the one before with two percent of its words changed.
    """
    draw = np.random.default_rng(1)
    vocabulary = np.array([f"w{number}" for number in range(VOCABULARY)])
    words = draw.integers(VOCABULARY, size=(count, WORDS))
    words[9::10] = words[8:-1:10]
    changed = draw.integers(WORDS, size=(count, WORDS // 50))
    words[np.arange(count)[:, None], changed] = draw.integers(VOCABULARY, size=changed.shape)
    return [" ".join(text) for text in vocabulary[words].tolist()]


def measure(count: int) -> dict:
    """Measure the rates of each step, per second of processor time, and count candidate pairs."""
    limits = read_params(ROOT / "params.yaml").filter
    hashes = limits.minhash.bands * limits.minhash.rows
    drawn = texts(count)
    frame = daft.from_pydict({"id": list(range(count)), "text": drawn})
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        started = time.process_time()
        files = write_signatures(frame, Path(scratch) / "signatures", limits.minhash.ngram, hashes)
        signed = time.process_time()
        pairs = candidate_pairs(
            daft.read_parquet([str(file) for file in files]),
            list(range(limits.minhash.bands)),
            limits.minhash.rows,
            0,
            1,
        )
        grouped = time.process_time()
        for file in files:
            pq.read_table(file)
        read = time.process_time()
        agreement(files, pairs, hashes)
        compared = time.process_time()
        pages = one_process(Path(scratch), drawn)
        size = sum(file.stat().st_size for file in files)
    return {
        "texts": count,
        "signatures_per_s_core": count / (signed - started),
        "bands_per_s_core": count * limits.minhash.bands / (grouped - signed),
        "read_per_s_core": count / max(read - grouped, 1e-3),
        "compared_per_s_core": count / (compared - read),
        "pages_per_s_one_process": pages,
        "pairs": len(pairs),
        "bytes_per_signature": size / count,
    }


def one_process(folder: Path, drawn: list[str]) -> float:
    """Measure the part that one process does: rules across pages and writing, pages per second.

    Of the pages the share KEPT has passed the rules for one page.
    """
    limits = read_params(ROOT / "params.yaml").filter
    every = round(1 / KEPT)
    rows = [
        {
            "url": f"https://page{number}.example/",
            "text": text,
            "language": "en",
            "language_score": 1.0,
            "key": text_key(text),
            "reason": "few_words" if number % every else "",
            "score": 0.0,
        }
        | dict.fromkeys(PII_COLUMNS, 0)
        for number, text in enumerate(drawn)
    ]
    shards = [folder / "shard.parquet"]
    pq.write_table(pa.Table.from_pylist(rows, SHARD), shards[0], compression="zstd")
    held_out = HeldOutNgrams(
        read_held_out(ROOT / "data/store/wordings", ROOT / "data/store/plans.jsonl"),
        limits.decontamination.ngram,
        limits.decontamination.min_ngram,
    )
    corpus_filters = CorpusFilters(Copies(0, {}, Counter(), []), {}, held_out, limits)
    stats = RemovalStats(limits.rejects_per_reason)
    (folder / "corpus").mkdir()
    started = time.process_time()
    read_keys(shards)
    with write_decisions(folder, [{"file": "shard"}], shards) as decisions:
        split_hashes = assign_splits(shards, corpus_filters, stats, decisions)
    write_corpus(folder / "corpus", shards, corpus_filters, split_hashes, 0.1, MIN_PART_BYTES)
    return len(drawn) / (time.process_time() - started)


def plan(
    pages: int, nodes: int, cores: int, memory_gib: float, rates: dict, bands: int
) -> dict[str, float]:
    """Estimate what so many crawled pages take, from measured rates per second and core."""
    count = int(pages * KEPT)
    bands_per_pass = int(nodes * memory_gib * 2**30 // BYTES_PER_BAND)
    rounds = len(list(passes(count, bands, bands_per_pass)))
    seconds = count * (
        1 / rates["signatures_per_s_core"]
        + bands / rates["bands_per_s_core"]
        + 1 / rates["compared_per_s_core"]
        + rounds / rates["read_per_s_core"]
    )
    return {
        "texts": count,
        "passes": rounds,
        "hours": seconds / (nodes * cores) / 3600,
        "one_process_hours": pages / rates["pages_per_s_one_process"] / 3600,
        "filter_hours": pages / PAGES_A_SECOND / (nodes * cores) / 3600,
        "head_gib": pages * BYTES_PER_PAGE / 2**30,
        "disk_gib": count * rates["bytes_per_signature"] / 2**30,
    }


def model() -> str:
    """Return the table of estimates as Markdown."""
    limits, rates = read_params(ROOT / "params.yaml").filter, read_json(FOLDER / "dedup.json")
    rows = []
    for pages, nodes, cores, memory in PLANS:
        estimate = plan(pages, nodes, cores, memory, rates, limits.minhash.bands)
        hours = [
            f"{estimate[name]:,.2g}" for name in ("filter_hours", "hours", "one_process_hours")
        ]
        rows.append(
            [
                pages,
                estimate["texts"],
                f"{nodes} of {cores} cores",
                f"{memory} GiB",
                estimate["passes"],
                *hours,
                f"{estimate['head_gib']:.2g} GiB",
                f"{estimate['disk_gib']:,.0f} GiB",
            ]
        )
    return table(
        [
            "pages crawled",
            "compared",
            "nodes",
            "memory for bands on each",
            "passes",
            "hours of rules for one page",
            "hours of near-copies",
            "hours of one process",
            "memory of the first node",
            "disk for signatures",
        ],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dedup", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--texts", type=int, default=4_000, help="number of texts to measure with (%(default)s)"
    )
    parser.add_argument("--model", action="store_true", help="print the table of estimates")
    arguments = parser.parse_args()
    if arguments.model:
        print(model())
        return
    report = measure(arguments.texts)
    print(json.dumps(report, indent=1))
    write_report("dedup", report, ("daft", "pyarrow"))


if __name__ == "__main__":
    main()
