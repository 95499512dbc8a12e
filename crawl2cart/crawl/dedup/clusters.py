"""Decide which pages are copies of which, exact or near, and which page of a cluster stays.

A page is a number, its place in the crawl. Memory holds about 30 bytes for each page, and the URL
of those that have copies. The texts stay in the shards.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import xxhash

from crawl2cart.crawl.dedup.minhash import components, near_pairs
from crawl2cart.crawl.executor import daft, start_engine
from crawl2cart.crawl.filters.blocklist import host_of
from crawl2cart.crawl.params import Filter
from crawl2cart.crawl.shards import batches

CREDITS_A_SOURCE = re.compile(
    r"\b(?:(?:re)?(?:printed|posted|published|produced)|lifted|copied|borrowed|taken|translated"
    r"|adapted|shared) (?:here )?"
    r"(?:from|by (?:kind )?permission|with (?:kind )?permission|courtesy)\b|\bcourtesy of\b"
    r"|\b(?:originally|first) (?:appeared|published|posted|printed|ran)\b|\bsource:|\bvia:",
    re.IGNORECASE,
)


class Copy(NamedTuple):
    """A page that goes because another page says the same.

    reason: `duplicate` or `near_duplicate`. similarity: its largest share of shingles in common
    with a page of its cluster; 1 where the words are equal. of: the URL of the page that stays.
    """

    reason: str
    similarity: float
    of: str


class Member(NamedTuple):
    """A page that has copies. In the order of these fields the smallest of a cluster stays.

    credits: how often its text says that it comes from elsewhere. Copies repeat the original's
    credits and add their own.
    copied_share: the share of its host's pages with copies on other hosts. A mirror has nearly all
    of its pages from elsewhere, the place where a text comes from only a few.
    text_hash: comes before `page`, so that the order of files decides nothing.
    """

    credits: int
    copied_share: float
    url: str
    text_hash: int
    page: int
    cluster: int


class Copies(NamedTuple):
    """All clusters of copies in a crawl.

    compared: pages that were compared. removed: the pages that go, by number.
    sizes: how many clusters have so many pages, the one that stays included.
    urls: the URLs of each cluster, the page that stays first.
    """

    compared: int
    removed: dict[int, Copy]
    sizes: Counter
    urls: list[list[str]]


def find_copies(shards: list[Path], limits: Filter, scratch: Path) -> Copies:
    """Cluster the pages that no rule has removed, by equal words and by near-equal shingles.

    shards: parquet files of the schema `page_filters.SHARD`. Their order makes no difference.
    scratch: a folder for signatures, see `near_pairs`.
    """
    keys, alive = read_keys(shards)
    unique, place, count = np.unique(keys[alive], return_inverse=True, return_counts=True)
    start_engine(limits)
    texts = (
        daft.read_parquet([str(shard) for shard in sorted(set(shards))])
        .where(daft.col("reason") == "")
        .select(daft.functions.hash(daft.col("key")).alias("id"), "text")
    )
    pairs = near_pairs(
        texts,
        scratch,
        ngram=limits.minhash.ngram,
        bands=limits.minhash.bands,
        rows=limits.minhash.rows,
        threshold=limits.minhash.threshold,
        memory_bytes=int(limits.minhash.memory_gib * 2**30),
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
    removed, urls = {}, []
    for stays, *others in read_members(shards, cluster_of):
        earlier = {keys[stays.page]}
        for member in others:
            key = keys[member.page]
            reason = "duplicate" if key in earlier else "near_duplicate"
            similarity = float(nearest[np.searchsorted(unique, key)])
            removed[member.page] = Copy(reason, similarity, stays.url)
            earlier.add(key)
        urls.append([stays.url, *(member.url for member in others)])
    return Copies(int(alive.sum()), removed, Counter(sizes[sizes > 1].tolist()), urls)


def read_keys(shards: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read for each page a hash of its key (uint64) and whether it is still there (bool).

    With 64 bits, two of ten million different texts share a hash in one crawl of 400,000.
    """
    keys, alive = [np.empty(0, np.uint64)], [np.empty(0, bool)]
    for batch in batches(shards, ["key", "reason"]):
        hashes = [xxhash.xxh3_64_intdigest(key.encode()) for key in batch["key"].to_pylist()]
        keys.append(np.array(hashes, np.uint64))
        alive.append(pc.equal(batch["reason"], "").to_numpy(zero_copy_only=False))
    return np.concatenate(keys), np.concatenate(alive)


def read_members(shards: list[Path], cluster_of: np.ndarray) -> list[list[Member]]:
    """Read the pages of each cluster, the one that stays first.

    cluster_of: the cluster of each page, -1 for a page without copies.
    """
    members, page = [], 0
    for batch in batches(shards, ["url", "text"]):
        for row in np.flatnonzero(cluster_of[page : page + len(batch)] >= 0).tolist():
            url, text = batch["url"][row].as_py(), batch["text"][row].as_py()
            members.append(
                Member(
                    credits=len(CREDITS_A_SOURCE.findall(text)),
                    copied_share=0.0,
                    url=url,
                    text_hash=xxhash.xxh3_64_intdigest(text.encode()),
                    page=page + row,
                    cluster=int(cluster_of[page + row]),
                )
            )
        page += len(batch)
    hosts: dict[int, set[str]] = {}
    for member in members:
        hosts.setdefault(member.cluster, set()).add(host_of(member.url))
    copied = Counter(host_of(member.url) for member in members if len(hosts[member.cluster]) > 1)
    pages = count_hosts(shards, set(copied))
    clusters: dict[int, list[Member]] = {}
    for member in members:
        share = copied[host_of(member.url)] / max(1, pages[host_of(member.url)])
        clusters.setdefault(member.cluster, []).append(member._replace(copied_share=share))
    return sorted(sorted(cluster) for cluster in clusters.values())


def count_hosts(shards: list[Path], hosts: set[str]) -> Counter[str]:
    """Count the pages of each of these hosts that no rule has removed."""
    pages: Counter[str] = Counter()
    for batch in batches(shards, ["url", "reason"]):
        urls = batch["url"].filter(pc.equal(batch["reason"], "")).to_pylist()
        pages.update(host for host in map(host_of, urls) if host in hosts)
    return pages
