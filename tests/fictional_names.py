"""Whether what ships is invented: names and domains that somebody outside bears. Shared by the tests of data/."""

import re

from tests.conftest import ROOT

ENDINGS = "com net org edu gov io co uk de fr nl no se eu us info biz shop store app dev ai me tv"
DOMAIN = re.compile(rf"(?<![\w.-])[\w-]+(?:\.[\w-]+)*\.(?:{ENDINGS.replace(' ', '|')})\b")
SET_ASIDE = re.compile(r"(?:^|\.)example\.(?:com|net|org)$|\.example$")  # RFC 2606, RFC 6761
NAMES = re.compile(
    r"(?<![\w-])(?:"
    + "|".join(map(re.escape, (ROOT / "tests/real_names.txt").read_text().split()))
    + r")(?!\w)"
)


def real_names(text: str) -> list[str]:
    """The brands, towns and persons of the world outside that a text names; tests/real_names.txt lists them."""
    return NAMES.findall(text)


def real_domains(text: str) -> list[str]:
    """The domains in a text, of addresses too, that are not set aside for examples."""
    found = [*DOMAIN.findall(text), *re.findall(r"@([\w-]+(?:\.[\w-]+)+)", text)]
    return list(dict.fromkeys(domain for domain in found if not SET_ASIDE.search(domain)))
