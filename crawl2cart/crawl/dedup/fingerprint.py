"""A hash of what a text says, letter by letter, once case, punctuation and space are set aside."""

import hashlib
import re
import unicodedata

NOT_A_WORD = re.compile(r"[\W_]+")


def text_key(text: str) -> str:
    """A hash (32 hex digits) that is equal for texts of the same words in the same order."""
    return hashlib.blake2b(plain_words(text).encode(), digest_size=16).hexdigest()


def plain_words(text: str) -> str:
    """The text's words in lower case with one space between, without punctuation."""
    return NOT_A_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def unit_interval(key: str) -> float:
    """The hash as a number in [0, 1), for choices that must not depend on what else is in the crawl."""
    return int(key[:13], 16) / 16**13
