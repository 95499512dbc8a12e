"""Put the crawl in place: the embedded web, files of your own, or a part of Common Crawl.

in   data/web/sites and data/web/designs (source: embedded), the files of `paths` (source: files),
     or the network (source: commoncrawl; whole files, or the single pages that match `urls`)
out  data/raw/: WARC or WET files and manifest.json (source; each file's name, bytes and sha256)

An embedded page becomes the response record that a crawler would store: one gzip member a record,
sorted by URL. Downloads are kept in .cache/download.
`python -m stages.download --latest` writes the newest crawl's name into params.yaml and prints it.
ISO 28500:2017, https://iipc.github.io/warc-specifications/
"""

import glob
import io
import os
import shutil
import sys
from pathlib import Path, PurePosixPath
from uuid import NAMESPACE_URL, uuid5

from fastwarc.stream_io import GzipWriter
from fastwarc.warc import WarcRecord, WarcRecordType

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, file_hash, write_json
from crawl2cart.core.params import read_params
from crawl2cart.core.progress import progress
from crawl2cart.core.stage import Stage, exclusive, run
from crawl2cart.crawl.download import commoncrawl
from crawl2cart.crawl.download.downloader import Downloader
from crawl2cart.crawl.download.file_type import check_is_warc
from crawl2cart.crawl.download.http_client import HttpClient
from crawl2cart.crawl.download.params import Download
from crawl2cart.crawl.download.retry import Retry
from crawl2cart.crawl.download.s3 import S3Client
from crawl2cart.crawl.embedded_web.html_pages import CRAWL_DAY, Renderer, Response
from crawl2cart.crawl.embedded_web.sites import Page, read_sites

WRITE_BITS = 0o222


def warc_record(kind: WarcRecordType, record_id: object, headers: dict, block: bytes) -> bytes:
    """Return a WARC record with its digests. headers: in the order in which they are written."""
    record = WarcRecord()
    record.init_headers(record_type=kind, record_urn=f"uuid:{record_id}".encode())
    for name, value in headers.items():
        record.headers[name] = value
    record.set_bytes_content(block)
    buffer = io.BytesIO()
    record.write(buffer, checksum_data=True)
    return buffer.getvalue()


def warc_response(response: Response, page: Page) -> bytes:
    """Return the response as a WARC record, with the damage that the page's [serve] asks for."""
    headers = {
        "WARC-Date": response.date,
        "WARC-Target-URI": response.url,
        "Content-Type": "application/http; msgtype=response",
    }
    block = response.head + response.body
    record = warc_record(WarcRecordType.response, response.record_id, headers, block)
    serve = page.front.serve
    if serve.wrong_length:
        stated = b"\r\nContent-Length: %d\r\n"
        wrong = stated % (len(block) + serve.wrong_length)
        record = record.replace(stated % len(block), wrong, 1)
    if serve.cut_at_byte is not None:
        missing = len(response.body) - serve.cut_at_byte
        record = record[: len(record) - len(b"\r\n\r\n") - missing] if missing > 0 else record
    return record


def warcinfo(number: int) -> bytes:
    headers = {
        "WARC-Date": f"{CRAWL_DAY}T00:00:00Z",
        "WARC-Filename": part_name(number),
        "Content-Type": "application/warc-fields",
    }
    block = b"format: WARC File Format 1.1\r\ndescription: the embedded web of data/web\r\n"
    record_id = uuid5(NAMESPACE_URL, part_name(number))
    return warc_record(WarcRecordType.warcinfo, record_id, headers, block)


def part_name(number: int) -> str:
    return f"part-{number:05}.warc.gz"


def write_warc(path: Path, records: list[bytes]) -> None:
    """Write one gzip member a record, so that each can be read alone. FastWARC stores no time."""
    with path.open("wb") as file:
        writer = GzipWriter(file)
        for record in records:
            writer.write(record)
            writer.finish()


def pack_web(sites: Path, designs: Path, pages_per_file: int, folder: Path) -> list[dict]:
    """Render all pages into WARC files in `folder`; return their names and numbers of records."""
    pages = read_sites(sites)
    renderer = Renderer(designs, pages)
    parts = [pages[i : i + pages_per_file] for i in range(0, len(pages), pages_per_file)]
    files = []
    for number, part in enumerate(progress(parts, "packing the embedded web", "file")):
        responses = [warc_response(renderer.response(page), page) for page in part]
        write_warc(folder / part_name(number), [warcinfo(number), *responses])
        files.append({"file": part_name(number), "records": 1 + len(part)})
    return files


def find_files(patterns: str) -> list[Path]:
    """Return the files that comma-separated names or globs match, sorted.

    Raises UserError if a pattern matches no file, or if there is no pattern.
    """
    matches: set[Path] = set()
    for pattern in split_list(patterns):
        paths = map(Path, glob.glob(str(Path(pattern).expanduser()), recursive=True))
        files = {path.resolve() for path in paths if path.is_file()}
        if not files:
            raise UserError(
                f"download.paths: no file matches {pattern!r} (seen from {Path.cwd()}). Give the "
                "path of a WARC or WET file, or a pattern such as crawl/*.warc.gz."
            )
        matches |= files
    if not matches:
        raise UserError(
            "download.source is `files`, but download.paths is empty. Name your WARC or WET files "
            "there, separated by commas, or set download.source=embedded."
        )
    return sorted(matches)


def take_files(patterns: str, folder: Path) -> list[dict]:
    """Put the files that match into `folder`, under names without folders, and return these."""
    files = find_files(patterns)
    for file in files:
        check_is_warc(file)
    entries = []
    for number, file in enumerate(progress(files, "taking files", "file")):
        target = folder / f"{number:05}-{file.name}"
        link_or_copy(file, target)
        entries.append({"file": target.name})
    return entries


def link_or_copy(file: Path, target: Path) -> None:
    """Link a read-only file and copy any other: a later write would change DVC's cache as well."""
    if file.stat().st_mode & WRITE_BITS or file.stat().st_dev != target.parent.stat().st_dev:
        shutil.copyfile(file, target)
    else:
        os.link(file, target)


def fetch_common_crawl(params: Download, cache: Path, folder: Path) -> list[dict]:
    """Put the chosen part of Common Crawl into `folder`, downloading what `cache` lacks."""
    if params.urls and params.kind == "wet":
        raise UserError(
            "download.urls: the index has single pages of WARC files only. Set download.kind=warc."
        )
    if not params.user_agent_contact:
        print(
            "download.user_agent_contact is empty. Set it, so that Common Crawl can tell you when "
            "your requests are a burden.",
            flush=True,
        )
    if params.base.startswith("s3://"):
        remote = S3Client(params.base, params.read_timeout)
    else:
        remote = http_client(params.base, params)
    retry = Retry(params.seconds_between_requests, params.max_attempts)
    downloader = Downloader(remote, retry, cache, params.connections)
    with exclusive(cache / "lock", "a download with the same .cache"):
        fetch = fetch_pages if params.urls else fetch_files
        files = fetch(params, downloader, folder)
    print(f"retried: {retry.error_summary()}", flush=True)
    return files


def fetch_files(params: Download, downloader: Downloader, folder: Path) -> list[dict]:
    """Put whole WARC or WET files into `folder`."""
    names = commoncrawl.list_files(downloader, params.crawl, params.kind)
    names = commoncrawl.select_files(names, params.files, params.seed)
    entries = []
    for file in downloader.files(names, prefix=b"WARC/"):
        target = folder / PurePosixPath(file.name).name
        link_or_copy(file.path, target)
        entries.append({"file": target.name, "path": file.name, "sha256": file.sha256})
    return entries


def fetch_pages(params: Download, downloader: Downloader, folder: Path) -> list[dict]:
    """Pack the pages that match `urls` into WARC files in `folder`, in the order of the index."""
    index = http_client(params.index, params)
    patterns, filters = split_list(params.urls), split_list(params.index_filters)
    captures = commoncrawl.find_captures(
        index, downloader.retry, params.crawl, patterns, filters, params.max_records
    )
    members = commoncrawl.download_records(downloader, captures)
    size, entries = params.pages_per_file, []
    for number, part in enumerate(members[i : i + size] for i in range(0, len(members), size)):
        (folder / part_name(number)).write_bytes(b"".join(map(Path.read_bytes, part)))
        entries.append({"file": part_name(number), "records": len(part)})
    return entries


def http_client(base: str, params: Download) -> HttpClient:
    return HttpClient(base, params.user_agent_contact, params.read_timeout, params.connections)


def split_list(text: str) -> list[str]:
    """Return the values of a comma-separated parameter."""
    return [word.strip() for word in text.split(",") if word.strip()]


def choose_latest(path: Path) -> str:
    """Write the newest crawl's name into the params.yaml at `path` and return it."""
    params = read_params(path).download
    retry = Retry(params.seconds_between_requests, params.max_attempts)
    crawl = commoncrawl.newest_crawl(http_client(params.index, params), retry)
    commoncrawl.set_crawl(path, crawl)
    return crawl


def main(stage: Stage) -> None:
    params = stage.params.download.at(stage.params.profile.download)
    with atomic_directory("data/raw") as folder:
        match params.source:
            case "embedded":
                sites, designs = Path("data/web/sites"), Path("data/web/designs")
                files = pack_web(sites, designs, params.pages_per_file, folder)
            case "files":
                files = take_files(params.paths, folder)
            case "commoncrawl":
                files = fetch_common_crawl(params, stage.cache_dir, folder)
        for entry in files:
            path = folder / entry["file"]
            entry["bytes"] = path.stat().st_size
            entry["sha256"] = entry.get("sha256") or file_hash(path)
        write_json(folder / "manifest.json", {"source": params.source, "files": files})
    print(f"{len(files)} files, {sum(entry['bytes'] for entry in files):,} bytes")


if __name__ == "__main__":
    if sys.argv[1:] == ["--latest"]:
        try:
            print(choose_latest(Path("params.yaml")))
        except UserError as problem:
            sys.exit(f"download: {problem}")
    else:
        run(main)
