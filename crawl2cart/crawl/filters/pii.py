"""Mask personal data in a text: e-mail addresses, card numbers, IP addresses, telephone numbers.

Each kind is found by its form and by the words before it. The masks are those of Dolma (Soldaini et
al. 2024, section 3.2, https://arxiv.org/abs/2402.00159). E-mail addresses follow the HTML standard
(https://html.spec.whatwg.org/#valid-e-mail-address), card numbers ISO/IEC 7812 with its check
digit. Look-alikes stay: versions, ISBNs, order and part numbers, dates, prices, private addresses.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

EMAIL = re.compile(
    r"(?<![\w.!#$%&'*+/=?^`{|}~-])[\w.!#$%&'*+/=?^`{|}~-]{1,64}"
    r"@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])"
)
LONGEST_LOCAL_PART = 64
LOCAL_PART = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+\Z")
IPV4 = re.compile(r"(?<![\w.:/-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
# The look-behind comes second: re scans for a first character much faster than it looks back.
IPV6 = re.compile(r"[23](?<![\w.:].)[0-9a-f]{3}:[0-9a-f:]{2,34}(?<!:)(?![\w:])", re.IGNORECASE)
CARD = re.compile(r"(?<![\w.-])(?<!\d )\d(?:[ -]?\d){12,18}(?![\w-]| \d)")
# ISO/IEC 7812 ranges of Visa, Mastercard (two), American Express, Discover, Diners Club, JCB.
CARD_ISSUER = re.compile(
    r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|6011|65|64[4-9]|30[0-5]|3[689]"
    r"|35(?:2[89]|[3-8])"
)
CARD_LENGTHS = (13, 14, 15, 16, 19)
# A number without + or brackets may touch no letter, digit, sign of currency or hyphen.
ALONE_BEFORE, ALONE_AFTER = (
    r"(?<![\w.,$€£/+-])(?<!\d )(?<!\d, )(?<![$€£] )",
    r"(?![-/]?\w|[.,]\d| \d{3})",
)
INTERNATIONAL = re.compile(
    r"(?<![\w+])\+\d{1,3}(?:[ .-]?\(\d{1,4}\))?(?:[ .-]?\d{1,5}){2,6}(?![-/]?\w|[.,]\d)"
)
BRACKETED = re.compile(
    r"(?<!\w)(?:\+?\d{1,3}[ .-]?)?\(\d{2,5}\)[ .-]{0,2}\d{3,4}[ .-]?\d{3,4}" + ALONE_AFTER
)
NATIONAL = re.compile(
    ALONE_BEFORE
    + r"(?:(?:1[ .-])?\d{3}([ .-])\d{3}\1\d{4}|0\d{2,4}[ .-]\d{3,4}[ .-]?\d{3,4})"
    + ALONE_AFTER
)
LOCAL = re.compile(ALONE_BEFORE + r"[2-9]\d\d[ .-]\d{4}" + ALONE_AFTER)
UNSEPARATED = re.compile(ALONE_BEFORE + r"\d{10,11}" + ALONE_AFTER)
# Words before a number that counts or names a thing.
NAMES_A_THING = re.compile(
    r"\b(?:part|ticket|order|item|model|serial|lot|ref(?:erence)?|case|catalogue|catalog|article"
    r"|invoice|account|code|isbn|issn|id|sku|batch|product|patent|series|number starts at)"
    r"(?: (?:no|number|code|id|nr))?[.:#]{0,2} ?$",
    re.IGNORECASE,
)
# Words without which ten digits in a row are no telephone number.
SAYS_PHONE = re.compile(
    r"\b(?:phone|telephone|tel|call|ring|dial|text|mobile|cell|fax|whatsapp|contact|reach)\b",
    re.IGNORECASE,
)
# Words before four numbers with points that are a version or a chapter.
SAYS_VERSION = re.compile(
    r"\b(?:v|ver|version|release|build|firmware|driver|section|chapter|clause|figure|table|model|code|folio"
    r"|drawing|page|part)s?(?: (?:no|number|numbered|code|of|is))*[.:#]? ?$",
    re.IGNORECASE,
)
SAYS_ADDRESS = re.compile(r"\b(?:ip|address|host|server|ping|gateway|dns|router)\b", re.IGNORECASE)
# All number patterns but IPV6 match inside such a stretch and look at most LOOK_AHEAD characters
# beyond it. Searching the stretches only gives the same matches in a fifth of the time.
STRETCH = re.compile(r"[+(\d][+\d ().-]{6,}")
LOOK_AHEAD = 4
BEFORE = 40  # characters before a number that are searched for words
# All four numbers are below 64 in one of 256 addresses, but in nearly all versions and chapters.
SMALL = 64
# RFC 6890: this host, private, loopback, link-local; from 224 on multicast and reserved.
NOT_PUBLIC = [
    ipaddress.ip_network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "224.0.0.0/3",
    )
]


class Span(NamedTuple):
    """A stretch of a text: characters start to end."""

    start: int
    end: int


def mask_emails(text: str) -> tuple[str, int]:
    """Replace each e-mail address by |||EMAIL_ADDRESS|||; return the text and their number."""
    return replace(text, emails, "|||EMAIL_ADDRESS|||")


def mask_phones(text: str) -> tuple[str, int]:
    """Replace each telephone number by |||PHONE_NUMBER|||; return the text and their number."""
    return replace(text, phones, "|||PHONE_NUMBER|||")


def mask_ips(text: str) -> tuple[str, int]:
    """Replace each public IPv4 or IPv6 address by |||IP_ADDRESS|||; return text and number."""
    return replace(text, ips, "|||IP_ADDRESS|||")


def mask_cards(text: str) -> tuple[str, int]:
    """Replace each payment card number by |||CARD_NUMBER|||; return the text and their number."""
    return replace(text, cards, "|||CARD_NUMBER|||")


def mask(text: str) -> tuple[str, dict[str, int]]:
    """Mask all kinds of personal data; return the text and the number of spans of each kind."""
    counts = {}
    for kind, mask_kind in MASKS.items():
        text, counts[kind] = mask_kind(text)
    return text, counts


def replace(text: str, find: Callable[[str], Iterator[Span]], word: str) -> tuple[str, int]:
    """Replace each span that `find` yields by `word`; return the text and the number of spans."""
    parts, position, count = [], 0, 0
    for start, end in find(text):
        parts += [text[position:start], word]
        position, count = end, count + 1
    return "".join(parts) + text[position:], count


def numbers(text: str, *patterns: re.Pattern) -> list[list[re.Match]]:
    """Return the matches of each of these number patterns, as `finditer` would find them."""
    stretches = [stretch.span() for stretch in STRETCH.finditer(text)]
    return [
        [
            match
            for start, end in stretches
            for match in pattern.finditer(text, start, end + LOOK_AHEAD)
        ]
        for pattern in patterns
    ]


def emails(text: str) -> Iterator[Span]:
    """Yield the e-mail addresses in order, searched from each at sign."""
    end = 0
    at = text.find("@")
    while at >= 0:
        local = LOCAL_PART.search(text, max(end, at - LONGEST_LOCAL_PART - 1), at)
        if local and (match := EMAIL.match(text, local.start())):
            yield Span(*match.span())
            end = match.end()
        at = text.find("@", max(end, at + 1))


def ips(text: str) -> Iterator[Span]:
    """Yield the public IP addresses in order."""
    [quads] = numbers(text, IPV4)
    matches = [match for match in quads if is_public_address(match)]
    if ":" in text:
        matches += [match for match in IPV6.finditer(text) if parse_ip(match[0]) is not None]
    yield from sorted(Span(*match.span()) for match in matches)


def is_public_address(match: re.Match) -> bool:
    """Tell whether four numbers with points are the public address of a machine."""
    address = parse_ip(match[0])
    if address is None or any(address in block for block in NOT_PUBLIC):
        return False
    before = match.string[max(0, match.start() - BEFORE) : match.start()]
    small = all(int(number) < SMALL for number in match[0].split("."))
    return not SAYS_VERSION.search(before) and not (small and not SAYS_ADDRESS.search(before))


def parse_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def cards(text: str) -> Iterator[Span]:
    """Yield the card numbers in order: issuer, length and check digit must fit."""
    [matches] = numbers(text, CARD)
    for match in matches:
        digits = re.sub("[ -]", "", match[0])
        if len(digits) in CARD_LENGTHS and CARD_ISSUER.match(digits) and luhn(digits):
            yield Span(*match.span())


def luhn(digits: str) -> bool:
    """Tell whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def phones(text: str) -> Iterator[Span]:
    """Yield the telephone numbers in order, none inside another.

    With + or brackets; ten digits with separators; seven, as people give them within a town; ten
    in a row after a word such as phone.
    """
    patterns = (INTERNATIONAL, BRACKETED, NATIONAL, LOCAL, UNSEPARATED)
    international, bracketed, *others = numbers(text, *patterns)
    spans = [Span(*match.span()) for match in international if 8 <= digit_count(match[0]) <= 15]
    spans += [Span(*match.span()) for match in bracketed if 7 <= digit_count(match[0]) <= 15]
    for matches, needs_word in zip(others, (False, False, True), strict=True):
        for match in matches:
            before = text[max(0, match.start() - BEFORE) : match.start()]
            if not NAMES_A_THING.search(before) and (not needs_word or SAYS_PHONE.search(before)):
                spans.append(Span(*match.span()))
    end = 0
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if span.start >= end:
            yield span
            end = span.end


def digit_count(text: str) -> int:
    return sum(map(str.isdigit, text))


# Cards come before telephone numbers, which are shorter. What is masked is not searched again.
FINDERS = {"email": emails, "card": cards, "ip": ips, "phone": phones}
MASKS = {"email": mask_emails, "card": mask_cards, "ip": mask_ips, "phone": mask_phones}
