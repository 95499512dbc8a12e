"""Hash texts by their words alone: case, punctuation and white space make no difference."""

import hashlib
import re
import unicodedata

NOT_A_WORD = re.compile(r"[\W_]+")


def text_key(text: str) -> str:
    """Return a hash (32 hex digits) that is equal for texts of the same words in the same order."""
    return hashlib.blake2b(plain_words(text).encode(), digest_size=16).hexdigest()


def plain_words(text: str) -> str:
    """Return the text's words in lower case, one space apart, without punctuation."""
    return NOT_A_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def unit_interval(key: str) -> float:
    """Map a hash in hex (13 digits or more) to a number in [0, 1).

    A choice made by it does not depend on which other texts the crawl holds.
    """
    return int(key[:13], 16) / 16**13
