"""Personal data in a text, each kind found by its form and its neighbourhood and replaced by a word of its own.

The replacements are those of Dolma (Soldaini et al. 2024, section 3.2, https://arxiv.org/abs/2402.00159). E-mail addresses
follow the HTML standard (https://html.spec.whatwg.org/#valid-e-mail-address), card numbers ISO/IEC 7812 with its check
digit. What only looks alike stays: versions, ISBNs, order and part numbers, dates, prices, addresses inside one network.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

EMAIL = re.compile(
    r"(?<![\w.!#$%&'*+/=?^`{|}~-])[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])"
)
LONGEST_LOCAL_PART = 64
LOCAL_PART = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+\Z")
IPV4 = re.compile(r"(?<![\w.:/-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
# The check of what stands before comes second here: re scans for a first character much faster than it looks back.
IPV6 = re.compile(r"[23](?<![\w.:].)[0-9a-f]{3}:[0-9a-f:]{2,34}(?<!:)(?![\w:])", re.IGNORECASE)
CARD = re.compile(r"(?<![\w.-])(?<!\d )\d(?:[ -]?\d){12,18}(?![\w-]| \d)")
# ISO/IEC 7812 ranges of Visa, Mastercard (two), American Express, Discover, Diners Club, JCB.
CARD_ISSUER = re.compile(
    r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|6011|65|64[4-9]|30[0-5]|3[689]|35(?:2[89]|[3-8])"
)
CARD_LENGTHS = (13, 14, 15, 16, 19)
# A number by itself is a number of anything: no letter, digit, sign of currency or hyphen may touch it.
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
# What stands before a number that counts or names a thing ...
NAMES_A_THING = re.compile(
    r"\b(?:part|ticket|order|item|model|serial|lot|ref(?:erence)?|case|catalogue|catalog|article|invoice|account|code|isbn|issn|id"
    r"|sku|batch|product|patent|series|number starts at)(?: (?:no|number|code|id|nr))?[.:#]{0,2} ?$",
    re.IGNORECASE,
)
# ... before one that ten digits in a row need to be believed ...
SAYS_PHONE = re.compile(
    r"\b(?:phone|telephone|tel|call|ring|dial|text|mobile|cell|fax|whatsapp|contact|reach)\b",
    re.IGNORECASE,
)
# ... and before four numbers with points that are a version or a chapter.
SAYS_VERSION = re.compile(
    r"\b(?:v|ver|version|release|build|firmware|driver|section|chapter|clause|figure|table|model|code|folio"
    r"|drawing|page|part)s?(?: (?:no|number|numbered|code|of|is))*[.:#]? ?$",
    re.IGNORECASE,
)
SAYS_ADDRESS = re.compile(r"\b(?:ip|address|host|server|ping|gateway|dns|router)\b", re.IGNORECASE)
# All numbers below, those of IPv6 aside, lie in a stretch of these characters, and their patterns look at most LOOKED_AHEAD
# characters beyond it. Looking for them only there finds the same in a fifth of the time.
STRETCH = re.compile(r"[+(\d][+\d ().-]{6,}")
LOOKED_AHEAD = 4
BEFORE = 40  # characters before a number that are read
# All four numbers of an address are below 64 in one of 256, of a version or a chapter nearly always.
SMALL = 64
# This host, private, loopback, link-local; multicast and reserved follow from 224 on. RFC 6890.
INSIDE = [
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
    """The text with |||EMAIL_ADDRESS||| for each e-mail address, and how many there were."""
    return replace(text, emails, "|||EMAIL_ADDRESS|||")


def mask_phones(text: str) -> tuple[str, int]:
    """The text with |||PHONE_NUMBER||| for each telephone number, and how many there were."""
    return replace(text, phones, "|||PHONE_NUMBER|||")


def mask_ips(text: str) -> tuple[str, int]:
    """The text with |||IP_ADDRESS||| for each IPv4 or IPv6 address of the open internet, and how many there were."""
    return replace(text, ips, "|||IP_ADDRESS|||")


def mask_cards(text: str) -> tuple[str, int]:
    """The text with |||CARD_NUMBER||| for each number of a payment card, and how many there were."""
    return replace(text, cards, "|||CARD_NUMBER|||")


def mask(text: str) -> tuple[str, dict[str, int]]:
    """The text with all kinds masked, the longest first, and the count of each kind."""
    counts = {}
    for kind, masked in MASKS.items():
        text, counts[kind] = masked(text)
    return text, counts


def replace(text: str, find: Callable[[str], Iterator[Span]], word: str) -> tuple[str, int]:
    parts, position, count = [], 0, 0
    for start, end in find(text):
        parts += [text[position:start], word]
        position, count = end, count + 1
    return "".join(parts) + text[position:], count


def numbers(text: str, *patterns: re.Pattern) -> list[list[re.Match]]:
    """What `finditer` finds in the text for each of these patterns of numbers."""
    stretches = [stretch.span() for stretch in STRETCH.finditer(text)]
    return [
        [
            match
            for start, end in stretches
            for match in pattern.finditer(text, start, end + LOOKED_AHEAD)
        ]
        for pattern in patterns
    ]


def emails(text: str) -> Iterator[Span]:
    end = 0
    at = text.find("@")
    while at >= 0:
        local = LOCAL_PART.search(text, max(end, at - LONGEST_LOCAL_PART - 1), at)
        if local and (match := EMAIL.match(text, local.start())):
            yield Span(*match.span())
            end = match.end()
        at = text.find("@", max(end, at + 1))


def ips(text: str) -> Iterator[Span]:
    [fours] = numbers(text, IPV4)
    found = [match for match in fours if is_address(match)]
    if ":" in text:
        found += [match for match in IPV6.finditer(text) if parses(match[0]) is not None]
    yield from sorted(Span(*match.span()) for match in found)


def is_address(match: re.Match) -> bool:
    """Whether four numbers are an address that names a machine to the world."""
    address = parses(match[0])
    if address is None or any(address in block for block in INSIDE):
        return False
    before = match.string[max(0, match.start() - BEFORE) : match.start()]
    small = all(int(number) < SMALL for number in match[0].split("."))
    return not SAYS_VERSION.search(before) and not (small and not SAYS_ADDRESS.search(before))


def parses(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def cards(text: str) -> Iterator[Span]:
    [found] = numbers(text, CARD)
    for match in found:
        digits = re.sub("[ -]", "", match[0])
        if len(digits) in CARD_LENGTHS and CARD_ISSUER.match(digits) and luhn(digits):
            yield Span(*match.span())


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others: ISO/IEC 7812-1, annex B."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def phones(text: str) -> Iterator[Span]:
    """Telephone numbers: with + or brackets, of ten digits with their separators, of seven as people give them in one
    town, and ten in a row after a word that says so."""
    international, bracketed, *others = numbers(
        text, INTERNATIONAL, BRACKETED, NATIONAL, LOCAL, UNSEPARATED
    )
    found = [Span(*match.span()) for match in international if 8 <= digit_count(match[0]) <= 15]
    found += [Span(*match.span()) for match in bracketed if 7 <= digit_count(match[0]) <= 15]
    for matches, needs_word in zip(others, (False, False, True), strict=True):
        for match in matches:
            before = text[max(0, match.start() - BEFORE) : match.start()]
            if not NAMES_A_THING.search(before) and (not needs_word or SAYS_PHONE.search(before)):
                found.append(Span(*match.span()))
    end = 0
    for span in sorted(found, key=lambda span: (span.start, -span.end)):
        if span.start >= end:
            yield span
            end = span.end


def digit_count(text: str) -> int:
    return sum(map(str.isdigit, text))


# Cards before telephone numbers, which are shorter; what is masked is not looked at again.
FINDERS = {"email": emails, "card": cards, "ip": ips, "phone": phones}
MASKS = {"email": mask_emails, "card": mask_cards, "ip": mask_ips, "phone": mask_phones}
