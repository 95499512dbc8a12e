"""Read the embedded web from its source: a folder for each site, a Markdown file for each page.

A site has a `site.toml`. A page is TOML between two `+++` lines, then Markdown. Lines `@@ post …`
and `@@ comment …` start a forum post or a reader's comment. The main text of a page, the gold for
extraction, is known exactly: the Markdown body with its posts and without its comments.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crawl2cart.core.errors import UserError

FENCE = "+++"
MESSAGE = re.compile(
    r'^@@ (?P<kind>post|comment)(?P<attributes>(?: [a-z]+="[^"]*")*)\s*$', re.MULTILINE
)
ATTRIBUTE = re.compile(r'([a-z]+)="([^"]*)"')

markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


class Strict(BaseModel):
    """Base of the models below: immutable, and an error for an unknown key or a wrong type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Site(Strict):
    """A site.toml. held_out: its pages measure the filter and must not be looked at to tune it."""

    name: str
    tagline: str
    design: Literal["magazine", "blog", "forum", "shop", "news", "docs", "personal", "community"]
    language: str
    held_out: bool
    nav: list[list[str]] = Field(min_length=1)
    sidebar: list[str]
    cookie: str
    footer: str


class Serve(Strict):
    """How a page is served, where that is unusual.

    charset: of its bytes. declared_charset: what headers and meta element claim, if not the same.
    pad_to_bytes: the size to which the document is padded. cut_at_byte: where the WARC record ends,
    although its length says otherwise. wrong_length: bytes by which its Content-Length is wrong.
    """

    charset: Literal["utf-8", "windows-1252", "latin-1", "utf-16"] = "utf-8"
    declared_charset: str | None = None
    transfer: Literal["plain", "chunked", "gzip", "brotli"] = "plain"
    status: int = Field(default=200, ge=100, le=599)
    content_type: str = "text/html"
    redirect: str | None = None
    broken_tags: bool = False
    pad_to_bytes: int = Field(default=0, ge=0)
    cut_at_byte: int | None = Field(default=None, ge=1)
    wrong_length: int = 0


class FrontMatter(Strict):
    """The TOML at the start of a page file. url: path and query, starting with a slash."""

    url: str = Field(pattern=r"^/\S*$")
    title: str
    author: str = ""
    date: str = Field(default="", pattern=r"^(\d{4}-\d{2}-\d{2})?$")
    serve: Serve = Serve()


@dataclass(frozen=True)
class Message:
    """A post in a thread or a comment under an article. body: Markdown."""

    author: str
    date: str
    body: str


@dataclass(frozen=True)
class Page:
    """One page of one site. body: the Markdown before the first post or comment."""

    host: str
    site: Site
    front: FrontMatter
    body: str
    posts: tuple[Message, ...]
    comments: tuple[Message, ...]

    @property
    def url(self) -> str:
        return f"https://{self.host}{self.front.url}"


def read_sites(folder: Path) -> list[Page]:
    """Read all pages below a folder of sites, in the order of their URLs.

    Raises UserError with file and line if a file does not parse, if two pages have one URL, and if
    there is no page.
    """
    pages, files = [], {}
    for settings in sorted(folder.glob("*/site.toml")):
        site = check(Site, parse_toml(settings.read_text(), settings, 0), settings, 0)
        for file in sorted(settings.parent.glob("*.md")):
            page = read_page(file, settings.parent.name, site)
            if page.url in files:
                raise UserError(
                    f"{file}:2: {page.front.url} is also the url of {files[page.url].name}. "
                    "Change one of them."
                )
            files[page.url] = file
            pages.append(page)
    if not pages:
        raise UserError(f"{folder} holds no page: it needs folders with a site.toml and .md files.")
    return sorted(pages, key=lambda page: page.url)


def read_page(file: Path, host: str, site: Site) -> Page:
    """Read a page file; raises UserError as `read_sites` does."""
    lines = file.read_text().split("\n")
    if lines[0].strip() != FENCE or FENCE not in (line.strip() for line in lines[1:]):
        raise UserError(
            f"{file}:1: a page starts with its front matter between two {FENCE} lines. Add them."
        )
    end = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == FENCE)
    front = check(FrontMatter, parse_toml("\n".join(lines[1:end]), file, 1), file, 1)
    text = "\n".join(lines[end + 1 :])
    for number, line in enumerate(lines[end + 1 :], end + 2):
        if line.startswith("@@") and not MESSAGE.match(line):
            raise UserError(
                f"{file}:{number}: {line!r} is neither "
                '@@ post author="…" date="…" nor @@ comment …. Correct the line.'
            )
    body, *rest = re.split(r"^(?=@@ )", text, flags=re.MULTILINE)
    messages: dict[str, list[Message]] = {"post": [], "comment": []}
    for part in rest:
        head = MESSAGE.match(part)
        attributes = dict(ATTRIBUTE.findall(head["attributes"]))
        messages[head["kind"]].append(
            Message(
                attributes.get("author", ""), attributes.get("date", ""), part[head.end() :].strip()
            )
        )
    return Page(
        host, site, front, body.strip(), tuple(messages["post"]), tuple(messages["comment"])
    )


def parse_toml(text: str, file: Path, lines_before: int) -> dict:
    """Parse TOML that stands behind so many lines of the file; an error names the line."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column \d+\)|\(at end of document\)", str(error))
        line = int(place[1]) if place and place[1] else text.count("\n") + 1
        reason = str(error).replace(place[0], "").strip() if place else str(error)
        raise UserError(
            f"{file}:{line + lines_before}: not valid TOML: {reason}. Correct the line."
        ) from error


def check(model: type[Strict], values: dict, file: Path, lines_before: int) -> Strict:
    """Validate the values; a UserError names the line of the key that is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        last = fault["loc"][-1]
        key = last if isinstance(last, str) else str(fault["loc"][0])
        lines = file.read_text().split("\n")
        line = next(
            (
                number
                for number, text in enumerate(lines, 1)
                if re.match(rf"\s*{re.escape(key)}\s*=", text)
            ),
            lines_before + 1,
        )
        problem = {"missing": "this key is missing", "extra_forbidden": "there is no such key"}.get(
            fault["type"], f"{fault['msg']}, but it is {fault['input']!r}"
        )
        raise UserError(f"{file}:{line}: {key}: {problem}.") from error


def gold_text(page: Page) -> str:
    """Return the page's main text: body and posts as plain text, a line for each block."""
    return "\n".join(
        plain_text(body) for body in [page.body, *(post.body for post in page.posts)] if body
    )


def plain_text(body: str) -> str:
    """Convert Markdown to plain text.

    Each paragraph, heading, list item and table row is a line.
    """
    lines, row = [], None
    for token in markdown.parse(body):
        match token.type:
            case "tr_open":
                row = []
            case "tr_close":
                lines.append(" ".join(row))
                row = None
            case "inline":
                (lines if row is None else row).append(inline_text(token.children))
            case "fence" | "code_block":
                lines.append(token.content.rstrip("\n"))
    return "\n".join(lines)


def inline_text(tokens: list[Token]) -> str:
    breaks = {"softbreak": " ", "hardbreak": "\n"}
    return "".join(breaks.get(token.type, token.content) for token in tokens)
