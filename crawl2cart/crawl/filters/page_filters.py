"""One page's way through the rules that need no other page: address, HTTP, size, text, language, quality, topic.

The first rule that a page fails names the reason why it goes. Personal data is masked in all that is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from crawl2cart.crawl.dedup.fingerprint import text_key
from crawl2cart.crawl.extract.extract import DEEPEST, decode, is_html, main_text, nesting, tidy
from crawl2cart.crawl.filters.blocklist import is_blocked, url_words
from crawl2cart.crawl.filters.language import language, may_be
from crawl2cart.crawl.filters.pii import MASKS, mask
from crawl2cart.crawl.filters.quality import NO_END, bounds_of, scores
from crawl2cart.crawl.filters.topic_classifier import Weights, topic_score
from crawl2cart.crawl.params import Filter
from crawl2cart.crawl.warc.records import Record

# large_string: all texts of a crawl in one column may pass the 2 GiB that a string column holds.
# pii_*: how many spans of each kind were masked in the text.
SHARD = pa.schema(
    [
        ("url", pa.string()),
        ("text", pa.large_string()),
        ("language", pa.string()),
        ("language_score", pa.float32()),
        ("key", pa.string()),
        ("reason", pa.string()),
        ("score", pa.float32()),
        *((f"pii_{kind}", pa.int32()) for kind in MASKS),
    ]
)


class Check(NamedTuple):
    """What a rule measured on a page, and the least and the greatest score that pass."""

    rule: str
    score: float
    low: float
    high: float

    @property
    def ok(self) -> bool:
        return self.low <= self.score <= self.high


@dataclass
class Page:
    """A record and what the rules find out about it on the way."""

    record: Record
    text: str = ""
    language: str = ""
    language_score: float = 0.0


def filter_page(
    record: Record, limits: Filter, hosts: frozenset[str], topic: Weights | None = None
) -> dict:
    """One row of a shard: the page's text, and the first rule it fails with its score, or reason "".

    hosts: those from which no page is wanted. topic: None where pages of any topic are.
    """
    page = Page(record)
    failed = next((check for check in checks(page, limits, hosts, topic) if not check.ok), None)
    text, masked = mask(page.text)
    return {
        "url": record.url,
        "text": text,
        "language": page.language,
        "language_score": page.language_score,
        "key": "" if failed else text_key(text),
        "reason": failed.rule if failed else "",
        "score": failed.score if failed else 0.0,
        **{f"pii_{kind}": count for kind, count in masked.items()},
    }


def checks(
    page: Page, limits: Filter, hosts: frozenset[str], topic: Weights | None = None
) -> Iterator[Check]:
    """Every rule in its order, each computed when it is asked for. Fills in the page on the way.

    After a rule that fails come the others that can still be asked: all but where there is no text.
    """
    record = page.record
    # What crawlers file beside pages: DNS answers, their own logs.
    yield Check("no_web_page", record.url.startswith(("http://", "https://")), 1, 1)
    yield Check("http_status", record.status, 200, 200)
    yield Check("blocked_host", is_blocked(record.url, hosts), 0, 0)
    yield Check("url_words", url_words(record.url), 0, limits.max_url_words)
    for check in text_checks(page, limits):
        yield check
        if not check.ok:
            return
    yield language_check(page, limits)
    bounds = bounds_of(limits)
    for rule, score in scores(page.text, page.language, bounds, limits.word_tokenizer):
        yield Check(rule, score, *bounds[rule])
    if topic and page.language == "en":  # it knows English words
        yield Check("topic", topic_score(page.text, topic), limits.topic_threshold, 1)


def text_checks(page: Page, limits: Filter) -> Iterator[Check]:
    """From the record's bytes to the page's text. Where one of these fails there is no text."""
    record = page.record
    yield Check("too_large", len(record.body), 0, limits.max_page_bytes)
    plain = record.is_text or record.content_type == "text/plain"
    yield Check("content_type", plain or is_html(record.content_type, record.body), 1, 1)
    if plain:
        page.text = tidy(decode(record.body, record.charset))
    else:
        yield Check("too_many_nodes", record.body.count(b"<"), 0, limits.max_page_nodes)
        document = decode(record.body, record.charset)
        yield Check("too_deep", nesting(document), 0, DEEPEST)
        page.text = main_text(document, limits.extractor, wanted_languages(limits))
    yield Check("no_text", len(page.text), 1, NO_END)


def language_check(page: Page, limits: Filter) -> Check:
    """The probability of the page's language, 0 if it is none of those wanted or the gate says that already."""
    wanted = wanted_languages(limits)
    if may_be(page.text, wanted):
        page.language, page.language_score = language(page.text)
    return Check(
        "language",
        page.language_score if page.language in wanted else 0.0,
        limits.language_threshold,
        1,
    )


def wanted_languages(limits: Filter) -> frozenset[str]:
    return frozenset(code.strip() for code in limits.languages.split(","))
