"""Count what each rule removed, and keep a sample of the removed pages."""

import heapq
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import xxhash

from crawl2cart.crawl.dedup.clusters import Copies
from crawl2cart.crawl.filters.corpus_filters import RULES
from crawl2cart.crawl.filters.page_filters import SHARD

HEAD_CHARACTERS = 200
PII_COLUMNS = [name for name in SHARD.names if name.startswith("pii_")]
# Classes of cluster sizes in the metrics: the smallest size of each.
SIZE_CLASSES = {"2": 2, "3": 3, "4_to_9": 4, "10_to_99": 10, "100_and_more": 100}


@dataclass
class RemovalStats:
    """Counts by the reason why pages went; "" stands for kept pages.

    pages, text_bytes, words: pages, and the UTF-8 bytes and words of their extracted texts. Pages
    that went before extraction have no text. masked, cut: of kept pages, masked spans by kind, and
    repeated lines.
    sample: at most `sample_size` removed pages of each reason, those whose URLs hash lowest.
    texts, reasons: of the watched URLs.
    """

    sample_size: int
    watched: Collection[str] = ()
    texts: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    pages: Counter = field(default_factory=Counter)
    text_bytes: Counter = field(default_factory=Counter)
    words: Counter = field(default_factory=Counter)
    languages: Counter = field(default_factory=Counter)
    masked: Counter = field(default_factory=Counter)
    cut: Counter = field(default_factory=Counter)
    sample: dict[str, list] = field(default_factory=dict)

    def add(self, row: dict) -> None:
        """Count a page after all rules. row: see `CorpusFilters.apply_corpus_filters`."""
        reason = row["reason"]
        self.pages[reason] += 1
        self.text_bytes[reason] += len(row["text"].encode())
        self.words[reason] += len(row["text"].split())
        if row["language"]:
            self.languages[row["language"]] += 1
        if row["url"] in self.watched:
            self.texts[row["url"]], self.reasons[row["url"]] = row["text"], reason
        if not reason:
            self.masked.update({name.removeprefix("pii_"): row[name] for name in PII_COLUMNS})
            self.cut.update(
                pages=bool(row["cut"]),
                lines=len(row["cut"]),
                bytes=sum(len(line.encode()) + 1 for line in row["cut"]),
            )
            return
        head = {
            "url": row["url"],
            "reason": reason,
            "score": row["score"],
            "because": row.get("because", ""),
            "text": row["text"][:HEAD_CHARACTERS],
        }
        # heapq drops the smallest entry, hence the negative hash.
        entry = (-xxhash.xxh3_64_intdigest(row["url"].encode()), self.pages[reason], head)
        heap = self.sample.setdefault(reason, [])
        push = heapq.heappush if len(heap) < self.sample_size else heapq.heappushpop
        push(heap, entry)

    @property
    def kept_urls(self) -> set[str]:
        """Return the watched URLs whose pages stay."""
        return {url for url, reason in self.reasons.items() if not reason}

    @property
    def compared_urls(self) -> set[str]:
        """Return the watched URLs that all rules for one page have kept."""
        return {url for url, reason in self.reasons.items() if reason in ("", *RULES)}

    def rejects(self) -> list[dict]:
        """Return the sampled pages: url, reason, score, because, the first characters of text."""
        rows = [head for heap in self.sample.values() for _, _, head in heap]
        return sorted(rows, key=lambda row: (row["url"], row["reason"], row["text"]))

    def removed(self) -> Counter:
        """Count the removed pages by reason."""
        return Counter({reason: count for reason, count in self.pages.items() if reason})

    def waterfall(self) -> list[dict]:
        """Return the steps from all pages to those kept.

        First the rules for one page, those that removed most first, then the rules across pages.
        """
        left = sum(self.pages.values())
        steps = [
            {"rule": "crawled", "pages": left, "removed": 0, "removed_bytes": 0, "removed_words": 0}
        ]
        page_rules = sorted(
            self.removed().keys() - set(RULES), key=lambda reason: (-self.pages[reason], reason)
        )
        for reason in [*page_rules, *(rule for rule in RULES if self.pages[rule])]:
            left -= self.pages[reason]
            steps.append(
                {
                    "rule": reason,
                    "pages": left,
                    "removed": self.pages[reason],
                    "removed_bytes": self.text_bytes[reason],
                    "removed_words": self.words[reason],
                }
            )
        return steps

    def metrics(self) -> dict:
        """Return the counts for the metrics file.

        removed, removed_bytes, removed_words: pages and their text by reason. languages: pages by
        identified language. repeated_lines, pii.masked: of kept pages.
        """
        removed = self.removed()
        return {
            "removed": dict(removed),
            "removed_bytes": {reason: self.text_bytes[reason] for reason in removed},
            "removed_words": {reason: self.words[reason] for reason in removed},
            "languages": dict(self.languages),
            "repeated_lines": {name: self.cut[name] for name in ("pages", "lines", "bytes")},
            "pii": {"masked": dict(self.masked)},
        }


def copy_counts(copies: Copies) -> dict:
    """Return clusters, their sizes, and the shares of the n compared pages that went as copies."""
    reasons = Counter(copy.reason for copy in copies.removed.values())
    sizes = dict.fromkeys(SIZE_CLASSES, 0)
    for size, count in copies.sizes.items():
        name = next(name for name in reversed(SIZE_CLASSES) if SIZE_CLASSES[name] <= size)
        sizes[name] += count
    return {
        "n": copies.compared,
        "clusters": sum(copies.sizes.values()),
        "largest": max(copies.sizes, default=1),
        "sizes": sizes,
        "exact_share": reasons["duplicate"] / max(1, copies.compared),
        "near_share": reasons["near_duplicate"] / max(1, copies.compared),
    }
