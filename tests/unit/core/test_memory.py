"""Data larger than memory: what is read is read in pieces, and places in a file are counted in 64 bits."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import dedup, filter
from crawl2cart.core.files import write_json
from crawl2cart.lm.training.data import batch, eval_batches, open_tokens
from tests.conftest import ROOT
from tests.unit.crawl.samples import english

BEYOND, COUNT = 2**31, 2**31 + 2**26
# Documents of one file, their letters, and how much more memory than after its imports `encode` may take: less than the text of
# 16 files has.
DOCUMENTS, LETTERS, CAP_MIB = 1_000, 4_000, 48
# The limit counts addresses. Arrow's own pool reserves a GiB of them, and a thread those of its stack, 8 MiB unless told otherwise.
PLAIN_POOL, STACK_BYTES = {"ARROW_DEFAULT_MEMORY_POOL": "system"}, 2**20
ENCODE = """
import resource, sys
from pathlib import Path
import numpy as np
from stages import encode
from crawl2cart.lm.tokenizer import encoding, read_ranks
tokenizer = encoding(read_ranks(Path(sys.argv[2])))
held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + int(sys.argv[3]) * 2**20,) * 2)
folder = Path(sys.argv[1])
if sys.argv[4] == "whole":
    encode.texts = lambda folder, read=encode.texts: [[text for batch in read(folder) for text in batch]]
counts = encode.encode_split(folder, folder / "ids.bin", tokenizer, np.dtype(np.uint16))
print(counts["documents"], counts["tokens"])
"""


def write_corpus(folder: Path, files: int) -> Path:
    """So many files of documents, each in one row group: the filter's are of up to two thousand rows."""
    folder.mkdir()
    text = " ".join([english(1, 160)] * 10)[:LETTERS]
    for file in range(files):
        pq.write_table(pa.table({"text": [text] * DOCUMENTS}), folder / f"part-{file:05}.parquet")
    return folder


def encode_under_a_cap(folder: Path, how: str) -> subprocess.CompletedProcess:
    words = [str(folder), str(ROOT / "data/ranks/o200k_4096.tiktoken"), str(CAP_MIB), how]
    return subprocess.run(
        [sys.executable, "-c", ENCODE, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | PLAIN_POOL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES,) * 2),
    )


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="RLIMIT_DATA counts private memory on Linux only"
)
@pytest.mark.parametrize("files", [1, 16])
def test_sixteen_times_the_text_is_encoded_in_the_memory_of_one(tmp_path, files):
    """Under a limit on private memory."""
    corpus = write_corpus(tmp_path / "corpus", files)
    said = encode_under_a_cap(corpus, "in pieces")
    assert said.returncode == 0, said.stderr[-2000:]
    documents, tokens = map(int, said.stdout.split())
    assert documents == files * DOCUMENTS
    assert (corpus / "ids.bin").stat().st_size == 2 * tokens


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="RLIMIT_DATA counts private memory on Linux only"
)
def test_the_limit_is_one_that_binds(tmp_path):
    """Who reads all texts before the first is encoded does not get through."""
    corpus = write_corpus(tmp_path / "corpus", 16)
    assert 16 * DOCUMENTS * LETTERS > CAP_MIB * 2**20
    said = encode_under_a_cap(corpus, "whole")
    assert said.returncode != 0
    assert "MemoryError" in said.stderr, said.stderr[-2000:]


@pytest.mark.slow
def test_sixteen_times_the_crawl_is_filtered_in_the_memory_of_one(tmp_path):
    """The peak of the stage and its worker over 1 and over 16 files of equal size; `python -m benchmarks.filter memory` does it
    with 16,000 pages."""

    def crawl(files: int) -> list[list[bytes]]:
        return [
            [
                filter.record(number, f"<html><body>{english(number)}</body></html>".encode())
                for number in range(at, at + 40)
            ]
            for at in range(0, files * 40, 40)
        ]

    one = filter.run_ours(tmp_path / "one", crawl(1)).mib
    sixteen = filter.run_ours(tmp_path / "sixteen", crawl(16)).mib
    assert sixteen < 1.25 * one, (one, sixteen)


@pytest.fixture
def sparse_tokens(tmp_path) -> Path:
    """A token file of more than 2^31 ids, of which only the last thousand are on the disk; the others read as zero."""
    with (tmp_path / "train.bin").open("wb") as file:
        file.truncate(2 * COUNT)
        file.seek(2 * (COUNT - 1_000))
        np.arange(1, 1_001, dtype=np.uint16).tofile(file)
    write_json(
        tmp_path / "meta.json", {"dtype": "uint16", "vocabulary": 2_000, "train": {"tokens": COUNT}}
    )
    return tmp_path


def test_tokens_beyond_two_to_the_31_are_found(sparse_tokens):
    tokens = open_tokens(sparse_tokens, "train")
    assert len(tokens) == COUNT
    rows, context = 4, 100
    first = int(np.random.default_rng(3).integers(len(tokens)))
    # The step whose last row begins 900 ids before the end of the file.
    start = first + (rows - 1) * len(tokens) // rows
    step = (len(tokens) - 900 - start) % len(tokens) // context
    inputs, targets = batch(tokens, step, rows, context, 3)
    place = (start + step * context) % len(tokens)
    assert place > BEYOND
    assert inputs[-1].tolist() == [int(tokens[place + i]) for i in range(context)]
    assert targets[-1].tolist() == [int(tokens[place + i + 1]) for i in range(context)]
    assert inputs[-1].min() > 0, "the ids that are on the disk, not the zeros before them"


def test_validation_addresses_its_rows_beyond_two_to_the_31(sparse_tokens):
    tokens = open_tokens(sparse_tokens, "train")
    rows = 64
    length = -(-len(tokens) // rows)
    inputs, targets = next(eval_batches(tokens, rows, 8))
    assert (rows - 1) * length > BEYOND
    assert inputs.shape == (rows, 8)
    begin = (rows - 1) * length
    expected = [int(tokens[(begin + i) % len(tokens)]) for i in range(8)]
    assert inputs[-1].tolist()[:8] == expected


def test_the_model_of_a_snapshot_follows_from_rates_by_hand():
    """A thousand texts of 10,000 pages on one core; two bands of all texts fit, so four bands take two passes."""
    rates = {
        "signatures_per_s_core": 100.0,
        "bands_per_s_core": 4_000.0,
        "compared_per_s_core": 1_000.0,
        "read_per_s_core": 2_000.0,
        "pages_per_s_one_process": 500.0,
        "bytes_per_signature": 2**20,
    }
    pages = round(1_000 / dedup.KEPT)
    memory_gib = (2_000 + 1) * dedup.BYTES_PER_BAND / 2**30
    found = dedup.plan(pages, 1, 1, memory_gib, rates, 4)
    assert found["texts"] == pytest.approx(1_000, abs=1)
    assert found["passes"] == 2
    assert found["hours"] * 3600 == pytest.approx(10 + 1 + 1 + 2 * 0.5, rel=0.01)
    assert found["one_process_hours"] * 3600 == pytest.approx(pages / 500)
    assert found["disk_gib"] == pytest.approx(1_000 / 1024, rel=0.01)
    assert dedup.plan(pages, 2, 1, memory_gib, rates, 4)["passes"] == 1, (
        "two machines have twice the memory"
    )
