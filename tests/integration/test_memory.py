"""Data larger than memory: files are read in pieces."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import filter
from tests.conftest import ROOT
from tests.unit.crawl.test_filter import english

pytestmark = pytest.mark.slow
# Documents per file, characters per document, and the MiB that `encode` may take beyond its
# imports: fewer than the text of 16 files has.
DOCUMENTS, LETTERS, CAP_MIB = 1_000, 4_000, 48
# The limit counts addresses. Arrow's own pool reserves a GiB of them, and each thread 8 MiB for its
# stack by default.
PLAIN_POOL, STACK_BYTES = {"ARROW_DEFAULT_MEMORY_POOL": "system"}, 2**20
ENCODE = """
import resource, sys
from pathlib import Path
import numpy as np
from stages import encode
from crawl2cart.lm.tokenizer import encoding, read_ranks
tokenizer = encoding(read_ranks(Path(sys.argv[2])))
status = Path("/proc/self/status").read_text().splitlines()
held = next(int(line.split()[1]) for line in status if line.startswith("VmData"))
limit = held * 1024 + int(sys.argv[3]) * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
folder = Path(sys.argv[1])
if sys.argv[4] == "whole":
    in_batches = encode.texts
    encode.texts = lambda folder: [[text for batch in in_batches(folder) for text in batch]]
counts = encode.encode_split(folder, folder / "ids.bin", tokenizer, np.dtype(np.uint16))
print(counts["documents"], counts["tokens"])
"""


def write_corpus(folder: Path, files: int) -> Path:
    """Write files of documents, each in one row group (the filter writes up to 2,000 rows)."""
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


@pytest.mark.skipif(
    sys.platform != "linux", reason="RLIMIT_DATA counts private memory on Linux only"
)
@pytest.mark.parametrize("files", [1, 16])
def test_sixteen_times_the_text_is_encoded_in_the_memory_of_one(tmp_path, files):
    """Under a limit on private memory."""
    corpus = write_corpus(tmp_path / "corpus", files)
    run = encode_under_a_cap(corpus, "in pieces")
    assert run.returncode == 0, run.stderr[-2000:]
    documents, tokens = map(int, run.stdout.split())
    assert documents == files * DOCUMENTS
    assert (corpus / "ids.bin").stat().st_size == 2 * tokens


@pytest.mark.skipif(
    sys.platform != "linux", reason="RLIMIT_DATA counts private memory on Linux only"
)
def test_the_limit_is_one_that_binds(tmp_path):
    """Reading all texts before encoding the first exceeds the limit."""
    corpus = write_corpus(tmp_path / "corpus", 16)
    assert 16 * DOCUMENTS * LETTERS > CAP_MIB * 2**20
    run = encode_under_a_cap(corpus, "whole")
    assert run.returncode != 0
    assert "MemoryError" in run.stderr, run.stderr[-2000:]


def test_sixteen_times_the_crawl_is_filtered_in_the_memory_of_one(tmp_path):
    """The peak of the stage and its worker over 1 and over 16 files of equal size."""

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
