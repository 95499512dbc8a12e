"""Find names and domains in our invented texts that somebody in the real world bears."""

import re
from pathlib import Path

ENDINGS = "com net org edu gov io co uk de fr nl no se eu us info biz shop store app dev ai me tv"
DOMAIN = re.compile(rf"(?<![\w.-])[\w-]+(?:\.[\w-]+)*\.(?:{ENDINGS.replace(' ', '|')})\b")
RESERVED = re.compile(r"(?:^|\.)example\.(?:com|net|org)$|\.example$")  # RFC 2606, RFC 6761
NAMES = (Path(__file__).parent / "real_names.txt").read_text().split()
NAME = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, NAMES))})(?!\w)")


def real_names(text: str) -> list[str]:
    """Return the real brands, towns and persons that a text names, by tools/real_names.txt."""
    return NAME.findall(text)


def real_domains(text: str) -> list[str]:
    """Return the domains in a text, of e-mails too, that are not reserved for examples."""
    domains = [*DOMAIN.findall(text), *re.findall(r"@([\w-]+(?:\.[\w-]+)+)", text)]
    return list(dict.fromkeys(domain for domain in domains if not RESERVED.search(domain)))
