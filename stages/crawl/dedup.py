"""Pages that say the same, letter by letter, once case, punctuation and space are set aside."""

import hashlib
import re
import unicodedata

NOT_A_WORD = re.compile(r"[\W_]+")


def text_key(text: str) -> str:
    """A hash (32 hex digits) that is equal for texts of the same words in the same order."""
    words = NOT_A_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return hashlib.blake2b(words.encode(), digest_size=16).hexdigest()


def first_copies(urls: list[str], keys: list[str]) -> list[bool]:
    """For each page whether it is the copy that stays: of those with equal keys the one with the smallest URL, the
    first of them where URLs are equal too. The order of the pages does not matter otherwise."""
    kept: dict[str, int] = {}
    for row, (url, key) in enumerate(zip(urls, keys, strict=True)):
        if key not in kept or url < urls[kept[key]]:
            kept[key] = row
    return [kept[key] == row for row, key in enumerate(keys)]


def unit_interval(key: str) -> float:
    """The hash as a number in [0, 1), for choices that must not depend on what else is in the crawl."""
    return int(key[:13], 16) / 16**13
