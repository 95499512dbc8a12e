"""The embedded web: pages as they are written, and as a server sends them."""

import gzip
import html.parser
import re
from dataclasses import replace

import brotli
import lxml.html
import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.crawl.embedded_web.html_pages import Renderer, Response, to_html
from crawl2cart.crawl.embedded_web.sites import Page, gold_text, plain_text, read_sites
from crawl2cart.crawl.evaluate import token_f1
from crawl2cart.crawl.extract.extract import html_to_text
from tests.conftest import ROOT
from tests.unit.crawl.samples import PROSE, write_site, written

DESIGNS = sorted(
    file.name.removesuffix(".html.j2") for file in (ROOT / "data/web/designs").glob("*.j2")
)
COMMENT = '\n@@ comment author="Wet Pawl" date="2025-05-12"\nMine slipped again.\n'
POST = '\n@@ post author="a" date="2025-01-01"\nYes.\n'


def in_design(page: Page, design: str) -> Page:
    return replace(page, site=page.site.model_copy(update={"design": design}))


def render(pages: list[Page]) -> Renderer:
    return Renderer(ROOT / "data/web/designs", pages)


# ---- as they are written ----


def test_gold_text_is_what_a_browser_shows_of_the_markdown():
    for page in read_sites(ROOT / "data/web/sites")[::5]:
        blocks = [to_html(part) for part in [page.body, *page.posts] if part]
        if not blocks:
            continue
        shown = lxml.html.fromstring(f"<div>{' '.join(blocks)}</div>").text_content()
        assert re.sub(r"\s", "", gold_text(page)) == re.sub(r"\s", "", shown)


def test_gold_text_has_posts_and_no_comments(tmp_path):
    body = (
        'First.\n@@ post author="Ann" date="2024-01-01"\nSecond.\n'
        '@@ comment author="Bo" date="2024-01-02"\nThird.\n'
    )
    (page,) = read_sites(write_site(tmp_path, winch=written(body=body)))
    assert gold_text(page) == "First.\nSecond."
    assert [comment.author for comment in page.comments] == ["Bo"]
    assert plain_text("a *b* [c](/d) `e`\nf\n\n> g\n\n1. h\n2. i") == "a b c e f\ng\nh\ni"


@pytest.mark.parametrize(
    ("source", "line", "fact"),
    [
        ("no front matter", 1, "+++"),
        ('+++\nurl = "/a"\ntitle = "A\n+++\nx', 3, "TOML"),
        ('+++\nurl = "/a"\ntitle = "A"\nautor = "B"\n+++\nx', 4, "autor"),
        ('+++\nurl = "a"\ntitle = "A"\n+++\nx', 2, "url"),
        ('+++\nurl = "/a"\ntitle = "A"\n[serve]\nstatus = "404"\n+++\nx', 5, "status"),
        ('+++\nurl = "/a"\ntitle = "A"\n[serve]\ncharset = "utf-7"\n+++\nx', 5, "charset"),
        ('+++\nurl = "/a"\n+++\nx', 2, "title"),
        ('+++\nurl = "/a"\ntitle = "A"\n+++\nx\n@@ post by ann\ny', 6, "@@ post"),
    ],
)
def test_a_page_that_does_not_parse_is_named_with_its_line(source, line, fact, tmp_path):
    with pytest.raises(UserError) as error:
        read_sites(write_site(tmp_path, bad=source))
    assert f"bad.md:{line}:" in str(error.value) and fact in str(error.value)


def test_two_pages_with_one_url_are_an_error(tmp_path):
    with pytest.raises(UserError, match="first.md"):
        read_sites(write_site(tmp_path, first=written(), second=written()))


# ---- as they are served ----


@pytest.mark.parametrize("design", DESIGNS)
def test_every_design_has_what_real_pages_have_around_their_text(design, tmp_path):
    other = written(url="/rope/knot.html", body="A bend.")
    pages = read_sites(write_site(tmp_path, winch=written(body=PROSE + COMMENT), other=other))
    page = in_design(pages[0], design)
    document = render([page, *pages[1:]]).document(page)
    tree = lxml.html.fromstring(document)
    shown = tree.text_content()
    site = page.site
    for text in (site.name, site.cookie, site.footer, "Boats", "Mine slipped again.", "Wet Pawl"):
        assert text in shown, text
    assert tree.xpath("//script") and tree.xpath("//form | //input") and tree.xpath("//title")
    assert "<table" in document.lower()


class WrongEndTags(html.parser.HTMLParser):
    """Counts end tags that do not close the innermost open element, void elements aside."""

    VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta"}

    def __init__(self, text: str):
        super().__init__()
        self.stack: list[str] = []
        self.wrong = 0
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
    (page,) = read_sites(write_site(tmp_path, winch=written(body=PROSE + POST)))
    page = in_design(page, design)
    whole = WrongEndTags(render([page]).document(page))
    assert (whole.wrong, whole.stack) == (0, [])
    serve = page.front.serve.model_copy(update={"broken_tags": True})
    careless = replace(page, front=page.front.model_copy(update={"serve": serve}))
    broken = render([page]).response(careless).body
    assert WrongEndTags(broken.decode()).wrong > 3
    assert token_f1(html_to_text(broken, ""), gold_text(page)) > 0.6


@pytest.fixture
def serve(tmp_path):
    """A function that renders the page with these lines in its table [serve]."""

    def response(lines: str, folder: str = "sites") -> Response:
        pages = read_sites(write_site(tmp_path / folder, winch=written(f"[serve]\n{lines}\n")))
        return render(pages).response(pages[0])

    return response


@pytest.mark.parametrize("charset", ["utf-8", "windows-1252", "latin-1", "utf-16"])
def test_a_page_is_served_in_its_charset(charset, serve):
    response = serve(f'charset = "{charset}"')
    assert f"charset={charset}" in dict(response.headers)["Content-Type"]
    assert "café au lait" in response.body.decode(charset)
    assert "café au lait" in html_to_text(response.body, charset)


def test_a_page_can_lie_about_its_charset(serve):
    response = serve('charset = "windows-1252"\ndeclared_charset = "utf-8"')
    assert "charset=utf-8" in dict(response.headers)["Content-Type"]
    assert b'content="text/html; charset=utf-8"' in response.body
    with pytest.raises(UnicodeDecodeError):
        response.body.decode("utf-8")
    text = html_to_text(response.body, "utf-8")
    assert "café au lait" in text and "for £3" in text


def test_transfer_codings_are_really_used(serve):
    plain = serve("", "plain").body
    for coding, value, decompress in (
        ("gzip", "gzip", gzip.decompress),
        ("brotli", "br", brotli.decompress),
    ):
        response = serve(f'transfer = "{coding}"', coding)
        assert dict(response.headers)["Content-Encoding"] == value
        assert decompress(response.body) == plain
    response = serve('transfer = "chunked"', "chunked")
    headers = dict(response.headers)
    assert headers["Transfer-Encoding"] == "chunked" and "Content-Length" not in headers
    joined, rest = b"", response.body
    while size := int(rest[: rest.index(b"\r\n")], 16):
        start = rest.index(b"\r\n") + 2
        joined, rest = joined + rest[start : start + size], rest[start + size + 2 :]
    assert joined == plain and rest == b"0\r\n\r\n"


def test_status_type_redirect_and_size(serve):
    gone = serve("status = 404", "gone").head
    assert gone.startswith(b"HTTP/1.1 404 Not Found\r\n") and gone.endswith(b"\r\n\r\n")
    moved = serve('status = 301\nredirect = "/new.html"', "moved")
    assert dict(moved.headers)["Location"] == "/new.html"
    plain = serve('content_type = "text/plain"', "plain")
    assert plain.body.decode().strip() == PROSE.strip()
    large = serve("pad_to_bytes = 300000", "large")
    assert abs(len(large.body) - 300_000) < 100
    assert "winch on the slip" in html_to_text(large.body, "")
