"""Pages that are not worth reading by where they are: hosts on a list, and addresses made of words of the trade in sex.

Penedo et al. 2023 (RefinedWeb), appendix G.1, https://arxiv.org/abs/2306.01116
"""

import re
from pathlib import Path
from urllib.parse import urlsplit

from crawl2cart.core.errors import UserError
from crawl2cart.crawl.filters.wordlists import ADULT_WORDS

HOST = re.compile(r"(?:[a-z0-9_-]{1,63}\.)+[a-z0-9-]{2,63}")
WORD = re.compile(r"[a-z]+")


def read_hosts(path: Path) -> frozenset[str]:
    """The hosts of a file, one a line; after # comes a comment. Raises UserError naming a line that is no host."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing: filter.blocked_hosts in params.yaml names it. An empty file blocks nothing."
        )
    hosts = set()
    for number, line in enumerate(path.read_text().split("\n"), 1):
        host = line.partition("#")[0].strip().lower().rstrip(".")
        if host and not HOST.fullmatch(host):
            raise UserError(
                f"{path}:{number}: {host!r} is no host name such as spam.example. Mend or remove the line."
            )
        hosts.add(host)
    return frozenset(hosts - {""})


def is_blocked(url: str, hosts: frozenset[str]) -> bool:
    """Whether the URL's host or a domain above it is on the list."""
    labels = host_of(url).split(".")
    return any(".".join(labels[start:]) in hosts for start in range(len(labels)))


def host_of(url: str) -> str:
    """The host of a URL in small letters, without port and user, or "" where there is none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:  # a bracket that is never closed, as broken links have
        return ""


def url_words(url: str) -> int:
    """How many different words of the URL are on the list of adult words. Two are seldom chance, one is often."""
    return len(ADULT_WORDS.intersection(WORD.findall(url.lower())))
