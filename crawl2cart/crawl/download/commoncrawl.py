"""What Common Crawl has: lists of files, the URL index, single records, the newest crawl.

Paths files name the WARC and WET files of a crawl. The index server answers CDXJ: one JSON object a line, each with the file,
offset and length of one gzip member, which a range request fetches alone.
https://commoncrawl.org/get-started, https://github.com/webrecorder/pywb/blob/main/docs/manual/cdxserver_api.rst
"""

import contextlib
import gzip
import hashlib
import json
import random
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from fastwarc.warc import WarcRecord
from ruamel.yaml import YAML

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_file
from crawl2cart.crawl.download.downloader import Fetcher
from crawl2cart.crawl.download.http_client import Web
from crawl2cart.crawl.download.retry import Fault, Retry

LONGEST_RECORD = 64 << 20  # unpacked; Common Crawl cuts pages at 5 MiB
CRAWL = re.compile(r"CC-MAIN-\d{4}-\d{2}")


@dataclass(frozen=True)
class Capture:
    """Where one record lies: `length` bytes of the file `name` from `offset` on, one gzip member."""

    url: str
    name: str
    offset: int
    length: int


def list_files(fetcher: Fetcher, crawl: str, kind: str) -> list[str]:
    """The names of all WARC or WET files of a crawl, below the base, in the order of Common Crawl."""
    listed = fetcher.file(f"crawl-data/{crawl}/{kind}.paths.gz", starts=b"crawl-data/")
    names = (
        gzip.decompress(listed.read_bytes()).decode().split()
    )  # of all members, where a mirror has packed it anew
    for name in names:
        if not is_name(name):
            raise UserError(
                f"{kind}.paths.gz of {crawl} names {name!r}, which is no file of a crawl. Use another mirror (download.base)."
            )
    return names


def is_name(name: str) -> bool:
    return name.startswith("crawl-data/") and name.endswith(".gz") and ".." not in name.split("/")


def select_files(names: list[str], files: int | float | str, seed: int) -> list[str]:
    """The first `files` names, or those of a range such as "100-119" (from 0, both ends included), or a share of all
    drawn with the seed (0.001: at least one), in the order of the list."""
    if isinstance(files, float):
        drawn = random.Random(seed).sample(range(len(names)), max(1, round(files * len(names))))
        return [names[number] for number in sorted(drawn)]
    first, last = map(int, files.split("-")) if isinstance(files, str) else (0, files - 1)
    if last >= len(names):
        raise UserError(
            f"download.files is {files}, but the crawl has {len(names):,} files (0-{len(names) - 1})."
        )
    return names[first : last + 1]


def captures(
    index: Web, retry: Retry, crawl: str, patterns: list[str], filters: list[str], most: int
) -> list[Capture]:
    """The first `most` captures that match any of the patterns, in the order of patterns and index, each once.

    patterns: as the index server takes them: example.org, *.example.org, example.org/shop/*. filters: its `filter` values.
    """
    found: dict[Capture, None] = {}
    for pattern in patterns:
        query = {"url": pattern, "output": "json", "filter": filters}
        pages = retry.retry(
            f"index of {crawl}", lambda query=query: count_pages(index, crawl, query)
        )
        for page in range(pages):
            found |= dict.fromkeys(
                retry.retry(
                    f"index of {crawl}, page {page} for {pattern}",
                    lambda query=query, page=page: index_page(index, crawl, query, page),
                )
            )
            if len(found) >= most:
                return list(found)[:most]
    if not found:
        raise UserError(
            f"The index of {crawl} has no capture of {', '.join(patterns)} with {', '.join(filters) or 'no filter'}. "
            "Patterns are example.org, *.example.org or example.org/shop/*."
        )
    return list(found)


def count_pages(index: Web, crawl: str, query: dict) -> int:
    body = index.text(f"{crawl}-index", **query, showNumPages="true")
    if body is None:
        raise UserError(
            f"{index.base}{crawl}-index is not there (404). Is download.crawl the name of a crawl? "
            "`python -m stages.download --latest` names the newest."
        )
    try:
        return int(json.loads(body)["pages"])
    except (ValueError, KeyError, TypeError) as error:
        raise Fault("no index", f"the answer is no page count: {body[:60]!r}") from error


def index_page(index: Web, crawl: str, query: dict, page: int) -> list[Capture]:
    """One page of the index. 404 is how the server says that a page has no match."""
    body = index.text(f"{crawl}-index", **query, page=page) or b""
    found = []
    for number, line in enumerate(body.splitlines(), 1):
        try:
            fields = json.loads(line)
            capture = Capture(
                fields["url"], fields["filename"], int(fields["offset"]), int(fields["length"])
            )
            if not is_name(capture.name) or capture.offset < 0 or capture.length < 1:
                raise ValueError(capture)
        except (ValueError, KeyError, TypeError) as error:
            raise Fault(
                "no index",
                f"line {number} is no entry of an index: {line[:60]!r}",
                evidence=hashlib.sha256(body).hexdigest(),
            ) from error
        found.append(capture)
    return found


def records(fetcher: Fetcher, wanted: list[Capture]) -> list[Path]:
    """A file with the gzip member of each capture. What an earlier run fetched is kept in the fetcher's folder."""

    def one(capture: Capture) -> Path:
        place = fetcher.place(f"{capture.name}/{capture.offset}-{capture.length}.warc.gz")
        with contextlib.suppress(Fault, FileNotFoundError):
            check_record(place.read_bytes(), capture)
            return place
        member = fetcher.retry.retry(
            f"{capture.url} in {capture.name}", lambda: fetch_record(fetcher, capture)
        )
        with atomic_file(place) as temporary:
            temporary.write_bytes(member)
        return place

    return fetcher.in_parallel(one, wanted, "fetching records", "record")


def fetch_record(fetcher: Fetcher, capture: Capture) -> bytes:
    member = fetcher.remote.read_range(capture.name, capture.offset, capture.length)
    check_record(member, capture)
    return member


def check_record(member: bytes, capture: Capture) -> None:
    """Raises Fault unless the bytes are exactly one whole gzip member, holding the URL that the index names."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        text = unpacker.decompress(member, LONGEST_RECORD)
    except zlib.error:
        text = b""
    if not unpacker.eof or unpacker.unused_data or not text.startswith(b"WARC/"):
        wrong = "the range is not one gzip member with a WARC record"
    elif (url := WarcRecord.from_bytes(text).headers.get("WARC-Target-URI")) != capture.url:
        wrong = f"the record there is of {url}"
    else:
        return
    raise Fault("damaged", wrong, evidence=hashlib.sha256(member).hexdigest())


def newest(index: Web, retry: Retry) -> str:
    """The name of the newest crawl that the index server knows."""

    def ask() -> str:
        body = index.text("collinfo.json")
        if body is None:
            raise UserError(
                f"{index.base}collinfo.json is not there (404). download.index should be the address of an index "
                "server, such as https://index.commoncrawl.org/."
            )
        try:
            return max(entry["id"] for entry in json.loads(body) if CRAWL.fullmatch(entry["id"]))
        except (ValueError, KeyError, TypeError) as error:
            raise Fault("no index", f"the answer is no list of crawls: {body[:60]!r}") from error

    return retry.retry("list of crawls", ask)


def set_crawl(path: Path, crawl: str) -> None:
    """Writes the name of a crawl into params.yaml: in its line, and nothing else changes."""
    section = YAML().load(path)["download"]
    line, column = section.lc.value("crawl")
    lines = path.read_text().splitlines(keepends=True)
    lines[line] = lines[line][:column] + lines[line][column:].replace(section["crawl"], crawl, 1)
    with atomic_file(path) as temporary:
        temporary.write_text("".join(lines))
