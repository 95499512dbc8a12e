"""Put the crawl in place: the embedded web packed into WARC files, files of your own, or a part of Common Crawl.

in   data/web/sites, data/web/designs (`source: embedded`), the files of `paths` (`source: files`), or the network
     (`source: commoncrawl`: whole WARC or WET files, or the single pages that match `urls`)
out  data/raw/: the WARC files and manifest.json (source; of each file name, bytes, sha256, and records if we packed it)

`python -m stages.download --latest` prints the newest crawl's name and writes it into params.yaml.
An embedded page becomes a response record as a crawler would have stored it, one gzip member a record, sorted by URL.
What was fetched is kept in .cache/download. ISO 28500:2017, https://iipc.github.io/warc-specifications/
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
from crawl2cart.crawl.download.commoncrawl import (
    captures,
    list_files,
    newest,
    records,
    select_files,
    set_crawl,
)
from crawl2cart.crawl.download.downloader import Fetcher
from crawl2cart.crawl.download.file_type import check_is_warc
from crawl2cart.crawl.download.http_client import Web
from crawl2cart.crawl.download.params import Download
from crawl2cart.crawl.download.retry import Retry
from crawl2cart.crawl.download.s3 import S3
from crawl2cart.crawl.embedded_web.html_pages import CRAWL_DAY, Renderer, Response
from crawl2cart.crawl.embedded_web.sites import Page, read_sites

WRITE_BITS = 0o222


def warc_response(response: Response, page: Page) -> bytes:
    """The response as a WARC record, with the false length or the cut that the page asks for."""
    record = WarcRecord()
    record.init_headers(
        record_type=WarcRecordType.response, record_urn=f"uuid:{response.record_id}".encode()
    )
    record.headers["WARC-Date"] = response.date
    record.headers["WARC-Target-URI"] = response.url
    record.headers["Content-Type"] = "application/http; msgtype=response"
    block = response.head + response.body
    record.set_bytes_content(block)
    buffer = io.BytesIO()
    record.write(buffer, checksum_data=True)
    written = buffer.getvalue()
    serve = page.front.serve
    if serve.wrong_length:
        right, wrong = (
            b"\r\nContent-Length: %d\r\n" % (len(block) + off) for off in (0, serve.wrong_length)
        )
        written = written.replace(right, wrong, 1)
    if serve.cut_at_byte is not None:
        missing = len(response.body) - serve.cut_at_byte
        written = written[: len(written) - len(b"\r\n\r\n") - missing] if missing > 0 else written
    return written


def warcinfo(number: int) -> bytes:
    record = WarcRecord()
    record_id = uuid5(NAMESPACE_URL, part_name(number))
    record.init_headers(
        record_type=WarcRecordType.warcinfo, record_urn=f"uuid:{record_id}".encode()
    )
    record.headers["WARC-Date"] = f"{CRAWL_DAY}T00:00:00Z"
    record.headers["WARC-Filename"] = part_name(number)
    record.headers["Content-Type"] = "application/warc-fields"
    record.set_bytes_content(
        b"format: WARC File Format 1.1\r\ndescription: the embedded web of data/web\r\n"
    )
    buffer = io.BytesIO()
    record.write(buffer, checksum_data=True)
    return buffer.getvalue()


def part_name(number: int) -> str:
    return f"part-{number:05}.warc.gz"


def write_warc(path: Path, records: list[bytes]) -> None:
    """One gzip member a record, so that it can be read alone from its offset. FastWARC writes no time into it."""
    with path.open("wb") as file:
        writer = GzipWriter(file)
        for record in records:
            writer.write(record)
            writer.finish()


def pack_web(sites: Path, designs: Path, pages_per_file: int, folder: Path) -> list[dict]:
    """Renders all pages into WARC files in `folder` and returns the name of each and how many records it has."""
    pages = read_sites(sites)
    renderer = Renderer(designs, pages)
    files = []
    starts = range(0, len(pages), pages_per_file)
    for number, start in enumerate(
        progress(starts, "packing the embedded web", "file", total=len(starts))
    ):
        part = pages[start : start + pages_per_file]
        write_warc(
            folder / part_name(number),
            [warcinfo(number), *(warc_response(renderer.response(page), page) for page in part)],
        )
        files.append({"file": part_name(number), "records": 1 + len(part)})
    return files


def find_files(patterns: str) -> list[Path]:
    """The files that the comma-separated names or globs mean, in sorted order. One that means none is a UserError."""
    found: set[Path] = set()
    for pattern in split_list(patterns):
        files = {
            Path(name).resolve()
            for name in glob.glob(str(Path(pattern).expanduser()), recursive=True)
        }
        files = {file for file in files if file.is_file()}
        if not files:
            raise UserError(
                f"download.paths: nothing is there under {pattern!r} (seen from {Path.cwd()}). Give the "
                "path of a WARC or WET file, or a pattern such as crawl/*.warc.gz."
            )
        found |= files
    if not found:
        raise UserError(
            "download.source is `files`, but download.paths is empty. Name your WARC or WET files there, "
            "separated by commas, or use `source: embedded`."
        )
    return sorted(found)


def take_files(patterns: str, folder: Path) -> list[dict]:
    """Puts the files of `patterns` into `folder` under names without folders and returns these.

    A file that nobody may write to is linked, any other copied: DVC may link its cache to what lies in data/raw, and a
    crawler that goes on writing to its file would then change the cache.
    """
    files = find_files(patterns)
    for file in files:
        check_is_warc(file)
    taken = []
    for number, file in enumerate(progress(files, "taking files", "file")):
        target = folder / f"{number:05}-{file.name}"
        put(file, target)
        taken.append({"file": target.name})
    return taken


def put(file: Path, target: Path) -> None:
    if file.stat().st_mode & WRITE_BITS or file.stat().st_dev != target.parent.stat().st_dev:
        shutil.copyfile(file, target)
    else:
        os.link(file, target)


def retry(params: Download) -> Retry:
    return Retry(params.seconds_between_requests, params.max_attempts)


def web(base: str, params: Download) -> Web:
    return Web(base, params.user_agent_contact, params.read_timeout, params.connections)


def fetch_common_crawl(params: Download, cache: Path, folder: Path) -> list[dict]:
    """Puts the chosen part of Common Crawl into `folder`, fetching what `cache` does not hold."""
    if params.urls and params.kind == "wet":
        raise UserError(
            "download.urls picks single pages, and the index knows those of WARC files only. Set download.kind=warc."
        )
    if not params.user_agent_contact:
        print(
            "download.user_agent_contact is empty: with an address in it you can be told when your requests are a burden.",
            flush=True,
        )
    remote = (
        S3(params.base, params.read_timeout)
        if params.base.startswith("s3://")
        else web(params.base, params)
    )
    fetcher = Fetcher(remote, retry(params), cache, params.connections)
    with exclusive(cache / "lock", "a download with the same .cache"):
        files = (
            fetch_pages(params, fetcher, folder)
            if params.urls
            else fetch_files(params, fetcher, folder)
        )
    print(f"on the way: {fetcher.retry.fault_summary()}", flush=True)
    return files


def fetch_files(params: Download, fetcher: Fetcher, folder: Path) -> list[dict]:
    names = select_files(list_files(fetcher, params.crawl, params.kind), params.files, params.seed)
    entries = []
    for kept in fetcher.files(names, starts=b"WARC/"):
        target = folder / PurePosixPath(kept.name).name
        put(kept.path, target)
        entries.append({"file": target.name, "path": kept.name, "sha256": kept.sha256})
    return entries


def fetch_pages(params: Download, fetcher: Fetcher, folder: Path) -> list[dict]:
    """The pages that match `urls`, packed in the order of the index."""
    found = captures(
        web(params.index, params),
        fetcher.retry,
        params.crawl,
        split_list(params.urls),
        split_list(params.index_filters),
        params.max_records,
    )
    members = records(fetcher, found)
    entries = []
    for number, start in enumerate(range(0, len(members), params.pages_per_file)):
        part = members[start : start + params.pages_per_file]
        with (folder / part_name(number)).open("wb") as file:
            for member in part:
                file.write(member.read_bytes())
        entries.append({"file": part_name(number), "records": len(part)})
    return entries


def split_list(text: str) -> list[str]:
    """The values of a comma-separated parameter."""
    return [word.strip() for word in text.split(",") if word.strip()]


def choose_latest(path: Path) -> str:
    params = read_params(path).download
    crawl = newest(web(params.index, params), retry(params))
    set_crawl(path, crawl)
    return crawl


def main(stage: Stage) -> None:
    params = stage.params.download.at(stage.params.profile.download)
    with atomic_directory("data/raw") as folder:
        match params.source:
            case "embedded":
                files = pack_web(
                    Path("data/web/sites"), Path("data/web/designs"), params.pages_per_file, folder
                )
            case "files":
                files = take_files(params.paths, folder)
            case "commoncrawl":
                files = fetch_common_crawl(params, stage.cache_dir, folder)
        for entry in files:
            path = folder / entry["file"]
            entry |= {
                "bytes": path.stat().st_size,
                "sha256": entry.get("sha256") or file_hash(path),
            }
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
