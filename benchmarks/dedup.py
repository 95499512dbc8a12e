"""How fast near-copies are looked for, and what that comes to for a whole snapshot of Common Crawl.

    python -m benchmarks.dedup                     # measures with 4,000 texts, writes metrics/speed/dedup.json
    python -m benchmarks.dedup --model             # the table of the README, from the measured rates

The model: of all pages a share is left to compare (`tools/estimate_resources.py` says where it is from). Signatures are computed once and
lie on a disk that all machines see. A pass reads all of them and groups as many bands as fit in memory; pairs
that met are compared in a last reading. What is linear in the texts is divided by the cores, but for the rules across pages and the
writing of the corpus, which the stage's own process does alone. Nothing is added for machines that wait for each other or for a
disk, so the hours are a lower bound.
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
from crawl2cart.crawl.dedup.clusters import Copies, read_keys
from crawl2cart.crawl.dedup.fingerprint import text_key
from crawl2cart.crawl.dedup.minhash import BYTES_A_BAND, agreement, meet, passes, signature
from crawl2cart.crawl.explain import last_run
from crawl2cart.crawl.filters.corpus_filters import CorpusFilters
from crawl2cart.crawl.filters.decontaminate import HeldOut, read_held_out
from crawl2cart.crawl.filters.page_filters import SHARD
from crawl2cart.crawl.stats import COUNTED, RemovalStats
from stages.filter import SMALLEST_PART, assign_splits, write_corpus
from tools.data_stats import table
from tools.estimate_resources import KEPT, PAGES_A_SECOND, TEXT_BYTES

ROOT = Path(__file__).parent.parent
WORDS = TEXT_BYTES // 6  # of about five letters and a space
VOCABULARY = 50_000
BYTES_A_PAGE = (
    30  # that the stage's own process holds of every page (crawl2cart/crawl/dedup/clusters.py)
)
# Pages, and the machines that the README plans them on: nodes, cores of each, GiB of memory of each that grouping gets.
PLANS = (
    (3_000_000, 1, 16, 8),
    (300_000_000, 4, 64, 16),
    (3_000_000_000, 16, 64, 64),
    (3_000_000_000, 16, 64, 16),
)


def texts(count: int) -> list[str]:
    """Texts of the mean length of kept pages, words drawn at random; every tenth is the one before with a few words changed."""
    draw, vocabulary = (
        np.random.default_rng(1),
        np.array([f"w{number}" for number in range(VOCABULARY)]),
    )
    found = draw.integers(VOCABULARY, size=(count, WORDS))
    found[9::10] = found[8:-1:10]
    changed = draw.integers(WORDS, size=(count, WORDS // 50))
    found[np.arange(count)[:, None], changed] = draw.integers(VOCABULARY, size=changed.shape)
    return [" ".join(words) for words in vocabulary[found].tolist()]


def measure(count: int) -> dict:
    """Texts signed, bands grouped and signatures read a second, on the cores that this process may use; pairs that met."""
    limits = read_params(ROOT / "params.yaml").filter
    hashes = limits.minhash.bands * limits.minhash.rows
    written = texts(count)
    frame = daft.from_pydict({"id": list(range(count)), "text": written})
    frame = frame.with_column("id", daft.col("id").cast(daft.DataType.uint64()))
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        started = time.process_time()
        sign = signature(limits.minhash.ngram, hashes).alias("signature")
        frame.select("id", sign).write_parquet(f"{scratch}/signatures", compression="zstd")
        signed = time.process_time()
        files = sorted((Path(scratch) / "signatures").rglob("*.parquet"))
        pairs = meet(
            daft.read_parquet([str(file) for file in files]),
            list(range(limits.minhash.bands)),
            limits.minhash.rows,
            0,
            1,
        )
        met = time.process_time()
        for file in files:
            pq.read_table(file)
        reading = time.process_time()
        agreement(files, pairs, hashes)
        compared = time.process_time()
        pages = one_process(Path(scratch), written)
        size = sum(file.stat().st_size for file in files)
    return {
        "texts": count,
        "signatures_per_s_core": count / (signed - started),
        "bands_per_s_core": count * limits.minhash.bands / (met - signed),
        "read_per_s_core": count / max(reading - met, 1e-3),
        "compared_per_s_core": count / (compared - reading),
        "pages_per_s_one_process": pages,
        "pairs": len(pairs),
        "bytes_per_signature": size / count,
    }


def one_process(folder: Path, written: list[str]) -> float:
    """Pages a second that the stage's own process takes through the rules across pages and into the corpus, of which
    KEPT are still there: this part is not shared out."""
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
        | dict.fromkeys(COUNTED, 0)
        for number, text in enumerate(written)
    ]
    shards = [folder / "shard.parquet"]
    pq.write_table(pa.Table.from_pylist(rows, SHARD), shards[0], compression="zstd")
    held_out = HeldOut(
        read_held_out(ROOT / "data/store/wordings", ROOT / "data/store/plans.jsonl"),
        limits.decontamination.ngram,
        limits.decontamination.min_ngram,
    )
    cross_page, stats = (
        CorpusFilters(Copies(0, {}, Counter(), []), {}, held_out, limits),
        RemovalStats(limits.rejects_per_reason),
    )
    (folder / "corpus").mkdir()
    started = time.process_time()
    read_keys(shards)
    with last_run(folder, [{"file": "shard"}], shards) as note:
        places = assign_splits(shards, cross_page, stats, note)
    write_corpus(folder / "corpus", shards, cross_page, places, 0.1, SMALLEST_PART)
    return len(written) / (time.process_time() - started)


def plan(
    pages: int, nodes: int, cores: int, memory_gib: float, rates: dict, bands: int
) -> dict[str, float]:
    """What so many crawled pages take: texts to compare, passes, hours, GiB of disk for the signatures."""
    count = int(pages * KEPT)
    bands_a_pass = int(nodes * memory_gib * 2**30 // BYTES_A_BAND)
    rounds = len(list(passes(count, bands, bands_a_pass)))
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
        "head_gib": pages * BYTES_A_PAGE / 2**30,
        "disk_gib": count * rates["bytes_per_signature"] / 2**30,
    }


def model() -> str:
    """The README's table."""
    limits, rates = read_params(ROOT / "params.yaml").filter, read_json(FOLDER / "dedup.json")
    rows = []
    for pages, nodes, cores, memory in PLANS:
        found = plan(pages, nodes, cores, memory, rates, limits.minhash.bands)
        hours = [f"{found[name]:,.2g}" for name in ("filter_hours", "hours", "one_process_hours")]
        rows.append(
            [
                pages,
                found["texts"],
                f"{nodes} of {cores} cores",
                f"{memory} GiB",
                found["passes"],
                *hours,
                f"{found['head_gib']:.2g} GiB",
                f"{found['disk_gib']:,.0f} GiB",
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
        "--texts", type=int, default=4_000, help="how many to measure with (%(default)s)"
    )
    parser.add_argument(
        "--model", action="store_true", help="print the README's table from what was measured"
    )
    words = parser.parse_args()
    if words.model:
        print(model())
        return
    found = measure(words.texts)
    print(json.dumps(found, indent=1))
    write_report("dedup", found, ("daft", "pyarrow"))


if __name__ == "__main__":
    main()
