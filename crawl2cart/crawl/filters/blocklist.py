"""Judge a page by its address: hosts on a list, and URLs made of adult words.

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
    """Read a list of hosts, one a line; a comment starts with #.

    Raises UserError if the file is missing, and for a line that is no host name.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing: filter.blocked_hosts in params.yaml names it. "
            "An empty file blocks nothing."
        )
    hosts = set()
    for number, line in enumerate(path.read_text().split("\n"), 1):
        host = line.partition("#")[0].strip().lower().rstrip(".")
        if host and not HOST.fullmatch(host):
            raise UserError(
                f"{path}:{number}: {host!r} is no host name such as spam.example. "
                "Correct or remove the line."
            )
        hosts.add(host)
    return frozenset(hosts - {""})


def is_blocked(url: str, hosts: frozenset[str]) -> bool:
    """Tell whether the URL's host, or a domain above it, is on the list."""
    labels = host_of(url).split(".")
    return any(".".join(labels[start:]) in hosts for start in range(len(labels)))


def host_of(url: str) -> str:
    """Return the host of a URL in lower case, without port and user; "" if it has none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:  # a bracket that is never closed, as broken links have
        return ""


def url_words(url: str) -> int:
    """Count the different adult words in a URL. Two are seldom chance, one often is."""
    return len(ADULT_WORDS.intersection(WORD.findall(url.lower())))
