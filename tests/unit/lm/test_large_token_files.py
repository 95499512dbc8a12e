"""Positions in a token file are counted in 64 bits."""

from pathlib import Path

import numpy as np
import pytest

from crawl2cart.core.files import write_json
from crawl2cart.lm.training.data import batch, eval_batches, open_tokens

BEYOND, COUNT = 2**31, 2**31 + 2**26


@pytest.fixture
def sparse_tokens(tmp_path) -> Path:
    """A sparse token file of more than 2^31 ids, all zero but for the last thousand."""
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
