"""Turn the corpus into token files.

in   data/corpus/{train,val}/*.parquet (column `text`), data/ranks/o200k_4096.tiktoken
out  data/tokens/{train,val}.bin (ids, each document followed by <|endoftext|>),
     data/tokens/meta.json, data/tokenizer/

Byte-pair encoding with the first ranks of o200k_base (Sennrich et al. 2016, arXiv 1508.07909). Text
that looks like a special token is encoded as plain text.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tiktoken

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, write_json
from crawl2cart.core.progress import progress
from crawl2cart.core.stage import Stage, run
from crawl2cart.lm.tokenizer import END_OF_TEXT, encoding, read_ranks, save_tokenizer

RANKS = Path("data/ranks/o200k_4096.tiktoken")
CORPUS, TOKENS, TOKENIZER = Path("data/corpus"), Path("data/tokens"), Path("data/tokenizer")
SPLITS = ("train", "val")
DOCUMENTS_AT_ONCE = 100
THREADS = 2


def texts(folder: Path) -> Iterator[list[str]]:
    """Yield the documents of a split, some at a time, in the order of file names and rows.

    Raises UserError if there are none.
    """
    files = sorted(folder.glob("*.parquet"))
    if not sum(pq.ParquetFile(file).metadata.num_rows for file in files):
        raise UserError(
            f"{folder} holds no document. Run `dvc repro filter`; if it kept nothing, "
            "metrics/filter.json says which rule removed how many pages."
        )
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(DOCUMENTS_AT_ONCE, columns=["text"]):
            yield batch.column("text").to_pylist()


def encode_split(
    folder: Path, file: Path, tokenizer: tiktoken.Encoding, dtype: np.dtype
) -> dict[str, int]:
    """Write the ids of a split and return its counts.

    documents, tokens (separators too), text_bytes (of UTF-8).
    """
    end = tokenizer.encode_single_token(END_OF_TEXT)
    counts = {"documents": 0, "tokens": 0, "text_bytes": 0}
    # An array takes 4 bytes an id, a list of Python numbers 36.
    as_plain_text = partial(tokenizer.encode_to_numpy, disallowed_special=())
    with file.open("wb") as out, ThreadPoolExecutor(THREADS) as threads:
        for batch in texts(folder):
            for text, ids in zip(batch, threads.map(as_plain_text, batch), strict=True):
                np.append(ids, end).astype(dtype).tofile(out)
                counts["documents"] += 1
                counts["tokens"] += len(ids) + 1
                counts["text_bytes"] += len(text.encode())
    return counts


def main(stage: Stage) -> None:
    tokenizer = encoding(read_ranks(RANKS, stage.params.encode.vocab_size))
    dtype = np.dtype(np.uint16 if tokenizer.n_vocab <= 2**16 else np.uint32)
    meta: dict = {"dtype": dtype.name, "vocabulary": tokenizer.n_vocab}
    with atomic_directory(TOKENS) as folder:
        for split in progress(SPLITS, "encode", "split"):
            counts = encode_split(CORPUS / split, folder / f"{split}.bin", tokenizer, dtype)
            meta[split] = counts
            print(
                f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
                f"{counts['text_bytes'] / counts['tokens']:.2f} bytes a token",
                flush=True,
            )
        write_json(folder / "meta.json", meta)
    with atomic_directory(TOKENIZER) as folder:
        save_tokenizer(tokenizer, folder)


if __name__ == "__main__":
    run(main)
