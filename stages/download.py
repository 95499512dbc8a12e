"""Put the crawl in place: the embedded web packed into WARC files, or WARC and WET files of your own.

in   data/web/sites, data/web/designs (`source: embedded`) or the files of `paths` (`source: files`)
out  data/raw/: the WARC files and manifest.json (source; of each file name, bytes, sha256, and records if embedded)

Each page becomes a response record as a crawler would have stored it, one gzip member a record, sorted by URL.
ISO 28500:2017, https://iipc.github.io/warc-specifications/
"""

import glob
import io
import os
import shutil
import zlib
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from fastwarc.stream_io import GzipWriter, ZstdReader
from fastwarc.warc import WarcRecord, WarcRecordType

from stages.common.files import atomic_directory, file_hash, write_json
from stages.common.problem import Problem
from stages.common.progress import progress
from stages.common.stage import Stage, run
from stages.crawl.render import CRAWL_DAY, Renderer, Response
from stages.crawl.sites import Page, read_sites

FIRST_BYTES = 1 << 16
WRITE_BITS = 0o222


def warc_response(response: Response, page: Page) -> bytes:
    """The response as a WARC record, with the false length or the cut that the page asks for."""
    record = WarcRecord()
    record.init_headers(record_type=WarcRecordType.response, record_urn=f"uuid:{response.record_id}".encode())
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
        right, wrong = (b"\r\nContent-Length: %d\r\n" % (len(block) + off) for off in (0, serve.wrong_length))
        written = written.replace(right, wrong, 1)
    if serve.cut_at_byte is not None:
        missing = len(response.body) - serve.cut_at_byte
        written = written[:len(written) - len(b"\r\n\r\n") - missing] if missing > 0 else written
    return written


def warcinfo(number: int) -> bytes:
    record = WarcRecord()
    record_id = uuid5(NAMESPACE_URL, part_name(number))
    record.init_headers(record_type=WarcRecordType.warcinfo, record_urn=f"uuid:{record_id}".encode())
    record.headers["WARC-Date"] = f"{CRAWL_DAY}T00:00:00Z"
    record.headers["WARC-Filename"] = part_name(number)
    record.headers["Content-Type"] = "application/warc-fields"
    record.set_bytes_content(b"format: WARC File Format 1.1\r\ndescription: the embedded web of data/web\r\n")
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
    for number, start in enumerate(progress(starts, "packing the embedded web", "file", total=len(starts))):
        part = pages[start:start + pages_per_file]
        write_warc(folder / part_name(number),
                   [warcinfo(number), *(warc_response(renderer.response(page), page) for page in part)])
        files.append({"file": part_name(number), "records": 1 + len(part)})
    return files


def find_files(patterns: str) -> list[Path]:
    """The files that the comma-separated names or globs mean, in sorted order. One that means none is a Problem."""
    found: set[Path] = set()
    for pattern in (part.strip() for part in patterns.split(",") if part.strip()):
        files = {Path(name).resolve() for name in glob.glob(str(Path(pattern).expanduser()), recursive=True)}
        files = {file for file in files if file.is_file()}
        if not files:
            raise Problem(f"download.paths: nothing is there under {pattern!r} (seen from {Path.cwd()}). Give the "
                          "path of a WARC or WET file, or a pattern such as crawl/*.warc.gz.")
        found |= files
    if not found:
        raise Problem("download.source is `files`, but download.paths is empty. Name your WARC or WET files there, "
                      "separated by commas, or use `source: embedded`.")
    return sorted(found)


def check_is_warc(path: Path) -> None:
    """Raises Problem unless the file begins like a WARC or WET file. Damage further on is the filter's to mend."""
    first = first_bytes(path)
    if first.startswith(b"WARC/"):
        return
    start = first.lstrip()[:500].lower()
    if not first:
        what = "is empty, or compressed and broken from its first byte on"
    elif b"<html" in start or b"<!doctype" in start:
        what = "is an HTML page: the server most likely answered with an error page when it was fetched"
    elif start.startswith(b"<?xml"):
        what = "is XML: most likely the error message of a storage server"
    elif start.startswith(b"filedesc:"):
        what = "is in the older ARC format; `warcio recompress` turns it into WARC"
    else:
        what = f"begins with {first[:24]!r} instead of WARC/"
    raise Problem(f"{path} is no WARC file: it {what}. Fetch it again or take it out of download.paths.")


def first_bytes(path: Path) -> bytes:
    """The start of the file, unpacked if it is gzip or zstd, up to what is broken."""
    with path.open("rb") as file:
        packed = file.read(FIRST_BYTES)
        try:
            if packed.startswith(b"\x1f\x8b"):
                return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed, FIRST_BYTES)
            if packed[1:4] in (b"\xb5\x2f\xfd", b"\x2a\x4d\x18"):  # a zstd frame, a skippable one
                file.seek(0)
                return ZstdReader(file).read(FIRST_BYTES)
        except (zlib.error, OSError):
            return b""
    return packed


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
        if file.stat().st_mode & WRITE_BITS or file.stat().st_dev != folder.stat().st_dev:
            shutil.copyfile(file, target)
        else:
            os.link(file, target)
        taken.append({"file": target.name})
    return taken


def main(stage: Stage) -> None:
    params = stage.params.download
    with atomic_directory("data/raw") as folder:
        if params.source == "embedded":
            files = pack_web(Path("data/web/sites"), Path("data/web/designs"), params.pages_per_file, folder)
        else:
            files = take_files(params.paths, folder)
        for entry in files:
            path = folder / entry["file"]
            entry |= {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        write_json(folder / "manifest.json", {"source": params.source, "files": files})
    print(f"{len(files)} files, {sum(entry['bytes'] for entry in files):,} bytes")


if __name__ == "__main__":
    run(main)
