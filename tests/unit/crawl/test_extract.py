"""From bytes to text: charsets, languages, hostile pages, and the quality of the text."""

import codecs
import gzip
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import lxml.html
import pytest
import trafilatura
from hypothesis import given
from hypothesis import strategies as st

from crawl2cart.crawl.embedded_web.html_pages import Renderer
from crawl2cart.crawl.embedded_web.sites import Page, gold_text, read_sites
from crawl2cart.crawl.evaluate import token_f1
from crawl2cart.crawl.extract.extract import (
    ENGLISH,
    TooDeep,
    decode,
    depth,
    depth_bound,
    html_to_text,
    main_text,
    trafilatura_text,
)
from crawl2cart.crawl.filters.language import language, may_be
from tests.conftest import ROOT
from tests.unit.crawl.samples import examples

EXTRACTORS = ("cascade", "resiliparse", "trafilatura")
DESIGNS = sorted(
    file.name.removesuffix(".html.j2") for file in (ROOT / "data/web/designs").glob("*.j2")
)
SENTENCES = {
    "en": "Nobody at the harbour remembers who painted the boathouse yellow, but everyone agrees "
    "that it was done at night.",
    "de": "Niemand am Hafen weiß noch, wer das Bootshaus gelb gestrichen hat, aber alle sagen, "
    "dass es nachts geschah.",
    "fr": "Personne au port ne se souvient de qui a peint le hangar en jaune, mais tout le monde "
    "dit que c'était la nuit.",
    "es": "Nadie en el puerto recuerda quién pintó de amarillo el cobertizo, pero todos dicen que "
    "lo hicieron de noche.",
    "it": "Nessuno al porto ricorda chi abbia dipinto di giallo la rimessa, ma tutti dicono che è "
    "stato fatto di notte.",
    "pl": "Nikt w porcie nie pamięta, kto pomalował szopę na żółto, ale wszyscy mówią, że stało "
    "się to w nocy.",
    "nl": "Niemand in de haven weet nog wie het botenhuis geel heeft geverfd, maar iedereen zegt "
    "dat het 's nachts gebeurde.",
    "ru": "Никто в гавани не помнит, кто выкрасил сарай в жёлтый цвет, но все говорят, что это "
    "было ночью.",
    "ja": "港の誰も、誰が船小屋を黄色に塗ったのか覚えていないが、夜のうちに塗られたことだけは"
    "皆が知っている。",
    "tr": "Limanda kayıkhaneyi kimin sarıya boyadığını kimse hatırlamıyor, ama herkes bunun gece "
    "yapıldığını söylüyor.",
}


# ---- languages and charsets ----


@pytest.mark.parametrize("code", SENTENCES)
def test_ten_languages_are_told_apart(code):
    identified, score = language(SENTENCES[code])
    assert identified == code and 0.6 < score <= 1
    assert may_be(SENTENCES[code] * 3, frozenset({code, "eo"}))


def test_the_gate_refuses_what_is_far_off_and_passes_what_is_short():
    assert not may_be(SENTENCES["ru"] * 4, ENGLISH) and not may_be(SENTENCES["ja"] * 6, ENGLISH)
    assert may_be(SENTENCES["ru"], ENGLISH)
    assert language("  \n ") == ("", 0.0)


@pytest.mark.parametrize(
    ("text", "charset", "declared"),
    [
        (SENTENCES["fr"], "utf-8", "iso-8859-1"),
        (SENTENCES["fr"], "utf-8", ""),
        (SENTENCES["de"], "windows-1252", "windows-1252"),
        (SENTENCES["de"], "windows-1252", "utf-8"),
        (SENTENCES["ru"], "koi8-r", "koi8-r"),
        (SENTENCES["ru"], "windows-1251", ""),
        (SENTENCES["ja"], "shift_jis", "shift_jis"),
        (SENTENCES["ja"], "euc-jp", "no-such-charset"),
        (SENTENCES["ja"], "iso-2022-jp", "iso-2022-jp"),
        (SENTENCES["pl"], "utf-16", ""),
        ("The “pawl” – £3", "windows-1252", "latin-1"),
    ],
)
def test_charsets_are_found_whatever_is_claimed(text, charset, declared):
    page = f"<html><head><title>x</title></head><body><p>{text * 3}</p></body></html>"
    assert decode(page.encode(charset), declared) == page


def test_a_page_cut_within_a_character_or_with_few_wrong_bytes_stays_utf8():
    text = SENTENCES["ru"] * 3
    assert decode(text.encode() + "é".encode()[:1], "") == text
    rotten = text.encode()[:99] + b"\xff" + text.encode()[99:]
    assert "гавани" in decode(rotten, "")
    assert codecs.BOM_UTF8.decode() not in decode(codecs.BOM_UTF8 + text.encode(), "")


# ---- hostile pages ----


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 190_000,
        "<div>x" * 5000 + "</div>" * 5000,
        "<i><b><u><a>" * 80_000,
        "<table><tr><td>" * 5000,
    ],
)
def test_a_page_nested_without_end_is_refused(page):
    """Resiliparse takes minutes for the first of these: one such page would stop a crawl."""
    with pytest.raises(TooDeep):
        html_to_text(page.encode(), "")


@pytest.mark.parametrize(
    "page",
    [
        "<p>word" * 3000,
        "<br>word" * 3000,
        "<ul>" + "<li>word" * 3000,
        "<div><b>word</b></div>" * 3000,
        "<p>word<script>" + "document.write('<div><div>');" * 3000 + "</script>",
        "<p>word<!-- " + "<div>" * 3000 + " -->",
        "<table>" + "<tr><td>word" * 3000,
    ],
)
def test_a_long_page_is_not_a_deep_one(page):
    page = f"<html><body><div><p>Start.</p>{page}</div></body></html>"
    assert depth(page) < 20 and depth(page) <= depth_bound(page)
    assert "Start." in html_to_text(page.encode(), "", "resiliparse")


@pytest.fixture(scope="module")
def whole_page() -> bytes:
    page = read_sites(ROOT / "data/web/sites")[0]
    return Renderer(ROOT / "data/web/designs", [page]).document(page).encode()


ODD_PIECES = (b"", b"<table>", b"</", b"\0", b"&#0;<![CDATA[")


@pytest.mark.parametrize("extractor", EXTRACTORS)
@examples(30)
@given(draw=st.randoms(use_true_random=True))
def test_no_damage_to_a_page_breaks_an_extractor(extractor, whole_page, draw):
    damaged = bytearray(whole_page)
    for _ in range(draw.randint(1, 40)):
        place, size = draw.randrange(len(damaged)), draw.randint(1, 200)
        damaged[place : place + size] = draw.choice([*ODD_PIECES, draw.randbytes(size)])
    assert isinstance(html_to_text(bytes(damaged), "", extractor), str)


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<",
        b"\xff\xfe",
        b"<?xml version='1.0' encoding='utf-7'?><p>x</p>",
        b"<html></html>",
        b"\0" * 99,
    ],
)
def test_odd_pages_break_no_extractor(extractor, page):
    assert isinstance(html_to_text(page, "", extractor), str)


# ---- the main text ----


def mean_f1(pages: list[tuple[str, str]], extract) -> float:
    return sum(token_f1(extract(page), gold) for page, gold in pages) / len(pages)


def word_recall(text: str, gold: str) -> float:
    words, wanted = (Counter(re.findall(r"\w+", part.lower())) for part in (text, gold))
    return (words & wanted).total() / wanted.total()


def gold_pages(folder: Path, step: int) -> list[tuple[str, str]]:
    """Every step-th of the real pages, and the text that Readability's authors want of it."""
    sources = sorted((folder / "extraction_gold").glob("*__source.html.gz"))
    assert len(sources) >= 130
    pages = []
    for source in sources[::step]:
        expected = source.with_name(source.name.replace("__source", "__expected"))
        gold = lxml.html.fromstring(gzip.decompress(expected.read_bytes()).decode())
        pages.append((gzip.decompress(source.read_bytes()).decode(), gold.text_content()))
    return pages


def test_the_cascade_is_better_than_each_of_its_parts_on_pages_of_others(shared_data):
    pages = gold_pages(shared_data, 3)
    assert all(depth(page) <= depth_bound(page) and depth(page) < 400 for page, _ in pages)
    cascade, fast = (
        mean_f1(pages, lambda page, name=name: html_to_text(page.encode(), "utf-8", name))
        for name in ("cascade", "resiliparse")
    )
    theirs = mean_f1(
        pages, lambda page: trafilatura.extract(page, fast=True, include_comments=False) or ""
    )
    assert cascade > 0.94 and cascade > fast > 0.92 and cascade > theirs


@pytest.fixture(scope="module")
def prose_pages() -> list[Page]:
    """Embedded pages of some length, of sites to tune on: the filter measures the others."""
    return [
        page
        for page in read_sites(ROOT / "data/web/sites")
        if not page.site.held_out
        and page.front.serve.status == 200
        and page.front.serve.content_type == "text/html"
        and len(gold_text(page).split()) >= 120
    ]


def test_our_own_pages_come_out_best_by_the_cascade(prose_pages):
    renderer = Renderer(ROOT / "data/web/designs", prose_pages)
    pages = [(renderer.document(page), gold_text(page)) for page in prose_pages[::5]]
    cascade, *others = (
        mean_f1(pages, lambda page, name=name: main_text(page, name, ENGLISH))
        for name in EXTRACTORS
    )
    assert cascade > 0.96 and cascade > max(others)


@pytest.mark.parametrize("design", DESIGNS)
def test_the_main_text_comes_out_of_every_design(design, prose_pages):
    is_threaded = design in ("forum", "community")
    pages = [
        replace(page, site=page.site.model_copy(update={"design": design}))
        for page in prose_pages
        if bool(page.posts) == is_threaded
    ][:: 1 if is_threaded else 7]
    assert len(pages) >= 4
    renderer = Renderer(ROOT / "data/web/designs", pages)
    texts = [html_to_text(renderer.document(page).encode(), "utf-8") for page in pages]
    pairs = list(zip(texts, map(gold_text, pages), strict=True))
    assert mean_f1(pairs, lambda text: text) > 0.8
    assert sum(word_recall(text, gold) for text, gold in pairs) / len(pairs) > 0.97


PROSE = "<p>" + "The winch on the slip has pulled up every boat in the bay since. " * 9 + "</p>"


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_a_page_that_a_table_lays_out_loses_its_menu(extractor):
    page = (
        "<html><body><table><tr><td>Home Ring Guestbook<br>You are visitor 7</td>"
        f"<td><h1>Lamps</h1>{PROSE}</td></tr>"
        "<tr><td colspan=2>Best at 800 x 600</td></tr></table></body></html>"
    )
    text = html_to_text(page.encode(), "", extractor)
    assert "the slip" in text and "visitor" not in text and "800 x 600" not in text


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_a_table_of_data_stays_whole(extractor):
    rows = "<tr><td>Margaret</td><td>2900 kg</td></tr><tr><td>Gull</td><td>1140 kg</td></tr>"
    page = f"<html><body><article>{PROSE}<table>{rows}</table>{PROSE}</article></body></html>"
    assert "Margaret\t2900 kg\nGull\t1140 kg" in html_to_text(page.encode(), "", extractor)


def test_answers_that_trafilatura_loses_are_found_by_the_cascade():
    posts = "".join(
        f'<div class="post"><p>{"Grease the pawl, not the teeth. " * 4}Answer {number}.</p></div>'
        for number in range(20)
    )
    question = "Which grease for a winch in salt water? " * 6
    page = f"<html><body><article><p>{question}</p></article>{posts}</body></html>"
    answers = [f"Answer {number}." for number in range(20)]
    assert not any(answer in trafilatura_text(page) for answer in answers[1:])
    assert all(answer in html_to_text(page.encode()) for answer in answers)


def test_tables_and_lists_of_trafilatura_look_like_those_of_resiliparse():
    page = (
        f"<html><body><article>{PROSE}<ul><li>one pawl</li><li>a pin</li></ul>{PROSE}"
        "</article></body></html>"
    )
    assert "\n\n- one pawl\n- a pin\n\nThe winch" in trafilatura_text(page)
