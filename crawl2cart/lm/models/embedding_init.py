"""Embeddings that start alike for tokens that are spelled alike.

Most short pieces of words stand in the table twice, with a space before them and without. To copy a
name from a sentence (` F`, `en`, …) into a call (`"`, `F`, `en`, …), a model must know that they
are the same.
"""

import torch
from tiktoken import Encoding
from torch import Tensor

from crawl2cart.lm.tokenizer import rank_bytes

# Parts of the variance: shared by tokens that differ in a space, or in space and case; and own.
LETTERS, CASELESS, OWN = 0.35, 0.35, 0.30
# Size of what tokens share that begin with a space, a capital, a digit, a sign.
MARK = 0.3


def token_classes(tokenizer: Encoding, rows: int, caseless: bool = False) -> Tensor:
    """Return the number of each id's family, (rows,).

    Tokens of a family differ in a space before them and, with caseless, in case. Special tokens and
    padding ids are families of one.
    """
    numbers: dict[bytes | int, int] = {}
    letters: list[bytes | int] = [word.lstrip(b" ") or word for word in rank_bytes(tokenizer)]
    letters = [word.lower() for word in letters] if caseless else letters
    letters += range(len(letters), rows)
    return torch.tensor([numbers.setdefault(word, len(numbers)) for word in letters])


def spelling_embeddings(tokenizer: Encoding, rows: int, width: int, seed: int) -> Tensor:
    """Return embeddings to start from (rows, width), of deviation 1, alike where spellings are."""
    spellings = [*rank_bytes(tokenizer), *[b""] * (rows - len(rank_bytes(tokenizer)))]
    generator = torch.Generator().manual_seed(seed)

    def random(count: int) -> Tensor:
        return torch.randn(count, width, generator=generator)

    marks = torch.tensor(
        [
            (
                word[:1] == b" ",
                first.isupper(),
                first.isdigit(),
                bool(first) and not first.isalnum(),
            )
            for word in spellings
            for first in [word.lstrip(b" ")[:1]]
        ]
    ).float()
    embedding = OWN**0.5 * random(rows) + MARK * (marks - marks.mean(0)) / marks.std(0) @ random(
        marks.size(1)
    )
    for share, family in (
        (LETTERS, token_classes(tokenizer, rows)),
        (CASELESS, token_classes(tokenizer, rows, caseless=True)),
    ):
        embedding += share**0.5 * random(rows)[family]
    return embedding / embedding.std()
