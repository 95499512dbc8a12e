"""Personal data is found in the forms people write it in, and what looks alike is left alone."""

import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crawl2cart.crawl.embedded_web.sites import read_sites
from crawl2cart.crawl.evaluate import pii_quality, read_labels, read_spans
from crawl2cart.crawl.filters.pii import (
    BRACKETED,
    CARD,
    EMAIL,
    INTERNATIONAL,
    IPV4,
    LOCAL,
    NATIONAL,
    UNSEPARATED,
    emails,
    luhn,
    mask,
    mask_cards,
    mask_emails,
    mask_ips,
    mask_phones,
    numbers,
)
from tests.conftest import ROOT
from tests.unit.crawl.samples import examples

SENTENCE = "Feel free to contact me at {} if the winch slips again."


@pytest.mark.parametrize(
    "address",
    [
        "odile@saltnes.example",
        "o.mend+slip@post.saltnes.example",
        "ODILE_9@saltnes-slip.example.org",
        "d'arcy@saltnes.example",
        "x@y.co.example",
        "käthe@saltnes.example",
    ],
)
def test_email_addresses_go(address):
    for text in (
        SENTENCE.format(address),
        f"<{address}>",
        f"({address}),",
        f"mailto:{address}.",
        f"{address}\n",
    ):
        assert mask_emails(text) == (text.replace(address, "|||EMAIL_ADDRESS|||"), 1), text


@pytest.mark.parametrize(
    "text",
    [
        "@saltnes on the board",
        "a @ b",
        "5 lamps @ $3.50",
        "odile@saltnes",
        "user@@saltnes.example.",
        "|||EMAIL_ADDRESS||| was here",
        "import x@1.2.3",
    ],
)
def test_what_is_no_email_address_stays(text):
    assert mask_emails(text) == (text, 0)


@pytest.mark.parametrize(
    "number",
    [
        "2831823829",
        "(283)-182-3829",
        "(283) 182 3829",
        "283-182-3829",
        "283.182.3829",
        "1-283-182-3829",
        "+1 283 182 3829",
        "+44 20 7946 0958",
        "+44 (0)20 7946 0958",
        "+49 30 901820",
        "+33 1 99 00 12 34",
        "020 7946 0958",
        "(020) 7946 0958",
        "(555) 555-0163",
        "555-0163",
        "555 0163",
        "555.0163",
    ],
)
def test_telephone_numbers_go(number):
    text = SENTENCE.format(number)
    assert mask_phones(text) == (text.replace(number, "|||PHONE_NUMBER|||"), 1)


@pytest.mark.parametrize(
    "text",
    [
        "Spare stylus is part 555-0733, in stock.",
        "reference 555-0912-B was lost",
        "catalogue 555-0830/K",
        "lot 277, ticket 555-0417",
        "from 2019-2024 and 1914-1918",
        "on 2024-05-11 at 10:30",
        "ISBN 978-0-555-01843-2",
        "order 123-4567890-1234567",
        "$555 0144 raised",
        "1,234,567 and 12 345 678 people",
        "pages 555-0144a",
        "0.555-0144",
        "the years 1999 2000 2001 2002",
        "scores 12, 240, 119, 243 2015",
        "serial 2831823829",
        "built 2831823829 times",
        "8300 1177 2045 6608",
        "192.168.100.200",
    ],
)
def test_numbers_of_other_things_stay(text):
    assert mask_phones(text) == (text, 0)


@pytest.mark.parametrize(
    "address",
    [
        "192.0.2.44",
        "8.8.8.8",
        "203.0.113.140",
        "255.1.2.3".replace("255", "185"),
        "2001:db8:4c1:77::19",
        "2001:0DB8:0000:0000:0000:ff00:0042:8329",
        "2a00:1450:4001:81b::200e",
    ],
)
def test_addresses_of_the_internet_go(address):
    text = f"The address was {address}, as before. Posted from host {address}"
    assert mask_ips(text) == (text.replace(address, "|||IP_ADDRESS|||"), 2)


@pytest.mark.parametrize(
    "text",
    [
        "version 185.4.11.200",
        "firmware is 141.4.0.22",
        "v1.2.3.4",
        "see section 3.62.11.4",
        "folio 3.62.11.4",
        "300.1.2.3",
        "192.0.2",
        "1.192.0.2.44",
        "192.0.2.44.1",
        "to 127.0.0.1, 0.0.0.0, 10.4.11.2, 172.16.4.1, 192.168.0.9 and 224.0.0.251",
        "std::vector and a::b",
        "at 12:30:45",
        "::1",
        "fe80::1ff:fe23",
        "2001:db8",
        "2024:05:11",
        "weave 6.4.12.2 on the selvedge",
    ],
)
def test_versions_chapters_and_inner_addresses_stay(text):
    assert mask_ips(text) == (text, 0)


def test_card_numbers_go_if_issuer_length_and_check_digit_fit():
    for number in (
        "4111 1111 1111 1111",
        "5555-5555-5555-4444",
        "378282246310005",
        "6011 0009 9013 9424",
        "3530111333300000",
        "2223 0031 2200 3222",
        "3056 930902 5904",
    ):
        text = f"He read out {number}, a card."
        assert mask_cards(text) == (text.replace(number, "|||CARD_NUMBER|||"), 1)
        wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
        assert mask_cards(f"He read out {wrong}.")[1] == 0
    for text in (
        "978-0-306-40615-7",
        "8300 1177 2045 6608",
        "0000 0000 0000 0000",
        "4111 1111 1111 1111 2",
        "x4111111111111111",
        "41111111111111111111111",
    ):
        assert mask_cards(text) == (text, 0)


@examples(100)
@given(st.text("0123456789", min_size=15, max_size=15), st.integers(0, 15), st.integers(1, 9))
def test_luhn_finds_every_single_wrong_digit(start, place, difference):
    """What the check digit was made for; one of ten random numbers passes."""
    (whole,) = [start + last for last in "0123456789" if luhn(start + last)]
    digit = str((int(whole[place]) + difference) % 10)
    assert not luhn(whole[:place] + digit + whole[place + 1 :])


def test_masking_twice_changes_nothing_and_each_kind_is_counted():
    text = (
        "Odile (odile@saltnes.example, 555-0163) paid from 192.0.2.44 with 4111 1111 1111 1111. "
        "Ring 555-0163."
    )
    masked, counts = mask(text)
    assert counts == {"email": 1, "card": 1, "ip": 1, "phone": 2}
    assert masked == (
        "Odile (|||EMAIL_ADDRESS|||, |||PHONE_NUMBER|||) paid from |||IP_ADDRESS||| with "
        "|||CARD_NUMBER|||. Ring |||PHONE_NUMBER|||."
    )
    assert mask(masked) == (masked, dict.fromkeys(counts, 0))


@pytest.mark.parametrize(
    "part", ["1", "1 ", "1.", "a@", "a.", "::", "1-", "(1) ", "+1 ", "f:", "-", "a-"]
)
def test_no_text_takes_long(part):
    """Long runs of what a pattern may begin with, which makes a careless one try every split."""
    mask(part * 50_000)


@pytest.mark.parametrize("held_out", [False, True])
def test_the_embedded_pages_keep_hardly_any(held_out):
    labels = read_labels(ROOT / "data/web/labels.csv")
    pages = [page for page in read_sites(ROOT / "data/web/sites") if labels[page.url].keep]
    pages = [page for page in pages if page.site.held_out == held_out]
    quality = pii_quality(pages, read_spans(ROOT / "data/web/personal.csv"))
    assert quality["recall"] >= 0.98 and quality["n"] > 0
    if not held_out:
        assert quality["precision"] >= 0.95


def long_enough(matches: Iterable[re.Match]) -> list[tuple[int, int]]:
    """Numbers of fewer characters are not masked, so that they need not be found."""
    return [match.span() for match in matches if len(match[0]) >= 7]


PATTERNS = (IPV4, CARD, INTERNATIONAL, BRACKETED, NATIONAL, LOCAL, UNSEPARATED)
NUMBER_PARTS = "0|1|8|555|0163|8.8|.| |-|(|)|+|a|,|$|/|\n|٣|tel |4111 1111 ".split("|")


@examples(600)
@given(st.lists(st.sampled_from(NUMBER_PARTS), max_size=60).map("".join))
def test_a_search_in_stretches_of_digits_finds_what_a_search_of_the_text_does(text):
    everywhere = [long_enough(pattern.finditer(text)) for pattern in PATTERNS]
    assert list(map(long_enough, numbers(text, *PATTERNS))) == everywhere


def test_the_parts_make_numbers_of_every_kind():
    """The control of the test above."""
    text = (
        "8.8.8.8 a 4111 1111 4111 1111 a +1 555 0163 a (555) 0163 0163 a 555-555-0163 a 555-0163 "
        "a 5550163555"
    )
    assert all(long_enough(matches) for matches in numbers(text, *PATTERNS))


@examples(400)
@given(
    st.one_of(
        st.text("aaabbb.@@-9é \n", max_size=200),
        st.builds("{}@{}.example".format, st.integers(60, 70).map("a".__mul__), st.just("b" * 60)),
        st.builds("a@{}.example".format, st.integers(58, 68).map("b".__mul__)),
    )
)
def test_a_search_from_each_at_sign_finds_what_a_search_of_the_text_does(text):
    assert list(emails(text)) == [match.span() for match in EMAIL.finditer(text)]
