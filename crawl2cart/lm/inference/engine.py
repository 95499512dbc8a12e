"""Let a model write on: `python -m crawl2cart.lm.inference.engine models/pretrain/gru "The kettle"`.

Any of the five models, many prompts at once, one token a step, with the state (for GPT-OSS keys and values) carried along.
GPT-OSS takes prompts of different lengths in one batch, padded at the left; for the others, those of one length go together.
"""

import argparse
import codecs
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from crawl2cart.core.errors import UserError
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats.save import load_model
from crawl2cart.lm.inference.sampling import head_of, sample_token
from crawl2cart.lm.models.gpt_oss import GptOss


@torch.inference_mode()
def stream(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    draws: Tensor | None = None,
) -> Iterator[list[int | None]]:
    """Yields the next id of every prompt, None for those that have ended (with an id of stop_ids, which is still given).

    Prompts must not be empty, and for all models but GPT-OSS be of one length. draws (max_new_tokens, prompts) in [0, 1) decide what is
    chosen (`drawn`); with temperature 0 nothing is drawn.
    """
    device = next(model.parameters()).device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    padding = (longest - lengths).to(device)
    tokens = torch.tensor(
        [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device
    )
    state = (
        model.init_state(len(prompts), padding) if padding.any() else model.init_state(len(prompts))
    )
    draws = torch.zeros(max_new_tokens, len(prompts)) if draws is None else draws
    running = [True] * len(prompts)
    head = head_of(model)
    for draw in draws.to(device):
        hidden, state = model(tokens, state)
        ids = sample_token(hidden[:, -1] @ head, temperature, top_k, top_p, draw)
        yield [number if runs else None for number, runs in zip(ids.tolist(), running, strict=True)]
        running = [
            runs and number not in stop_ids
            for number, runs in zip(ids.tolist(), running, strict=True)
        ]
        if not any(running):
            return
        tokens = ids[:, None]


def drawn(max_new_tokens: int, prompts: int, seed: int) -> Tensor:
    """(max_new_tokens, prompts) in [0, 1): what a prompt's token depends on the seed and the two places alone, not on when others end."""
    return torch.rand(max_new_tokens, prompts, generator=torch.Generator().manual_seed(seed))


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """The new ids for each prompt, in order, the id that ended it included. Arguments as for `stream` and `drawn`."""
    groups = [range(len(prompts))]
    if not isinstance(model, GptOss):
        lengths = sorted({len(prompt) for prompt in prompts})
        groups = [
            [row for row, prompt in enumerate(prompts) if len(prompt) == length]
            for length in lengths
        ]
    written: list[list[int]] = [[] for _ in prompts]
    draws = drawn(max_new_tokens, len(prompts), seed)
    for rows in groups:
        steps = stream(
            model,
            [prompts[row] for row in rows],
            max_new_tokens,
            stop_ids,
            temperature,
            top_k,
            top_p,
            draws[:, list(rows)],
        )
        for ids in steps:
            for row, number in zip(rows, ids, strict=True):
                if number is not None:
                    written[row].append(number)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m crawl2cart.lm.inference.engine", description=__doc__.split(":")[0]
    )
    parser.add_argument("model", help="folder of a model, such as models/pretrain/gru")
    parser.add_argument("prompt", help="text to go on from")
    parser.add_argument(
        "--tokens", type=int, default=200, help="most tokens to write (%(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: always the likeliest token (%(default)s)"
    )
    parser.add_argument(
        "--top-k", type=int, help="draw from this many of the likeliest tokens (all)"
    )
    parser.add_argument(
        "--top-p", type=float, default=0.95, help="share of probability to draw from (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    for name, right, wanted in (
        ("tokens", words.tokens > 0, "1 or more"),
        ("temperature", words.temperature >= 0, "0 or more"),
        ("top-k", words.top_k is None or words.top_k > 0, "1 or more"),
        ("top-p", 0 < words.top_p <= 1, "above 0 and at most 1"),
    ):
        if not right:
            parser.error(f"--{name} must be {wanted}")
    try:
        model, tokenizer = load_model(words.model), tokenizers.load(words.model)
    except UserError as problem:
        sys.exit(str(problem))
    # A document begins after <|endoftext|>; a token may be half a character, so bytes are put together before they are shown.
    end = tokenizer.encode_single_token(tokenizers.END_OF_TEXT)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    print(words.prompt, end="", flush=True)
    steps = stream(
        model,
        [[end, *tokenizer.encode_ordinary(words.prompt)]],
        words.tokens,
        [end],
        words.temperature,
        words.top_k,
        words.top_p,
        drawn(words.tokens, 1, words.seed),
    )
    for (number,) in steps:
        if number != end:
            print(decoder.decode(tokenizer.decode_single_token_bytes(number)), end="", flush=True)
    print(decoder.decode(b"", final=True))


if __name__ == "__main__":
    main()
