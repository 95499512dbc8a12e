"""Which pages are copies of which, letter by letter or nearly, and which of them stays.

A page is a number, its place in the crawl: memory holds about 30 bytes for each, and the URL of those that have copies.
Texts stay in the shards.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import xxhash

from crawl2cart.crawl.dedup.minhash import components, near_pairs
from crawl2cart.crawl.executor import daft, start
from crawl2cart.crawl.filters.blocklist import host_of
from crawl2cart.crawl.params import Filter
from crawl2cart.crawl.shards import batches

NAMES_A_SOURCE = re.compile(
    r"\b(?:(?:re)?(?:printed|posted|published|produced)|lifted|copied|borrowed|taken|translated|adapted|shared) (?:here )?"
    r"(?:from|by (?:kind )?permission|with (?:kind )?permission|courtesy)\b|\bcourtesy of\b|\b(?:originally|first) "
    r"(?:appeared|published|posted|printed|ran)\b|\bsource:|\bvia:",
    re.IGNORECASE,
)


class Copy(NamedTuple):
    """A page that goes because another says the same. similarity: the largest share of shingles that it has in common
    with a page of its cluster, 1 if their words are equal. of: the URL that stays."""

    reason: str
    similarity: float
    of: str


class Member(NamedTuple):
    """A page that has copies. In the order of its fields, the smallest of a cluster stays.

    sources_named: how often its text says that it comes from elsewhere; what the original says of that, copies say too.
    copied_share: how much of the page's host has copies on other hosts. A mirror has nearly all of its pages from
    elsewhere, the place where a text comes from only a few. text: a hash, so that nothing depends on the order of files.
    """

    sources_named: int
    copied_share: float
    url: str
    text: int
    page: int
    cluster: int


class Copies(NamedTuple):
    """compared: how many pages. gone: the pages that go, by number. sizes: how many clusters have so many pages, the
    one that stays included. urls: the URLs of each cluster in order of preference."""

    compared: int
    gone: dict[int, Copy]
    sizes: Counter
    urls: list[list[str]]


def find_copies(shards: list[Path], limits: Filter, scratch: Path) -> Copies:
    """Clusters of the pages that no rule has removed: equal texts (reason `duplicate`), then near-equal ones
    (`near_duplicate`), see minhash.py. The order of the shards makes no difference."""
    keys, alive = read_keys(shards)
    unique, place, count = np.unique(keys[alive], return_inverse=True, return_counts=True)
    start(limits)
    texts = (
        daft.read_parquet([str(shard) for shard in sorted(set(shards))])
        .where(daft.col("reason") == "")
        .select(daft.functions.hash(daft.col("key")).alias("id"), "text")
    )
    pairs = near_pairs(
        texts,
        limits.minhash.ngram,
        limits.minhash.bands,
        limits.minhash.rows,
        limits.minhash.threshold,
        scratch,
        int(limits.minhash.memory_gib * 2**30),
    )
    first, second = np.searchsorted(unique, pairs.first), np.searchsorted(unique, pairs.second)
    clusters = components(len(unique), first, second)
    nearest = np.zeros(len(unique))
    for side in (first, second):
        np.maximum.at(nearest, side, pairs.similarity)
    nearest[count > 1] = 1
    sizes = np.bincount(clusters, weights=count).astype(np.int64)
    cluster_of = np.full(len(keys), -1, np.int64)
    cluster_of[alive] = np.where(sizes[clusters] > 1, clusters, -1)[place]
    gone, urls = {}, []
    for members in read_members(shards, cluster_of):
        stays, seen = members[0], {keys[members[0].page]}
        for member in members[1:]:
            key = keys[member.page]
            similarity = nearest[np.searchsorted(unique, key)]
            gone[member.page] = Copy(
                "duplicate" if key in seen else "near_duplicate", float(similarity), stays.url
            )
            seen.add(key)
        urls.append([member.url for member in members])
    return Copies(int(alive.sum()), gone, Counter(sizes[sizes > 1].tolist()), urls)


def read_keys(shards: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """For each page a 64-bit hash of its key (two of ten million texts share one by chance once in 400,000 crawls) and
    whether no rule has removed it so far."""
    keys, alive = [], []
    for batch in batches(shards, ["key", "reason"]):
        keys.append(
            np.array(
                [xxhash.xxh3_64_intdigest(key.encode()) for key in batch["key"].to_pylist()],
                np.uint64,
            )
        )
        alive.append(pc.equal(batch["reason"], "").to_numpy(zero_copy_only=False))
    return np.concatenate([np.empty(0, np.uint64), *keys]), np.concatenate(
        [np.empty(0, bool), *alive]
    )


def read_members(shards: list[Path], cluster_of: np.ndarray) -> list[list[Member]]:
    """The pages of each cluster, the one that stays first. cluster_of: -1 for pages without copies."""
    found, page = [], 0
    for batch in batches(shards, ["url", "text"]):
        for row in np.flatnonzero(cluster_of[page : page + len(batch)] >= 0).tolist():
            url, text = batch["url"][row].as_py(), batch["text"][row].as_py()
            named = len(NAMES_A_SOURCE.findall(text))
            found.append(
                Member(
                    named,
                    0.0,
                    url,
                    xxhash.xxh3_64_intdigest(text.encode()),
                    page + row,
                    int(cluster_of[page + row]),
                )
            )
        page += len(batch)
    hosts: dict[int, set[str]] = {}
    for member in found:
        hosts.setdefault(member.cluster, set()).add(host_of(member.url))
    copied = Counter(host_of(member.url) for member in found if len(hosts[member.cluster]) > 1)
    pages = count_hosts(shards, set(copied))
    clusters: dict[int, list[Member]] = {}
    for member in found:
        share = copied[host_of(member.url)] / max(1, pages[host_of(member.url)])
        clusters.setdefault(member.cluster, []).append(member._replace(copied_share=share))
    return sorted(sorted(members) for members in clusters.values())


def count_hosts(shards: list[Path], hosts: set[str]) -> Counter:
    """How many pages each of the hosts has that no rule has removed."""
    pages: Counter = Counter()
    for batch in batches(shards, ["url", "reason"]):
        urls = batch["url"].filter(pc.equal(batch["reason"], "")).to_pylist()
        pages.update(found for found in map(host_of, urls) if found in hosts)
    return pages
