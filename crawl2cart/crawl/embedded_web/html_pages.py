"""Render the embedded web as a server sends it: HTML in eight designs, headers, oddities.

The layouts are data/web/designs/<design>.html.j2. The same page always gives the same bytes.
"""

import hashlib
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_URL, UUID, uuid5

import brotli
import jinja2
from markupsafe import Markup

from crawl2cart.core.errors import UserError
from crawl2cart.crawl.embedded_web.sites import Message, Page, markdown, plain_text

CRAWL_DAY = "2026-05-18"
CHUNK_BYTES = 1800
REASONS = {
    200: "OK",
    301: "Moved Permanently",
    302: "Found",
    403: "Forbidden",
    404: "Not Found",
    410: "Gone",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
SERVERS = {
    "magazine": "nginx",
    "blog": "Apache/2.4.41 (Ubuntu)",
    "forum": "Apache/2.2.15 (CentOS)",
    "shop": "nginx",
    "news": "openresty",
    "docs": "GitPages",
    "personal": "Apache/1.3.27 (Unix)",
    "community": "lighttpd/1.4.35",
}


@dataclass(frozen=True)
class Response:
    """What a server sends for one page.

    date, record_id: of its WARC record. body: bytes with content and transfer coding applied.
    """

    url: str
    record_id: UUID
    date: str
    status_line: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def head(self) -> bytes:
        """The status line and headers, up to and with the blank line."""
        lines = [self.status_line, *(f"{name}: {value}" for name, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1", "replace")


class Renderer:
    """Renders pages with the designs of one folder.

    pages: all pages; the designs link to others of the same host.
    """

    def __init__(self, designs: Path, pages: list[Page]):
        self.designs = designs
        self.neighbours: dict[str, list[Page]] = {}
        for page in pages:
            if page.front.serve.status == 200 and page.front.serve.content_type == "text/html":
                self.neighbours.setdefault(page.host, []).append(page)
        self.environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(designs),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.filters["html"] = to_html

    def document(self, page: Page) -> str:
        """Render the page as an HTML document; its oddities, but the declared charset, come later.

        Raises UserError for a design that is missing or broken.
        """
        try:
            template = self.environment.get_template(f"{page.site.design}.html.j2")
        except jinja2.TemplateError as error:
            raise UserError(
                f"{self.designs}/{page.site.design}.html.j2 cannot be used: {error}. Correct it."
            ) from error
        others = [other for other in self.neighbours.get(page.host, []) if other is not page]
        start = number_of(page.url) % max(1, len(others))
        serve = page.front.serve
        return template.render(
            site=page.site,
            page=page.front,
            host=page.host,
            url=page.url,
            body=page.body,
            posts=page.posts,
            comments=page.comments,
            crumbs=breadcrumbs(page),
            others=(others[start:] + others[:start])[:6],
            charset=serve.declared_charset or serve.charset,
            number=number_of(page.url),
            summary=summary(page),
        )

    def response(self, page: Page) -> Response:
        """Render the page as it is served, with status, headers, charset and transfer coding."""
        serve = page.front.serve
        as_html = serve.content_type in ("text/html", "application/xhtml+xml")
        text = self.document(page) if as_html else page.body + "\n"
        if as_html and serve.broken_tags:
            text = break_tags(text)
        if serve.pad_to_bytes:
            text = pad(text, serve.pad_to_bytes)
        body = text.encode(serve.charset, "xmlcharrefreplace")
        number = number_of(page.url)
        headers = [
            ("Date", http_date(number)),
            ("Server", SERVERS[page.site.design]),
            (
                "Content-Type",
                f"{serve.content_type}; charset={serve.declared_charset or serve.charset}",
            ),
        ]
        if serve.redirect:
            headers.append(("Location", serve.redirect))
        if serve.transfer in ("gzip", "brotli"):
            body = gzip(body) if serve.transfer == "gzip" else brotli.compress(body, quality=5)
            headers.append(("Content-Encoding", {"gzip": "gzip", "brotli": "br"}[serve.transfer]))
        if serve.transfer == "chunked":
            body = chunked(body)
            headers.append(("Transfer-Encoding", "chunked"))
        else:
            headers.append(("Content-Length", str(len(body))))
        headers += [("ETag", f'"{number % 16**8:08x}"'), ("Connection", "close")]
        reason = REASONS.get(serve.status, "Unknown")
        return Response(
            page.url,
            uuid5(NAMESPACE_URL, page.url),
            f"{CRAWL_DAY}T{clock(number)}Z",
            f"HTTP/1.1 {serve.status} {reason}",
            tuple(headers),
            body,
        )


def to_html(body: str | Message) -> Markup:
    """Convert Markdown to HTML; HTML inside it is escaped."""
    return Markup(markdown.render(body.body if isinstance(body, Message) else body).rstrip("\n"))


def number_of(url: str) -> int:
    """Return a number below 2^48 that depends on the URL, for what a server draws or counts."""
    return int.from_bytes(hashlib.sha256(url.encode()).digest()[:6])


def clock(number: int) -> str:
    seconds = number % 86400
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def http_date(number: int) -> str:
    return f"Mon, 18 May 2026 {clock(number)} GMT"


def breadcrumbs(page: Page) -> list[tuple[str, str]]:
    """Return the folders above a page as (name, path): `/guides/lamps/x.html` -> Guides, Lamps."""
    folders = [folder for folder in page.front.url.split("?")[0].split("/")[1:-1] if folder]
    return [
        (
            folder.replace("-", " ").replace("_", " ").capitalize(),
            "/" + "/".join(folders[:depth]) + "/",
        )
        for depth, folder in enumerate(folders, 1)
    ]


def summary(page: Page) -> str:
    """Return the start of the page, at most 150 characters, whole words, for its description."""
    start = plain_text(page.body)[:150].replace("\n", " ")
    return start.rsplit(" ", 1)[0] if len(start) == 150 else start


def break_tags(text: str) -> str:
    """Break the markup as people do who never validate it.

    Every second </p> and all </li>, </td>, </tr> go. Bold and italics close in the wrong order. One
    </span> closes nothing, and one <font> is never closed.
    """
    count = 0

    def drop_every_second(match: re.Match) -> str:
        nonlocal count
        count += 1
        return "" if count % 2 else match[0]

    text = re.sub(r"</p>", drop_every_second, text)
    text = re.sub(r"</(li|td|tr|dd|dt)>", "", text, flags=re.IGNORECASE)
    text = re.sub(r"<(strong|em)>(.*?)</\1>", r"<b><i>\2</b></i>", text)
    return text.replace("<h2>", '</span><font size="+1"><h2>', 1)


def pad(text: str, size: int) -> str:
    """Pad a document to `size` bytes with a comment, as page builders leave data in a page."""
    missing = size - len(text.encode())
    if missing <= 0:
        return text
    rows = (hashlib.sha256(str(row).encode()).hexdigest() for row in range(missing // 65 + 1))
    filling = "\n".join(rows)[: max(0, missing - len("<!--\n\n-->\n"))]
    before, close, after = text.rpartition("</")
    return f"{before}<!--\n{filling}\n-->\n{close}{after}" if close else text + filling


def gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(6, wbits=31)
    return packer.compress(body) + packer.flush()


def chunked(body: bytes) -> bytes:
    """Apply the chunked transfer coding (RFC 9112 section 7.1)."""
    chunks = [body[start : start + CHUNK_BYTES] for start in range(0, len(body), CHUNK_BYTES)]
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
