"""Token files and the batches cut from them.

A batch is a function of step and seed alone, so a run that is killed and repeated needs no state of
the data. Row r of a batch goes on where row r of the batch before stopped, and a recurrent model
carries its state along.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_json
from crawl2cart.lm.training.losses import IGNORE

# Steps through which a row's state is carried before it starts again from zeros.
STEPS_CARRIED = 16


def open_tokens(folder: Path | str, split: str) -> np.memmap:
    """Return the ids of a split (`train` or `val`) in a folder of `encode`, read from disk on use.

    Raises UserError if the file is missing or its size is not what meta.json says.
    """
    meta = read_json(Path(folder) / "meta.json")
    path = Path(folder) / f"{split}.bin"
    if not path.is_file():
        raise UserError(f"{path} is missing. `dvc repro encode` makes it.")
    tokens = np.memmap(path, np.dtype(meta["dtype"]), "r")
    if len(tokens) != meta[split]["tokens"]:
        raise UserError(
            f"{path} holds {len(tokens):,} tokens, but meta.json says "
            f"{meta[split]['tokens']:,}. Run `dvc repro encode` again."
        )
    return tokens


def batch(
    tokens: np.ndarray, step: int, rows: int, context: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets (rows, context) of one step, int64.

    The file is read as a ring from a random start. Rows start evenly spread over it, and each goes
    on where it stopped: every token is a target once before any is twice, but for the remainder of
    a division.
    """
    first = np.random.default_rng(seed).integers(len(tokens)) + step * context
    starts = first + np.arange(rows) * len(tokens) // rows
    return slice_windows(tokens, starts, context)


def carry_state(state: Tensor | None, step: int, rows: slice) -> Tensor | None:
    """Return the state (rows, …) with zeros for the rows whose turn it is to start again.

    rows: which rows of the step these are. Without fresh starts an Elman network learns only the
    states of endless text, and fails in validation, which starts from zeros.
    """
    if state is None:
        return None
    carried = (torch.arange(rows.start, rows.stop, device=state.device) + step) % STEPS_CARRIED != 0
    return state * carried.view(-1, *[1] * (state.dim() - 1))


def eval_batches(tokens: np.ndarray, rows: int, context: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches (rows, ≤ context) in which each token of the file is a target exactly once.

    Other targets are IGNORE. The first token follows the last one, a separator.
    """
    length = -(-len(tokens) // rows)
    starts = np.arange(rows) * length
    for begin in range(0, length, context):
        width = min(context, length - begin)
        inputs, targets = slice_windows(tokens, starts + begin, width)
        beyond = torch.from_numpy(starts + begin)[:, None] + torch.arange(width) >= len(tokens)
        yield inputs, targets.masked_fill(beyond, IGNORE)


def slice_windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> tuple[Tensor, Tensor]:
    """Return `context` tokens from each start, and the same one token later, in a ring."""
    places = (starts[:, None] + np.arange(context + 1)) % len(tokens)
    piece = torch.from_numpy(tokens[places].astype(np.int64))
    return piece[:, :-1], piece[:, 1:]
