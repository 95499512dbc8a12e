"""Read the pages of WARC and WET files, damaged ones too, and count whatever is lost.

`recovery` finds where each record ends, FastWARC decodes its HTTP message. A body that it cannot
decode is decoded up to the error. RFC 9112, https://www.rfc-editor.org/rfc/rfc9112
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import brotli
from fastwarc.warc import WarcRecord

from crawl2cart.crawl.warc.recovery import RawRecord, count_dropped, raw_records

# A broken body is unpacked in small blocks: only the one with the error is lost.
BROKEN_BLOCK = 512
CHUNK_SIZE = re.compile(rb"[\r\n]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
# Any compressed data has some of these bytes in it, text has none.
CONTROL_BYTES = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
TEXT_SAMPLE = 1024
PAGES = {"response", "resource", "conversion"}


@dataclass(frozen=True)
class Record:
    """One page of a crawl.

    status: of HTTP; 200 in a record without HTTP. content_type: in lower case, or "".
    charset: what the server declared, or "". is_text: the body is plain text, as in a WET file.
    body: decoded from chunks and compression, at most `max_bytes` + 1 bytes.
    """

    url: str
    status: int
    content_type: str
    charset: str
    body: bytes
    is_text: bool


def read_records(path: Path, max_bytes: int, counts: Counter[str]) -> Iterator[Record]:
    """Yield the pages of a WARC or WET file (plain, gzip or zstd) in file order.

    max_bytes: bodies are decoded up to one byte more, which tells a longer body from one that fits.
    counts: gains `records` (every record read, page or not) and `records.<type>`, `recovered`
    (damaged records among them), `dropped` (records or stretches that could not be read),
    `recovered.<reason>` and `dropped.<reason>`.

    Damage raises no error, whatever the bytes are; only a missing file does.
    """
    for raw in raw_records(path, counts):
        kind = raw.headers.get("warc-type", "").lower()
        flaw = raw.flaw
        if kind in PAGES:
            record, http_flaw = decode_record(raw, kind, max_bytes)
            if record is None:
                count_dropped(counts, http_flaw)
                continue
            flaw = flaw or http_flaw
            yield record
        counts["records"] += 1
        counts[f"records.{kind or 'unknown'}"] += 1
        if flaw:
            counts["recovered"] += 1
            counts[f"recovered.{flaw}"] += 1


def decode_record(raw: RawRecord, kind: str, max_bytes: int) -> tuple[Record | None, str]:
    """Return the page in a record, and what was wrong with its HTTP message.

    The page is None if nothing of the message can be read.
    """
    url = raw.headers.get("warc-target-uri", "").strip("<>").replace(" ", "%20")
    declared = raw.headers.get("content-type", "")
    if kind == "conversion" or not declared.lower().startswith("application/http"):
        content_type, _, parameters = declared.partition(";")
        is_text = kind == "conversion"
        charset = "utf-8" if is_text else charset_of(parameters)
        body = raw.block[: max_bytes + 1]
        return Record(url, 200, content_type.strip().lower(), charset, body, is_text), ""
    message, body, flaw = decode_http(raw.block, max_bytes)
    if message is None:
        return None, flaw
    content_type = (message.http_content_type or "").lower()
    content_type = content_type or raw.headers.get("warc-identified-payload-type", "")
    status = message.http_headers.status_code or 0
    return Record(url, status, content_type, message.http_charset or "", body, False), flaw


def decode_http(block: bytes, max_bytes: int) -> tuple[WarcRecord | None, bytes, str]:
    """Return the HTTP message of a block, its decoded body, and what was wrong with it or ""."""
    try:
        message = http_message(block, "all")
        return message, message.reader.read(max_bytes + 1), ""
    except OSError:
        pass
    try:
        message = http_message(block, "none")
    except OSError:
        return None, b"", "no_http"
    body, flaw = message.reader.read(), ""
    fields = {
        name.lower(): value.strip().lower() for name, value in message.http_headers.to_tuples()
    }
    if "chunked" in fields.get("transfer-encoding", ""):
        body, flaw = join_chunks(body)
    coding = fields.get("content-encoding", "")
    if coding not in ("", "identity"):
        body, flaw = inflate(body, coding, max_bytes)
    return message, body[: max_bytes + 1], flaw or "broken_body"


def http_message(block: bytes, decode: str) -> WarcRecord:
    """Parse a block with FastWARC, under a record header whose length is right."""
    record = WarcRecord.from_bytes(
        b"WARC/1.1\r\nWARC-Type: response\r\nContent-Type: application/http\r\n"
        b"Content-Length: %d\r\n\r\n%b\r\n\r\n" % (len(block), block)
    )
    record.parse_http(auto_decode=decode, quirks_mode=True)
    return record


def join_chunks(body: bytes) -> tuple[bytes, str]:
    """Join the chunks of a body up to the first broken one (RFC 9112 section 7.1).

    Many crawlers join the chunks and keep the header that says the body is chunked. Such a body is
    returned as it is.
    """
    chunks, position = [], 0
    while size := CHUNK_SIZE.match(body, position):
        chunk = body[size.end() : size.end() + int(size[1], 16)]
        chunks.append(chunk)
        position = size.end() + len(chunk)
    return (b"".join(chunks), "broken_chunks") if chunks else (body, "already_decoded")


def inflate(body: bytes, coding: str, max_bytes: int) -> tuple[bytes, str]:
    """Unpack a compressed body up to its first error.

    A body that the crawler has unpacked already is returned as it is.
    """
    if not body or not CONTROL_BYTES.search(body[:TEXT_SAMPLE]):
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
    """Return the charset among the parameters of a content type, or ""."""
    match = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", parameters, re.IGNORECASE)
    return match[1] if match else ""
