"""What a file is by its bytes, whatever its name says. gzip: RFC 1952."""

import hashlib
import zlib
from pathlib import Path

from fastwarc.stream_io import ZstdReader

from crawl2cart.core.errors import UserError
from crawl2cart.crawl.download.retry import Fault

FIRST_BYTES = 1 << 16
READ_BLOCK = 1 << 18
UNPACKED_BLOCK = 1 << 20  # so that a zip bomb can not fill the memory


def check_is_warc(path: Path) -> None:
    """Raises UserError unless the file begins like a WARC or WET file. Damage further on is the filter's to mend."""
    first = first_bytes(path)
    if not first.startswith(b"WARC/"):
        raise UserError(
            f"{path} is no WARC file: it {looks_like(first)}. Fetch it again or take it out of download.paths."
        )


def looks_like(first: bytes) -> str:
    """What came instead of a WARC file, in words that follow "it"."""
    start = first.lstrip()[:500].lower()
    if not first:
        return "is empty, or compressed and broken from its first byte on"
    if b"<html" in start or b"<!doctype" in start:
        return "is an HTML page: the server most likely answered with an error page when it was fetched"
    if start.startswith(b"<?xml"):
        return "is XML: most likely the error message of a storage server"
    if start.startswith(b"filedesc:"):
        return "is in the older ARC format; `warcio recompress` turns it into WARC"
    return f"begins with {first[:24]!r} instead of WARC/"


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


def check_gzip(path: Path, starts: bytes) -> str:
    """Reads a gzip file to the end of its last member and returns its sha256.

    Raises Fault if it does not begin with `starts` when unpacked, is damaged or cut, or is followed by something else.
    """
    digest, size, unpacker, first = hashlib.sha256(), 0, None, b""
    broken = ""
    with path.open("rb") as file:
        while block := file.read(READ_BLOCK):
            digest.update(block)
            while block and not broken:
                unpacker = unpacker or zlib.decompressobj(zlib.MAX_WBITS | 16)
                try:
                    text = unpacker.decompress(block, UNPACKED_BLOCK)
                except zlib.error as error:
                    broken = f"its gzip is damaged near byte {size:,} ({error})"
                    break
                if len(first) < len(starts):
                    first += text[: len(starts) - len(first)]
                    if not starts.startswith(first):
                        broken = (
                            f"unpacked it begins with {text[:24]!r} instead of {starts.decode()}"
                        )
                block = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
                if unpacker.eof:
                    unpacker = None
            size += READ_BLOCK
    if not broken and (unpacker or len(first) < len(starts)):
        broken = f"it ends in the middle of a gzip member, after {path.stat().st_size:,} bytes"
    if broken:
        raise Fault("damaged", broken, evidence=digest.hexdigest())
    return digest.hexdigest()
