"""What Common Crawl offers: lists of files, the URL index, single records, the newest crawl.

A paths file names the WARC or WET files of a crawl. The index server answers CDXJ: one JSON object
a line, with the file, offset and length of one gzip member, which a range request fetches alone.
https://commoncrawl.org/get-started
https://github.com/webrecorder/pywb/blob/main/docs/manual/cdxserver_api.rst
"""

import contextlib
import gzip
import hashlib
import json
import random
import re
import zlib
from pathlib import Path
from typing import Annotated

from annotated_types import Predicate
from fastwarc.warc import WarcRecord
from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError
from ruamel.yaml import YAML

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_file
from crawl2cart.crawl.download.downloader import Downloader
from crawl2cart.crawl.download.http_client import HttpClient
from crawl2cart.crawl.download.retry import Retry, TransientError

MAX_RECORD_BYTES = 64 << 20  # unpacked; Common Crawl cuts pages at 5 MiB
CRAWL_NAME = re.compile(r"CC-MAIN-\d{4}-\d{2}")


def is_crawl_file(name: str) -> bool:
    return name.startswith("crawl-data/") and name.endswith(".gz") and ".." not in name.split("/")


class Capture(BaseModel, frozen=True):
    """Where one record lies: `length` bytes of a file from `offset` on, one gzip member."""

    url: str
    filename: Annotated[str, Predicate(is_crawl_file)]
    offset: NonNegativeInt
    length: PositiveInt


def list_files(downloader: Downloader, crawl: str, kind: str) -> list[str]:
    """Return the names of all files of a crawl, below the base address, in Common Crawl's order.

    kind: "warc" or "wet". Raises UserError if the list names anything else.
    """
    paths_file = downloader.file(f"crawl-data/{crawl}/{kind}.paths.gz", prefix=b"crawl-data/")
    names = gzip.decompress(paths_file.read_bytes()).decode().split()
    for name in names:
        if not is_crawl_file(name):
            raise UserError(
                f"{kind}.paths.gz of {crawl} names {name!r}, which is not a file of a crawl. Use "
                "another mirror (download.base)."
            )
    return names


def select_files(names: list[str], files: int | float | str, seed: int) -> list[str]:
    """Return the chosen names, in the order of the list.

    files: 3 for the first three, "100-119" for a range (from 0, both ends included), or 0.001 for a
    share of all, at least one file, drawn with `seed`. Raises UserError if the list is shorter.
    """
    if isinstance(files, float):
        count = max(1, round(files * len(names)))
        return [names[i] for i in sorted(random.Random(seed).sample(range(len(names)), count))]
    first, last = map(int, files.split("-")) if isinstance(files, str) else (0, files - 1)
    if last >= len(names):
        raise UserError(
            f"download.files is {files}, but the crawl has {len(names):,} files. Choose among "
            f"0-{len(names) - 1}."
        )
    return names[first : last + 1]


def find_captures(
    index: HttpClient,
    retry: Retry,
    crawl: str,
    patterns: list[str],
    filters: list[str],
    max_records: int,
) -> list[Capture]:
    """Return the first captures that match any pattern, each once, ordered by pattern and index.

    patterns: in the index server's syntax: example.org, *.example.org, example.org/shop/*.
    filters: values of its `filter` parameter, all of which must hold. Raises UserError without a
    match.
    """
    captures: dict[Capture, None] = {}  # a set that keeps its order
    for pattern in patterns:
        query = {"url": pattern, "output": "json", "filter": filters}
        pages = retry.retry(
            f"index of {crawl}", lambda query=query: count_pages(index, crawl, query)
        )
        for page in range(pages):
            matches = retry.retry(
                f"index of {crawl}, page {page} for {pattern}",
                lambda query=query, page=page: index_page(index, crawl, query, page),
            )
            captures |= dict.fromkeys(matches)
            if len(captures) >= max_records:
                return list(captures)[:max_records]
    if not captures:
        raise UserError(
            f"The index of {crawl} has no capture of {', '.join(patterns)} with "
            f"{', '.join(filters) or 'no filter'}. Correct download.urls or "
            "download.index_filters. A pattern is example.org, *.example.org or example.org/shop/*."
        )
    return list(captures)


def count_pages(index: HttpClient, crawl: str, query: dict) -> int:
    """Ask how many pages of the index a query has."""
    body = index.text(f"{crawl}-index", **query, showNumPages="true")
    if body is None:
        raise UserError(
            f"{index.base}{crawl}-index does not exist (404). Check download.crawl and "
            "download.index. `python -m stages.download --latest` names the newest crawl."
        )
    try:
        return int(json.loads(body)["pages"])
    except (ValueError, KeyError, TypeError) as error:
        raise TransientError("no index", f"this is not a page count: {body[:60]!r}") from error


def index_page(index: HttpClient, crawl: str, query: dict, page: int) -> list[Capture]:
    """Return one page of the index. The server answers 404 if the page has no match."""
    body = index.text(f"{crawl}-index", **query, page=page) or b""
    captures = []
    for number, line in enumerate(body.splitlines(), 1):
        try:
            captures.append(Capture.model_validate_json(line))
        except ValidationError as error:
            raise TransientError(
                "no index",
                f"line {number} is not an index entry: {line[:60]!r}",
                checksum=hashlib.sha256(body).hexdigest(),
            ) from error
    return captures


def download_records(downloader: Downloader, captures: list[Capture]) -> list[Path]:
    """Return a file with the gzip member of each capture, downloaded unless an earlier run did."""

    def download(capture: Capture) -> Path:
        path = downloader.path(f"{capture.filename}/{capture.offset}-{capture.length}.warc.gz")
        with contextlib.suppress(TransientError, FileNotFoundError):
            check_record(path.read_bytes(), capture)
            return path
        member = downloader.retry.retry(
            f"{capture.url} in {capture.filename}", lambda: request_record(downloader, capture)
        )
        with atomic_file(path) as temporary:
            temporary.write_bytes(member)
        return path

    return downloader.in_parallel(download, captures, "downloading records", "record")


def request_record(downloader: Downloader, capture: Capture) -> bytes:
    member = downloader.remote.read_range(capture.filename, capture.offset, capture.length)
    check_record(member, capture)
    return member


def check_record(member: bytes, capture: Capture) -> None:
    """Raise TransientError unless this is one whole gzip member with the record of that URL."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        record = unpacker.decompress(member, MAX_RECORD_BYTES)
    except zlib.error:
        record = b""
    if not unpacker.eof or unpacker.unused_data or not record.startswith(b"WARC/"):
        problem = "the range is not one gzip member with a WARC record"
    elif (url := WarcRecord.from_bytes(record).headers.get("WARC-Target-URI")) != capture.url:
        problem = f"the record there is of {url}"
    else:
        return
    raise TransientError("damaged", problem, checksum=hashlib.sha256(member).hexdigest())


def newest_crawl(index: HttpClient, retry: Retry) -> str:
    """Return the name of the newest crawl that the index server knows."""

    def ask() -> str:
        body = index.text("collinfo.json")
        if body is None:
            raise UserError(
                f"{index.base}collinfo.json does not exist (404). Set download.index to an index "
                "server, such as https://index.commoncrawl.org/."
            )
        try:
            names = [entry["id"] for entry in json.loads(body)]
            return max(name for name in names if CRAWL_NAME.fullmatch(name))
        except (ValueError, KeyError, TypeError) as error:
            text = f"this is not a list of crawls: {body[:60]!r}"
            raise TransientError("no index", text) from error

    return retry.retry("list of crawls", ask)


def set_crawl(path: Path, crawl: str) -> None:
    """Write the name of a crawl into params.yaml, and change nothing else in the file."""
    section = YAML().load(path)["download"]
    line, column = section.lc.value("crawl")
    lines = path.read_text().splitlines(keepends=True)
    lines[line] = lines[line][:column] + lines[line][column:].replace(section["crawl"], crawl, 1)
    with atomic_file(path) as temporary:
        temporary.write_text("".join(lines))
