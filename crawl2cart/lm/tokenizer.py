"""The tokenizer: the first ranks of o200k_base and the special tokens of the harmony format.

A byte-pair table is closed under prefixes (every token is made of two earlier ones), so its first N ranks are a valid
tokenizer without training one. The same table gives tiktoken's Encoding, fast and used here, and Hugging Face's
tokenizer.json, which goes into every model folder.
"""

import base64
import binascii
from pathlib import Path

import numpy as np
import tiktoken

from crawl2cart.core.errors import UserError

RANKS = "ranks.tiktoken"
END_OF_TEXT = "<|endoftext|>"
# Order and spelling are part of every trained model: they fix the ids after the ranks.
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
# o200k_base's pattern (tiktoken_ext/openai_public.py) with one digit per token: a cut table holds only some of the
# three-digit tokens, and an agent that copies order numbers must not meet numbers that split at random. And what stands before an e-mail
# address is a token of its own: so it begins with the same token in a sentence (` `, `br`, `ask`, …) and in a call (`":"`, `br`, `ask`, …),
# and one that reads from left to right sees from its first token on that it is no word.
BEFORE_EMAIL = r"[^\r\n\p{L}\p{N}.+_-](?=[\w.+-]+@)"
PATTERN = "|".join(
    [
        BEFORE_EMAIL,
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def read_ranks(path: Path | str, ranks: int | None = None) -> dict[bytes, int]:
    """The first `ranks` tokens of a .tiktoken file (all, if None) by their bytes. Raises UserError if it holds fewer."""
    table = {}
    for number, line in enumerate(Path(path).read_text().splitlines()[:ranks]):
        try:
            token, rank = line.split()
            table[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise UserError(
                f"{path}:{number + 1}: not a line of a rank table (base64 of the token, a space, its rank). "
                "Take the file from git again."
            ) from error
        if int(rank) != number:
            raise UserError(
                f"{path}:{number + 1}: rank {rank} where {number} should stand. Take the file from git again."
            )
    if ranks is not None and len(table) < ranks:
        raise UserError(
            f"{path} holds {len(table):,} ranks, but encode.ranks asks for {ranks:,}. Lower it, or put a "
            "longer table there (data/ranks/README.md says where it comes from)."
        )
    return table


def encoding(ranks: dict[bytes, int]) -> tiktoken.Encoding:
    """tiktoken's Encoding over these ranks and the special tokens."""
    specials = {token: len(ranks) + number for number, token in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding(
        f"o200k_{len(ranks)}", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials
    )


def load(folder: Path | str) -> tiktoken.Encoding:
    """The Encoding of a folder written by `save_tokenizer`. Raises UserError if it holds none."""
    path = Path(folder) / RANKS
    if not path.is_file():
        raise UserError(
            f"{path} is missing, so {folder} holds no tokenizer. `dvc repro encode` makes data/tokenizer."
        )
    return encoding(read_ranks(path))


def token_bytes(tokenizer: tiktoken.Encoding) -> np.ndarray:
    """(n_vocab,) int64: bytes of text that each id stands for; 0 for the special tokens.

    From the table itself: a token that is half a character would decode to U+FFFD and count three.
    """
    return np.array(
        [len(token) for token in rank_bytes(tokenizer)] + [0] * len(SPECIAL_TOKENS), np.int64
    )


def rank_bytes(tokenizer: tiktoken.Encoding) -> list[bytes]:
    """The bytes of every token that is not special, in order of rank."""
    return [
        tokenizer.decode_single_token_bytes(rank)
        for rank in range(tokenizer.n_vocab - len(SPECIAL_TOKENS))
    ]


def save_tokenizer(tokenizer: tiktoken.Encoding, folder: Path | str) -> None:
    """Writes the tokenizer into a folder: Hugging Face's tokenizer.json and tokenizer_config.json, and the ranks.

    <|endoftext|> pads (it also separates documents; a padded place is never a target), <|return|> ends an answer.
    """
    # Importing transformers takes seconds, and whoever only reads tokens does not need it.
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
