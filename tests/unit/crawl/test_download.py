"""The WARC files that `download` packs and takes, read by others."""

import gzip
import hashlib
import json
import os
import random
import zlib
from pathlib import Path

import pytest
import zstandard
from fastwarc.warc import ArchiveIterator

from crawl2cart.core.errors import UserError
from crawl2cart.core.stage import Stage
from crawl2cart.crawl.download.file_type import check_gzip
from crawl2cart.crawl.download.retry import TransientError
from crawl2cart.crawl.embedded_web.html_pages import Renderer
from crawl2cart.crawl.embedded_web.sites import read_sites
from stages.download import main, pack_web, take_files
from tests.conftest import ROOT
from tests.servers.commoncrawl_server import flip_bit
from tests.unit.crawl.samples import BODIES, RECORDS, members, warc_record, write_site, written

DESIGNS = ROOT / "data/web/designs"
TEXTS = [
    warc_record(url, b"Text of a page.", "conversion", content_type="text/plain")
    for url in list(BODIES)[:4]
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the project's code and parameters, and a web of two pages."""
    (tmp_path / "data/web").mkdir(parents=True)
    for name in ("stages", "crawl2cart", "requirements.txt", "data/web/designs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    params = (ROOT / "params.yaml").read_text()
    one_page_a_file = params.replace("  pages_per_file: 100\n", "  pages_per_file: 1\n")
    (tmp_path / "params.yaml").write_text(one_page_a_file)
    knot = written(url="/rope/knot.html", body="A bend for two ropes.")
    write_site(tmp_path / "data/web/sites", winch=written(), knot=knot)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_members(path: Path) -> list[tuple[dict[str, str], bytes]]:
    """Headers and block of each gzip member, each of which holds one record."""
    packed, records = path.read_bytes(), []
    while packed:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        head, _, block = member.decompress(packed).partition(b"\r\n\r\n")
        packed = member.unused_data
        version, *lines = head.decode().split("\r\n")
        assert version == "WARC/1.1"
        headers = dict(line.split(": ", 1) for line in lines)
        records.append((headers, block.removesuffix(b"\r\n\r\n")))
    return records


def pack_page(folder: Path, serve: str) -> tuple[dict[str, str], bytes]:
    """The record of a page with this [serve] table, among others; the page is winch.html."""
    number = len(list(folder.iterdir()))
    knot = written(url=f"/a-{number}.html", body="A bend.")
    sites = write_site(folder / f"sites-{number}", winch=written(serve), knot=knot)
    pack_web(sites, DESIGNS, 100, folder)
    records = read_members(folder / "part-00000.warc.gz")
    return next(r for r in records if r[0].get("WARC-Target-URI", "").endswith("winch.html"))


def test_the_embedded_web_comes_back_from_two_readers(raw):
    entries = pack_web(ROOT / "data/web/sites", DESIGNS, 40, raw)
    pages = read_sites(ROOT / "data/web/sites")
    renderer = Renderer(DESIGNS, pages)
    damaged = {
        page.url
        for page in pages
        if page.front.serve.wrong_length or page.front.serve.cut_at_byte is not None
    }
    blocks = {}
    for entry in entries:
        path = raw / entry["file"]
        (info, _), *records = read_members(path)
        assert info["WARC-Type"] == "warcinfo" and 1 + len(records) == entry["records"] <= 41
        blocks |= {headers["WARC-Target-URI"]: block for headers, block in records}
        intact = [r for r in records if r[0]["WARC-Target-URI"] not in damaged]
        assert all(int(headers["Content-Length"]) == len(block) for headers, block in intact)
        if len(intact) == len(records):
            others = ArchiveIterator(str(path), parse_http=False)
            assert all(record.verify_block_digest() for record in others)
    assert list(blocks) == [page.url for page in pages] == sorted(blocks)
    for page in pages:
        if page.url not in damaged:
            response = renderer.response(page)
            assert blocks[page.url] == response.head + response.body


def test_record_id_and_date_depend_on_the_url_alone(raw):
    first, second = pack_page(raw, "")[0], pack_page(raw, "")[0]
    assert first["WARC-Record-ID"] == second["WARC-Record-ID"]
    assert first["WARC-Date"] == second["WARC-Date"]


@pytest.mark.parametrize("excess", [300, -12])
def test_a_wrong_length_is_really_wrong(excess, raw):
    headers, block = pack_page(raw, f"[serve]\nwrong_length = {excess}\n")
    assert int(headers["Content-Length"]) - len(block) == excess


def test_a_cut_record_is_really_cut(raw):
    _, block = pack_page(raw, "[serve]\ncut_at_byte = 900\n")
    assert len(block.partition(b"\r\n\r\n")[2]) == 900


def test_the_manifest_names_every_file_and_two_runs_give_the_same_bytes(project):
    runs = []
    for _ in range(2):
        main(Stage("download"))
        runs.append({file.name: file.read_bytes() for file in Path("data/raw").iterdir()})
    assert runs[0] == runs[1]
    manifest = json.loads(runs[0].pop("manifest.json"))
    assert manifest["source"] == "embedded"
    assert [entry["records"] for entry in manifest["files"]] == [2, 2]
    contents = [runs[0].pop(entry["file"]) for entry in manifest["files"]]
    for entry, content in zip(manifest["files"], contents, strict=True):
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert content[4:8] == bytes(4), "the gzip header holds no time"
    assert not runs[0], "every file is in the manifest"


def test_a_page_that_does_not_parse_leaves_nothing(project):
    Path("data/web/sites/saltreeve.example/bad.md").write_text("+++\nurl = \n+++\n")
    with pytest.raises(UserError, match="bad.md:2"):
        main(Stage("download"))
    assert not Path("data/raw").exists() and not list(Path("data").glob(".raw*"))


def test_files_of_your_own_are_taken(raw, tmp_path):
    contents = {
        "a/x.warc.gz": members(RECORDS[:5]),
        "b/x.warc.gz": members(RECORDS[5:9]),
        "plain.warc": b"".join(RECORDS[:2]),
        "z.warc.zst": zstandard.compress(b"".join(RECORDS[:3])),
        "cut.warc.gz": members(RECORDS)[:3000],
        "text.warc.wet.gz": members(TEXTS),
        "plain.warc.wet": b"".join(TEXTS),
        "z.warc.wet.zst": zstandard.compress(b"".join(TEXTS)),
    }
    crawl = tmp_path / "crawl"
    for name, content in contents.items():
        (crawl / name).parent.mkdir(parents=True, exist_ok=True)
        (crawl / name).write_bytes(content)
    entries = take_files(f"{crawl}/**/*.gz, {crawl}/plain.*,{crawl}/*.zst", raw)
    names = [entry["file"] for entry in entries]
    assert names == sorted(names)
    assert sorted((raw / name).read_bytes() for name in names) == sorted(contents.values())


def test_only_a_read_only_file_is_linked(raw, tmp_path):
    """A crawler that still writes to a linked file would change what DVC stored under a hash."""
    for name, mode in (("done", 0o444), ("growing", 0o644)):
        (tmp_path / f"{name}.warc.gz").write_bytes(members(RECORDS[:2]))
        (tmp_path / f"{name}.warc.gz").chmod(mode)
    take_files(f"{tmp_path}/*.warc.gz", raw)
    links = {file.name: os.stat(file).st_nlink for file in raw.iterdir()}
    assert links == {"00000-done.warc.gz": 2, "00001-growing.warc.gz": 1}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"<!DOCTYPE html><html><body>503 Slow down</body></html>", "HTML page"),
        (
            gzip.compress(b"  <html><head><title>Please reduce your request rate", mtime=0),
            "HTML page",
        ),
        (b'<?xml version="1.0"?><Error><Code>SlowDown</Code></Error>', "XML"),
        (b"filedesc://IAH-2008.arc 0.0.0.0 20080430 text/plain 77\n", "ARC"),
        (b"", "empty"),
        (b"\x1f\x8b\x08\x00garbage that is no gzip", "damaged"),
        (b"%PDF-1.4", "%PDF-1.4"),
    ],
)
def test_a_file_that_is_not_a_warc_is_refused_by_name(content, word, raw, tmp_path):
    (tmp_path / "good.warc.gz").write_bytes(members(RECORDS[:2]))
    (tmp_path / "part-00071.warc.gz").write_bytes(content)
    with pytest.raises(UserError, match=f"part-00071.warc.gz.*{word}"):
        take_files(f"{tmp_path}/*.warc.gz", raw)
    assert not list(raw.iterdir())


@pytest.mark.parametrize(("paths", "word"), [("nowhere/*.warc.gz", "nowhere"), (" , ", "empty")])
def test_a_pattern_that_matches_no_file_is_an_error(paths, word, raw):
    with pytest.raises(UserError, match=word):
        take_files(paths, raw)


def test_real_crawls_are_taken_damaged_ones_too(shared_data, raw):
    files = list((shared_data / "web").glob("*/*"))
    assert len(take_files(f"{shared_data}/web/*/*", raw)) == len(files)


def test_no_damage_to_a_gzip_file_goes_unnoticed(tmp_path):
    """A cut, a flipped bit or a tail: either the check fails, or the text is the same."""
    content = members(RECORDS[:3])
    path, draw = tmp_path / "file.gz", random.Random(3)
    path.write_bytes(content)
    assert check_gzip(path, b"WARC/") == hashlib.sha256(content).hexdigest()
    ends = {len(members(RECORDS[:count])) for count in range(4)}
    cuts = [content[:size] for size in range(0, len(content), 97) if size not in ends]
    tails = [content + b"more", content + content[:50], b"more" + content]
    for damaged in [*cuts, *tails]:
        path.write_bytes(damaged)
        with pytest.raises(TransientError):
            check_gzip(path, b"WARC/")
    noticed = 0
    for damaged in (flip_bit(content, draw) for _ in range(300)):
        path.write_bytes(damaged)
        try:
            check_gzip(path, b"WARC/")
        except TransientError:
            noticed += 1
        else:
            assert gzip.decompress(damaged) == gzip.decompress(content)
    assert noticed > 250
