"""What became of the pages: how many, how much text and a sample of those that each rule removed."""

import heapq
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import xxhash

from crawl2cart.crawl.dedup.clusters import Copies
from crawl2cart.crawl.filters.corpus_filters import RULES
from crawl2cart.crawl.filters.page_filters import SHARD

HEAD_CHARACTERS = 200
COUNTED = [
    name for name in SHARD.names if name.startswith("pii_")
]  # spans that were masked, by kind


@dataclass
class RemovalStats:
    """Counts of pages, UTF-8 bytes and words (between spaces) of their extracted texts, by the reason why they went.

    Pages that went before their text was taken have none. sample: at most `most` removed pages of each reason, those
    with the smallest hashes of their URLs. texts, reasons: of the watched URLs.
    """

    most: int
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
        """row: a page after all rules, reason "" if it is kept."""
        reason = row["reason"]
        self.pages[reason] += 1
        self.text_bytes[reason] += len(row["text"].encode())
        self.words[reason] += len(row["text"].split())
        if row["language"]:
            self.languages[row["language"]] += 1
        if row["url"] in self.watched:
            self.texts[row["url"]], self.reasons[row["url"]] = row["text"], reason
        if not reason:
            self.masked.update({name.removeprefix("pii_"): row[name] for name in COUNTED})
            self.cut.update(
                pages=bool(row["cut"]),
                lines=len(row["cut"]),
                bytes=sum(len(line.encode()) + 1 for line in row["cut"]),
            )
            return
        shown = {
            "url": row["url"],
            "reason": reason,
            "score": row["score"],
            "because": row.get("because", ""),
            "text": row["text"][:HEAD_CHARACTERS],
        }
        # heapq keeps the smallest first, so that of these the one to go is that of the largest hash.
        entry = (-xxhash.xxh3_64_intdigest(row["url"].encode()), self.pages[reason], shown)
        heap = self.sample.setdefault(reason, [])
        heapq.heappush(heap, entry) if len(heap) < self.most else heapq.heappushpop(heap, entry)

    @property
    def kept(self) -> set[str]:
        """The watched URLs whose pages stay."""
        return {url for url, reason in self.reasons.items() if not reason}

    @property
    def compared(self) -> set[str]:
        """The watched URLs whose pages came as far as the rules across pages."""
        return {url for url, reason in self.reasons.items() if reason in ("", *RULES)}

    def rejects(self) -> list[dict]:
        rows = [shown for heap in self.sample.values() for _, _, shown in heap]
        return sorted(rows, key=lambda row: (row["url"], row["reason"], row["text"]))

    def removed(self) -> Counter:
        """Removed pages by reason."""
        return Counter({reason: count for reason, count in self.pages.items() if reason})

    def waterfall(self) -> list[dict]:
        """The steps from all pages to those kept: the rules for one page by what they took, then those across pages."""
        left = sum(self.pages.values())
        steps = [
            {"rule": "crawled", "pages": left, "removed": 0, "removed_bytes": 0, "removed_words": 0}
        ]
        for_one = sorted(
            self.removed().keys() - set(RULES), key=lambda reason: (-self.pages[reason], reason)
        )
        for reason in [*for_one, *(rule for rule in RULES if self.pages[rule])]:
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
        """removed: pages. The same reasons in removed_bytes and removed_words, of text. languages: pages by language,
        of those whose language was looked at. pii: spans masked in kept pages."""
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
    """Clusters of copies, their sizes, and the shares of the n compared pages that went as copies."""
    reasons = Counter(copy.reason for copy in copies.gone.values())
    sizes = {"2": 0, "3": 0, "4_to_9": 0, "10_to_99": 0, "100_and_more": 0}
    for size, count in copies.sizes.items():
        name = (
            str(size)
            if size < 4
            else "4_to_9"
            if size < 10
            else "10_to_99"
            if size < 100
            else "100_and_more"
        )
        sizes[name] += count
    return {
        "n": copies.compared,
        "clusters": sum(copies.sizes.values()),
        "largest": max(copies.sizes, default=1),
        "sizes": sizes,
        "exact_share": reasons["duplicate"] / max(1, copies.compared),
        "near_share": reasons["near_duplicate"] / max(1, copies.compared),
    }
