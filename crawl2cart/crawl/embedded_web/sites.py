"""The embedded web as it is written: one folder a site, `site.toml` and one Markdown file a page.

A page file is TOML between two `+++` lines, then Markdown. Lines `@@ post …` and `@@ comment …` start a forum post or
a reader's comment. What a page is about, its gold main text, is known exactly: the Markdown body with its posts and
without its comments.
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
SPOKEN = re.compile(r'^@@ (?P<kind>post|comment)(?P<marks>(?: [a-z]+="[^"]*")*)\s*$', re.MULTILINE)
MARK = re.compile(r'([a-z]+)="([^"]*)"')

markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


class Written(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Site(Written):
    """site.toml. held_out: its pages measure the filter and nothing of the filter was chosen by looking at them."""

    name: str
    tagline: str
    design: Literal["magazine", "blog", "forum", "shop", "news", "docs", "personal", "community"]
    language: str
    held_out: bool
    nav: list[list[str]] = Field(min_length=1)
    sidebar: list[str]
    cookie: str
    footer: str


class Serve(Written):
    """How a page comes over the wire, where that is out of the ordinary.

    charset: what its bytes are in; declared_charset: what headers and meta element claim. cut_at_byte: the record ends
    there although its length says otherwise. wrong_length: bytes that the record's Content-Length is off by.
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


class Front(Written):
    url: str = Field(pattern=r"^/\S*$")
    title: str
    author: str = ""
    date: str = Field(default="", pattern=r"^(\d{4}-\d{2}-\d{2})?$")
    serve: Serve = Serve()


@dataclass(frozen=True)
class Spoken:
    """What one person wrote in a thread or under an article, in Markdown."""

    author: str
    date: str
    body: str


@dataclass(frozen=True)
class Page:
    """One page of one site. body: the Markdown before the first post or comment."""

    host: str
    site: Site
    front: Front
    body: str
    posts: tuple[Spoken, ...]
    comments: tuple[Spoken, ...]

    @property
    def url(self) -> str:
        return f"https://{self.host}{self.front.url}"


def read_sites(folder: Path) -> list[Page]:
    """All pages below a folder of sites, in the order of their URLs.

    Raises UserError naming file and line where a file does not parse, and where two pages claim one URL.
    """
    pages, files = [], {}
    for settings in sorted(folder.glob("*/site.toml")):
        site = check(Site, parse_toml(settings.read_text(), settings, 0), settings, 0)
        for file in sorted(settings.parent.glob("*.md")):
            page = read_page(file, settings.parent.name, site)
            if page.url in files:
                raise UserError(
                    f"{file}:2: {page.front.url} is the url of {files[page.url].name} too. Change one."
                )
            files[page.url] = file
            pages.append(page)
    if not pages:
        raise UserError(f"{folder} holds no page: it needs folders with a site.toml and .md files.")
    return sorted(pages, key=lambda page: page.url)


def read_page(file: Path, host: str, site: Site) -> Page:
    lines = file.read_text().split("\n")
    if lines[0].strip() != FENCE or FENCE not in (line.strip() for line in lines[1:]):
        raise UserError(
            f"{file}:1: a page starts with its front matter between two lines {FENCE}. Add them."
        )
    end = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == FENCE)
    front = check(Front, parse_toml("\n".join(lines[1:end]), file, 1), file, 1)
    text = "\n".join(lines[end + 1 :])
    for number, line in enumerate(lines[end + 1 :], end + 2):
        if line.startswith("@@") and not SPOKEN.match(line):
            raise UserError(
                f'{file}:{number}: {line!r} is neither @@ post author="…" date="…" nor @@ comment ….'
            )
    body, *rest = re.split(r"^(?=@@ )", text, flags=re.MULTILINE)
    spoken: dict[str, list[Spoken]] = {"post": [], "comment": []}
    for part in rest:
        head = SPOKEN.match(part)
        marks = dict(MARK.findall(head["marks"]))
        spoken[head["kind"]].append(
            Spoken(marks.get("author", ""), marks.get("date", ""), part[head.end() :].strip())
        )
    return Page(host, site, front, body.strip(), tuple(spoken["post"]), tuple(spoken["comment"]))


def parse_toml(text: str, file: Path, lines_before: int) -> dict:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column \d+\)|\(at end of document\)", str(error))
        line = int(place[1]) if place and place[1] else text.count("\n") + 1
        reason = str(error).replace(place[0], "").strip() if place else str(error)
        raise UserError(
            f"{file}:{line + lines_before}: not valid TOML: {reason}. Mend the line."
        ) from error


def check(model: type[Written], values: dict, file: Path, lines_before: int) -> Written:
    """The values as a `model`. A wrong one is a UserError that gives the line of its key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = str(fault["loc"][-1]) if isinstance(fault["loc"][-1], str) else str(fault["loc"][0])
        lines = file.read_text().split("\n")
        line = next(
            (
                number
                for number, text in enumerate(lines, 1)
                if re.match(rf"\s*{re.escape(key)}\s*=", text)
            ),
            lines_before + 1,
        )
        what = {"missing": "this key is missing", "extra_forbidden": "there is no such key"}.get(
            fault["type"], f"{fault['msg']}, but it is {fault['input']!r}"
        )
        raise UserError(f"{file}:{line}: {key}: {what}.") from error


def gold_text(page: Page) -> str:
    """The page's main text: its body and posts as plain text, one block a line, without comments."""
    return "\n".join(
        plain_text(body) for body in [page.body, *(post.body for post in page.posts)] if body
    )


def plain_text(body: str) -> str:
    """Markdown as plain text: a line for each paragraph, heading, list item and table row, markup gone."""
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
