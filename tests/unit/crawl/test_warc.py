"""The parts of the crawl: pages as they are written and served, damaged WARC files, copies, labels."""

import gzip
import html.parser
import random
import re
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import brotli
import lxml.html
import pytest
import zstandard
from fastwarc.warc import ArchiveIterator

from crawl2cart.core.errors import UserError
from crawl2cart.crawl.dedup.fingerprint import text_key, unit_interval
from crawl2cart.crawl.embedded_web.html_pages import Renderer, to_html
from crawl2cart.crawl.embedded_web.sites import gold_text, plain_text, read_sites
from crawl2cart.crawl.evaluate import keep_errors, keep_quality, read_labels, read_spans, token_f1
from crawl2cart.crawl.extract.extract import html_to_text
from crawl2cart.crawl.warc.records import read
from crawl2cart.crawl.warc.recovery import frames
from tests.conftest import ROOT

DESIGNS = sorted(
    file.name.removesuffix(".html.j2") for file in (ROOT / "data/web/designs").glob("*.j2")
)
ALL_BYTES = 10**9

SITE = """
name = "Saltreeve Slipway Notes"
tagline = "What the tide left"
design = "blog"
language = "en"
held_out = false
nav = [["Start", "/"], ["Boats", "/boats/"], ["Rope", "/rope/"], ["About", "/about.html"]]
sidebar = ["Slip closed on Sundays", "Lost: one oar, left-handed"]
cookie = "We keep one crumb, to know you again."
footer = "Kept by Jory Penhallick, behind the ice house."
"""
PROSE = """The winch on the slip was bought in the year the herring failed, and it has pulled up every boat in Saltreeve since.
It has one fault. If the pawl is wet it slips a tooth, and whoever holds the handle learns something about momentum.

## How we mended it

Odile brought a file and a thermos. We took the pawl off and found that the edge had worn round, which *anybody* could
have told us, and several did. She cut it back to a corner that would hold, and we put grease where
the grease goes - **not** on the teeth.

- one pawl, filed
- a new split pin, 4 mm
- café au lait, ordered by the vicar for £3

| Boat | Weight |
| --- | --- |
| Two Cousins | 1,140 kg |
| Patient Margaret | 2,900 kg |

That was in May. It has held the *Two Cousins* twice and the coal boat once, and the handle has hit nobody.
"""


def write_site(folder: Path, **pages: str) -> Path:
    """A folder of sites with one site, saltreeve.example; each page is its front matter after `url`, then +++, then its body."""
    site = folder / "saltreeve.example"
    site.mkdir(parents=True)
    (site / "site.toml").write_text(SITE)
    for name, text in pages.items():
        (site / f"{name}.md").write_text(text)
    return folder


def written(serve: str = "", url: str = "/boats/winch.html", body: str = PROSE) -> str:
    return f'+++\nurl = "{url}"\ntitle = "The winch"\nauthor = "J. Penhallick"\ndate = "2025-05-11"\n{serve}+++\n{body}'


def served(folder: Path, serve: str):
    """The one page of a site with this [serve] table, and its response."""
    pages = read_sites(write_site(folder, winch=written(f"[serve]\n{serve}\n")))
    return pages[0], Renderer(ROOT / "data/web/designs", pages).response(pages[0])


# ---- pages as they are written ----


@pytest.fixture(scope="module")
def embedded() -> list:
    """The embedded pages that are prose in HTML, of some length."""
    pages = read_sites(ROOT / "data/web/sites")
    return [
        page
        for page in pages
        if page.front.serve.status == 200
        and page.front.serve.content_type == "text/html"
        and len(gold_text(page).split()) >= 120
    ]


@pytest.mark.parametrize("design", DESIGNS)
def test_the_main_text_comes_out_of_every_design(design, embedded):
    threaded = design in ("forum", "community")
    pages = [
        replace(page, site=page.site.model_copy(update={"design": design}))
        for page in embedded
        if bool(page.posts) == threaded
    ] or embedded[:20]
    renderer = Renderer(ROOT / "data/web/designs", pages)
    scores, recalls = [], []
    for page in pages:
        text, gold = html_to_text(renderer.document(page).encode(), "utf-8"), gold_text(page)
        scores.append(token_f1(text, gold))
        words = Counter(re.findall(r"\w+", gold.lower()))
        recalls.append((words & Counter(re.findall(r"\w+", text.lower()))).total() / words.total())
    assert sum(scores) / len(scores) > 0.8
    assert sum(recalls) / len(recalls) > 0.97


@pytest.mark.parametrize("design", DESIGNS)
def test_every_design_has_what_real_pages_have_around_their_text(design, tmp_path):
    body = PROSE + '\n@@ comment author="Wet Pawl" date="2025-05-12"\nMine slipped again.\n'
    pages = read_sites(
        write_site(
            tmp_path, winch=written(body=body), other=written(url="/rope/knot.html", body="A bend.")
        )
    )
    page = replace(pages[0], site=pages[0].site.model_copy(update={"design": design}))
    document = Renderer(ROOT / "data/web/designs", [page, *pages[1:]]).document(page)
    tree = lxml.html.fromstring(document)
    shown = tree.text_content()
    for text in (
        page.site.name,
        page.site.cookie,
        page.site.footer,
        "Boats",
        "Mine slipped again.",
        "Wet Pawl",
    ):
        assert text in shown, text
    assert tree.xpath("//script") and tree.xpath("//form | //input") and tree.xpath("//title")
    assert document.count("<table") >= 1 or document.count("<TABLE") >= 1


class OpenTags(html.parser.HTMLParser):
    """Counts end tags that do not close the innermost open element; void elements aside."""

    VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta"}

    def __init__(self, text: str):
        super().__init__()
        self.stack, self.wrong = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if self.stack and self.stack[-1] == tag:
            self.stack.pop()
        else:
            self.wrong += 1


@pytest.mark.parametrize("design", [design for design in DESIGNS if design != "personal"])
def test_markup_is_nested_right_unless_broken_on_purpose(design, tmp_path):
    pages = read_sites(
        write_site(
            tmp_path, winch=written(body=PROSE + '\n@@ post author="a" date="2025-01-01"\nYes.\n')
        )
    )
    page = replace(pages[0], site=pages[0].site.model_copy(update={"design": design}))
    renderer = Renderer(ROOT / "data/web/designs", [page])
    whole = OpenTags(renderer.document(page))
    assert (whole.wrong, whole.stack) == (0, [])
    serve = page.front.serve.model_copy(update={"broken_tags": True})
    broken = renderer.response(
        replace(page, front=page.front.model_copy(update={"serve": serve}))
    ).body.decode()
    assert OpenTags(broken).wrong > 3
    assert token_f1(html_to_text(broken.encode(), ""), gold_text(page)) > 0.6


def test_gold_text_is_what_a_browser_shows_of_the_markdown(embedded):
    for page in embedded:
        shown = " ".join(
            lxml.html.fromstring(f"<div>{to_html(part)}</div>").text_content()
            for part in [page.body, *page.posts]
            if part
        )
        assert re.sub(r"\s", "", gold_text(page)) == re.sub(r"\s", "", shown)


def test_gold_text_has_posts_and_no_comments(tmp_path):
    body = 'First.\n@@ post author="Ann" date="2024-01-01"\nSecond.\n@@ comment author="Bo" date="2024-01-02"\nThird.\n'
    (page,) = read_sites(write_site(tmp_path, winch=written(body=body)))
    assert gold_text(page) == "First.\nSecond."
    assert [comment.author for comment in page.comments] == ["Bo"]
    assert plain_text("a *b* [c](/d) `e`\nf\n\n> g\n\n1. h\n2. i") == "a b c e f\ng\nh\ni"


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("no front matter", ":1:", "+++"),
        ('+++\nurl = "/a"\ntitle = "A\n+++\nx', ":3:", "TOML"),
        ('+++\nurl = "/a"\ntitle = "A"\nautor = "B"\n+++\nx', ":4:", "autor"),
        ('+++\nurl = "a"\ntitle = "A"\n+++\nx', ":2:", "url"),
        ('+++\nurl = "/a"\ntitle = "A"\n[serve]\nstatus = "404"\n+++\nx', ":5:", "status"),
        ('+++\nurl = "/a"\ntitle = "A"\n[serve]\ncharset = "utf-7"\n+++\nx', ":5:", "charset"),
        ('+++\nurl = "/a"\n+++\nx', ":2:", "title"),
        ('+++\nurl = "/a"\ntitle = "A"\n+++\nx\n@@ post by ann\ny', ":6:", "@@ post"),
    ],
)
def test_a_page_that_does_not_parse_is_named_with_its_line(text, place, word, tmp_path):
    folder = write_site(tmp_path, bad=text)
    with pytest.raises(UserError) as problem:
        read_sites(folder)
    assert f"bad.md{place}" in str(problem.value)
    assert word in str(problem.value)


def test_two_pages_with_one_url_are_a_problem(tmp_path):
    with pytest.raises(UserError, match="first.md"):
        read_sites(write_site(tmp_path, first=written(), second=written()))


# ---- pages as they are served ----


@pytest.mark.parametrize("charset", ["utf-8", "windows-1252", "latin-1", "utf-16"])
def test_a_page_is_served_in_its_charset(charset, tmp_path):
    page, response = served(tmp_path, f'charset = "{charset}"')
    assert f"charset={charset}" in dict(response.headers)["Content-Type"]
    assert "café au lait" in response.body.decode(charset)
    assert "café au lait" in html_to_text(response.body, charset)


def test_a_page_can_lie_about_its_charset(tmp_path):
    _, response = served(tmp_path, 'charset = "windows-1252"\ndeclared_charset = "utf-8"')
    assert "charset=utf-8" in dict(response.headers)["Content-Type"]
    assert b'content="text/html; charset=utf-8"' in response.body
    with pytest.raises(UnicodeDecodeError):
        response.body.decode("utf-8")
    assert "café au lait" in html_to_text(response.body, "utf-8")
    assert "for £3" in html_to_text(response.body, "utf-8")


def test_transfer_codings_are_really_used(tmp_path):
    _, plain = served(tmp_path / "plain", "")
    _, gzipped = served(tmp_path / "gzip", 'transfer = "gzip"')
    _, squeezed = served(tmp_path / "brotli", 'transfer = "brotli"')
    _, chunked = served(tmp_path / "chunked", 'transfer = "chunked"')
    assert (
        gzip.decompress(gzipped.body) == plain.body
        and dict(gzipped.headers)["Content-Encoding"] == "gzip"
    )
    assert (
        brotli.decompress(squeezed.body) == plain.body
        and dict(squeezed.headers)["Content-Encoding"] == "br"
    )
    assert dict(chunked.headers)["Transfer-Encoding"] == "chunked" and "Content-Length" not in dict(
        chunked.headers
    )
    joined, rest = b"", chunked.body
    while size := int(rest[: rest.index(b"\r\n")], 16):
        start = rest.index(b"\r\n") + 2
        joined, rest = joined + rest[start : start + size], rest[start + size + 2 :]
    assert joined == plain.body and rest == b"0\r\n\r\n"


def test_status_type_redirect_and_size(tmp_path):
    _, gone = served(tmp_path / "gone", "status = 404")
    assert gone.head.startswith(b"HTTP/1.1 404 Not Found\r\n") and gone.head.endswith(b"\r\n\r\n")
    _, moved = served(tmp_path / "moved", 'status = 301\nredirect = "/new.html"')
    assert dict(moved.headers)["Location"] == "/new.html"
    page, plain = served(tmp_path / "plain", 'content_type = "text/plain"')
    assert plain.body.decode() == page.body + "\n"
    _, large = served(tmp_path / "large", "pad_to_bytes = 300000")
    assert abs(len(large.body) - 300_000) < 100
    assert "winch on the slip" in html_to_text(large.body, "")


# ---- damaged files ----


def warc_record(
    url: str,
    block: bytes,
    kind: str = "response",
    stated: int | None = None,
    newline: bytes = b"\r\n",
    content_type: str = "application/http; msgtype=response",
) -> bytes:
    length = len(block) if stated is None else stated
    lines = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        f"WARC-Target-URI: {url}",
        "WARC-Date: 2024-03-01T00:00:00Z",
        f"Content-Type: {content_type}",
        f"Content-Length: {length}",
        "",
        "",
    ]
    return newline.join(line.encode() for line in lines) + block + newline * 2


def http_block(body: bytes, *fields: str) -> bytes:
    return (
        "\r\n".join(["HTTP/1.1 200 OK", "Content-Type: text/html", *fields, "", ""]).encode() + body
    )


def page_body(number: int) -> bytes:
    """A page that compresses about as well as real ones and is unlike the others."""
    draw = random.Random(number)
    words = " ".join(
        "".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9)))
        for _ in range(draw.randint(80, 900))
    )
    return f"<html><body><p>page {number}: {words}</p></body></html>".encode()


BODIES = {f"https://a.example/{number}": page_body(number) for number in range(60)}
RECORDS = [warc_record(url, http_block(body)) for url, body in BODIES.items()]


def members(records: list[bytes]) -> bytes:
    return b"".join(gzip.compress(record, mtime=0) for record in records)


def take(path: Path, content: bytes) -> tuple[dict[str, bytes], Counter]:
    path.write_bytes(content)
    counts = Counter()
    return {record.url: record.body for record in read(path, ALL_BYTES, counts)}, counts


@pytest.mark.parametrize(
    "content",
    [
        members(RECORDS),
        gzip.compress(b"".join(RECORDS), mtime=0),
        b"".join(RECORDS),
        members(RECORDS) + bytes(512),
        zstandard.compress(b"".join(RECORDS)),
        b"".join(map(zstandard.compress, RECORDS)),
        b"".join(
            gzip.compress(b"".join(RECORDS)[start : start + 5000])
            for start in range(0, len(b"".join(RECORDS)), 5000)
        ),
    ],
    ids=[
        "member a record",
        "one member",
        "plain",
        "padded",
        "zstd",
        "zstd frames",
        "members across records",
    ],
)
def test_an_intact_file_is_read_whole(content, tmp_path):
    pages, counts = take(tmp_path / "a", content)
    assert pages == BODIES
    assert counts["records"] == 60 and not counts["lost"] and not counts["recovered"]


def test_bit_rot_costs_the_record_it_hits_and_no_other(tmp_path):
    whole = members(RECORDS)
    starts = [len(members(RECORDS[:number])) for number in range(60)]
    for seed in range(25):
        draw = random.Random(seed)
        hit = draw.randrange(60)
        inside = range(starts[hit] + 12, (starts + [len(whole)])[hit + 1] - 12)
        rotten = bytearray(whole)
        for position in draw.sample(inside, 6):
            rotten[position] ^= draw.randrange(1, 256)
        pages, counts = take(tmp_path / "a.warc.gz", bytes(rotten))
        assert pages == {
            url: body for number, (url, body) in enumerate(BODIES.items()) if number != hit
        }
        assert (counts["records"], counts["lost"], counts["lost.damaged_gzip"]) == (59, 1, 1)


def test_a_reader_without_recovery_stops_there(tmp_path):
    """The control: FastWARC alone gives what stands before the damage."""
    rotten = bytearray(members(RECORDS))
    rotten[len(members(RECORDS[:30])) + 40] ^= 255
    (tmp_path / "a.warc.gz").write_bytes(rotten)
    seen = 0
    with pytest.raises(OSError):
        for _ in ArchiveIterator(str(tmp_path / "a.warc.gz"), parse_http=False):
            seen += 1
    assert seen <= 30


def test_an_overwritten_stretch_is_counted_and_the_rest_read(tmp_path):
    whole = bytearray(members(RECORDS))
    start, end = len(members(RECORDS[:20])) + 7, len(members(RECORDS[:25])) + 30
    whole[start:end] = bytes(end - start)
    pages, counts = take(tmp_path / "a.warc.gz", bytes(whole))
    assert list(pages) == [url for number, url in enumerate(BODIES) if not 20 <= number <= 25]
    assert counts["lost"] == 1


def unpacked(packed: bytes) -> bytes:
    """What gzip gives of all members, the last of which may be cut."""
    text = b""
    while packed.startswith(b"\x1f\x8b"):
        member = zlib.decompressobj(31)
        text += member.decompress(packed)
        packed = member.unused_data
    return text or packed


@pytest.mark.parametrize(
    "pack",
    [members, lambda records: gzip.compress(b"".join(records)), b"".join],
    ids=["members", "one member", "plain"],
)
def test_everything_before_a_cut_is_read(pack, tmp_path):
    whole = pack(RECORDS)
    for cut in (len(whole) // 3, len(whole) // 2, len(whole) - 40):
        pages, counts = take(tmp_path / "a", whole[:cut])
        urls, bodies = list(pages), list(pages.values())
        assert len(pages) == len(
            re.findall(rb"WARC/1\.0\r\n(?:.+\r\n)+\r\nHTTP/1.1 200 OK", unpacked(whole[:cut]))
        )
        assert urls == list(BODIES)[: len(pages)]
        assert bodies[:-1] == list(BODIES.values())[: len(pages) - 1]
        assert BODIES[urls[-1]].startswith(bodies[-1])
        assert counts["recovered"] == counts["recovered.cut_short"] == 1


@pytest.mark.parametrize("off", [-300, -17, 9, 300, 70_000])
@pytest.mark.parametrize("pack", [members, b"".join], ids=["members", "plain"])
def test_a_wrong_length_harms_no_record(off, pack, tmp_path):
    """FastWARC and warcio follow such a length into the next record and lose all that come after, without an error."""
    records = list(RECORDS)
    url, body = list(BODIES.items())[30]
    records[30] = warc_record(url, http_block(body), stated=len(http_block(body)) + off)
    pages, counts = take(tmp_path / "a", pack(records))
    assert pages == BODIES
    assert counts["recovered.wrong_length"] == 1 and counts["records"] == 60 and not counts["lost"]


def test_line_feeds_alone_are_enough(tmp_path):
    records = [warc_record(url, http_block(body), newline=b"\n") for url, body in BODIES.items()]
    pages, counts = take(tmp_path / "a", members(records))
    assert pages == BODIES and not counts["recovered"]


def test_an_empty_record_and_a_record_inside_a_page_are_no_damage(tmp_path):
    quoting = b"<pre>\r\n" + RECORDS[3] + b"</pre>"
    records = [
        warc_record("urn:x", b"", kind="metadata"),
        warc_record("https://b.example/", http_block(quoting)),
        *RECORDS,
    ]
    pages, counts = take(tmp_path / "a", b"".join(records))
    assert pages["https://b.example/"] == quoting
    assert counts["records"] == 62 and not counts["recovered"]


def test_a_record_without_a_length_and_one_without_a_header_are_counted(tmp_path):
    records = [
        b"WARC/1.0\r\nnothing here\r\n\r\n",
        *RECORDS[:3],
        RECORDS[3].replace(b"Content-Length", b"Content-Langth"),
        *RECORDS[4:],
    ]
    pages, counts = take(tmp_path / "a", b"".join(records))
    assert list(pages) == [url for number, url in enumerate(BODIES) if number != 3]
    assert counts["lost.no_length"] == counts["lost.no_header"] == 1 and counts["lost"] == 2


def test_a_record_too_long_for_memory_is_passed_over(tmp_path):
    video = warc_record("https://v.example/film", http_block(bytes(65 << 20)))
    pages, counts = take(tmp_path / "a.warc.gz", members([*RECORDS[:5], video, *RECORDS[5:]]))
    assert pages == BODIES
    assert counts["lost.too_long"] == counts["lost"] == 1


def test_any_damage_leaves_whole_pages_and_a_count(tmp_path):
    """Random flips, holes, insertions and cuts: the reader ends, invents no page and accounts for what is missing."""
    for seed in range(60):
        draw = random.Random(seed)
        content = bytearray(
            draw.choice([members(RECORDS), b"".join(RECORDS), gzip.compress(b"".join(RECORDS))])
        )
        for _ in range(draw.randint(1, 4)):
            place, size = draw.randrange(len(content)), draw.randint(1, 3000)
            match draw.randrange(4):
                case 0:
                    content[place] ^= 1 << draw.randrange(8)
                case 1:
                    del content[place : place + size]
                case 2:
                    content[place:place] = draw.randbytes(size)
                case 3:
                    content[place : place + size] = bytes(len(content[place : place + size]))
        pages, counts = take(tmp_path / "a", bytes(content))
        assert counts["records"] + counts["lost"] + counts["recovered"] > 0
        if set(BODIES) - set(pages):
            assert counts["lost"] or counts["recovered"], (
                f"seed {seed}: pages are missing and nothing is counted"
            )


@pytest.mark.parametrize(
    ("fields", "body", "flaw"),
    [
        (["Content-Encoding: gzip"], lambda body: gzip.compress(body), ""),
        (["Content-Encoding: br"], lambda body: brotli.compress(body), ""),
        (["Content-Encoding: deflate"], lambda body: zlib.compress(body), ""),
        (
            ["Content-Encoding: deflate"],
            lambda body: zlib.compress(body)[2:-4],
            "broken_compression",
        ),  # raw, as IIS sent it
        (["Content-Encoding: gzip"], lambda body: body, "already_decoded"),
        (["Content-Encoding: br"], lambda body: body, "already_decoded"),
        (["Transfer-Encoding: chunked"], lambda body: body, "already_decoded"),
        (
            ["Transfer-Encoding: chunked"],
            lambda body: b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
            "",
        ),
        (
            ["Transfer-Encoding: chunked"],
            lambda body: b"%x;x=1\n%b\r\n0\r\nA: b\r\n\r\n" % (len(body), body),
            None,
        ),
        (
            ["Transfer-Encoding: chunked", "Content-Encoding: gzip"],
            lambda body: b"%x\r\n%b\r\n0\r\n\r\n" % (len(gzip.compress(body)), gzip.compress(body)),
            "",
        ),
    ],
)
def test_http_bodies_are_decoded_and_survive_false_headers(fields, body, flaw, tmp_path):
    plain = page_body(7)
    pages, counts = take(
        tmp_path / "a", warc_record("https://a.example/", http_block(body(plain), *fields))
    )
    assert pages == {"https://a.example/": plain}
    if flaw is not None:
        assert counts["recovered"] == (counts[f"recovered.{flaw}"] if flaw else 0) == bool(flaw)


@pytest.mark.parametrize(
    ("fields", "pack"),
    [
        ("Content-Encoding: gzip", gzip.compress),
        ("Content-Encoding: br", brotli.compress),
        (
            "Transfer-Encoding: chunked",
            lambda body: b"".join(
                b"200\r\n%b\r\n" % body[at : at + 512] for at in range(0, 4096, 512)
            ),
        ),
    ],
)
def test_a_broken_body_gives_what_stands_before_the_break(fields, pack, tmp_path):
    plain = b"".join(page_body(number) for number in range(20))
    packed = pack(plain)
    pages, counts = take(
        tmp_path / "a",
        warc_record("https://a.example/", http_block(packed[: len(packed) * 2 // 3], fields)),
    )
    (body,) = pages.values()
    assert plain.startswith(body) and len(body) > 1000
    assert counts["records"] == 1


def test_bodies_are_cut_above_the_limit(tmp_path):
    bomb = gzip.compress(bytes(50_000_000))
    path = tmp_path / "a"
    path.write_bytes(warc_record("https://a.example/", http_block(bomb, "Content-Encoding: gzip")))
    (record,) = read(path, 1000, Counter())
    assert len(record.body) == 1001


def test_wet_and_resource_records_are_pages(tmp_path):
    content = warc_record(
        "https://a.example/", "schöner Text".encode(), "conversion", content_type="text/plain"
    ) + warc_record(
        "https://a.example/b", b"<html>", "resource", content_type="text/html; charset=latin-1"
    )
    (tmp_path / "a").write_bytes(content)
    text, resource = read(tmp_path / "a", 1000, Counter())
    assert text.is_text and text.body.decode() == "schöner Text"
    assert (resource.content_type, resource.charset, resource.status) == (
        "text/html",
        "latin-1",
        200,
    )


def record_starts(path: Path) -> int:
    """Record starts by a plain look at the unpacked bytes."""
    return len(re.findall(rb"WARC/\d\.\d+\r?\n(?=[A-Z])", unpacked(path.read_bytes())))


def test_real_crawls_are_read_whole(shared_data):
    files = sorted((shared_data / "web").glob("*/*"))
    assert len(files) >= 28
    for path in files:
        counts = Counter()
        urls = [
            frame.headers.get("warc-target-uri", "").strip("<>") for frame in frames(path, counts)
        ]
        assert len(urls) == record_starts(path), path.name
        assert not counts["lost"], path.name
        try:
            others = [
                record.headers.get("WARC-Target-URI", "").strip("<>")
                for record in ArchiveIterator(str(path), parse_http=False)
            ]
        except OSError:
            continue  # it stops at the first line feed or wrong length
        assert urls == others, path.name


def test_real_bodies_are_those_that_fastwarc_decodes(shared_data):
    path = shared_data / "web/webarchive_real/ipwb__IAH-20080430204825-00000-blackbook.warc.gz"
    ours = [
        (record.url, record.status, record.body)
        for record in read(path, ALL_BYTES, Counter())
        if record.url.startswith("http")
    ]
    others = [
        (record.headers["WARC-Target-URI"], record.http_headers.status_code, record.reader.read())
        for record in ArchiveIterator(
            str(path), auto_decode="all", func_filter=lambda record: record.is_http
        )
        if record.headers["WARC-Type"] == "response"
    ]
    assert ours == others


# ---- copies and labels ----


def test_the_hash_spreads_texts_evenly():
    places = [unit_interval(text_key(f"page {number}")) for number in range(4000)]
    assert all(0 <= place < 1 for place in places)
    assert abs(sum(place < 0.08 for place in places) / 4000 - 0.08) < 0.015


def test_keep_quality_by_hand(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(
        "url,verdict,reason,language,duplicate_of,personal_data\n"
        "a,keep,,en,,0\nb,keep,,en,,0\nc,drop,navigation,en,,0\nd,drop,language,de,,0\ne,keep,,en,,2\n"
    )
    labels = read_labels(path)
    quality = keep_quality({"a", "b", "c", "e"}, labels, {"a", "b", "c", "d"})
    assert (quality["n"], quality["precision"], quality["recall"]) == (4, 2 / 3, 1.0)
    assert 0 < quality["precision_low"] < 2 / 3 < quality["precision_high"] < 1
    assert keep_errors(
        {"a": "", "b": "words", "c": "", "d": "language", "e": "words", "f": ""},
        labels,
        {"a", "b", "c", "d", "f"},
    ) == {"false_positives": {"navigation": 1}, "false_negatives": {"words": 1}}
    assert token_f1("the old dog", "the dog ran off") == 2 * 2 / 7


@pytest.mark.parametrize(
    "line", ["a,mail,x@y.example,yes", "a,email,x@y.example,maybe", "a,email,,yes", "a,email,yes"]
)
def test_a_bad_span_is_named_with_its_line(line, tmp_path):
    path = tmp_path / "personal.csv"
    path.write_text("url,kind,text,mask\nz,phone,555-0117,yes\nz,ip,2.5.3.1,no\n")
    assert [(span.kind, span.text, span.mask) for span in read_spans(path)["z"]] == [
        ("phone", "555-0117", True),
        ("ip", "2.5.3.1", False),
    ]
    path.write_text(f"url,kind,text,mask\nz,phone,555-0117,yes\n{line}\n")
    with pytest.raises(UserError, match="personal.csv:3"):
        read_spans(path)


@pytest.mark.parametrize("line", ["a,maybe,,en,,0", "a,keep,en,0", "a,keep,,en,,many"])
def test_a_bad_label_is_named_with_its_line(line, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(
        f"url,verdict,reason,language,duplicate_of,personal_data\nz,keep,,en,,0\n{line}\n"
    )
    with pytest.raises(UserError, match="labels.csv:3"):
        read_labels(path)
