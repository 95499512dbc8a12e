"""From the bytes of a page to its main text.

Resiliparse drops navigation, banners, side bars and footers by rules over the tree, eight times as fast as trafilatura,
which drops more of them. Bevendorff et al. 2018, https://doi.org/10.1007/978-3-319-76941-7_83;
Barbaresi 2021, https://aclanthology.org/2021.acl-demo.15
"""

import codecs
import logging
import re
import unicodedata

import numpy as np
import trafilatura
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

from crawl2cart.crawl.filters.language import may_be

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
META_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
META_WITHIN = 4096  # bytes; HTML asks for 1,024, pages with large scripts before it are common
TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
NOT_MARKUP = re.compile(
    r"<(script|style|textarea|title)\b.*?(?:</\1|\Z)|<!--.*?(?:-->|\Z)", re.IGNORECASE | re.DOTALL
)
SHALLOW = set(
    "area base br col embed hr img input link meta param source track wbr p li dt dd tr td th option".split()
)
# Browsers stop at 512 (Blink). The time that finding the main content takes grows with the square of the depth: 0.02 s at
# 1,000, 12 s at 20,000, so that one hostile page could stop a crawl.
DEEPEST = 1000
LOOKS_LIKE_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|title)\b", re.IGNORECASE)
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\ufeff]")
TABS = re.compile(r"\t{2,}")  # resiliparse sets two between table cells
BLANK_LINES = re.compile(r"\n{3,}")
# Trafilatura looks for articles and loses the answers of a thread or the cards of a list: below this share of the words
# that resiliparse finds they are too many. On the pages to tune on the mean F1 is the same from 0.5 to 0.7.
LEAST_SHARE_OF_WORDS = 0.7
ENGLISH = frozenset({"en"})
CELL = re.compile(r"<td\b", re.IGNORECASE)
TABLE_RULE = re.compile(r"\|[-|: ]+\|")
CELL_BORDER = re.compile(r"(?<!\\) ?\| ?")


class TooDeep(ValueError):
    """Elements lie so deep in each other that looking at the page takes too long."""


def html_to_text(
    body: bytes, declared: str = "", extractor: str = "cascade", languages: frozenset[str] = ENGLISH
) -> str:
    """The main text of an HTML page: a blank line between paragraphs, a line for each list item and table row.

    declared: the charset that the server claims, or "". extractor, languages: see `main_text`. Raises TooDeep, and
    nothing else however malformed the page is.
    """
    page = decode(body, declared)
    if nesting(page) > DEEPEST:
        raise TooDeep(f"more than {DEEPEST:,} elements lie in each other")
    return main_text(page, extractor, languages)


def main_text(page: str, extractor: str, languages: frozenset[str]) -> str:
    """The main text of an HTML document that is not nested too deep.

    extractor: `resiliparse`, `trafilatura`, or `cascade`: resiliparse for all pages and trafilatura for those whose text
    may be in one of `languages`, unless it gives much less.
    """
    tree = HTMLTree.parse(page)
    if CELL.search(page) and (content := laid_out_by_table(tree)):
        page = f"<html><body>{content}</body></html>"
        tree = HTMLTree.parse(page)
    if extractor == "trafilatura":
        return careful_text(page)
    text = tidy(
        extract_plain_text(tree, preserve_formatting=True, main_content=True, alt_texts=False)
    )
    if extractor == "resiliparse" or not may_be(text, languages):
        return text
    careful = careful_text(page)
    return careful if len(careful.split()) >= LEAST_SHARE_OF_WORDS * len(text.split()) else text


def careful_text(page: str) -> str:
    """What trafilatura takes for the text, in the form that resiliparse has: cells parted by tabs, blank lines."""
    logging.getLogger("trafilatura").setLevel(
        logging.CRITICAL
    )  # it warns of every page without an article, and no more
    found = trafilatura.extract(page, fast=True, include_comments=False, include_tables=True) or ""
    lines, before = [], False
    for line in map(str.strip, found.split("\n")):
        if row := line.startswith("|") and line.endswith("|"):
            if TABLE_RULE.fullmatch(line):
                continue
            line = "\t".join(filter(None, CELL_BORDER.split(line.strip("| "))))
        row = row or line.startswith("- ")
        lines += [line] if row and before else ["", line]
        before = row
    return tidy("\n".join(lines))


def laid_out_by_table(tree: HTMLTree) -> str:
    """The inner HTML of the table cell that holds the page's content while others hold its menus, or "" if none does.

    A cell with more than half of the page's text is no cell of data.
    """
    node, cell, half = tree.body, None, len(tree.body.text) / 2 if tree.body else 0
    while node is not None and half:
        node = node.first_element_child
        while node is not None and len(node.text) <= half:
            node = node.next_element_sibling
        cell = node if node is not None and node.tag == "td" else cell
    return cell.inner_html if cell is not None else ""


def nesting(page: str) -> int:
    """How deep elements lie in each other; an upper bound where that is not more than DEEPEST."""
    bound = depth_bound(page)
    return bound if bound <= DEEPEST else depth(page)


def depth_bound(page: str) -> int:
    """How many more elements are opened than closed at most, at any place: never less than `depth`, but fast."""
    symbols = np.frombuffer(page.encode("utf-8", "replace") + b" ", np.uint8)
    following = symbols[np.flatnonzero(symbols[:-1] == ord("<")) + 1]
    steps = ((following | 32) >= ord("a")).astype(np.int64) - (following == ord("/"))
    return int(np.cumsum(steps).max(initial=0))


def depth(page: str) -> int:
    """How deep elements lie in each other, without those that hold no others or close by themselves, and without what
    scripts write."""
    deepest = now = 0
    for close, name in TAG.findall(NOT_MARKUP.sub("", page)):
        if name.lower() not in SHALLOW:
            now = max(0, now - 1) if close else now + 1
            deepest = max(deepest, now)
    return deepest


def is_html(content_type: str, body: bytes) -> bool:
    """Whether a page is HTML: by its type, or by its start where the server gave none."""
    return (
        "html" in content_type
        or not content_type
        and bool(LOOKS_LIKE_HTML.search(body[:META_WITHIN]))
    )


def decode(body: bytes, declared: str) -> str:
    """The page as text, whatever its server and its meta element claim.

    A claim is believed when the bytes agree with it. UTF-8 needs no claim: text in another encoding is hardly ever
    valid UTF-8 by chance, and pages whose header says latin-1 by the server's default are common.
    """
    for mark, name in BYTE_ORDER_MARKS:
        if body.startswith(mark):
            return body.decode(name, "replace")
    if b"\0" not in body and b"\x1b$" not in body and (text := decode_utf8(body)) is not None:
        return text
    meta = META_CHARSET.search(body[:META_WITHIN])
    for claim in (declared, meta[1].decode("ascii") if meta else ""):
        # The web's names: a page that says latin-1 is in windows-1252, https://encoding.spec.whatwg.org/#names-and-labels
        name = map_encoding_to_html5(claim) if claim else None
        if name and name.lower() != "utf-8":
            try:
                return body.decode(name)
            except (UnicodeDecodeError, LookupError):
                continue
    return body.decode(detect_encoding(body), "replace")


def decode_utf8(body: bytes) -> str | None:
    """The text if the bytes are UTF-8: at most cut off in their last character, or with fewer wrong characters beyond
    ASCII than right ones."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(body, final=False)
    except UnicodeDecodeError:
        text = body.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    right = len(text) - wrong - sum(map(len, re.findall(r"[\x00-\x7f]+", text)))
    return text if right > wrong else None


def tidy(text: str) -> str:
    """Text in Unicode's composed form: plain spaces, no control characters, at most one blank line together."""
    text = (
        unicodedata.normalize("NFC", text)
        .replace("\r\n", "\n")
        .replace("\r", "\n")
        .replace("\xa0", " ")
    )
    text = TABS.sub("\t", UNPRINTABLE.sub("", text))
    return BLANK_LINES.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip(
        "\n"
    )
