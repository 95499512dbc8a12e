"""Check data/web: enough of everything, labels that agree, prose that is written, nothing real.

`lint_web` returns all faults. Each check is a generator of faults, so that a test can run one of
them alone on broken data.
"""

import gzip
import html.parser
import ipaddress
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import brotli

from crawl2cart.crawl.embedded_web.html_pages import Renderer, Response
from crawl2cart.crawl.embedded_web.sites import Page, gold_text, read_sites
from crawl2cart.crawl.evaluate import (
    Label,
    Span,
    read_labels,
    read_spans,
    read_topics,
)
from crawl2cart.crawl.filters.pii import FINDERS, luhn
from crawl2cart.shop.data_model import Customer, Product
from crawl2cart.shop.loader import rows
from stages.download import warc_response
from tools.data_stats import page_text
from tools.fictional_names import real_domains, real_names
from tools.text_stats import names_of, runs, short, tokenize_words, unique_share, xz_ratio

Faults = Iterator[str]

REASONS = {
    "adult_spam",
    "blocked_host",
    "code_dump",
    "duplicate",
    "error_page",
    "keyword_stuffing",
    "language",
    "legal_boilerplate",
    "link_farm",
    "log_file",
    "lorem_ipsum",
    "navigation",
    "near_empty",
    "number_list",
    "word_salad",
}
# Text that looks like personal data, by patterns that are not those of the filter.
EMAIL = r"[\w.+-]*@[\w.-]+\w"
IP = r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)|\b[0-9a-f]{4}:[0-9a-f:]{4,}"
PHONE = r"(?:\(0?555\) |\b0)?555[-. ]\d+|\b\d{3}[- ]\d{4}\b"
CARD = r"\b\d{4}(?:[ -]?\d{4}){3}\b|\b\d{4}[ -]\d{6}[ -]\d{5}\b|\b\d{13,19}\b"
# RFC 5737 and RFC 3849.
DOCUMENTATION = [
    ipaddress.ip_network(net)
    for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]
LEFTOVERS = re.compile(r"\bTODO\b|\bFIXME\b|\ufffd|\u2014")
# Vocabularies that real pages name too.
VOCABULARIES = {"www.w3.org", "gmpg.org", "schema.org"}


def at_least(what: str, count: float, least: float) -> Faults:
    """Yield a fault if there are fewer than `least`."""
    if count < least:
        yield f"{what}: {count:,.4g}, at least {least:,.4g} are needed"


@dataclass(frozen=True)
class Web:
    """The embedded web with its labels. pages, responses: by URL. names: of the shop's things."""

    folder: Path
    pages: dict[str, Page]
    labels: dict[str, Label]
    spans: dict[str, list[Span]]
    topics: dict[str, bool]
    blocked: frozenset[str]
    products: list[Product]
    names: re.Pattern

    @cached_property
    def keep(self) -> list[Page]:
        labelled = [page for url, page in self.pages.items() if url in self.labels]
        return [page for page in labelled if self.labels[page.url].keep]

    @cached_property
    def prose(self) -> dict[str, str]:
        """What was written on the pages to keep, by URL."""
        return {page.url: page_text(page) for page in self.keep}

    @cached_property
    def responses(self) -> dict[str, Response]:
        renderer = Renderer(self.folder / "designs", list(self.pages.values()))
        return {url: renderer.response(page) for url, page in self.pages.items()}

    def reasons(self, pages: list[Page]) -> Counter[str]:
        reasons = (self.labels[page.url].reason for page in pages if page.url in self.labels)
        return Counter(reason for reason in reasons if reason)


def read_web(data: Path) -> Web:
    folder, store = data / "web", data / "store"
    products = rows(store / "products", Product)
    return Web(
        folder=folder,
        pages={page.url: page for page in read_sites(folder / "sites")},
        labels=read_labels(folder / "labels.csv"),
        spans=read_spans(folder / "personal.csv"),
        topics=read_topics(folder / "topics.csv"),
        blocked=frozenset((folder / "blocked_hosts.txt").read_text().split()),
        products=products,
        names=names_of(products, rows(store / "customers.jsonl", Customer)),
    )


def lint_web(data: Path) -> list[str]:
    """Return the faults of data/web: too little of a kind, wrong labels, stamped or real text."""
    web = read_web(data)
    return [f"data/web: {fault}" for check in WEB_CHECKS for fault in check(web)]


def web_sizes(web: Web) -> Faults:
    """There is enough of everything, on held-out sites too."""
    pages = list(web.pages.values())
    held_out = [page for page in pages if page.site.held_out]
    hosts = {page.host for page in pages}
    yield from at_least("pages", len(pages), 360)
    yield from at_least("hosts", len(hosts), 25)
    yield from at_least("held-out pages", len(held_out), 60)
    yield from at_least("held-out hosts", len({page.host for page in held_out}), len(hosts) / 10)
    yield from at_least("bytes of prose", sum(len(t.encode()) for t in web.prose.values()), 450_000)
    languages = {label.language for label in web.labels.values()} - {"en"}
    yield from at_least("languages besides English", len(languages), 10)
    for where, group, least in (("", pages, 8), ("held-out ", held_out, 1)):
        count = web.reasons(group)
        yield from (f"{reason}: no reason of data/web/README.md" for reason in set(count) - REASONS)
        for reason in sorted(REASONS):
            yield from at_least(f"{where}pages labelled {reason}", count[reason], least)
    gold = Counter(
        page.site.design for page in web.keep if len(tokenize_words(gold_text(page))) >= 100
    )
    yield from at_least("designs of pages with a long text", len(gold), 8)
    for design, count in gold.items():
        yield from at_least(f"pages of the design {design} with a long text", count, 8)


def web_labels(web: Web) -> Faults:
    """Every page has one label, and its fields agree with each other and with the page."""
    if not list(web.labels) == list(web.pages) == sorted(web.pages):
        yield "labels.csv does not list each page once in the order of URLs"
    for url, label in web.labels.items():
        page = web.pages.get(url)
        agreements = {
            "a reason is given for pages to drop only": label.keep == (not label.reason),
            "reason language": (label.reason == "language") == (label.language != "en"),
            "reason duplicate": (label.reason == "duplicate") == bool(label.duplicate_of),
        }
        if page:
            is_blocked = page.host in web.blocked
            agreements["reason blocked_host"] = (label.reason == "blocked_host") == is_blocked
            is_served = page.front.serve.status == 200
            is_served = is_served and page.front.serve.content_type == "text/html"
            is_long = len(tokenize_words(gold_text(page))) >= 100
            agreements["HTML of 100 words to keep"] = not label.keep or is_served and is_long
        yield from (f"{url}: label is wrong: {what}" for what, ok in agreements.items() if not ok)


def web_plain_labels(web: Web) -> Faults:
    """Pages with dozens of links to other sites or with a printer's dummy are labelled so."""
    for pattern, reason in (
        (r"\]\(https?:", "link_farm"),
        (r"(?i)lorem|ipsum|dolor sit", "lorem_ipsum"),
    ):
        marked = {url for url, page in web.pages.items() if re.search(pattern, markdown_of(page))}
        labelled = {url for url, label in web.labels.items() if label.reason == reason}
        for url in sorted(marked ^ labelled):
            yield f"{url}: label {reason} and text do not agree"


def web_copies(web: Web) -> Faults:
    """A copy shares most of its 5-grams with the kept page that it names and with no other."""
    kept = {url: shingles(text) for url, text in web.prose.items()}
    copies = {url: label for url, label in web.labels.items() if label.duplicate_of}
    originals = {label.duplicate_of for label in copies.values()}
    yield from at_least("pages with copies", len(originals), 8)
    for url, label in copies.items():
        if label.duplicate_of not in kept:
            yield f"{url}: duplicate_of names no page to keep: {label.duplicate_of}"
            continue
        ours = shingles(page_text(web.pages[url]))
        shares = {other: len(ours & theirs) / len(ours | theirs) for other, theirs in kept.items()}
        if shares.pop(label.duplicate_of) < 0.5:
            yield f"{url}: less than half of its 5-grams are those of {label.duplicate_of}"
        yield from (f"{url}: has text of {other} too" for other in shares if shares[other] >= 0.05)


def web_topics(web: Web) -> Faults:
    """Every page to keep has a topic, and both topics occur on held-out sites and on others."""
    if list(web.topics) != sorted(page.url for page in web.keep):
        yield "topics.csv does not list each page to keep once in the order of URLs"
    for held_out in (False, True):
        pages = [page for page in web.keep if page.site.held_out == held_out]
        topics = [web.topics.get(page.url, False) for page in pages]
        if not 0.2 < sum(topics) / len(topics) < 0.5:
            yield f"share of pages about shopping, held out {held_out}: not between 0.2 and 0.5"


def web_spans(web: Web) -> Faults:
    """A span stands on its page once, is counted by the label, and there are some of each kind."""
    for url, spans in web.spans.items():
        text = page_text(web.pages[url])
        if len({span.text for span in spans}) < len(spans):
            yield f"{url}: a span is listed twice in personal.csv"
        for span in spans:
            if text.count(span.text) != 1:
                yield f"{url}: {span.text} stands on the page {text.count(span.text)} times"
    for url, label in web.labels.items():
        count = sum(span.mask for span in web.spans.get(url, []))
        if count != label.personal_data:
            yield f"{url}: {label.personal_data} spans in labels.csv, {count} in personal.csv"
    spans = [span for spans in web.spans.values() for span in spans]
    counts = Counter((span.kind, span.mask) for span in spans)
    for kind in FINDERS:
        yield from at_least(f"spans of {kind} to mask", counts[kind, True], 12)
        if kind != "email":
            yield from at_least(f"look-alikes of {kind}", counts[kind, False], 12)
    yield from at_least("spans to mask", sum(span.mask for span in spans), 150)
    ipv6 = [span for span in spans if span.kind == "ip" and span.mask and ":" in span.text]
    yield from at_least("IPv6 addresses to mask", len(ipv6), 1)


def web_unmarked_spans(web: Web) -> Faults:
    """Whatever looks like personal data on pages to keep, and on their copies, is marked."""
    for url, label in web.labels.items():
        if not label.keep and label.reason != "duplicate":
            continue
        marked = [span.text for span in web.spans.get(url, [])]
        for pattern in (EMAIL, IP, PHONE, CARD):
            for match in re.findall(pattern, markdown_of(web.pages[url])):
                if not any(text in match or match in text for text in marked):
                    yield f"{url}: {match} looks like personal data and is not in personal.csv"


def web_span_forms(web: Web) -> Faults:
    """Personal data is valid and reserved for documentation; a look-alike is not valid."""
    for url, span in ((url, span) for url, spans in web.spans.items() for span in spans):
        digits = re.sub(r"\D", "", span.text)
        is_reserved = True
        match span.kind:
            case "email":
                is_reserved = bool(re.fullmatch(EMAIL, span.text)) and not real_domains(span.text)
            case "phone":
                is_reserved = bool(re.fullmatch(r"(?:\(0?555\) )?555[-. ]01\d\d", span.text))
            case "ip":
                is_reserved = is_documentation_ip(span.text)
            case "card":
                is_reserved = 13 <= len(digits) <= 19 and luhn(digits)
        if span.mask and not is_reserved:
            yield f"{url}: {span.text} is not valid or not reserved for documentation"
        if not span.mask and span.kind in ("ip", "card") and is_reserved:
            yield f"{url}: {span.text} must be masked or must not be valid"


def web_responses(web: Web) -> Faults:
    """The crawl has every oddity that real crawls have, several times."""
    headers = {url: dict(response.headers) for url, response in web.responses.items()}
    contents = {url: content(response) for url, response in web.responses.items()}
    serve = {url: page.front.serve for url, page in web.pages.items()}
    for charset, codec in (
        ("latin-1", "latin-1"),
        ("windows-1252", "cp1252"),
        ("utf-16", "utf-16"),
    ):
        texts = [contents[url].decode(codec) for url in serve if serve[url].charset == charset]
        yield from at_least(f"pages in {charset}", len(texts), 2)
        yield from at_least(
            f"pages in {charset} beyond ASCII", sum(not t.isascii() for t in texts), 1
        )
    wrong = sum(
        contents[url].decode(fields["Content-Type"].partition("charset=")[2], "replace")
        != contents[url].decode(serve[url].charset)
        for url, fields in headers.items()
    )
    yield from at_least("pages that declare a wrong charset", wrong, 2)
    for header, value in (
        ("Transfer-Encoding", "chunked"),
        ("Content-Encoding", "gzip"),
        ("Content-Encoding", "br"),
    ):
        urls = [url for url, fields in headers.items() if fields.get(header) == value]
        yield from at_least(f"pages with {header}: {value}", len(urls), 4)
    broken = [contents[url].decode("utf-8", "replace") for url in serve if serve[url].broken_tags]
    unclosed = [OpenTags(text).open["p"] > 0 for text in broken]
    yield from at_least("pages with broken tags", sum(unclosed), max(4, len(unclosed)))
    yield from at_least("bytes of the largest page", max(map(len, contents.values())), 2_000_000)
    statuses = Counter(response.status_line.split()[1] for response in web.responses.values())
    for status in ("403", "404", "500", "503"):
        yield from at_least(f"pages with status {status}", statuses[status], 1)
    yield from at_least("redirects", statuses["301"] + statuses["302"], 1)
    for url, fields in headers.items():
        if serve[url].status in (301, 302) and not fields.get("Location"):
            yield f"{url}: a redirect without a target"
    types = Counter(fields["Content-Type"].partition(";")[0] for fields in headers.values())
    yield from at_least("pages of JSON", types["application/json"], 2)
    yield from at_least("pages of plain text", types["text/plain"], 4)
    yield from at_least("robots.txt", sum(url.endswith("/robots.txt") for url in web.pages), 1)


def web_damaged_records(web: Web) -> Faults:
    """Some records are cut short or have a wrong length, and no others are."""
    cut = short_length = long_length = 0
    for url, page in web.pages.items():
        head, _, block = warc_response(web.responses[url], page).partition(b"\r\n\r\n")
        stated = int(re.search(rb"\r\nContent-Length: (\d+)", head)[1])
        missing = stated - len(block.removesuffix(b"\r\n\r\n"))
        serve = page.front.serve
        cut += serve.cut_at_byte is not None and missing > 0
        long_length += bool(serve.wrong_length) and missing > 0
        short_length += bool(serve.wrong_length) and missing < 0
        is_damaged = serve.cut_at_byte is not None or bool(serve.wrong_length)
        if is_damaged != bool(missing):
            yield f"{url}: its record is not damaged as [serve] says"
    yield from at_least("records that are cut", cut, 1)
    yield from at_least("records with too large a length", long_length, 1)
    yield from at_least("records with too small a length", short_length, 1)


def web_prose(web: Web) -> Faults:
    """The pages to keep are written, not made from a template, and seldom about the shop."""
    texts = list(web.prose.values())
    yield from at_least("share of different sentences", unique_share(texts, web.names), 0.95)
    ratio = xz_ratio(texts)
    if not 2.0 < ratio <= 3.0:
        yield f"xz -9 makes the prose {ratio:.2f} times smaller, which prose is 2 to 3 times"
    named = re.compile("|".join(re.escape(short(product)) for product in web.products))
    size = sum(map(len, texts))
    if (share := sum(len(text) for text in texts if named.search(text)) / size) > 0.25:
        yield f"{share:.0%} of the prose is on pages that name a product of the shop, at most 25 %"
    urls, shared = list(web.prose), defaultdict(set)
    for words, places in runs({"kept": texts}, 8).items():
        if len(places) > 1:
            shared[tuple(urls[number] for _, number in sorted(places))].add(" ".join(words))
    for group, ngrams in shared.items():
        yield f"{' and '.join(group)} share eight words: {min(ngrams)}"
    titles = Counter(page.front.title.casefold() for page in web.keep)
    yield from (f"two pages have the title {title}" for title in titles if titles[title] > 1)


def web_fiction(web: Web) -> Faults:
    """Nothing in the files is real, and nothing is left over."""
    for file in sorted(file for file in web.folder.rglob("*") if file.is_file()):
        name, text = file.relative_to(web.folder), file.read_text(encoding="utf-8")
        yield from (f"{name}: {real} is a real name" for real in sorted(set(real_names(text))))
        domains = set(real_domains(text)) - (VOCABULARIES if file.suffix == ".j2" else set())
        yield from (f"{name}: {domain} is a real domain" for domain in sorted(domains))
        if leftover := LEFTOVERS.search(text):
            yield f"{name}: contains {leftover[0]!r}"
    for host in sorted({page.host for page in web.pages.values()}):
        yield from (f"{host}: {domain} is a real domain" for domain in real_domains(host))


WEB_CHECKS: tuple[Callable[[Web], Faults], ...] = (
    web_sizes,
    web_labels,
    web_plain_labels,
    web_copies,
    web_topics,
    web_spans,
    web_unmarked_spans,
    web_span_forms,
    web_responses,
    web_damaged_records,
    web_prose,
    web_fiction,
)


def markdown_of(page: Page) -> str:
    """Return all Markdown of a page. Here, unlike in plain text, cells of a table stand apart."""
    return "\n".join([page.body, *(message.body for message in page.posts + page.comments)])


def shingles(text: str) -> set[tuple[str, ...]]:
    words = tokenize_words(text)
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


def is_documentation_ip(text: str) -> bool:
    try:
        return any(ipaddress.ip_address(text) in net for net in DOCUMENTATION)
    except ValueError:
        return False


def content(response: Response) -> bytes:
    """Undo content and transfer coding by other code than that of the crawl."""
    headers = dict(response.headers)
    match headers.get("Content-Encoding"):
        case "gzip":
            return gzip.decompress(response.body)
        case "br":
            return brotli.decompress(response.body)
    if headers.get("Transfer-Encoding") != "chunked":
        return response.body
    body, rest = b"", response.body
    while size := int(rest.partition(b"\r\n")[0], 16):
        rest = rest.partition(b"\r\n")[2]
        body, rest = body + rest[:size], rest[size + 2 :]
    return body


class OpenTags(html.parser.HTMLParser):
    """Counts for each tag how many more elements start than end."""

    def __init__(self, text: str):
        super().__init__()
        self.open: Counter[str] = Counter()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.open[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        self.open[tag] -= 1
