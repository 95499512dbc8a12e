"""The WARC files that `download` writes and takes, read by others."""

import gzip
import hashlib
import json
import os
import re
import zlib
from pathlib import Path

import pytest
import zstandard
from fastwarc.warc import ArchiveIterator

from crawl2cart.core.errors import UserError
from crawl2cart.core.stage import Stage
from crawl2cart.crawl.embedded_web.html_pages import Renderer
from crawl2cart.crawl.embedded_web.sites import read_sites
from stages import download
from tests.conftest import ROOT
from tests.unit.crawl.test_warc import BODIES, RECORDS, members, warc_record, write_site, written

TEXTS = [
    warc_record(url, b"Text of a page.", "conversion", content_type="text/plain")
    for url in list(BODIES)[:4]
]


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder in which a stage runs: the project's code and parameters and a web of two pages."""
    for name in ("stages", "crawl2cart", "requirements.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "data/web").mkdir(parents=True)
    (tmp_path / "data/web/designs").symlink_to(ROOT / "data/web/designs")
    write_site(
        tmp_path / "data/web/sites",
        winch=written(),
        knot=written(url="/rope/knot.html", body="A bend for two ropes."),
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def choose(folder: Path, **values: object) -> None:
    """Sets keys of the section `download`."""
    path = folder / "params.yaml"
    text = path.read_text()
    for key, value in values.items():
        text, count = re.subn(
            rf"^  {key}: .*$",
            lambda _, key=key, value=value: f"  {key}: {value}",
            text,
            count=1,
            flags=re.M,
        )
        assert count, key
    path.write_text(text)


def run_stage() -> dict:
    download.main(Stage("download"))
    return json.loads(Path("data/raw/manifest.json").read_text())


def tiny_parser(path: Path) -> list[tuple[dict[str, str], bytes]]:
    """Headers and block of each gzip member, which must hold one record and nothing else."""
    packed, records = path.read_bytes(), []
    while packed:
        member = zlib.decompressobj(31)
        record = member.decompress(packed)
        packed = member.unused_data
        head, _, rest = record.partition(b"\r\n\r\n")
        version, *lines = head.decode().split("\r\n")
        assert version == "WARC/1.1"
        headers = dict(line.split(": ", 1) for line in lines)
        records.append((headers, rest.removesuffix(b"\r\n\r\n")))
    return records


def test_the_embedded_web_comes_back_from_two_readers(tmp_path):
    sites, designs = ROOT / "data/web/sites", ROOT / "data/web/designs"
    files = download.pack_web(sites, designs, 40, tmp_path)
    pages = read_sites(sites)
    renderer = Renderer(designs, pages)
    honest = {
        page.url
        for page in pages
        if not page.front.serve.wrong_length and page.front.serve.cut_at_byte is None
    }
    blocks = {}
    for entry in files:
        records = tiny_parser(tmp_path / entry["file"])
        assert len(records) == entry["records"] <= 41
        assert records[0][0]["WARC-Type"] == "warcinfo"
        for headers, block in records[1:]:
            blocks[headers["WARC-Target-URI"]] = block
            if headers["WARC-Target-URI"] in honest:
                assert int(headers["Content-Length"]) == len(block)
        if all(headers["WARC-Target-URI"] in honest for headers, _ in records[1:]):
            others = list(
                ArchiveIterator(
                    str(tmp_path / entry["file"]),
                    parse_http=False,
                    func_filter=lambda record: record.verify_block_digest(),
                )
            )
            assert len(others) == entry["records"], "every block digest is right"
    assert list(blocks) == [page.url for page in pages] == sorted(blocks)
    for page in pages:
        if page.url in honest:
            response = renderer.response(page)
            assert blocks[page.url] == response.head + response.body


def test_record_ids_and_dates_are_those_of_the_url_alone(tmp_path):
    few = write_site(tmp_path / "few", winch=written())
    many = write_site(
        tmp_path / "many", winch=written(), knot=written(url="/a-first.html", body="A bend.")
    )
    seen = []
    for number, folder in enumerate((few, many)):
        (tmp_path / str(number)).mkdir()
        download.pack_web(folder, ROOT / "data/web/designs", 100, tmp_path / str(number))
        records = tiny_parser(tmp_path / str(number) / "part-00000.warc.gz")
        seen += [
            headers
            for headers, _ in records
            if headers.get("WARC-Target-URI", "").endswith("winch.html")
        ]
    assert seen[0]["WARC-Record-ID"] == seen[1]["WARC-Record-ID"]
    assert seen[0]["WARC-Date"] == seen[1]["WARC-Date"]


@pytest.mark.parametrize(
    ("serve", "stated_minus_real"), [("wrong_length = 300", 300), ("wrong_length = -12", -12)]
)
def test_a_wrong_length_is_really_wrong(serve, stated_minus_real, tmp_path):
    write_site(tmp_path / "sites", winch=written(f"[serve]\n{serve}\n"))
    download.pack_web(tmp_path / "sites", ROOT / "data/web/designs", 100, tmp_path)
    _, (headers, block) = tiny_parser(tmp_path / "part-00000.warc.gz")
    assert int(headers["Content-Length"]) - len(block) == stated_minus_real


def test_a_cut_record_is_really_cut(tmp_path):
    write_site(tmp_path / "sites", winch=written("[serve]\ncut_at_byte = 900\n"))
    download.pack_web(tmp_path / "sites", ROOT / "data/web/designs", 100, tmp_path)
    packed = (tmp_path / "part-00000.warc.gz").read_bytes()
    block = gzip.decompress(packed).split(b"\r\n\r\n", 3)[3].partition(b"\r\n\r\n")[2]
    assert len(block) == 900


def test_the_manifest_names_every_file_and_two_runs_give_the_same_bytes(workplace):
    choose(workplace, pages_per_file="1")
    manifest = run_stage()
    first = {file.name: file.read_bytes() for file in Path("data/raw").iterdir()}
    assert manifest["source"] == "embedded"
    assert [entry["records"] for entry in manifest["files"]] == [2, 2]
    for entry in manifest["files"]:
        content = first[entry["file"]]
        assert (entry["bytes"], entry["sha256"]) == (
            len(content),
            hashlib.sha256(content).hexdigest(),
        )
        assert content[4:8] == bytes(4), "no time in the gzip header"
    assert set(first) == {entry["file"] for entry in manifest["files"]} | {"manifest.json"}
    run_stage()
    assert {file.name: file.read_bytes() for file in Path("data/raw").iterdir()} == first


def test_a_page_that_does_not_parse_leaves_nothing(workplace):
    Path("data/web/sites/saltreeve.example/bad.md").write_text("+++\nurl = \n+++\n")
    with pytest.raises(UserError, match="bad.md:2"):
        run_stage()
    assert not Path("data/raw").exists() and not list(Path("data").glob(".raw*"))


def test_files_of_your_own_are_taken(workplace):
    crawl = workplace / "crawl"
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
    for name, content in contents.items():
        (crawl / name).parent.mkdir(parents=True, exist_ok=True)
        (crawl / name).write_bytes(content)
    choose(workplace, source="files", paths='"crawl/**/*.gz, crawl/plain.*,crawl/*.zst"')
    manifest = run_stage()
    taken = {
        entry["file"]: (workplace / "data/raw" / entry["file"]).read_bytes()
        for entry in manifest["files"]
    }
    assert sorted(taken.values()) == sorted(contents.values())
    assert manifest["source"] == "files" and list(taken) == sorted(taken)


def test_only_a_file_that_nobody_writes_to_is_linked(workplace):
    """A link to a file that a crawler still appends to would change what DVC has stored under a hash."""
    for name, mode in (("done", 0o444), ("growing", 0o644)):
        (workplace / f"{name}.warc.gz").write_bytes(members(RECORDS[:2]))
        (workplace / f"{name}.warc.gz").chmod(mode)
    choose(workplace, source="files", paths='"*.warc.gz"')
    run_stage()
    links = {file.name: os.stat(file).st_nlink for file in Path("data/raw").glob("*.warc.gz")}
    assert links == {"00000-done.warc.gz": 2, "00001-growing.warc.gz": 1}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"<!DOCTYPE html><html><body>503 Slow down</body></html>", "HTML page"),
        (gzip.compress(b"  <html><head><title>Please reduce your request rate"), "HTML page"),
        (b'<?xml version="1.0"?><Error><Code>SlowDown</Code></Error>', "XML"),
        (b"filedesc://IAH-2008.arc 0.0.0.0 20080430 text/plain 77\n", "ARC"),
        (b"", "empty"),
        (b"\x1f\x8b\x08\x00garbage that is no gzip", "empty, or compressed and broken"),
        (b"%PDF-1.4", "%PDF-1.4"),
    ],
)
def test_what_is_no_warc_is_refused_by_name(content, word, workplace):
    (workplace / "good.warc.gz").write_bytes(members(RECORDS[:2]))
    (workplace / "part-00071.warc.gz").write_bytes(content)
    choose(workplace, source="files", paths='"*.warc.gz"')
    with pytest.raises(UserError, match="part-00071.warc.gz") as problem:
        run_stage()
    assert word in str(problem.value)
    assert not Path("data/raw").exists()


@pytest.mark.parametrize(
    ("paths", "word"), [('"nowhere/*.warc.gz"', "nowhere"), ('" , "', "empty")]
)
def test_a_pattern_that_means_no_file_is_a_problem(paths, word, workplace):
    choose(workplace, source="files", paths=paths)
    with pytest.raises(UserError, match=word):
        run_stage()


def test_real_crawls_are_taken_the_damaged_ones_too(shared_data, workplace):
    choose(workplace, source="files", paths=f'"{shared_data}/web/*/*"')
    assert len(run_stage()["files"]) == len(list((shared_data / "web").glob("*/*")))
