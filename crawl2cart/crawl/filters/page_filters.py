"""Judge one page by the rules that need no other page.

Their order: address, HTTP, size, text, language, quality, topic. The first rule that a page fails
is the reason why it goes. Personal data is masked in every text that is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from crawl2cart.crawl.dedup.fingerprint import text_key
from crawl2cart.crawl.extract.extract import MAX_DEPTH, decode, is_html, main_text, nesting, tidy
from crawl2cart.crawl.filters.blocklist import is_blocked, url_words
from crawl2cart.crawl.filters.check import Check, first_failure
from crawl2cart.crawl.filters.language import language, may_be
from crawl2cart.crawl.filters.pii import MASKS, mask
from crawl2cart.crawl.filters.quality import NO_END, bounds_of, quality_checks
from crawl2cart.crawl.filters.topic_classifier import Weights, topic_score
from crawl2cart.crawl.params import Filter
from crawl2cart.crawl.warc.records import Record

# large_string: a string column holds 2 GiB, and the texts of a crawl may be more.
# key: see `text_key`, "" for a removed page. pii_*: masked spans of each kind in the text.
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


@dataclass
class Page:
    """A record, and what the checks have found out about it so far."""

    record: Record
    text: str = ""
    language: str = ""
    language_score: float = 0.0


def filter_page(
    record: Record, limits: Filter, hosts: frozenset[str], topic: Weights | None = None
) -> dict:
    """Judge a page and return its row of a shard, see `SHARD`.

    hosts: blocked hosts. topic: weights of the topic classifier; None keeps pages of any topic.
    The row has reason "" and score 0 if the page passes all rules.
    """
    page = Page(record)
    failed = first_failure(checks(page, limits, hosts, topic))
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
    """Yield the checks of all rules in order, each computed when asked for.

    Fills in the page's text and language. After a check that fails the others follow, unless the
    page has no text.
    """
    record = page.record
    # Crawlers also store DNS answers and their own logs.
    yield Check("no_web_page", record.url.startswith(("http://", "https://")), 1, 1)
    yield Check("http_status", record.status, 200, 200)
    yield Check("blocked_host", is_blocked(record.url, hosts), 0, 0)
    yield Check("url_words", url_words(record.url), 0, limits.max_url_words)
    for check in text_checks(page, limits):
        yield check
        if not check.ok:
            return
    yield language_check(page, limits)
    yield from quality_checks(page.text, bounds_of(limits), page.language, limits.word_tokenizer)
    if topic and page.language == "en":  # the classifier knows English words only
        yield Check("topic", topic_score(page.text, topic), limits.topic_threshold, 1)


def text_checks(page: Page, limits: Filter) -> Iterator[Check]:
    """Extract the page's text from its record. Where one of these checks fails there is none."""
    record = page.record
    yield Check("too_large", len(record.body), 0, limits.max_page_bytes)
    plain = record.is_text or record.content_type == "text/plain"
    yield Check("content_type", plain or is_html(record.content_type, record.body), 1, 1)
    if plain:
        page.text = tidy(decode(record.body, record.charset))
    else:
        yield Check("too_many_nodes", record.body.count(b"<"), 0, limits.max_page_nodes)
        document = decode(record.body, record.charset)
        yield Check("too_deep", nesting(document), 0, MAX_DEPTH)
        page.text = main_text(document, limits.extractor, wanted_languages(limits))
    yield Check("no_text", len(page.text), 1, NO_END)


def language_check(page: Page, limits: Filter) -> Check:
    """Identify the language. The score is its probability, 0 for a language that is not wanted.

    Where the fast gate rules all wanted languages out, page.language stays "".
    """
    wanted = wanted_languages(limits)
    if may_be(page.text, wanted):
        page.language, page.language_score = language(page.text)
    score = page.language_score if page.language in wanted else 0.0
    return Check("language", score, limits.language_threshold, 1)


def wanted_languages(limits: Filter) -> frozenset[str]:
    return frozenset(code.strip() for code in limits.languages.split(","))
