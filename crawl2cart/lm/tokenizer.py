"""The tokenizer: the first ranks of o200k_base and the special tokens of the harmony format.

Every token of a byte-pair table is made of two earlier ones, so its first N ranks are a valid
tokenizer without training one. The same table gives tiktoken's Encoding, which is fast and used
here, and Hugging Face's tokenizer.json, which goes into every model folder.
"""

import base64
import binascii
from pathlib import Path

import numpy as np
import tiktoken

from crawl2cart.core.errors import UserError

RANKS = "ranks.tiktoken"
END_OF_TEXT = "<|endoftext|>"
# Their order is part of every trained model: it fixes the ids after the ranks.
SPECIAL_TOKENS = (
    "<|startoftext|>",
    END_OF_TEXT,
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)
# o200k_base's pattern (tiktoken_ext/openai_public.py) with two changes, for an agent that copies:
# a digit is a token of its own, so that numbers never split at random;
# and so is what stands before an e-mail address, so that an address always has the same tokens.
BEFORE_EMAIL = r"[^\r\n\p{L}\p{N}.+_-](?=[\w.+-]+@)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    [
        BEFORE_EMAIL,
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def read_ranks(path: Path | str, ranks: int | None = None) -> dict[bytes, int]:
    """Return the first `ranks` tokens of a .tiktoken file (None: all), bytes -> rank.

    Raises UserError if it holds fewer, or on a damaged line.
    """
    table = {}
    for number, line in enumerate(Path(path).read_text().splitlines()[:ranks]):
        try:
            token, rank = line.split()
            table[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise UserError(
                f"{path}:{number + 1}: not a line of a rank table (base64 of the token, a space, "
                "its rank). Take the file from git again."
            ) from error
        if int(rank) != number:
            raise UserError(
                f"{path}:{number + 1}: rank {rank} where {number} should stand. "
                "Take the file from git again."
            )
    if ranks is not None and len(table) < ranks:
        raise UserError(
            f"{path} holds {len(table):,} ranks, but encode.vocab_size asks for {ranks:,}. "
            "Lower it, or put a longer table there (data/ranks/README.md says where it comes from)."
        )
    return table


def encoding(ranks: dict[bytes, int]) -> tiktoken.Encoding:
    """Return tiktoken's Encoding over these ranks and the special tokens."""
    specials = {token: len(ranks) + number for number, token in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding(
        f"o200k_{len(ranks)}", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials
    )


def load(folder: Path | str) -> tiktoken.Encoding:
    """Return the Encoding of a folder of `save_tokenizer`. Raises UserError if it holds none."""
    path = Path(folder) / RANKS
    if not path.is_file():
        raise UserError(
            f"{path} is missing, so {folder} holds no tokenizer. "
            "`dvc repro encode` makes data/tokenizer."
        )
    return encoding(read_ranks(path))


def token_bytes(tokenizer: tiktoken.Encoding) -> np.ndarray:
    """Return the bytes of text that each id stands for, (n_vocab,) int64; 0 for special tokens.

    Taken from the table: half a character would decode to U+FFFD, three bytes.
    """
    lengths = [len(token) for token in rank_bytes(tokenizer)]
    return np.array(lengths + [0] * len(SPECIAL_TOKENS), np.int64)


def rank_bytes(tokenizer: tiktoken.Encoding) -> list[bytes]:
    """Return the bytes of every token that is not special, in order of rank."""
    ranks = range(tokenizer.n_vocab - len(SPECIAL_TOKENS))
    return [tokenizer.decode_single_token_bytes(rank) for rank in ranks]


def save_tokenizer(tokenizer: tiktoken.Encoding, folder: Path | str) -> None:
    """Write Hugging Face's tokenizer.json and tokenizer_config.json, and the ranks, into a folder.

    <|endoftext|> separates documents and also pads; <|return|> ends an answer.
    """
    # Importing transformers takes seconds. Reading tokens does not need it.
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{base64.b64encode(token).decode()} {rank}\n"
        for rank, token in enumerate(rank_bytes(tokenizer))
    ]
    (folder / RANKS).write_text("".join(lines))
    table = TikTokenConverter(
        str(folder / RANKS), pattern=PATTERN, extra_special_tokens=list(SPECIAL_TOKENS)
    ).converted()
    PreTrainedTokenizerFast(
        tokenizer_object=table,
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token=END_OF_TEXT,
        extra_special_tokens=list(SPECIAL_TOKENS),
        padding_side="right",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
