"""Reads the pages of WARC and WET files, also those the world has damaged, and loses nothing without counting it.

FastWARC decodes the HTTP message of a record inside the frame that `warc_frames` has found; what it can not decode is
taken as far as it goes. RFC 9112, https://www.rfc-editor.org/rfc/rfc9112
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import brotli
from fastwarc.warc import WarcRecord

from crawl2cart.crawl.warc.recovery import RawRecord, frames, lose

BROKEN_BLOCK = 512  # bytes of a broken body that are unpacked at a time: of what comes before the error little is lost
CHUNK_SIZE = re.compile(rb"[\r\n]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
CONTROL_BYTES = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # in anything compressed, not in text
LONGEST_TEXT_SAMPLE = 1024
PAGES = {"response", "resource", "conversion"}


@dataclass(frozen=True)
class Record:
    """One page of a crawl. status: of HTTP, 200 where there is no HTTP. charset: what the server declared, or "".

    body: decoded from chunks and compression, at most `max_bytes` + 1 bytes. is_text: already text, as in a WET file.
    """

    url: str
    status: int
    content_type: str
    charset: str
    body: bytes
    is_text: bool


def read(path: Path, max_bytes: int, counts: Counter) -> Iterator[Record]:
    """The pages of a WARC or WET file (plain, gzip or zstd) in file order.

    counts gains `records` (every record read, pages or not), `recovered` (those among them that were damaged),
    `lost` (records, or places of unknown content, that could not be read), and `recovered.<why>`, `lost.<why>`.
    Bodies are decoded up to max_bytes + 1 bytes, so that a longer one can be told from one that fits.
    """
    for frame in frames(path, counts):
        kind = frame.headers.get("warc-type", "").lower()
        flaw = frame.flaw
        if kind in PAGES:
            record, broken = page(frame, kind, max_bytes)
            if record is None:
                lose(counts, broken)
                continue
            flaw = flaw or broken
            yield record
        counts["records"] += 1
        counts[f"records.{kind or 'unknown'}"] += 1
        if flaw:
            counts["recovered"] += 1
            counts[f"recovered.{flaw}"] += 1


def page(frame: RawRecord, kind: str, max_bytes: int) -> tuple[Record | None, str]:
    """The page in a record, and what was wrong with its HTTP message; None where nothing of it can be read."""
    url = frame.headers.get("warc-target-uri", "").strip("<>").replace(" ", "%20")
    declared = frame.headers.get("content-type", "")
    if kind == "conversion" or not declared.lower().startswith("application/http"):
        content_type, _, rest = declared.partition(";")
        charset = "utf-8" if kind == "conversion" else charset_of(rest)
        return Record(
            url,
            200,
            content_type.strip().lower(),
            charset,
            frame.block[: max_bytes + 1],
            kind == "conversion",
        ), ""
    message, body, broken = decode_http(frame.block, max_bytes)
    if message is None:
        return None, broken
    content_type = (message.http_content_type or "").lower() or frame.headers.get(
        "warc-identified-payload-type", ""
    )
    status = message.http_headers.status_code or 0
    return Record(url, status, content_type, message.http_charset or "", body, False), broken


def decode_http(block: bytes, max_bytes: int) -> tuple[WarcRecord | None, bytes, str]:
    """The HTTP message of a block, its body decoded, and what was wrong with it."""
    try:
        message = http_message(block, "all")
        return message, message.reader.read(max_bytes + 1), ""
    except OSError:
        pass
    try:
        message = http_message(block, "none")
    except OSError:
        return None, b"", "no_http"
    body, broken = message.reader.read(), ""
    fields = {
        name.lower(): value.strip().lower() for name, value in message.http_headers.to_tuples()
    }
    if "chunked" in fields.get("transfer-encoding", ""):
        body, broken = join_chunks(body)
    coding = fields.get("content-encoding", "")
    if coding not in ("", "identity"):
        body, broken = inflate(body, coding, max_bytes)
    return message, body[: max_bytes + 1], broken or "broken_body"


def http_message(block: bytes, decode: str) -> WarcRecord:
    """The block as FastWARC reads it, under a header whose length is right."""
    record = WarcRecord.from_bytes(
        b"WARC/1.1\r\nWARC-Type: response\r\nContent-Type: application/http\r\n"
        b"Content-Length: %d\r\n\r\n%b\r\n\r\n" % (len(block), block)
    )
    record.parse_http(auto_decode=decode, quirks_mode=True)
    return record


def join_chunks(body: bytes) -> tuple[bytes, str]:
    """The chunks of a chunked body up to the first broken one, RFC 9112 section 7.1.

    Many crawlers store the joined body and keep the header that says it is chunked; such a body is returned as it is.
    """
    chunks, position = [], 0
    while size := CHUNK_SIZE.match(body, position):
        chunk = body[size.end() : size.end() + int(size[1], 16)]
        chunks.append(chunk)
        position = size.end() + len(chunk)
    return (b"".join(chunks), "broken_chunks") if chunks else (body, "already_decoded")


def inflate(body: bytes, coding: str, max_bytes: int) -> tuple[bytes, str]:
    """What a compressed body gives up to its first error; one that was stored unpacked is returned as it is."""
    if not body or not CONTROL_BYTES.search(body[:LONGEST_TEXT_SAMPLE]):
        return body, "already_decoded"
    text = b""
    try:
        if coding == "br":
            unpack = brotli.Decompressor().process
        else:
            window_bits = (
                -zlib.MAX_WBITS
                if coding == "deflate" and body[0] & 15 != 8
                else zlib.MAX_WBITS | 32
            )
            unpack = zlib.decompressobj(window_bits).decompress
        for start in range(0, len(body), BROKEN_BLOCK):
            text += unpack(body[start : start + BROKEN_BLOCK])
            if len(text) > max_bytes:
                break
    except (zlib.error, brotli.error):
        pass
    return text, "broken_compression"


def charset_of(parameters: str) -> str:
    """The charset among the parameters of a content type, or an empty string."""
    found = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", parameters, re.IGNORECASE)
    return found[1] if found else ""
