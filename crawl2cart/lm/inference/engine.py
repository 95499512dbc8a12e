"""Decode with any of the five models.

    python -m crawl2cart.lm.inference.engine models/pretrain/gru "The kettle"

Many prompts go at once, one token a step; the state (GPT-OSS: keys and values) is carried along.
Rows that have ended leave the batch. GPT-OSS takes prompts of different lengths in one batch,
padded at the left. For the other models, prompts of one length go together.
"""

import argparse
import codecs
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crawl2cart.core.errors import UserError
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats.save import load_model
from crawl2cart.lm.inference.sampling import head_of, sample_token
from crawl2cart.lm.models.attention import SPARE
from crawl2cart.lm.models.gpt_oss import GptOss, State

# A batch gets smaller when less than this share of its rows goes on.
LEAST_RUNNING = 0.8
# Numbers in [0, 1) that decide what is sampled: of a step, one for each of these prompts.
Draws = Callable[[int, Sequence[int]], Tensor]


def seeded_draws(max_new_tokens: int, prompts: int, seed: int) -> Draws:
    """Return draws that depend on seed, step and prompt alone, not on when other prompts end."""
    table = torch.rand(max_new_tokens, prompts, generator=torch.Generator().manual_seed(seed))
    return lambda step, rows: table[step, list(rows)]


@dataclass(frozen=True)
class Prefix:
    """A text that prompts begin with, and the state after reading it once."""

    ids: list[int]
    state: State


class Engine:
    """Decodes with a model of this package, which stays where it is and in its dtype."""

    def __init__(self, model: nn.Module):
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.limit = model.config.get("max_position_embeddings")

    @torch.inference_mode()
    def prefix(self, ids: Sequence[int]) -> Prefix:
        """Read the common start of later prompts once. Only for GPT-OSS."""
        tokens = torch.tensor([list(ids)], device=self.device)
        _, state = self.model(tokens, self.model.init_state(1))
        return Prefix(list(ids), state)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: Sequence[int] = (),
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        draws: Draws | None = None,
        prefix: Prefix | None = None,
        on_ids: Callable[[list[int]], None] | None = None,
    ) -> list[list[int]]:
        """Return the new ids of each prompt, the id that ended it included.

        on_ids gets the ids of the first prompt so far, at each step. The other arguments are those
        of `stream`, except that any model takes prompts of several lengths.
        """
        groups = [list(range(len(prompts)))]
        if not isinstance(self.model, GptOss):
            lengths = sorted({len(prompt) for prompt in prompts})
            groups = [[i for i in groups[0] if len(prompts[i]) == length] for length in lengths]
        new_ids: list[list[int]] = [[] for _ in prompts]
        for group in groups:
            steps = self.stream(
                [prompts[i] for i in group],
                max_new_tokens,
                stop_ids,
                temperature,
                top_k,
                top_p,
                draws and (lambda step, rows, group=group: draws(step, [group[i] for i in rows])),
                prefix,
            )
            for ids in steps:
                for i, number in zip(group, ids, strict=True):
                    if number is not None:
                        new_ids[i].append(number)
                if on_ids:
                    on_ids(new_ids[0])
        return new_ids

    @torch.inference_mode()
    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: Sequence[int] = (),
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        draws: Draws | None = None,
        prefix: Prefix | None = None,
    ) -> Iterator[list[int | None]]:
        """Yield the next id of every prompt at each step, None for prompts that have ended.

        A prompt ends with an id of stop_ids, which is still yielded, after max_new_tokens, or when
        the model has no position left. temperature, top_k, top_p: see `sample_token`. draws decide
        what is sampled (None: those of seed 0).
        prefix: what all prompts begin with. Raises ValueError for an empty prompt, one that is
        longer than the model takes, one without the prefix, and, for models other than GPT-OSS,
        for prompts of several lengths.
        """
        self.check(prompts, prefix)
        draws = draws or seeded_draws(max_new_tokens, len(prompts), seed=0)
        state, tokens = self.start(prompts, prefix)
        head = head_of(self.model)
        batch = list(range(len(prompts)))  # which prompts the rows of the batch are
        running = set(batch)
        for step in range(max_new_tokens):
            hidden, state = self.model(tokens, state)
            draw = draws(step, batch).to(self.device) if temperature else None
            ids = sample_token(hidden[:, -1] @ head, temperature, top_k, top_p, draw)
            next_ids = dict(zip(batch, ids.tolist(), strict=True))
            yield [next_ids[i] if i in running else None for i in range(len(prompts))]
            full = {i for i in running if self.limit and len(prompts[i]) + step >= self.limit}
            running -= full | {i for i in running if next_ids[i] in stop_ids}
            if not running:
                return
            if full or len(running) < LEAST_RUNNING * len(batch):
                rows = [row for row, i in enumerate(batch) if i in running]
                batch = [batch[row] for row in rows]
                rows = torch.tensor(rows, device=self.device)
                state, ids = state[rows], ids[rows]
            tokens = ids[:, None]

    def check(self, prompts: Sequence[Sequence[int]], prefix: Prefix | None) -> None:
        """Raise ValueError for prompts that the model can not read together."""
        lengths = {len(prompt) for prompt in prompts}
        if 0 in lengths:
            raise ValueError("A prompt is empty. Begin it with <|endoftext|>.")
        if self.limit and max(lengths) > self.limit:
            raise ValueError(
                f"A prompt of {max(lengths):,} tokens is longer than the model's "
                f"max_position_embeddings, {self.limit:,}. Shorten it."
            )
        if len(lengths) > 1 and not isinstance(self.model, GptOss):
            raise ValueError("Only GPT-OSS reads prompts of several lengths in one batch.")
        known = len(prefix.ids) if prefix else 0
        if any(list(prompt[:known]) != prefix.ids for prompt in prompts if known):
            raise ValueError("A prompt does not begin with the given prefix.")

    def start(self, prompts: Sequence[Sequence[int]], prefix: Prefix | None) -> tuple:
        """Return the state before the first step, and the tokens (B, T) that it reads."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        padding = longest - lengths
        padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        tokens = torch.tensor(padded, device=self.device)
        if prefix:
            state = self.model.init_state(len(prompts), padding.to(self.device))
            copy_prefix(state, prefix, longest, padding.tolist())
            return state, tokens[:, len(prefix.ids) :]
        if padding.any():
            return self.model.init_state(len(prompts), padding.to(self.device)), tokens
        return self.model.init_state(len(prompts)), tokens


def copy_prefix(state: State, prefix: Prefix, longest: int, padding: list[int]) -> None:
    """Give an empty state as many columns as the prefix has.

    Each row gets its padding there, then as much of the prefix as there is room for; what is cut
    off is read again.
    """
    known = state.columns = len(prefix.ids)
    for layer, source in zip(state.layers, prefix.state.layers, strict=True):
        _, _, heads, _, size = source.buffer.shape
        layer.end = known
        layer.buffer = source.buffer.new_zeros(2, len(padding), heads, longest + SPARE, size)
        for row, empty in enumerate(min(pad, known) for pad in padding):
            layer.buffer[:, row, :, empty:known] = source.buffer[:, 0, :, : known - empty]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m crawl2cart.lm.inference.engine", description="Let a model write on."
    )
    parser.add_argument("model", help="folder of a model, such as models/pretrain/gru")
    parser.add_argument("prompt", help="text to go on from")
    parser.add_argument("--tokens", type=int, default=200, help="tokens at most (%(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: always the likeliest (%(default)s)"
    )
    parser.add_argument("--top-k", type=int, help="sample from the k likeliest tokens (all)")
    parser.add_argument(
        "--top-p", type=float, default=0.95, help="probability to sample from (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name, valid, allowed in (
        ("tokens", arguments.tokens > 0, "1 or more"),
        ("temperature", arguments.temperature >= 0, "0 or more"),
        ("top-k", arguments.top_k is None or arguments.top_k > 0, "1 or more"),
        ("top-p", 0 < arguments.top_p <= 1, "above 0 and at most 1"),
    ):
        if not valid:
            parser.error(f"--{name} must be {allowed}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    try:
        model, tokenizer = load_model(arguments.model), tokenizers.load(arguments.model)
    except UserError as error:
        sys.exit(str(error))
    end = tokenizer.encode_single_token(tokenizers.END_OF_TEXT)  # documents begin behind it
    steps = Engine(model).stream(
        [[end, *tokenizer.encode_ordinary(arguments.prompt)]],
        arguments.tokens,
        [end],
        arguments.temperature,
        arguments.top_k,
        arguments.top_p,
        seeded_draws(arguments.tokens, 1, arguments.seed),
    )
    # A token may be half a character: bytes are put together before they are printed.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    print(arguments.prompt, end="", flush=True)
    for (number,) in steps:
        if number != end:
            print(decoder.decode(tokenizer.decode_single_token_bytes(number)), end="", flush=True)
    print(decoder.decode(b"", final=True))


if __name__ == "__main__":
    main()
