"""Pages, sites and WARC records that the tests of several files use."""

import gzip
import random
from pathlib import Path

from hypothesis import settings

SITE = """
name = "Saltreeve Slipway Notes"
tagline = "What the tide left"
design = "blog"
language = "en"
held_out = false
nav = [["Start", "/"], ["Boats", "/boats/"], ["Rope", "/rope/"], ["About", "/about.html"]]
sidebar = ["Slip closed on Sundays", "Lost: one oar, left-handed"]
cookie = "We keep one crumb, to know you again."
footer = "Kept by Jory Penhallick, behind the ice house."
"""
PROSE = """The winch on the slip was bought in the year the herring failed, and it has pulled up
every boat in Saltreeve since. It has one fault. If the pawl is wet it slips a tooth, and whoever
holds the handle learns something about momentum.

## How we mended it

Odile brought a file and a thermos. We took the pawl off and found that the edge had worn round,
which *anybody* could have told us, and several did. She cut it back to a corner that would hold,
and we put grease where the grease goes - **not** on the teeth.

- one pawl, filed
- a new split pin, 4 mm
- café au lait, ordered by the vicar for £3

| Boat | Weight |
| --- | --- |
| Two Cousins | 1,140 kg |
| Patient Margaret | 2,900 kg |

That was in May. It has held the *Two Cousins* twice and the coal boat once, and the handle has hit
nobody.
"""
PLAIN_PROSE = PROSE.replace("|", "").replace("---", "")
GERMAN = "Niemand am Hafen weiß noch, wer das Bootshaus gelb gestrichen hat. "
SYLLABLES = "etaoinshrdlu"


def examples(count: int) -> settings:
    """Settings for so many examples, the same in each run, without a deadline."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


def write_site(folder: Path, **pages: str) -> Path:
    """Write the site saltreeve.example to a folder of sites; pages: {file name: source}."""
    site = folder / "saltreeve.example"
    site.mkdir(parents=True)
    (site / "site.toml").write_text(SITE)
    for name, source in pages.items():
        (site / f"{name}.md").write_text(source)
    return folder


def written(serve: str = "", url: str = "/boats/winch.html", body: str = PROSE) -> str:
    """The source of a page. serve: TOML behind the usual keys."""
    return (
        f'+++\nurl = "{url}"\ntitle = "The winch"\nauthor = "J. Penhallick"\ndate = "2025-05-11"\n'
        f"{serve}+++\n{body}"
    )


def warc_record(
    url: str,
    block: bytes,
    kind: str = "response",
    stated: int | None = None,
    newline: bytes = b"\r\n",
    content_type: str = "application/http; msgtype=response",
) -> bytes:
    """A WARC record. stated: its Content-Length, if not the true one."""
    length = len(block) if stated is None else stated
    lines = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        f"WARC-Target-URI: {url}",
        "WARC-Date: 2024-03-01T00:00:00Z",
        f"Content-Type: {content_type}",
        f"Content-Length: {length}",
        "",
        "",
    ]
    return newline.join(line.encode() for line in lines) + block + newline * 2


def http_block(body: bytes, *fields: str) -> bytes:
    """An HTTP response with these header fields and this body."""
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/html", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def members(records: list[bytes]) -> bytes:
    """The records as a gzip member each."""
    return b"".join(gzip.compress(record, mtime=0) for record in records)


def page_body(number: int) -> bytes:
    """A page that compresses about as well as real ones and is unlike the others."""
    draw = random.Random(number)
    words = " ".join(
        "".join(draw.choices(SYLLABLES, k=draw.randint(2, 9))) for _ in range(draw.randint(80, 900))
    )
    return f"<html><body><p>page {number}: {words}</p></body></html>".encode()


BODIES = {f"https://a.example/{number}": page_body(number) for number in range(60)}
RECORDS = [warc_record(url, http_block(body)) for url, body in BODIES.items()]

NOUNS = (
    "kettle harbour ladder winter copper neighbour barrel ticket garden lantern engine window "
    "sailor bucket"
).split()
VERBS = (
    "carried painted forgot mended borrowed watched counted dropped praised measured sold found"
).split()
JOINTS = (
    "with the|of a|near the|by that|to the|and his|under a|for one|behind the|without the"
).split("|")


def english(number: int, words: int = 160) -> str:
    """HTML paragraphs, others for each number: English words in an order that passes the rules."""
    draw = random.Random(number)
    text = []
    while len(" ".join(text).split()) < words:
        sentence = [draw.choice("The A Her Every Our No That".split())]
        for _ in range(draw.randint(2, 5)):
            sentence += [draw.choice(NOUNS), draw.choice(VERBS), draw.choice(JOINTS)]
        text.append(" ".join([*sentence, draw.choice(NOUNS)]) + ".")
    return "\n".join(f"<p>{sentence}</p>" for sentence in text)


def page(number: int) -> bytes:
    """The record of a page that passes all rules."""
    body = f"<html><body><h1>Page</h1>{english(number)}</body></html>"
    return warc_record(f"https://a.example/{number:03}", http_block(body.encode()))
