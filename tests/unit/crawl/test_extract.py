"""From bytes to text: charsets, languages, hostile pages, and how near the text comes to what people took out."""

import codecs
import gzip
import random
import time
from pathlib import Path

import lxml.html
import pytest
import trafilatura

from crawl2cart.crawl.embedded_web.html_pages import Renderer
from crawl2cart.crawl.embedded_web.sites import gold_text, read_sites
from crawl2cart.crawl.evaluate import token_f1
from crawl2cart.crawl.extract.extract import (
    ENGLISH,
    TooDeep,
    careful_text,
    decode,
    depth,
    depth_bound,
    html_to_text,
    main_text,
)
from crawl2cart.crawl.filters.language import language, may_be
from tests.conftest import ROOT

SENTENCES = {
    "en": "Nobody at the harbour remembers who painted the boathouse yellow, but everyone agrees that it was done at night.",
    "de": "Niemand am Hafen weiß noch, wer das Bootshaus gelb gestrichen hat, aber alle sagen, dass es nachts geschah.",
    "fr": "Personne au port ne se souvient de qui a peint le hangar en jaune, mais tout le monde dit que c'était la nuit.",
    "es": "Nadie en el puerto recuerda quién pintó de amarillo el cobertizo, pero todos dicen que lo hicieron de noche.",
    "it": "Nessuno al porto ricorda chi abbia dipinto di giallo la rimessa, ma tutti dicono che è stato fatto di notte.",
    "pl": "Nikt w porcie nie pamięta, kto pomalował szopę na żółto, ale wszyscy mówią, że stało się to w nocy.",
    "nl": "Niemand in de haven weet nog wie het botenhuis geel heeft geverfd, maar iedereen zegt dat het 's nachts gebeurde.",
    "ru": "Никто в гавани не помнит, кто выкрасил сарай в жёлтый цвет, но все говорят, что это было ночью.",
    "ja": "港の誰も、誰が船小屋を黄色に塗ったのか覚えていないが、夜のうちに塗られたことだけは皆が知っている。",
    "tr": "Limanda kayıkhaneyi kimin sarıya boyadığını kimse hatırlamıyor, ama herkes bunun gece yapıldığını söylüyor.",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_ten_languages_are_told_apart(code):
    found, score = language(SENTENCES[code])
    assert found == code and 0.6 < score <= 1
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


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 190_000,
        "<div>x" * 5000 + "</div>" * 5000,
        "<i><b><u><a>" * 80_000,
        "<table><tr><td>" * 5000,
    ],
)
def test_a_page_nested_without_end_is_refused_at_once(page):
    """Resiliparse takes minutes for the first of these: one such page in a crawl would stop it."""
    started = time.monotonic()
    with pytest.raises(TooDeep):
        html_to_text(page.encode(), "")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "page",
    [
        "<p>word" * 5000,
        "<br>word" * 5000,
        "<ul>" + "<li>word" * 5000,
        "<div><b>word</b></div>" * 5000,
        "<p>word<script>" + "document.write('<div><div>');" * 3000 + "</script>",
        "<p>word<!-- " + "<div>" * 3000 + " -->",
        "<table>" + "<tr><td>word" * 3000,
    ],
)
def test_a_long_page_is_not_a_deep_one(page):
    page = f"<html><body><div><p>Start.</p>{page}</div></body></html>"
    assert depth(page) < 20
    assert "Start." in html_to_text(page.encode(), "")


def gold_pages(shared_data: Path) -> list[tuple[str, str]]:
    """Real pages, and the text that Readability's authors want of each."""
    pages = []
    for source in sorted((shared_data / "extraction_gold").glob("*__source.html.gz")):
        expected = gzip.decompress(
            source.with_name(source.name.replace("__source", "__expected")).read_bytes()
        )
        pages.append(
            (
                gzip.decompress(source.read_bytes()).decode(),
                lxml.html.fromstring(expected.decode()).text_content(),
            )
        )
    return pages


def mean_f1(pages: list[tuple[str, str]], extract) -> float:
    return sum(token_f1(extract(page), gold) for page, gold in pages) / len(pages)


def test_the_cascade_is_better_than_each_of_its_parts_on_pages_of_others(shared_data):
    pages = gold_pages(shared_data)
    assert len(pages) >= 130
    pages = pages[::3]
    assert all(depth(page) <= depth_bound(page) and depth(page) < 400 for page, _ in pages)
    cascade = mean_f1(pages, lambda page: html_to_text(page.encode(), "utf-8"))
    fast = mean_f1(
        pages, lambda page: html_to_text(page.encode(), "utf-8", extractor="resiliparse")
    )
    other = mean_f1(
        pages, lambda page: trafilatura.extract(page, fast=True, include_comments=False) or ""
    )
    assert cascade > 0.94 and cascade > fast > 0.92 and cascade > other


def test_our_own_pages_come_out_by_each_extractor():
    """Only of sites that are there to tune on; the others are measured by the filter."""
    pages = [
        page
        for page in read_sites(ROOT / "data/web/sites")
        if not page.site.held_out
        and page.front.serve.content_type == "text/html"
        and len(gold_text(page).split()) >= 120
    ]
    renderer = Renderer(ROOT / "data/web/designs", pages)
    pages = [(renderer.document(page), gold_text(page)) for page in pages[::3]]
    scores = {
        extractor: mean_f1(pages, lambda page, way=extractor: main_text(page, way, ENGLISH))
        for extractor in ("cascade", "resiliparse", "trafilatura")
    }
    assert scores["cascade"] > 0.96 and scores["cascade"] > max(
        scores["resiliparse"], scores["trafilatura"]
    )


def test_a_page_that_a_table_lays_out_loses_its_menu():
    prose = (
        "<p>" + "The lamp was lit at dusk and seen from the farthest of the skerries. " * 9 + "</p>"
    )
    page = (
        f"<html><body><table><tr><td>Home Ring Guestbook<br>You are visitor 7</td><td><h1>Lamps</h1>{prose}</td></tr>"
        "<tr><td colspan=2>Best at 800 x 600</td></tr></table></body></html>"
    )
    for extractor in ("cascade", "resiliparse", "trafilatura"):
        text = html_to_text(page.encode(), "", extractor)
        assert "skerries" in text and "visitor" not in text and "800 x 600" not in text, extractor


def test_a_table_of_data_stays_whole():
    rows = "".join(
        f"<tr><td>{boat}</td><td>{weight} kg</td></tr>"
        for boat, weight in (("Margaret", 2900), ("Gull", 1140))
    )
    prose = "<p>" + "The winch on the slip has pulled up every boat in the bay since. " * 9 + "</p>"
    page = f"<html><body><article>{prose}<table>{rows}</table>{prose}</article></body></html>"
    for extractor in ("cascade", "resiliparse", "trafilatura"):
        assert "Margaret\t2900 kg\nGull\t1140 kg" in html_to_text(page.encode(), "", extractor), (
            extractor
        )


def test_answers_that_trafilatura_loses_are_found_by_the_cascade():
    posts = "".join(
        f'<div class="post"><div class="postbody"><div class="content"><p>{"Grease the pawl, not the teeth. " * 4}'
        f"Answer {number}.</p></div></div></div><hr>"
        for number in range(20)
    )
    page = f"<html><body><div><p>{'Which grease for a winch in salt water? ' * 3}</p>{posts}</div></body></html>"
    text = html_to_text(page.encode())
    assert all(f"Answer {number}." in text for number in range(20))


@pytest.mark.parametrize("extractor", ["cascade", "resiliparse", "trafilatura"])
def test_no_bytes_break_an_extractor(extractor):
    """Random damage to a page, which may cut, double or garble any of its tags and characters."""
    page = read_sites(ROOT / "data/web/sites")[0]
    whole = Renderer(ROOT / "data/web/designs", [page]).document(page).encode()
    for seed in range(60):
        draw = random.Random(seed)
        bytes_ = bytearray(whole)
        for _ in range(draw.randint(1, 40)):
            place, size = draw.randrange(len(bytes_)), draw.randint(1, 200)
            bytes_[place : place + size] = draw.choice(
                [b"", b"<table>", b"</", b"\0", b"&#0;<![CDATA[", draw.randbytes(size)]
            )
        assert isinstance(html_to_text(bytes(bytes_), "", extractor), str)
    for odd in (
        b"",
        b"<",
        b"\xff\xfe",
        b"<?xml version='1.0' encoding='utf-7'?><p>x</p>",
        b"<html></html>",
        b"\0" * 99,
    ):
        assert isinstance(html_to_text(odd, "", extractor), str)


def test_tables_and_lists_of_trafilatura_look_like_those_of_resiliparse():
    page = (
        "<html><body><article><p>"
        + "The keeper wrote the times down every night. " * 9
        + "</p><ul><li>one pawl</li><li>a pin</li></ul><p>"
        + "He has not missed one since the war. " * 9
        + "</p></article></body></html>"
    )
    assert "\n\n- one pawl\n- a pin\n\nHe has" in careful_text(page)
