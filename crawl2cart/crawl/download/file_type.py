"""What a file is by its bytes, whatever its name says. gzip: RFC 1952."""

import gzip
import zlib
from pathlib import Path

from fastwarc.stream_io import ZstdReader

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import file_hash
from crawl2cart.crawl.download.retry import TransientError

START_BYTES = 1 << 16
READ_BYTES = 1 << 20  # of unpacked text at a time, so that a zip bomb cannot fill the memory
GZIP_MAGIC = b"\x1f\x8b\x08"
ZSTD_MAGICS = b"\xb5\x2f\xfd", b"\x2a\x4d\x18"  # behind the first byte: a frame, a skippable one


def check_is_warc(path: Path) -> None:
    """Raise UserError unless the file begins as a WARC or WET file.

    Damage further on does no harm here: the filter stage skips it.
    """
    start = unpacked_start(path)
    if not start.startswith(b"WARC/"):
        raise UserError(
            f"{path} is not a WARC file: it {looks_like(start)}. Download it again, or remove it "
            "from download.paths."
        )


def looks_like(content: bytes) -> str:
    """Say what came instead of a WARC file, in words that follow "it"."""
    start = content.lstrip()[:500].lower()
    if not content:
        return "is empty, or compressed and damaged from its first byte on"
    if b"<html" in start or b"<!doctype" in start:
        return "is an HTML page, most likely a server's error page"
    if start.startswith(b"<?xml"):
        return "is XML, most likely a storage server's error message"
    if start.startswith(b"filedesc:"):
        return "is in the older ARC format (`warcio recompress` converts it to WARC)"
    return f"begins with {content[:24]!r}"


def unpacked_start(path: Path) -> bytes:
    """Return the first START_BYTES, unpacked if they are gzip or zstd, up to the first damage."""
    with path.open("rb") as file:
        packed = file.read(START_BYTES)
        try:
            if packed.startswith(GZIP_MAGIC):
                return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed, START_BYTES)
            if packed[1:4] in ZSTD_MAGICS:
                file.seek(0)
                return ZstdReader(file).read(START_BYTES)
        except (zlib.error, OSError):
            return b""
    return packed


def check_gzip(path: Path, prefix: bytes) -> str:
    """Read a gzip file to its end and return its sha256.

    Raises TransientError unless it is a sequence of whole, undamaged gzip members that begins with
    `prefix` when unpacked.
    """
    sha256 = file_hash(path)
    try:
        with gzip.open(path) as file:
            start = file.read(len(prefix))
            while file.read(READ_BYTES):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise TransientError("damaged", f"the gzip is damaged: {error}", checksum=sha256) from error
    if start != prefix:
        text = f"unpacked it begins with {start!r} instead of {prefix!r}"
        raise TransientError("damaged", text, checksum=sha256)
    return sha256
