"""The embedded crawl that ships: enough of everything, labels that are whole and true, prose that is written, nothing real."""

import gzip
import html.parser
import ipaddress
import re
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import brotli
import pytest

from crawl2cart.crawl.embedded_web.html_pages import Renderer, Response
from crawl2cart.crawl.embedded_web.sites import Page, gold_text, read_sites
from crawl2cart.crawl.evaluate import COLUMNS, Label, Span, read_labels, read_spans
from crawl2cart.shop.data_model import Customer, Product
from crawl2cart.shop.loader import rows
from stages.download import warc_response
from tests.conftest import ROOT
from tools.data_stats import crawl_table, page_text, prose_sizes, prose_table
from tools.fictional_names import real_domains, real_names
from tools.text_stats import names_of, runs, tokenize_words, unique_share, xz_ratio

STORE, WEB = ROOT / "data/store", ROOT / "data/web"
REASONS = [
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
]

PAGES: dict[str, Page] = {page.url: page for page in read_sites(WEB / "sites")}
LABELS: dict[str, Label] = read_labels(WEB / "labels.csv")
SPANS: dict[str, list[Span]] = read_spans(WEB / "personal.csv")
KEPT = [page for url, page in PAGES.items() if url in LABELS and LABELS[url].keep]
BLOCKED = (WEB / "blocked_hosts.txt").read_text().split()
RENDERER = Renderer(WEB / "designs", list(PAGES.values()))


@cache
def prose() -> dict[str, str]:
    """What was written on the pages to keep, by URL."""
    return {page.url: page_text(page) for page in KEPT}


def files() -> list[Path]:
    return [file for file in sorted(WEB.rglob("*")) if file.is_file()]


def source(page: Page) -> str:
    """A page's Markdown: here the cells of a table stand apart."""
    return "\n".join([page.body, *(spoken.body for spoken in page.posts + page.comments)])


def reasons(pages: list[Page]) -> Counter[str]:
    return Counter(LABELS[page.url].reason for page in pages)


# Enough of everything


def test_there_is_enough():
    assert len(PAGES) >= 360 and len({page.host for page in PAGES.values()}) >= 25
    assert len({page.site.design for page in PAGES.values()}) >= 8
    measured = prose_sizes()
    assert measured["bytes of prose to keep"] >= 450_000
    assert measured["share on pages that name a product of the shop"] <= 0.25
    assert measured["languages besides English"] >= 10
    assert measured["spans of personal data"] >= 150


def test_pages_go_for_every_reason():
    count = reasons(list(PAGES.values()))
    assert sorted(filter(None, count)) == REASONS
    assert min(count[reason] for reason in REASONS) >= 8


def test_the_held_out_sites_hold_pages_of_all_kinds():
    held_out = [page for page in PAGES.values() if page.site.held_out]
    hosts = {page.host for page in held_out}
    assert len(held_out) >= 60 and len(hosts) >= len({page.host for page in PAGES.values()}) / 10
    assert sorted(filter(None, reasons(held_out))) == REASONS
    assert not hosts & {page.host for page in PAGES.values() if not page.site.held_out}


def test_the_main_text_is_known_of_pages_in_every_design():
    gold = Counter(page.site.design for page in KEPT if len(tokenize_words(gold_text(page))) >= 100)
    assert gold.total() >= 60 and len(gold) >= 8
    assert min(gold.values()) >= 8


def test_the_tables_show_every_page_and_every_reason():
    table = crawl_table().splitlines()
    assert len(table) == 2 + 1 + len(REASONS) + 1
    assert table[2].startswith(f"| keep | {len(KEPT)} |") and table[-1].startswith(
        f"| all | {len(PAGES)} |"
    )
    assert (
        f"| spans of personal data | {sum(span.mask for spans in SPANS.values() for span in spans)} |"
        in prose_table()
    )


# Labels


def test_every_page_has_a_label_and_every_label_a_page():
    assert list(LABELS) == list(PAGES) == sorted(PAGES)


def test_a_label_says_one_thing():
    for url, label in LABELS.items():
        assert label.keep == (not label.reason), url
        assert (label.reason == "language") == (label.language != "en"), url
        assert (label.reason == "duplicate") == bool(label.duplicate_of), url
        assert (label.reason == "blocked_host") == (PAGES[url].host in BLOCKED), url
        assert not label.keep or PAGES[url].front.serve.status == 200, url


def shingles(text: str) -> set[tuple[str, ...]]:
    found = tokenize_words(text)
    return {tuple(found[start : start + 5]) for start in range(len(found) - 4)}


def test_of_copies_exactly_one_is_kept():
    """A copy shares most of its runs of five words with the page that it names, and with no other page."""
    kept = {url: shingles(text) for url, text in prose().items()}
    copies = {
        url: label.duplicate_of for url, label in LABELS.items() if label.reason == "duplicate"
    }
    assert len(set(copies.values())) >= 8
    for url, original in copies.items():
        assert LABELS[original].keep, url
        mine = shingles(page_text(PAGES[url]))
        shared = {other: len(mine & theirs) / len(mine | theirs) for other, theirs in kept.items()}
        assert shared[original] >= 0.5, f"{url}: {shared[original]:.2f}"
        assert max(share for other, share in shared.items() if other != original) < 0.05, url


@pytest.mark.parametrize(
    ("mark", "reason"),
    [(r"\]\(https?:", "link_farm"), (r"(?i)lorem|ipsum|dolor sit", "lorem_ipsum")],
)
def test_what_is_plain_to_see_is_labelled_so(mark, reason):
    """Links to other sites by the dozen, and the words of printers' dummies."""
    marked = {url for url, page in PAGES.items() if re.search(mark, source(page))}
    assert marked == {url for url, label in LABELS.items() if label.reason == reason}


def test_a_page_to_keep_is_text_that_one_can_read():
    for page in KEPT:
        assert page.front.serve.content_type == "text/html", page.url
        assert len(tokenize_words(gold_text(page))) >= 100, page.url


# Personal data

ADDRESS = r"[\w.+-]*@[\w.-]+\w"
NETWORK = r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)|\b[0-9a-f]{4}:[0-9a-f:]{4,}"
TELEPHONE = r"(?:\(0?555\) |\b0)?555[-. ]\d+|\b\d{3}[- ]\d{4}\b"
ACCOUNT = r"\b\d{4}(?:[ -]?\d{4}){3}\b|\b\d{4}[ -]\d{6}[ -]\d{5}\b|\b\d{13,19}\b"
DOCUMENTATION = [
    ipaddress.ip_network(net)
    for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]


def luhn(text: str) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the right is doubled, and all digits add up to a multiple of ten."""
    digits = [int(digit) for digit in reversed(re.sub(r"\D", "", text))]
    return (
        sum(sum(divmod(digit * (1 + place % 2), 10)) for place, digit in enumerate(digits)) % 10
        == 0
    )


def test_a_span_stands_on_its_page_exactly_once():
    for url, spans in SPANS.items():
        text = page_text(PAGES[url])
        assert len({span.text for span in spans}) == len(spans), url
        for span in spans:
            assert text.count(span.text) == 1, f"{url}: {span.text}"


def test_labels_count_the_spans_to_mask():
    assert {
        url: sum(span.mask for span in spans)
        for url, spans in SPANS.items()
        if any(span.mask for span in spans)
    } == {url: label.personal_data for url, label in LABELS.items() if label.personal_data}


def test_every_kind_is_there_to_mask_and_to_leave():
    count = Counter((span.kind, span.mask) for spans in SPANS.values() for span in spans)
    assert min(count[kind, True] for kind in ("email", "phone", "ip", "card")) >= 12
    assert min(count[kind, False] for kind in ("phone", "ip", "card")) >= 12
    assert any(
        ":" in span.text
        for spans in SPANS.values()
        for span in spans
        if span.kind == "ip" and span.mask
    )


@pytest.mark.parametrize("pattern", [ADDRESS, NETWORK, TELEPHONE, ACCOUNT])
def test_nothing_that_looks_like_personal_data_is_left_without_a_label(pattern):
    """Of pages that reach the corpus, and of their copies, which a filter may keep instead."""
    for url, label in LABELS.items():
        if label.keep or label.reason == "duplicate":
            for found in re.findall(pattern, source(PAGES[url])):
                assert any(
                    span.text in found or found in span.text for span in SPANS.get(url, [])
                ), f"{url}: {found}"


def test_what_is_to_mask_is_valid_and_nobody_s():
    for url, span in ((url, span) for url, spans in SPANS.items() for span in spans if span.mask):
        place = f"{url}: {span.text}"
        match span.kind:
            case "email":
                assert re.fullmatch(ADDRESS, span.text) and not real_domains(span.text), place
            case "phone":
                assert re.fullmatch(r"(?:\(0?555\) )?555[-. ]01\d\d", span.text), place
            case "ip":
                assert any(ipaddress.ip_address(span.text) in net for net in DOCUMENTATION), place
            case "card":
                assert luhn(span.text) and 13 <= len(re.sub(r"\D", "", span.text)) <= 19, place


def test_what_must_stay_is_told_apart_by_its_form_or_its_checksum():
    for url, span in (
        (url, span) for url, spans in SPANS.items() for span in spans if not span.mask
    ):
        if span.kind == "card":
            assert not luhn(span.text), f"{url}: {span.text}"
        if span.kind == "ip" and re.fullmatch(r"[\d.]+", span.text):
            assert not any(ipaddress.ip_address(span.text) in net for net in DOCUMENTATION), (
                f"{url}: {span.text}"
            )


# What comes over the wire


@cache
def responses() -> dict[str, Response]:
    return {url: RENDERER.response(page) for url, page in PAGES.items()}


def headers(response: Response) -> dict[str, str]:
    return dict(response.headers)


def content(response: Response) -> bytes:
    """The body without its transfer coding, undone by other hands than ours."""
    coding = headers(response).get("Content-Encoding")
    if coding == "gzip":
        return gzip.decompress(response.body)
    if coding == "br":
        return brotli.decompress(response.body)
    if headers(response).get("Transfer-Encoding") != "chunked":
        return response.body
    body, rest = b"", response.body
    while size := int(rest.partition(b"\r\n")[0], 16):
        rest = rest.partition(b"\r\n")[2]
        body, rest = body + rest[:size], rest[size + 2 :]
    return body


def serves(**wanted: object) -> list[Response]:
    return [
        responses()[url]
        for url, page in PAGES.items()
        if all(getattr(page.front.serve, key) == value for key, value in wanted.items())
    ]


@pytest.mark.parametrize(
    ("charset", "codec"), [("latin-1", "latin-1"), ("windows-1252", "cp1252"), ("utf-16", "utf-16")]
)
def test_pages_come_in_other_charsets(charset, codec):
    found = [content(response).decode(codec) for response in serves(charset=charset)]
    assert len(found) >= 2
    assert any(not text.isascii() for text in found)


def test_some_pages_declare_a_charset_that_they_are_not_in():
    wrong = 0
    for url, response in responses().items():
        declared = headers(response)["Content-Type"].partition("charset=")[2]
        wrong += content(response).decode(declared, "replace") != content(response).decode(
            PAGES[url].front.serve.charset
        )
    assert wrong >= 2


@pytest.mark.parametrize(
    ("header", "value"),
    [("Transfer-Encoding", "chunked"), ("Content-Encoding", "gzip"), ("Content-Encoding", "br")],
)
def test_pages_come_in_every_transfer_coding(header, value):
    found = [
        response for response in responses().values() if headers(response).get(header) == value
    ]
    assert len(found) >= 4
    assert all(b"</html>" in content(response).lower() for response in found)


class Unclosed(html.parser.HTMLParser):
    """Paragraphs and list items that begin and never end."""

    def __init__(self, text: str):
        super().__init__()
        self.open = Counter()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open[tag] += 1

    def handle_endtag(self, tag):
        self.open[tag] -= 1


def test_some_pages_have_broken_tags():
    broken = [
        Unclosed(content(response).decode("utf-8", "replace"))
        for response in serves(broken_tags=True)
    ]
    assert len(broken) >= 4
    assert all(page.open["p"] > 0 for page in broken)


def test_a_page_has_two_megabytes():
    assert max(len(content(response)) for response in responses().values()) >= 2_000_000


def test_a_crawl_brings_redirects_errors_robots_and_other_formats():
    moved = [
        response
        for response in responses().values()
        if response.status_line.split()[1] in ("301", "302")
    ]
    assert moved and all(headers(response)["Location"] for response in moved)
    assert {response.status_line.split()[1] for response in responses().values()} >= {
        "200",
        "403",
        "404",
        "500",
        "503",
    }
    assert [url for url in responses() if url.endswith("/robots.txt")]
    formats = Counter(
        headers(response)["Content-Type"].split(";")[0] for response in responses().values()
    )
    assert formats["application/json"] >= 2 and formats["text/plain"] >= 4


def test_some_records_are_cut_short_and_some_have_a_wrong_length():
    differences = []
    for url, page in PAGES.items():
        head, _, block = warc_response(responses()[url], page).partition(b"\r\n\r\n")
        stated = int(re.search(rb"\r\nContent-Length: (\d+)", head)[1])
        differences.append((stated - len(block.removesuffix(b"\r\n\r\n")), page.front.serve))
    cut = [missing for missing, serve in differences if serve.cut_at_byte is not None]
    wrong = [missing for missing, serve in differences if serve.wrong_length]
    assert cut and all(missing > 0 for missing in cut)
    assert any(missing > 0 for missing in wrong) and any(missing < 0 for missing in wrong)
    assert all(
        missing == 0
        for missing, serve in differences
        if not serve.wrong_length and serve.cut_at_byte is None
    )


# Written, not stamped


@cache
def names() -> re.Pattern:
    return names_of(rows(STORE / "products", Product), rows(STORE / "customers.jsonl", Customer))


def test_sentences_are_written_and_not_stamped():
    assert unique_share(prose().values(), names()) >= 0.95


def test_stamped_pages_would_be_found():
    """The same advice about every product of the shop, as generators of such webs make it."""
    stamped = [
        f"Looking for a {product.category}? The {product.name} costs ${product.price}. We tested it for 30 days."
        for product in rows(STORE / "products", Product)
    ]
    assert unique_share([*prose().values(), *stamped], names()) < 0.97
    assert xz_ratio(stamped) > 3.0


def test_prose_compresses_like_prose():
    assert 2.0 < xz_ratio(prose().values()) <= 3.0


def test_no_run_of_eight_words_stands_on_two_pages_to_keep():
    texts = list(prose())
    shared = defaultdict(set)
    for run, where in runs({"kept": list(prose().values())}, 8).items():
        if len(where) > 1:
            shared[tuple(texts[number] for _, number in sorted(where))].add(" ".join(run))
    assert not shared


def test_no_two_pages_to_keep_have_one_title():
    titles = Counter(page.front.title.casefold() for page in KEPT)
    assert max(titles.values()) == 1


# Nothing is real


def test_no_real_brand_person_or_town_occurs():
    assert not {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files()
        for name in real_names(file.read_text())
    }


def test_domains_are_examples():
    """Designs name the vocabularies that real pages name: XHTML, XFN and schema.org."""
    vocabularies = {"www.w3.org", "gmpg.org", "schema.org"}
    for file in files():
        assert not set(real_domains(file.read_text())) - (
            vocabularies if file.suffix == ".j2" else set()
        ), file
    assert not [page.host for page in PAGES.values() if real_domains(page.host)]


def test_the_data_is_plain_utf_8_with_no_leftovers():
    for file in files():
        assert not re.search(
            r"\bTODO\b|\bFIXME\b|\ufffd|\u2014", file.read_text(encoding="utf-8")
        ), file
    assert (WEB / "labels.csv").read_text().startswith(",".join(COLUMNS) + "\n")
