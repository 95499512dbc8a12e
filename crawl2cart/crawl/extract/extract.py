"""Extract the main text of a page from its bytes.

Resiliparse (Bevendorff et al. 2018, https://doi.org/10.1007/978-3-319-76941-7_83) drops navigation,
banners, side bars and footers by rules over the tree. Trafilatura (Barbaresi 2021,
https://aclanthology.org/2021.acl-demo.15) drops more of them and takes eight times as long.
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
# Bytes in which a meta element is looked for. HTML demands 1,024, but large scripts often precede.
META_WITHIN = 4096
TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
NOT_MARKUP = re.compile(
    r"<(script|style|textarea|title)\b.*?(?:</\1|\Z)|<!--.*?(?:-->|\Z)", re.IGNORECASE | re.DOTALL
)
SHALLOW = set(
    "area base br col embed hr img input link meta param source track wbr p li dt dd tr td th "
    "option".split()
)
# Blink stops at 512. The time of extraction grows with the square of the depth (0.02 s at 1,000,
# 12 s at 20,000), so that one hostile page could stop a crawl.
MAX_DEPTH = 1000
LOOKS_LIKE_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|title)\b", re.IGNORECASE)
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\ufeff]")
TABS = re.compile(r"\t{2,}")  # resiliparse sets two between table cells
BLANK_LINES = re.compile(r"\n{3,}")
# Trafilatura looks for articles and may lose the answers of a thread or the cards of a list. With
# fewer than this share of the words that resiliparse gives, resiliparse's text is taken.
MIN_WORD_SHARE = 0.7
ENGLISH = frozenset({"en"})
CELL = re.compile(r"<td\b", re.IGNORECASE)
TABLE_RULE = re.compile(r"\|[-|: ]+\|")
CELL_BORDER = re.compile(r"(?<!\\) ?\| ?")


class TooDeep(ValueError):
    """The page nests its elements deeper than MAX_DEPTH."""


def html_to_text(
    body: bytes, declared: str = "", extractor: str = "cascade", languages: frozenset[str] = ENGLISH
) -> str:
    """Extract the main text of an HTML page.

    declared: the charset that the server claims, or "". extractor, languages: see `main_text`.
    Paragraphs are a blank line apart; a list item or a table row is a line, its cells a tab apart.
    Raises TooDeep, and no other error however malformed the page is.
    """
    page = decode(body, declared)
    if nesting(page) > MAX_DEPTH:
        raise TooDeep(f"elements are nested deeper than {MAX_DEPTH:,}")
    return main_text(page, extractor, languages)


def main_text(page: str, extractor: str, languages: frozenset[str]) -> str:
    """Extract the main text of an HTML document that is not nested too deep.

    extractor: `resiliparse`, `trafilatura`, or `cascade`. The cascade runs resiliparse on all pages
    and trafilatura on those whose text may be in one of `languages`; it takes trafilatura's text
    unless that is much shorter.
    """
    tree = HTMLTree.parse(page)
    if CELL.search(page) and (content := layout_cell(tree)):
        page = f"<html><body>{content}</body></html>"
        tree = HTMLTree.parse(page)
    if extractor == "trafilatura":
        return trafilatura_text(page)
    text = tidy(
        extract_plain_text(tree, preserve_formatting=True, main_content=True, alt_texts=False)
    )
    if extractor == "resiliparse" or not may_be(text, languages):
        return text
    shorter = trafilatura_text(page)
    return shorter if len(shorter.split()) >= MIN_WORD_SHARE * len(text.split()) else text


def trafilatura_text(page: str) -> str:
    """Extract the text with trafilatura, in resiliparse's form: tabs between cells, blank lines."""
    # It warns of every page without an article, and of nothing else.
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    text = trafilatura.extract(page, fast=True, include_comments=False, include_tables=True) or ""
    lines, after_row = [], False
    for line in map(str.strip, text.split("\n")):
        is_row = line.startswith("|") and line.endswith("|")
        if is_row:
            if TABLE_RULE.fullmatch(line):
                continue
            line = "\t".join(filter(None, CELL_BORDER.split(line.strip("| "))))
        is_row = is_row or line.startswith("- ")
        lines += [line] if is_row and after_row else ["", line]
        after_row = is_row
    return tidy("\n".join(lines))


def layout_cell(tree: HTMLTree) -> str:
    """Return the inner HTML of the table cell that holds the page's content, or "".

    Old pages put their menus into the other cells. A cell with more than half of the page's text is
    no cell of data.
    """
    node, cell, half = tree.body, None, len(tree.body.text) / 2 if tree.body else 0
    while node is not None and half:
        node = node.first_element_child
        while node is not None and len(node.text) <= half:
            node = node.next_element_sibling
        cell = node if node is not None and node.tag == "td" else cell
    return cell.inner_html if cell is not None else ""


def nesting(page: str) -> int:
    """Return the nesting depth of a page, or an upper bound if that is at most MAX_DEPTH."""
    bound = depth_bound(page)
    return bound if bound <= MAX_DEPTH else depth(page)


def depth_bound(page: str) -> int:
    """Return an upper bound of `depth`, fast: how many more tags open than close at most."""
    symbols = np.frombuffer(page.encode("utf-8", "replace") + b" ", np.uint8)
    following = symbols[np.flatnonzero(symbols[:-1] == ord("<")) + 1]
    steps = ((following | 32) >= ord("a")).astype(np.int64) - (following == ord("/"))
    return int(np.cumsum(steps).max(initial=0))


def depth(page: str) -> int:
    """Return how deep elements are nested.

    Elements that hold no others or close by themselves do not count, nor does markup in scripts.
    """
    deepest = current = 0
    for close, name in TAG.findall(NOT_MARKUP.sub("", page)):
        if name.lower() not in SHALLOW:
            current = max(0, current - 1) if close else current + 1
            deepest = max(deepest, current)
    return deepest


def is_html(content_type: str, body: bytes) -> bool:
    """Tell whether a page is HTML, by its content type or, without one, by its first bytes."""
    if content_type:
        return "html" in content_type
    return bool(LOOKS_LIKE_HTML.search(body[:META_WITHIN]))


def decode(body: bytes, declared: str) -> str:
    """Decode a page, whatever its server and its meta element claim.

    declared: the charset that the server claims, or "". A claim is believed if the bytes agree with
    it. UTF-8 needs no claim: other encodings are hardly ever valid UTF-8 by chance, and many
    servers declare latin-1 by default.
    """
    for mark, name in BYTE_ORDER_MARKS:
        if body.startswith(mark):
            return body.decode(name, "replace")
    if b"\0" not in body and b"\x1b$" not in body and (text := decode_utf8(body)) is not None:
        return text
    meta = META_CHARSET.search(body[:META_WITHIN])
    for claim in (declared, meta[1].decode("ascii") if meta else ""):
        # latin-1 means windows-1252: https://encoding.spec.whatwg.org/#names-and-labels
        name = map_encoding_to_html5(claim) if claim else None
        if name and name.lower() != "utf-8":
            try:
                return body.decode(name)
            except (UnicodeDecodeError, LookupError):
                continue
    return body.decode(detect_encoding(body), "replace")


def decode_utf8(body: bytes) -> str | None:
    """Decode UTF-8; return None for bytes in another encoding.

    The last character may be cut, and bytes may be wrong, as long as more characters beyond ASCII
    are right than wrong.
    """
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(body, final=False)
    except UnicodeDecodeError:
        text = body.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    right = len(text) - wrong - sum(map(len, re.findall(r"[\x00-\x7f]+", text)))
    return text if right > wrong else None


def tidy(text: str) -> str:
    """Normalise a text: NFC, plain spaces, no control characters, single blank lines."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    text = TABS.sub("\t", UNPRINTABLE.sub("", text.replace("\xa0", " ")))
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    return BLANK_LINES.sub("\n\n", lines).strip("\n")
