"""Reading WARC and WET files, damaged ones too: nothing is lost without being counted."""

import gzip
import random
import re
import zlib
from collections import Counter
from pathlib import Path

import brotli
import pytest
import zstandard
from fastwarc.warc import ArchiveIterator
from hypothesis import given
from hypothesis import strategies as st

from crawl2cart.crawl.warc.records import read_records
from crawl2cart.crawl.warc.recovery import raw_records
from tests.unit.crawl.samples import (
    BODIES,
    RECORDS,
    examples,
    http_block,
    members,
    page_body,
    warc_record,
)

ALL_BYTES = 10**9
WHOLE = b"".join(RECORDS)
PIECES = [WHOLE[start : start + 5000] for start in range(0, len(WHOLE), 5000)]
URL = "https://a.example/"


def take(path: Path, content: bytes) -> tuple[dict[str, bytes], Counter]:
    """The bodies by URL of a file with this content, and what the reader counted."""
    path.write_bytes(content)
    counts = Counter()
    return {record.url: record.body for record in read_records(path, ALL_BYTES, counts)}, counts


def bodies_without(*numbers: int) -> dict[str, bytes]:
    return {url: body for number, (url, body) in enumerate(BODIES.items()) if number not in numbers}


INTACT = {
    "member a record": members(RECORDS),
    "one member": gzip.compress(WHOLE, mtime=0),
    "plain": WHOLE,
    "padded": members(RECORDS) + bytes(512),
    "zstd": zstandard.compress(WHOLE),
    "zstd frames": b"".join(map(zstandard.compress, RECORDS)),
    "members across records": b"".join(map(gzip.compress, PIECES)),
}


@pytest.mark.parametrize("content", INTACT.values(), ids=INTACT)
def test_an_intact_file_is_read_whole(content, tmp_path):
    pages, counts = take(tmp_path / "a", content)
    assert pages == BODIES
    assert counts["records"] == 60 and not counts["dropped"] and not counts["recovered"]


def test_bit_rot_costs_the_record_it_hits_and_no_other(tmp_path):
    whole = members(RECORDS)
    starts = [len(members(RECORDS[:number])) for number in range(61)]
    for seed in range(25):
        draw = random.Random(seed)
        hit = draw.randrange(60)
        rotten = bytearray(whole)
        for position in draw.sample(range(starts[hit] + 12, starts[hit + 1] - 12), 6):
            rotten[position] ^= draw.randrange(1, 256)
        pages, counts = take(tmp_path / "a.warc.gz", bytes(rotten))
        assert pages == bodies_without(hit)
        assert counts["records"] == 59
        assert counts["dropped"] == counts["dropped.damaged_gzip"] == 1


def test_a_reader_without_recovery_stops_there(tmp_path):
    """The control: FastWARC alone gives what stands before the damage."""
    rotten = bytearray(members(RECORDS))
    rotten[len(members(RECORDS[:30])) + 40] ^= 255
    (tmp_path / "a.warc.gz").write_bytes(rotten)
    count = 0
    with pytest.raises(OSError):
        for _ in ArchiveIterator(str(tmp_path / "a.warc.gz"), parse_http=False):
            count += 1
    assert count <= 30


def test_an_overwritten_stretch_is_counted_and_the_rest_read(tmp_path):
    whole = bytearray(members(RECORDS))
    start, end = len(members(RECORDS[:20])) + 7, len(members(RECORDS[:25])) + 30
    whole[start:end] = bytes(end - start)
    pages, counts = take(tmp_path / "a.warc.gz", bytes(whole))
    assert pages == bodies_without(*range(20, 26))
    assert counts["dropped"] == 1


def unpacked(packed: bytes) -> bytes:
    """What gzip gives of all members, the last of which may be cut."""
    text = b""
    while packed.startswith(b"\x1f\x8b"):
        member = zlib.decompressobj(31)
        text += member.decompress(packed)
        packed = member.unused_data
    return text or packed


@pytest.mark.parametrize(
    "pack",
    [members, lambda records: gzip.compress(b"".join(records)), b"".join],
    ids=["members", "one member", "plain"],
)
def test_everything_before_a_cut_is_read(pack, tmp_path):
    whole = pack(RECORDS)
    response = rb"WARC/1\.0\r\n(?:.+\r\n)+\r\nHTTP/1.1 200 OK"
    for cut in (len(whole) // 3, len(whole) // 2, len(whole) - 40):
        pages, counts = take(tmp_path / "a", whole[:cut])
        urls, bodies = list(pages), list(pages.values())
        assert len(pages) == len(re.findall(response, unpacked(whole[:cut])))
        assert urls == list(BODIES)[: len(pages)]
        assert bodies[:-1] == list(BODIES.values())[: len(pages) - 1]
        assert BODIES[urls[-1]].startswith(bodies[-1])
        assert counts["recovered"] == counts["recovered.cut_short"] == 1


@pytest.mark.parametrize("off", [-300, -17, 9, 300, 70_000])
@pytest.mark.parametrize("pack", [members, b"".join], ids=["members", "plain"])
def test_a_wrong_length_harms_no_record(off, pack, tmp_path):
    """FastWARC and warcio follow such a length and silently lose all records behind it."""
    records = list(RECORDS)
    url, body = list(BODIES.items())[30]
    records[30] = warc_record(url, http_block(body), stated=len(http_block(body)) + off)
    pages, counts = take(tmp_path / "a", pack(records))
    assert pages == BODIES
    assert counts["records"] == 60 and not counts["dropped"]
    assert counts["recovered.wrong_length"] == 1


def test_line_feeds_alone_are_enough(tmp_path):
    records = [warc_record(url, http_block(body), newline=b"\n") for url, body in BODIES.items()]
    pages, counts = take(tmp_path / "a", members(records))
    assert pages == BODIES and not counts["recovered"]


def test_an_empty_record_and_a_record_inside_a_page_are_no_damage(tmp_path):
    quoting = b"<pre>\r\n" + RECORDS[3] + b"</pre>"
    records = [
        warc_record("urn:x", b"", kind="metadata"),
        warc_record("https://b.example/", http_block(quoting)),
        *RECORDS,
    ]
    pages, counts = take(tmp_path / "a", b"".join(records))
    assert pages["https://b.example/"] == quoting
    assert counts["records"] == 62 and not counts["recovered"]


def test_a_record_without_a_length_and_one_without_a_header_are_counted(tmp_path):
    records = [
        b"WARC/1.0\r\nnothing here\r\n\r\n",
        *RECORDS[:3],
        RECORDS[3].replace(b"Content-Length", b"Content-Langth"),
        *RECORDS[4:],
    ]
    pages, counts = take(tmp_path / "a", b"".join(records))
    assert pages == bodies_without(3)
    assert counts["dropped"] == 2
    assert counts["dropped.no_length"] == counts["dropped.no_header"] == 1


def test_a_record_too_long_for_memory_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("crawl2cart.crawl.warc.recovery.MAX_RECORD_BYTES", 1 << 20)
    video = warc_record("https://v.example/film", http_block(bytes(2 << 20)))
    pages, counts = take(tmp_path / "a.warc.gz", members([*RECORDS[:5], video, *RECORDS[5:]]))
    assert pages == BODIES
    assert counts["dropped.too_long"] == counts["dropped"] == 1


def damage(content: bytes, draw: random.Random) -> bytes:
    """Flip a bit, cut a hole, insert or overwrite bytes, one to four times."""
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place, size = draw.randrange(len(damaged)), draw.randint(1, 3000)
        match draw.randrange(4):
            case 0:
                damaged[place] ^= 1 << draw.randrange(8)
            case 1:
                del damaged[place : place + size]
            case 2:
                damaged[place:place] = draw.randbytes(size)
            case 3:
                damaged[place : place + size] = bytes(len(damaged[place : place + size]))
    return bytes(damaged)


@examples(60)
@given(
    st.sampled_from(["member a record", "plain", "one member"]), st.randoms(use_true_random=True)
)
def test_any_damage_leaves_whole_pages_and_a_count(tmp_path_factory, packing, draw):
    """The reader ends, and accounts for every page that is missing."""
    path = tmp_path_factory.getbasetemp() / "damaged"
    pages, counts = take(path, damage(INTACT[packing], draw))
    assert counts["records"] + counts["dropped"] + counts["recovered"] > 0
    if set(BODIES) - set(pages):
        assert counts["dropped"] or counts["recovered"]


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def same(body: bytes) -> bytes:
    return body


GZIP, BROTLI = "Content-Encoding: gzip", "Content-Encoding: br"
DEFLATE, CHUNKED = "Content-Encoding: deflate", "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("fields", "encode", "flaw"),
    [
        ([GZIP], gzip.compress, ""),
        ([BROTLI], brotli.compress, ""),
        ([DEFLATE], zlib.compress, ""),
        # Raw deflate, as IIS sent it.
        ([DEFLATE], lambda body: zlib.compress(body)[2:-4], "broken_compression"),
        ([GZIP], same, "already_decoded"),
        ([BROTLI], same, "already_decoded"),
        ([CHUNKED], same, "already_decoded"),
        ([CHUNKED], chunk, ""),
        ([CHUNKED], lambda body: b"%x;x=1\n%b\r\n0\r\nA: b\r\n\r\n" % (len(body), body), None),
        ([CHUNKED, GZIP], lambda body: chunk(gzip.compress(body)), ""),
    ],
)
def test_http_bodies_are_decoded_and_survive_false_headers(fields, encode, flaw, tmp_path):
    plain = page_body(7)
    pages, counts = take(tmp_path / "a", warc_record(URL, http_block(encode(plain), *fields)))
    assert pages == {URL: plain}
    if flaw is not None:
        assert counts["recovered"] == (counts[f"recovered.{flaw}"] if flaw else 0) == bool(flaw)


def chunks_of_512(body: bytes) -> bytes:
    return b"".join(b"200\r\n%b\r\n" % body[at : at + 512] for at in range(0, 4096, 512))


@pytest.mark.parametrize(
    ("field", "encode"),
    [(GZIP, gzip.compress), (BROTLI, brotli.compress), (CHUNKED, chunks_of_512)],
)
def test_a_broken_body_gives_what_stands_before_the_break(field, encode, tmp_path):
    plain = b"".join(page_body(number) for number in range(20))
    encoded = encode(plain)
    block = http_block(encoded[: len(encoded) * 2 // 3], field)
    pages, counts = take(tmp_path / "a", warc_record(URL, block))
    (body,) = pages.values()
    assert plain.startswith(body) and len(body) > 1000
    assert counts["records"] == 1


def test_bodies_are_cut_above_the_limit(tmp_path):
    bomb = gzip.compress(bytes(20_000_000))
    (tmp_path / "a").write_bytes(warc_record(URL, http_block(bomb, GZIP)))
    (record,) = read_records(tmp_path / "a", 1000, Counter())
    assert len(record.body) == 1001


def test_wet_and_resource_records_are_pages(tmp_path):
    text = warc_record(URL, "schöner Text".encode(), "conversion", content_type="text/plain")
    latin = "text/html; charset=latin-1"
    resource = warc_record(f"{URL}b", b"<html>", "resource", content_type=latin)
    (tmp_path / "a").write_bytes(text + resource)
    wet, page = read_records(tmp_path / "a", 1000, Counter())
    assert wet.is_text and wet.body.decode() == "schöner Text"
    assert (page.content_type, page.charset, page.status) == ("text/html", "latin-1", 200)


def test_real_crawls_are_read_whole(shared_data):
    """As many records as a plain search finds, and FastWARC's where it reads to the end."""
    files = sorted((shared_data / "web").glob("*/*"))
    assert len(files) >= 28
    for path in files:
        counts = Counter()
        urls = [
            raw.headers.get("warc-target-uri", "").strip("<>") for raw in raw_records(path, counts)
        ]
        starts = re.findall(rb"WARC/\d\.\d+\r?\n(?=[A-Z])", unpacked(path.read_bytes()))
        assert len(urls) == len(starts), path.name
        assert not counts["dropped"], path.name
        try:
            theirs = [
                record.headers.get("WARC-Target-URI", "").strip("<>")
                for record in ArchiveIterator(str(path), parse_http=False)
            ]
        except OSError:
            continue  # it stops at the first line feed or wrong length
        assert urls == theirs, path.name


def test_real_bodies_are_those_that_fastwarc_decodes(shared_data):
    path = shared_data / "web/webarchive_real/ipwb__IAH-20080430204825-00000-blackbook.warc.gz"
    ours = [
        (record.url, record.status, record.body)
        for record in read_records(path, ALL_BYTES, Counter())
        if record.url.startswith("http")
    ]
    http_records = ArchiveIterator(str(path), auto_decode="all", func_filter=lambda r: r.is_http)
    theirs = [
        (record.headers["WARC-Target-URI"], record.http_headers.status_code, record.reader.read())
        for record in http_records
        if record.headers["WARC-Type"] == "response"
    ]
    assert ours == theirs
