"""Find real names and real domains in a text: all data that ships is invented."""

import re

from tools.repro import ROOT

ENDINGS = "com net org edu gov io co uk de fr nl no se eu us info biz shop store app dev ai me tv"
DOMAIN = re.compile(rf"(?<![\w.-])[\w-]+(?:\.[\w-]+)*\.(?:{ENDINGS.replace(' ', '|')})\b")
RESERVED = re.compile(r"(?:^|\.)example\.(?:com|net|org)$|\.example$")  # RFC 2606, RFC 6761
NAMES = re.compile(
    r"(?<![\w-])(?:"
    + "|".join(map(re.escape, (ROOT / "tools/real_names.txt").read_text().split()))
    + r")(?!\w)"
)


def real_names(text: str) -> list[str]:
    """Return the real brands, towns and persons that a text names, of tools/real_names.txt."""
    return NAMES.findall(text)


def real_domains(text: str) -> list[str]:
    """Return the domains in a text, of e-mail addresses too, that are not reserved for examples."""
    domains = [*DOMAIN.findall(text), *re.findall(r"@([\w-]+(?:\.[\w-]+)+)", text)]
    return list(dict.fromkeys(domain for domain in domains if not RESERVED.search(domain)))
