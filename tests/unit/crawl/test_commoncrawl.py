"""`download` against a Common Crawl on this machine that misbehaves: what comes is complete and right, or there is a clear error."""

import gzip
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType

from crawl2cart.core.errors import UserError
from crawl2cart.core.params import read_params
from crawl2cart.core.retry_after import retry_after
from crawl2cart.core.stage import exclusive
from tests.conftest import ROOT
from tests.servers.commoncrawl_server import (
    CRAWL,
    HTML,
    Server,
    Wrong,
    later,
    name_of,
    serve,
    storm,
)
from tests.unit.crawl.test_download import choose, run_stage, workplace  # noqa: F401  a folder in which a stage runs
from tests.unit.crawl.test_warc import BODIES, http_block, members, page_body, warc_record

HOSTS = ("shop.example", "tools.shop.example", "garden.example", "harbour.example")
URLS = [
    f"https://{HOSTS[number % len(HOSTS)]}/{'blog' if number % 3 else 'page'}/{number}"
    for number in range(60)
]
TEXTS = dict(zip(URLS, BODIES.values(), strict=True))
RECORDS = [warc_record(url, http_block(body)) for url, body in TEXTS.items()]
WARCS = [members(RECORDS[start : start + 10]) for start in range(0, 60, 10)]
WETS = [
    members(
        [
            warc_record(url, TEXTS[url], "conversion", content_type="text/plain")
            for url in URLS[start : start + 20]
        ]
    )
    for start in range(0, 60, 20)
]


@pytest.fixture
def server() -> Server:
    with serve() as server:
        server.add_crawl(WARCS, WETS)
        yield server


@pytest.fixture
def place(workplace, server) -> Path:  # noqa: F811
    """A workplace that fetches from the server, without waits."""
    choose(
        workplace,
        source="commoncrawl",
        crawl=CRAWL,
        base=server.url,
        index=server.url,
        seconds_between_requests=0.0,
        read_timeout=5.0,
    )
    return workplace


def raw() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(Path("data/raw").iterdir())}


def fetched() -> list[bytes]:
    return [(Path("data/raw") / entry["file"]).read_bytes() for entry in run_stage()["files"]]


def first(server: Server, kind: str = "warc") -> str:
    return next(name for name in server.files if f"/{kind}/" in name)


def only(path: str, *wrongs: Wrong | None, method: str = "GET"):
    """Misbehaviour for the first requests for one file, one for each."""

    def misbehave(request) -> Wrong | None:
        hit = (
            request.path.endswith(path)
            and request.method == method
            and request.number < len(wrongs)
        )
        return wrongs[request.number] if hit else None

    return misbehave


# ---- a server that behaves ----


@pytest.mark.parametrize(
    ("kind", "files", "chosen"),
    [
        ("warc", 1, WARCS[:1]),
        ("wet", 2, WETS[:2]),
        ("warc", "2-4", WARCS[2:5]),
        ("wet", "0-0", WETS[:1]),
        ("warc", 6, WARCS),
    ],
)
def test_the_chosen_files_come_byte_for_byte(kind, files, chosen, place, server):
    choose(place, kind=kind, files=files)
    assert fetched() == chosen


def test_a_share_is_drawn_by_its_seed(place):
    choose(place, files=0.5)
    drawn = []
    for seed in (7, 7, 8, 9):
        choose(place, seed=seed)
        drawn.append(fetched())
    assert drawn[0] == drawn[1] and len(drawn[0]) == 3
    assert all(content in WARCS for content in drawn[0])
    assert len({tuple(content) for content in drawn}) > 1


def test_params_decide_the_files_and_not_the_place_or_the_time(place, tmp_path):
    choose(place, files=2)
    run_stage()
    before = raw()
    shutil.rmtree(place / ".cache")
    with serve() as mirror:
        mirror.add_crawl(WARCS, WETS)
        choose(place, base=mirror.url, connections=1)
        run_stage()
    assert raw() == before
    manifest = before["manifest.json"].decode()
    assert "127.0.0.1" not in manifest and str(place) not in manifest
    assert {"file", "path", "bytes", "sha256"} == set(json.loads(manifest)["files"][0])


def test_a_finished_file_is_kept_and_linked_and_not_fetched_again(place, server):
    choose(place, files=2)
    run_stage()
    asked = len(server.requests)
    shutil.rmtree("data/raw")
    run_stage()
    assert len(server.requests) == asked
    linked = list(Path("data/raw").glob("*.gz"))
    assert [os.stat(file).st_nlink for file in linked] == [2, 2]
    assert not any(os.stat(file).st_mode & 0o222 for file in linked)


def test_sizes_are_asked_for_once_though_a_run_ends_early(place, server):
    choose(place, files=3)
    server.misbehave = lambda request: (
        Wrong(status=403) if request.method == "GET" and "/warc/" in request.path else None
    )
    with pytest.raises(UserError, match="403"):
        run_stage()
    server.misbehave = lambda request: None
    assert fetched() == WARCS[:3]
    assert len(server.asked(".warc.gz", "HEAD")) == 3


def test_a_kept_file_that_has_rotted_is_fetched_again(place, server):
    run_stage()
    kept = next((place / ".cache/download").glob("*.warc.gz"))
    kept.chmod(0o644)
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert fetched() == WARCS[:1]


def test_it_says_who_asks_and_keeps_to_four_connections(place, server):
    choose(place, files=6, user_agent_contact="crawls@saltnes.example")
    server.misbehave = lambda request: Wrong(drip=0.0005) if request.method == "HEAD" else None
    run_stage()
    assert server.agents == {"crawl2cart (crawls@saltnes.example)"}
    assert server.most_at_once <= 4
    assert "connections: input should be less than or equal to 4" in refused(place, connections=5)


def test_requests_keep_their_distance(place, server):
    choose(place, files=3, seconds_between_requests=0.1)
    started = time.monotonic()
    run_stage()
    assert len(server.requests) == 7 and time.monotonic() - started >= 0.6


def refused(place: Path, **values: object) -> str:
    choose(place, **values)
    with pytest.raises(UserError) as problem:
        read_params(place / "params.yaml")
    return str(problem.value)


@pytest.mark.parametrize("files", ["0", "3-1", '"all"', "1.5", "true", "-2"])
def test_a_choice_of_files_that_means_nothing_is_named(files, place):
    assert "download.files: " in refused(place, files=files)


def test_more_files_than_there_are_is_a_problem(place):
    choose(place, files='"5-9"')
    with pytest.raises(UserError, match="the crawl has 6 files"):
        run_stage()


# ---- a server that does not ----


@pytest.mark.parametrize(
    "wrongs",
    [
        [later(503)] * 5,
        [later(503, "0")] * 3,
        [later(429, "0"), later(429)],
        [later(500), later(502), later(504)],
        [Wrong(cut=0)],
        [Wrong(cut=1)],
        [Wrong(cut=700), Wrong(cut=900), Wrong(cut=1), Wrong(cut=3)],
        [Wrong(body=HTML)] * 3,
        [Wrong(body=gzip.compress(HTML))],
        [Wrong(length=400)],
        [Wrong(length=-400)],
        [Wrong(length=400), Wrong(length=-3)],
        [Wrong(cut=2000), Wrong(ignore_range=True)],
        [Wrong(cut=2000), Wrong(range_off=1)],
        [Wrong(cut=2000), Wrong(body=HTML)],
        [Wrong(cut=2000), Wrong(status=416)],
        [Wrong(cut=2000, without=("ETag", "Last-Modified"))],
        [Wrong(cut=2000, without=("ETag",))],
        [Wrong(body=WARCS[0][:5000])],
        [Wrong(body=WARCS[0][:5000], chunked=True)],
        [Wrong(body=WARCS[0] + b"more")],
        [Wrong(body=b"")],
        [Wrong(unsaid=True)],
        [Wrong(body=WARCS[0][:-1] + b"x")],
        [Wrong(body=members(RECORDS[:9]))],
    ],
    ids=lambda wrongs: " then ".join(map(name_of, wrongs)),
)
def test_what_fails_for_now_is_asked_again_until_it_is_right(wrongs, place, server):
    server.misbehave = only(first(server), *wrongs)
    assert fetched() == WARCS[:1]
    assert sum(server.wrongs.values()) == len(wrongs), "each of them was met"


@pytest.mark.parametrize("path", ["warc.paths.gz", ".warc.gz"])
@pytest.mark.parametrize(
    "wrong",
    [
        later(503),
        Wrong(body=HTML),
        Wrong(cut=20),
        Wrong(length=9),
        Wrong(length=-9),
        Wrong(unsaid=True),
    ],
    ids=["503", "html", "cut", "long", "short", "unsaid"],
)
def test_what_always_fails_is_an_error_in_words(path, wrong, place, server):
    server.misbehave = lambda request: (
        wrong if request.path.endswith(path) and request.method == "GET" else None
    )
    choose(place, max_attempts=4)
    with pytest.raises(
        UserError, match=rf"{path}: .*(attempt 4 of 4|came twice with the same bytes)"
    ):
        run_stage()
    assert not Path("data/raw").exists()


def test_a_forbidden_address_is_left_alone_at_once(place, server):
    choose(place, files=6)
    server.misbehave = lambda request: (
        Wrong(
            status=403,
            body=b"<Error><Code>AccessDenied</Code><Message>Rate limited</Message></Error>",
        )
        if request.path.endswith("00001.warc.gz")
        else None
    )
    with pytest.raises(UserError, match="403 Forbidden: .*stop"):
        run_stage()
    assert len(server.asked("00001.warc.gz", "HEAD")) == 1 and not server.asked("00001.warc.gz")
    server.misbehave = lambda request: Wrong(
        status=403, body=b"<html><h1>Too many requests</h1> from your network.</html>"
    )
    shutil.rmtree(place / ".cache")
    with pytest.raises(UserError, match="403 Forbidden: Too many requests from your network"):
        run_stage()


def test_a_file_cut_on_the_server_is_not_asked_for_for_ever(place, server):
    server.files[first(server)] = WARCS[0][:-100]
    with pytest.raises(
        UserError, match="ends in the middle of a gzip member.*twice with the same bytes"
    ):
        run_stage()
    assert len(server.asked(first(server))) == 2


def test_an_empty_file_is_never_a_crawl(place, server):
    server.files[first(server)] = b""
    with pytest.raises(UserError, match="after 0 bytes.*twice"):
        run_stage()


def test_two_downloads_do_not_write_to_one_part(place):
    with (
        exclusive(place / ".cache/download/lock", "another"),
        pytest.raises(UserError, match="Another process is running a download"),
    ):
        run_stage()


def test_a_cut_file_goes_on_where_it_broke_off(place, server):
    server.misbehave = only(first(server), Wrong(cut=4000), Wrong(cut=3000))
    assert fetched() == WARCS[:1]
    assert [request.headers.get("range") for request in server.asked(first(server))] == [
        None,
        "bytes=4000-",
        "bytes=7000-",
    ]
    assert all(
        request.headers["if-range"].startswith('"') for request in server.asked(first(server))[1:]
    )


@pytest.mark.parametrize("later_size", ["smaller", "equal", "larger"])
def test_a_file_that_changes_between_attempts_starts_over(later_size, place, server):
    name = first(server)
    other = {
        "smaller": members(RECORDS[30:33]),
        "larger": members(RECORDS[20:50]),
        "equal": members([record.replace(b"<p>page", b"<p>PAGE") for record in RECORDS[:10]]),
    }[later_size]

    def misbehave(request):
        if request.path == name and request.method == "GET" and request.number == 0:
            return Wrong(cut=len(WARCS[0]) - 100)
        if request.path == name and request.method == "GET":
            server.files[name] = other
        return None

    server.misbehave = misbehave
    assert fetched() == [other]


def test_attempts_that_bring_much_are_no_failures(place, server):
    """A large file over a line that breaks every few MiB comes in the end, however few failures in a row are allowed."""
    draw = random.Random(5)
    large = members(
        [warc_record("https://shop.example/large", http_block(draw.randbytes(6 << 20)))]
    )
    server.files[first(server)] = large
    server.misbehave = lambda request: (
        Wrong(cut=1200 << 10) if request.method == "GET" and "/warc/" in request.path else None
    )
    choose(place, max_attempts=2)
    assert fetched() == [large]
    assert len(server.asked(first(server))) == 6


def test_ctrl_c_ends_it_at_once_though_a_server_is_silent(place, server):
    choose(place, files=4, read_timeout=60.0)
    server.misbehave = lambda request: (
        Wrong(silent=True) if request.method == "GET" and "/warc/" in request.path else None
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.download"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while len(server.asked(".warc.gz")) < 4 and (process.poll() is None or print(process.stderr.read().decode())):
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=25) == 130, process.stderr.read()
    process.stderr.close()


@pytest.mark.parametrize("wrong", [Wrong(silent=True), Wrong(drip=0.02)], ids=["silent", "drip"])
def test_a_connection_that_stalls_is_given_up(wrong, place, server):
    choose(place, read_timeout=0.3)
    server.misbehave = only(first(server), wrong, wrong)
    started = time.monotonic()
    assert fetched() == WARCS[:1]
    assert 0.6 <= time.monotonic() - started < 5


def test_retry_after_is_heeded_by_all_connections(place, server):
    choose(place, files=4)
    run_stage()
    asked = len(server.requests)
    shutil.rmtree(place / ".cache")
    times: list[float] = []

    def misbehave(request) -> Wrong | None:
        times.append(time.monotonic())
        return later(503, "1") if len(times) == 3 else None

    server.misbehave = misbehave
    run_stage()
    assert len(times) == asked + 1
    waited = [after - before for before, after in zip(times[2:], times[3:], strict=False)]
    assert max(waited) > 0.9


def test_retry_after_is_seconds_or_a_date_or_nothing():
    assert retry_after("17") == 17.0
    assert retry_after("Fri, 31 Dec 1999 23:59:59 GMT") == 0.0
    assert retry_after("") is None and retry_after("soon") is None


def test_a_server_that_wants_to_be_left_alone_for_long_is(place, server):
    server.misbehave = lambda request: later(503, "86400")
    with pytest.raises(UserError, match="left alone for 24.0 hours"):
        run_stage()
    assert len(server.requests) == 1


def test_a_crawl_that_does_not_exist_is_named(place):
    choose(place, crawl="CC-MAIN-2099-01")
    with pytest.raises(UserError, match="CC-MAIN-2099-01.*404.*--latest"):
        run_stage()


def test_nobody_there(place):
    choose(place, base="http://127.0.0.1:9/", max_attempts=2)
    with pytest.raises(UserError, match="no answer .*attempt 2 of 2"):
        run_stage()


def test_a_full_disk_is_known_before_anything_is_fetched(place, server):
    choose(place, files=2)
    server.misbehave = lambda request: Wrong(length=10**16) if request.method == "HEAD" else None
    with pytest.raises(UserError, match="2 files are to be fetched, .* GiB are free"):
        run_stage()
    assert not server.asked(".warc.gz") and not Path("data/raw").exists()


def test_paths_that_lead_out_of_the_crawl_are_refused(place, server):
    server.files[f"crawl-data/{CRAWL}/warc.paths.gz"] = gzip.compress(
        b"crawl-data/../../etc/passwd.gz\n"
    )
    with pytest.raises(UserError, match="no file of a crawl"):
        run_stage()


def test_a_run_killed_at_any_moment_goes_on(place, server):
    """kill -9 as soon as a part lies there, again and again; each run goes on, and the end is as if nothing had happened."""
    choose(place, files=3)
    run_stage()
    whole = raw()
    shutil.rmtree(place / ".cache")
    shutil.rmtree("data/raw")
    server.requests.clear()
    server.misbehave = lambda request: (
        Wrong(drip=0.0002) if "/warc/" in request.path and request.number < 2 else None
    )
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.download"], stdout=subprocess.DEVNULL
        )
        before = (
            sum(file.stat().st_size for file in (place / ".cache").rglob("*.part"))
            if (place / ".cache").exists()
            else 0
        )
        while (
            process.poll() is None
            and sum(file.stat().st_size for file in (place / ".cache").rglob("*.part"))
            < before + 3000
        ):
            time.sleep(0.01)
        assert process.poll() is None, "it was killed in the middle"
        process.send_signal(signal.SIGKILL)
        process.wait()
    run_stage()
    assert raw() == whole
    assert any("range" in request.headers for request in server.asked(".warc.gz"))


def test_of_two_hundred_files_in_a_storm_none_is_wrong(place, server, capsys):
    """Every kind of trouble at once, drawn from a seed: all files come whole, and none that is not the server's."""
    records = [
        warc_record(f"https://shop.example/{number}", http_block(page_body(1000 + number)))
        for number in range(500)
    ]
    files = [members(records[number * 2 : number * 2 + 6]) for number in range(200)]
    server.add_crawl(files, [])
    server.misbehave = storm(11, 0.4, server.files)
    choose(place, files=200, max_attempts=30)
    started = time.monotonic()
    accepted = fetched()
    seconds = time.monotonic() - started
    bad = sum(
        gzip.decompress(content) != gzip.decompress(whole)
        for content, whole in zip(accepted, files, strict=True)
    )
    with capsys.disabled():
        print(
            f"\nstorm: {len(accepted)} files, {len(server.requests)} requests, {sum(server.wrongs.values())} faults of "
            f"{len(server.wrongs)} kinds, {len(server.requests) - 401} repeated, {bad} bad files accepted, {seconds:.1f} s"
        )
    assert len(accepted) == 200 and bad == 0
    assert sum(server.wrongs.values()) > 200


# ---- pages by URL ----


def pages() -> dict[str, bytes]:
    found = {}
    for file in sorted(Path("data/raw").glob("*.warc.gz")):
        for record in ArchiveIterator(
            io.BytesIO(file.read_bytes()), record_types=WarcRecordType.response
        ):
            found[record.headers["WARC-Target-URI"]] = record.reader.read()
    return found


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        ("garden.example/*", lambda url: "//garden." in url),
        ("*.shop.example", lambda url: "shop.example/" in url),
        (
            "harbour.example/blog/*, garden.example/page/*",
            lambda url: "harbour.example/blog/" in url or "garden.example/page/" in url,
        ),
    ],
)
def test_pages_are_picked_through_the_index(patterns, wanted, place, server):
    choose(place, urls=f'"{patterns}"', pages_per_file=4)
    manifest = run_stage()
    found = pages()
    assert found == {url: body for url, body in TEXTS.items() if wanted(url)}
    assert [entry["records"] for entry in manifest["files"]] == [4] * (len(found) // 4) + [
        len(found) % 4
    ] * (len(found) % 4 > 0)
    assert not server.asked("warc.paths.gz") and all(
        "range" in request.headers for request in server.asked(".warc.gz")
    )


def test_at_most_so_many_pages_and_only_those_that_pass_the_filters(place, server):
    for number, entry in enumerate(server.index[CRAWL]):
        entry["languages"] = "eng" if number % 2 else "nor,eng"
    choose(place, urls='"*.example"', index_filters='"=status:200, !~languages:nor.*"', max_records=13)
    run_stage()
    english = [entry["url"] for entry in server.index[CRAWL] if entry["languages"] == "eng"]
    assert list(pages()) == english[:13]
    before = len(server.requests)
    choose(place, max_records=14)
    run_stage()
    assert len(server.asked(".warc.gz")) == 14 and len(server.requests) > before, "13 were kept"


@pytest.mark.parametrize(
    "wrong",
    [
        later(503),
        later(429, "0"),
        Wrong(cut=10),
        Wrong(body=HTML),
        Wrong(length=5),
        Wrong(length=-5),
        Wrong(ignore_range=True),
        Wrong(range_off=1),
        Wrong(body=b"{broken\n"),
        Wrong(cut=400),
        Wrong(chunked=True),
        Wrong(unsaid=True),
    ],
    ids=name_of,
)
def test_single_records_survive_what_files_survive(wrong, place, server):
    met = Counter()

    def misbehave(request) -> Wrong | None:
        met[request.path, str(request.query), request.headers.get("range")] += 1
        return (
            wrong
            if met[request.path, str(request.query), request.headers.get("range")] == 1
            else None
        )

    server.misbehave = misbehave
    choose(place, urls='"garden.example/*"')
    run_stage()
    assert pages() == {url: body for url, body in TEXTS.items() if "//garden." in url}
    assert server.wrongs


def test_a_broken_line_in_the_index_is_an_error_that_quotes_it(place, server):
    server.broken_lines[1] = b'{"url": "https://garden.example/broken'
    choose(place, urls='"garden.example/*"')
    with pytest.raises(
        UserError,
        match="page 1 for garden.example/.: line 2 is no entry .*garden.example/broken.*twice",
    ):
        run_stage()


def test_an_index_that_points_to_another_record_is_an_error(place, server):
    entry = server.index[CRAWL][0]
    entry["offset"], entry["length"] = (
        server.index[CRAWL][1]["offset"],
        server.index[CRAWL][1]["length"],
    )
    entry["filename"] = server.index[CRAWL][1]["filename"]
    choose(place, urls='"*.example"', max_records=2)
    with pytest.raises(UserError, match="the record there is of https://"):
        run_stage()


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"urls": '"nobody.example"'}, "no capture of nobody.example"),
        ({"urls": '"garden.example"', "kind": "wet"}, "download.kind=warc"),
        ({"urls": '"garden.example"', "crawl": "CC-MAIN-2099-01"}, "--latest"),
    ],
)
def test_a_choice_of_pages_that_means_nothing_is_named(values, word, place):
    choose(place, **values)
    with pytest.raises(UserError, match=word):
        run_stage()


def test_real_records_of_common_crawl_come_by_file_and_by_url(shared_data, place, server):
    """16 pages of CC-MAIN-2020-34 as Common Crawl wrote them, offsets and all."""
    real = (shared_data / "web/cc_real/chatnoir-resiliparse__warcfile.warc.gz").read_bytes()
    server.add_crawl(
        [real],
        [(shared_data / "web/cc_real/whirlwind-python__whirlwind.warc.wet.gz").read_bytes()],
        "CC-MAIN-2020-34",
    )
    choose(place, crawl="CC-MAIN-2020-34")
    assert fetched() == [real]
    run_stage()
    whole = pages()
    choose(place, urls='"*.com, *.org, *.net, *.de, *.ru"')
    run_stage()
    picked = pages()
    assert len(picked) >= 8 and picked.items() <= whole.items()
    choose(place, urls='""', kind="wet")
    assert len(fetched()) == 1


# ---- S3, the newest crawl, the README ----


@pytest.fixture
def s3(place, server, monkeypatch) -> Server:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    server.needs_key = True
    choose(place, base="s3://commoncrawl/", max_attempts=4)
    return server


def test_s3_gives_the_same_bytes_where_credentials_exist(s3, place, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    s3.misbehave = only(first(s3), Wrong(cut=4000), later(503))
    choose(place, files=2)
    assert fetched() == WARCS[:2]
    choose(place, urls='"garden.example/*"')
    run_stage()
    assert pages() == {url: body for url, body in TEXTS.items() if "//garden." in url}


def test_s3_without_credentials_is_a_problem_with_the_way_out(s3):
    with pytest.raises(UserError, match="AWS refused.*AWS_PROFILE.*https://data.commoncrawl.org/"):
        run_stage()


def test_latest_prints_the_newest_crawl_and_writes_only_its_line(place, server):
    for crawl in ("CC-MAIN-2026-09", "CC-MAIN-2026-47", "CC-MAIN-2008-2009"):
        server.index[crawl] = []
    text = (place / "params.yaml").read_text()
    text = text.replace(f"  crawl: {CRAWL}\n", f"  crawl: {CRAWL}   # the one we know\n")
    (place / "params.yaml").write_text(text)
    said = subprocess.run(
        [sys.executable, "-m", "stages.download", "--latest"], capture_output=True, text=True
    )
    assert (said.returncode, said.stdout) == (0, "CC-MAIN-2026-47\n"), said.stderr
    assert (place / "params.yaml").read_text() == text.replace(
        f"crawl: {CRAWL}", "crawl: CC-MAIN-2026-47"
    )
    choose(place, index="http://127.0.0.1:9/", max_attempts=1)
    said = subprocess.run(
        [sys.executable, "-m", "stages.download", "--latest"], capture_output=True, text=True
    )
    assert said.returncode == 1 and said.stderr.startswith("download: list of crawls: no answer")


README = [
    line
    for line in (ROOT / "README.md").read_text().splitlines()
    if line.startswith("dvc ") and "source=commoncrawl" in line
]


@pytest.fixture
def web_at_large(server, monkeypatch) -> Server:
    """A crawl of 20,000 names (a share of 0.0001 is two files), all with the contents of six."""
    server.add_crawl(WARCS, WETS)
    for kind, contents in (("warc", WARCS), ("wet", WETS)):
        names = [
            f"crawl-data/{CRAWL}/segments/1/{kind}/{number:05}.{kind}.gz"
            for number in range(20_000)
        ]
        server.files[f"crawl-data/{CRAWL}/{kind}.paths.gz"] = gzip.compress(
            "\n".join(names).encode(), mtime=0
        )
        server.files |= {
            name: contents[number % len(contents)] for number, name in enumerate(names)
        }
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    return server


def aim(folder: Path, server: Server) -> None:
    """Puts this machine's server where the default parameters name Common Crawl's, and leaves out the pauses."""
    choose(folder, base=server.url, index=server.url, seconds_between_requests=0.0)


def came(command: str, folder: Path) -> bool:
    """Whether what lies in data/raw is what the command asked for."""
    contents = [file.read_bytes() for file in sorted((folder / "data/raw").glob("*.gz"))]
    match re.search(r"(files|urls|base)=(\S+)", command).groups():
        case ("files", "1"):
            return contents == WETS[:1]
        case ("files", "100-103"):
            return contents == [WARCS[number % 6] for number in range(100, 104)]
        case ("files", share):
            return (
                float(share) == 0.0001
                and len(contents) == 2
                and all(content in WARCS for content in contents)
            )
        case ("urls", _):
            return {
                url for url in URLS if "shop.example" in url or "garden.example/blog" in url
            } == {
                record.headers["WARC-Target-URI"]
                for content in contents
                for record in ArchiveIterator(io.BytesIO(content))
            }
        case ("base", _):
            return contents == WARCS[:1]


@pytest.mark.parametrize("command", README)
def test_what_the_readme_says_about_common_crawl_works(command, workplace, web_at_large):  # noqa: F811
    aim(workplace, web_at_large)
    words = shlex.split(command.replace("https://mirror.example/", web_at_large.url))
    choose(
        workplace,
        **{
            word.partition("=")[0].removeprefix("download."): word.partition("=")[2]
            for word in words
            if "=" in word
        },
    )
    run_stage()
    assert came(command, workplace)


@pytest.mark.slow
@pytest.mark.parametrize("command", README)
def test_dvc_runs_what_the_readme_says_about_common_crawl(command, project, web_at_large):
    """As written, in a copy of the project; only `download` itself, since the rest of the graph is the same for any crawl."""
    aim(project, web_at_large)
    words = shlex.split(command.replace("https://mirror.example/", web_at_large.url))
    said = subprocess.run(
        [project / ".venv/bin/dvc", *words[1:], "download"],
        cwd=project,
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.com",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.com",
        },
    )
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
    assert came(command, project)
