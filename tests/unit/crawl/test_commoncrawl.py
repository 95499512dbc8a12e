"""Downloads from a Common Crawl that misbehaves: right and complete, or a clear error."""

import gzip
import io
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType
from pydantic import ValidationError
from pytest_httpserver import HTTPServer

from crawl2cart.core.errors import UserError
from crawl2cart.core.params import read_params
from crawl2cart.core.retry_after import retry_after
from crawl2cart.core.stage import exclusive
from crawl2cart.crawl.download.commoncrawl import newest_crawl, set_crawl
from crawl2cart.crawl.download.http_client import HttpClient, Version
from crawl2cart.crawl.download.retry import Retry, Stopped, TransientError
from stages.download import fetch_common_crawl
from tests.conftest import ROOT
from tests.servers.commoncrawl_server import CRAWL, HTML, Fault, Request, Server, busy, serve, storm
from tests.unit.crawl.samples import BODIES, http_block, members, page_body, warc_record

HOSTS = ("shop.example", "tools.shop.example", "garden.example", "harbour.example")
URLS = [f"https://{HOSTS[i % 4]}/{'blog' if i % 3 else 'page'}/{i}" for i in range(60)]
PAGES = dict(zip(URLS, BODIES.values(), strict=True))
RECORDS = [warc_record(url, http_block(body)) for url, body in PAGES.items()]
TEXTS = [warc_record(url, PAGES[url], "conversion", content_type="text/plain") for url in URLS]
WARCS = [members(RECORDS[i : i + 10]) for i in range(0, 60, 10)]
VALIDATORS = ("ETag", "Last-Modified")
WETS = [members(TEXTS[i : i + 20]) for i in range(0, 60, 20)]
DEFAULTS = read_params(ROOT / "params.yaml").download


@pytest.fixture
def server() -> Server:
    with serve() as server:
        server.add_crawl(WARCS, WETS)
        yield server


class Project:
    """A folder that downloads from a server without pauses. defaults: parameters of its own."""

    def __init__(self, folder: Path, server: Server):
        self.cache, self.raw = folder / "cache", folder / "raw"
        self.defaults = {
            "source": "commoncrawl",
            "crawl": CRAWL,
            "files": 1,
            "base": server.url,
            "index": server.url,
            "seconds_between_requests": 0.0,
            "read_timeout": 5.0,
        }

    def params(self, **changes: object):
        return type(DEFAULTS)(**DEFAULTS.model_dump() | self.defaults | changes)

    def download(self, **changes: object) -> list[dict]:
        """Download with these parameters; returns the manifest's entries."""
        shutil.rmtree(self.raw, ignore_errors=True)
        self.raw.mkdir()
        return fetch_common_crawl(self.params(**changes), self.cache, self.raw)

    def files(self, **changes: object) -> list[bytes]:
        """Download with these parameters; returns what came."""
        return [(self.raw / entry["file"]).read_bytes() for entry in self.download(**changes)]

    def pages(self, **changes: object) -> dict[str, bytes]:
        """Download with these parameters; returns the pages that came, by URL."""
        return {
            record.headers["WARC-Target-URI"]: record.reader.read()
            for content in self.files(**changes)
            for record in ArchiveIterator(io.BytesIO(content), WarcRecordType.response)
        }


@pytest.fixture
def project(tmp_path, server) -> Project:
    return Project(tmp_path, server)


def first_file(server: Server) -> str:
    return next(name for name in server.files if "/warc/" in name)


def faults_at(path: str, *faults: Fault | None) -> Callable[[Request], Fault | None]:
    """Inject these faults into the first downloads of paths that end like this."""

    def fault_for(request: Request) -> Fault | None:
        if request.method == "GET" and request.path.endswith(path) and request.number < len(faults):
            return faults[request.number]
        return None

    return fault_for


def always(fault: Fault, path: str = ".warc.gz") -> Callable[[Request], Fault | None]:
    """Inject the fault into all downloads of paths that end like this."""
    return lambda request: (
        fault if request.method == "GET" and request.path.endswith(path) else None
    )


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
def test_the_chosen_files_come_byte_for_byte(kind, files, chosen, project):
    assert project.files(kind=kind, files=files) == chosen


def test_a_share_of_files_is_drawn_with_the_seed(project):
    draws = [project.files(files=0.5, seed=seed) for seed in (7, 7, 8, 9)]
    assert draws[0] == draws[1] and len(draws[0]) == 3
    assert all(content in WARCS for content in draws[0])
    assert len({tuple(files) for files in draws}) > 1


def test_neither_mirror_nor_folder_changes_the_result(project, tmp_path):
    entries = project.download(files=2)
    with serve() as mirror:
        mirror.add_crawl(WARCS, WETS)
        other = Project(tmp_path / "other", mirror)
        other.raw.parent.mkdir()
        assert other.download(files=2, connections=1) == entries
        assert set(entries[0]) == {"file", "path", "sha256"}
        assert (other.raw / entries[1]["file"]).read_bytes() == WARCS[1]


def test_a_complete_file_is_kept_and_linked_and_not_requested_again(project, server):
    project.download(files=2)
    requests = len(server.requests)
    project.download(files=2)
    assert len(server.requests) == requests
    stats = [os.stat(file) for file in project.raw.glob("*.gz")]
    assert [stat.st_nlink for stat in stats] == [2, 2]
    assert not any(stat.st_mode & 0o222 for stat in stats)


def test_sizes_are_requested_once_even_if_a_run_ends_early(project, server):
    server.fault_for = always(Fault(status=403))
    with pytest.raises(UserError, match="403"):
        project.download(files=3)
    server.fault_for = lambda request: None
    assert project.files(files=3) == WARCS[:3]
    assert len(server.requests_for(".warc.gz", "HEAD")) == 3


def test_a_kept_file_that_was_damaged_on_disk_is_downloaded_again(project):
    project.download()
    kept = next(project.cache.glob("*.warc.gz"))
    kept.chmod(0o644)
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert project.files() == WARCS[:1]


def test_requests_name_the_sender_and_use_four_connections_at_most(project, server):
    server.fault_for = always(Fault(delay=0.1))
    assert project.files(files=6, user_agent_contact="crawls@saltnes.example") == WARCS
    agents = {request.headers["user-agent"] for request in server.requests}
    assert agents == {"crawl2cart (crawls@saltnes.example)"}
    assert 1 < server.most_at_once <= 4


def test_requests_keep_their_distance(project, server):
    started = time.monotonic()
    project.download(files=3, seconds_between_requests=0.05)
    assert len(server.requests) == 7 and time.monotonic() - started >= 6 * 0.05


@pytest.mark.parametrize(
    "changes",
    [
        *({"files": files} for files in (0, "3-1", "all", 1.5, True, -2)),
        {"connections": 5},
        {"base": "ftp://mirror.example/"},
    ],
)
def test_parameters_without_a_meaning_are_refused(changes, project):
    with pytest.raises(ValidationError, match=next(iter(changes))):
        project.params(**changes)


def test_more_files_than_the_crawl_has_are_an_error(project):
    with pytest.raises(UserError, match="6 files"):
        project.download(files="5-9")


# ---- a server that does not ----


@pytest.mark.parametrize(
    "faults",
    [
        [busy(503)] * 5,
        [busy(503, "0")] * 3,
        [busy(429, "0"), busy(429)],
        [busy(500), busy(502), busy(504)],
        [Fault(cut=0)],
        [Fault(cut=1)],
        [Fault(cut=700), Fault(cut=900), Fault(cut=1), Fault(cut=3)],
        [Fault(body=HTML)] * 3,
        [Fault(body=gzip.compress(HTML))],
        [Fault(length=400)],
        [Fault(length=-400)],
        [Fault(length=400), Fault(length=-3)],
        [Fault(cut=2000), Fault(ignore_range=True)],
        [Fault(cut=2000), Fault(range_off=1)],
        [Fault(cut=2000), Fault(body=HTML)],
        [Fault(cut=2000), Fault(length=-3)],
        [Fault(cut=2000), Fault(status=416)],
        [Fault(cut=2000, without=VALIDATORS)],
        [Fault(cut=2000, without=("ETag",))],
        [Fault(body=WARCS[0][:5000])],
        [Fault(body=WARCS[0][:5000], chunked=True)],
        [Fault(body=WARCS[0] + b"more")],
        [Fault(body=b"")],
        [Fault(no_length=True)],
        [Fault(body=WARCS[0][:-1] + b"x")],
        [Fault(body=members(RECORDS[:9]))],
    ],
    ids=lambda faults: ", ".join(map(str, faults)),
)
def test_transient_faults_are_retried_until_the_file_is_right(faults, project, server):
    server.fault_for = faults_at(first_file(server), *faults)
    assert project.files() == WARCS[:1]
    assert server.faults == faults


@pytest.mark.parametrize("path", ["warc.paths.gz", ".warc.gz"])
@pytest.mark.parametrize(
    "fault",
    [
        busy(503),
        Fault(body=HTML),
        Fault(cut=20),
        Fault(length=9),
        Fault(length=-9),
        Fault(no_length=True),
    ],
    ids=str,
)
def test_a_permanent_fault_is_an_error_that_names_the_file(path, fault, project, server):
    server.fault_for = always(fault, path)
    with pytest.raises(UserError, match=rf"{path}: .*(4 of 4|twice)"):
        project.download(max_attempts=4)
    assert len(server.faults) <= 4 and not list(project.raw.iterdir())


def test_a_refusal_stops_all_requests_at_once(project, server):
    page = b"<html><h1>Too many requests</h1> from your network.</html>"
    server.fault_for = lambda request: (
        Fault(status=403, body=page) if request.path.endswith("warc.paths.gz") else None
    )
    with pytest.raises(UserError, match="403 .*Too many requests from your network"):
        project.download(files=6)
    assert len(server.requests) == 1
    server.fault_for = lambda request: (
        Fault(status=403) if request.path.endswith("00001.warc.gz") else None
    )
    with pytest.raises(UserError, match="403"):
        project.download(files=6)
    assert len(server.requests_for("00001.warc.gz", "HEAD")) == 1
    assert not server.requests_for(".warc.gz")


@pytest.mark.parametrize("content", [WARCS[0][:-100], b""], ids=["truncated", "empty"])
def test_a_bad_file_on_the_server_is_requested_twice_only(content, project, server):
    server.files[first_file(server)] = content
    with pytest.raises(UserError, match="twice"):
        project.download()
    assert len(server.requests_for(first_file(server))) == 2


def test_two_downloads_do_not_share_a_cache(project):
    lock = exclusive(project.cache / "lock", "another")
    with lock, pytest.raises(UserError, match="running a download"):
        project.download()


@pytest.mark.parametrize(
    ("second", "ranges"),
    [
        (Fault(cut=3000), [None, "bytes=4000-", "bytes=7000-"]),
        (Fault(body=HTML), [None, "bytes=4000-", "bytes=4000-"]),
        (Fault(cut=3000, without=VALIDATORS), [None, "bytes=4000-", "bytes=7000-"]),
        (Fault(range_off=1), [None, "bytes=4000-", None]),
        (Fault(short_range=50), [None, "bytes=4000-", f"bytes={len(WARCS[0]) - 50}-"]),
    ],
    ids=["cut again", "an error page", "no validators", "another range", "a short range"],
)
def test_a_file_resumes_where_the_connection_broke(second, ranges, project, server):
    server.fault_for = faults_at(first_file(server), Fault(cut=4000), second)
    assert project.files() == WARCS[:1]
    headers = [request.headers for request in server.requests_for(first_file(server))]
    assert [h.get("range") for h in headers] == ranges
    assert all(h["if-range"].startswith('"') for h in headers if "range" in h)


@pytest.mark.parametrize(
    "newer",
    [
        members(RECORDS[30:33]),
        members([record.replace(b"<p>page", b"<p>PAGE") for record in RECORDS[:10]]),
        members(RECORDS[20:50]),
    ],
    ids=["smaller", "equal", "larger"],
)
def test_a_file_that_changes_between_attempts_starts_over(newer, project, server):
    name = first_file(server)

    def fault_for(request: Request) -> Fault | None:
        if request.path == name and request.method == "GET":
            if request.number == 0:
                return Fault(cut=len(WARCS[0]) - 100)
            server.files[name] = newer
        return None

    server.fault_for = fault_for
    assert project.files() == [newer]


def test_a_file_without_validators_starts_over(project, server):
    server.fault_for = lambda request: Fault(
        without=VALIDATORS, cut=4000 if request.method == "GET" and request.number == 0 else None
    )
    server.set_paths("warc", [first_file(server)])
    assert project.files() == WARCS[:1]
    assert all("range" not in request.headers for request in server.requests)


def test_a_part_that_is_longer_than_the_file_starts_over(project, server):
    server.fault_for = faults_at(first_file(server), Fault(cut=4000))
    with pytest.raises(UserError):
        project.download(max_attempts=1)
    next(project.cache.glob("*.part")).write_bytes(WARCS[1] + WARCS[2])
    assert project.files() == WARCS[:1]


def test_two_versions_are_not_mixed_where_a_server_ignores_if_range(project, server):
    name = first_file(server)
    newer = members([RECORDS[1], RECORDS[0], *RECORDS[2:10]])

    def fault_for(request: Request) -> Fault | None:
        if request.path != name or request.method != "GET":
            return None
        if request.number == 0:
            return Fault(cut=len(members(RECORDS[:2])))
        server.files[name] = newer
        return Fault(ignore_if_range=True)

    server.fault_for = fault_for
    assert project.files() == [newer]


def test_an_attempt_that_brings_a_mebibyte_is_not_a_failure(project, server):
    body = random.Random(5).randbytes(6 << 20)
    large = members([warc_record("https://shop.example/large", http_block(body))])
    server.files[first_file(server)] = large
    server.fault_for = always(Fault(cut=1200 << 10))
    assert project.files(max_attempts=2) == [large]
    assert len(server.requests_for(first_file(server))) == 6


@pytest.mark.parametrize("fault", [Fault(silent=True), Fault(drip=0.02)], ids=str)
def test_a_connection_that_stalls_is_given_up(fault, project, server, capsys):
    server.fault_for = faults_at(first_file(server), fault, fault)
    assert project.files(read_timeout=0.15) == WARCS[:1]
    assert re.search("slow|ReadTimeout", capsys.readouterr().out)


def test_retry_after_holds_for_all_connections():
    def attempt() -> None:
        raise TransientError("503", "busy", retry_after=600.0)

    retry = Retry(0.0, 2)
    with ThreadPoolExecutor() as pool:
        pool.submit(retry.retry, "file", attempt)
        time.sleep(0.1)
        other = pool.submit(retry.take_turn)
        waiting = wait([other], timeout=0.2).not_done
        retry.stopped.set()
    assert waiting and isinstance(other.exception(), Stopped)


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("17") == 17.0
    assert retry_after("Fri, 31 Dec 1999 23:59:59 GMT") == 0.0
    assert retry_after("") is None and retry_after("soon") is None


def test_a_server_that_wants_a_day_is_not_waited_for(project, server):
    server.fault_for = lambda request: busy(503, "86400")
    with pytest.raises(UserError, match="24.0 hours"):
        project.download()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crawl": "CC-MAIN-2099-01"}, "CC-MAIN-2099-01.*404.*--latest"),
        ({"base": "http://127.0.0.1:9/", "max_attempts": 2}, "ConnectError.*2 of 2"),
        ({"base": "http://[::1/"}, "download.base"),
        ({"kind": "wet", "urls": "garden.example"}, "download.kind=warc"),
        ({"urls": "nobody.example"}, "nobody.example.*download.urls"),
        ({"urls": "garden.example", "crawl": "CC-MAIN-2099-01"}, "404.*--latest"),
    ],
)
def test_what_cannot_be_had_is_an_error_that_names_the_parameter(changes, words, project):
    with pytest.raises(UserError, match=words):
        project.download(**changes)


def test_a_full_disk_is_noticed_before_the_download(project, server):
    server.fault_for = lambda request: Fault(length=10**16) if request.method == "HEAD" else None
    with pytest.raises(UserError, match="2 files need .* GiB free"):
        project.download(files=2)
    assert not server.requests_for(".warc.gz")


def test_paths_that_lead_out_of_the_crawl_are_refused(project, server):
    server.set_paths("warc", ["crawl-data/../../etc/passwd.gz"])
    with pytest.raises(UserError, match="passwd"):
        project.download()


def test_no_file_of_two_hundred_is_wrong_after_a_storm(project, server):
    bodies = [http_block(page_body(1000 + i)) for i in range(100)]
    records = [warc_record(f"https://shop.example/{i}", body) for i, body in enumerate(bodies)]
    files = [members([records[(3 * i + j) % 100] for j in range(4)]) for i in range(200)]
    server.add_crawl(files, [])
    server.fault_for = storm(11, 0.4, server.files)
    accepted = project.files(files=200, max_attempts=30)
    pairs = zip(accepted, files, strict=True)
    # A flipped bit in a gzip header's time stamp changes no text.
    assert all(gzip.decompress(content) == gzip.decompress(file) for content, file in pairs)
    assert len(server.faults) > 100


# ---- single pages ----


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        ("garden.example/*", ["garden.example/"]),
        ("*.shop.example", ["shop.example/"]),
        (
            "harbour.example/blog/*, garden.example/page/*",
            ["harbour.example/blog/", "garden.example/page/"],
        ),
    ],
)
def test_pages_are_found_through_the_index(patterns, wanted, project, server):
    pages = project.pages(urls=patterns, pages_per_file=4)
    assert pages == {url: body for url, body in PAGES.items() if any(w in url for w in wanted)}
    sizes = [entry["records"] for entry in project.download(urls=patterns, pages_per_file=4)]
    assert max(sizes[:-1]) == min(sizes[:-1]) == 4 and sum(sizes) == len(pages)
    assert not server.requests_for("warc.paths.gz")
    assert all("range" in request.headers for request in server.requests_for(".warc.gz"))


def test_the_number_of_pages_is_limited_and_the_filters_are_sent(project, server):
    filters = "=status:200, !~languages:nor.*"
    pages = project.pages(urls="*.example", index_filters=filters, max_records=13)
    assert list(pages) == [capture["url"] for capture in server.index[CRAWL][:13]]
    queries = [request.query for request in server.requests_for("-index")]
    assert all(query["filter"] == filters.split(", ") for query in queries)
    project.download(urls="*.example", max_records=14)
    assert len(server.requests_for(".warc.gz")) == 14, "13 were kept"


@pytest.mark.parametrize(
    "fault",
    [
        busy(503),
        busy(429, "0"),
        Fault(cut=10),
        Fault(cut=400),
        Fault(body=HTML),
        Fault(body=b"{broken\n"),
        Fault(length=5),
        Fault(length=-5),
        Fault(ignore_range=True),
        Fault(range_off=1),
        Fault(chunked=True),
        Fault(no_length=True),
    ],
    ids=str,
)
def test_transient_faults_of_index_and_records_are_retried(fault, project, server):
    known = set()

    def fault_for(request: Request) -> Fault | None:
        key = request.path, str(request.query), request.headers.get("range")
        is_new = key not in known
        known.add(key)
        return fault if is_new else None

    server.fault_for = fault_for
    wanted = {url: body for url, body in PAGES.items() if "//garden." in url}
    assert project.pages(urls="garden.example/*") == wanted
    assert server.faults


def test_a_broken_line_of_the_index_is_quoted(project, server):
    server.broken_lines[1] = b'{"url": "https://garden.example/broken'
    with pytest.raises(UserError, match="page 1 .*line 2 .*garden.example/broken.*twice"):
        project.download(urls="garden.example/*")


def test_an_index_that_points_to_another_record_is_an_error(project, server):
    first, second = server.index[CRAWL][:2]
    first |= {key: second[key] for key in ("offset", "length", "filename")}
    with pytest.raises(UserError, match=f"the record there is of {second['url']}"):
        project.download(urls="*.example", max_records=2)


@pytest.mark.parametrize("excess", [-1, 1, 300])
def test_an_index_with_a_wrong_length_is_an_error(excess, project, server):
    capture = next(entry for entry in server.index[CRAWL] if entry["offset"] == "0")
    capture["length"] = str(int(capture["length"]) + excess)
    with pytest.raises(UserError, match="not one gzip member"):
        project.download(urls="*.example", max_records=60)


def test_real_records_of_common_crawl_come_by_file_and_by_url(shared_data, project, server):
    """16 pages of CC-MAIN-2020-34 as Common Crawl wrote them."""
    folder = shared_data / "web/cc_real"
    warc = (folder / "chatnoir-resiliparse__warcfile.warc.gz").read_bytes()
    wet = (folder / "whirlwind-python__whirlwind.warc.wet.gz").read_bytes()
    server.add_crawl([warc], [wet], "CC-MAIN-2020-34")
    project.defaults["crawl"] = "CC-MAIN-2020-34"
    assert project.files() == [warc]
    whole = project.pages()
    picked = project.pages(urls="*.com, *.org, *.net, *.de, *.ru")
    assert len(picked) >= 8 and picked.items() <= whole.items()
    assert project.files(kind="wet") == [wet]


# ---- S3, the newest crawl, plain HTTP ----


@pytest.fixture
def s3(project, server, monkeypatch) -> Project:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    server.needs_key = True
    project.defaults |= {"base": "s3://commoncrawl/", "max_attempts": 4}
    return project


def test_s3_gives_the_same_bytes_where_credentials_exist(s3, server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    server.fault_for = faults_at(first_file(server), Fault(cut=4000), busy(503))
    assert s3.files(files=2) == WARCS[:2]
    wanted = {url: body for url, body in PAGES.items() if "//garden." in url}
    assert s3.pages(urls="garden.example/*") == wanted
    with pytest.raises(UserError, match="no such file.*--latest"):
        s3.download(crawl="CC-MAIN-2099-01")


def test_s3_without_credentials_is_an_error_with_the_way_out(s3):
    with pytest.raises(UserError, match="AWS_PROFILE.*https://data.commoncrawl.org/"):
        s3.download()


def test_the_newest_crawl_is_found_and_only_its_line_changes(server, tmp_path):
    server.index |= {"CC-MAIN-2026-09": [], "CC-MAIN-2026-47": [], "CC-MAIN-2008-2009": []}
    crawl = newest_crawl(HttpClient(server.url, "", 5.0, 1), Retry(0.0, 1))
    assert crawl == "CC-MAIN-2026-47"
    path = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    path.write_text(text.replace(f"  crawl: {CRAWL}\n", f"  crawl: {CRAWL}   # a comment\n"))
    before = path.read_text()
    set_crawl(path, crawl)
    assert path.read_text() == before.replace(f"crawl: {CRAWL}", f"crawl: {crawl}")


@pytest.fixture
def client(httpserver: HTTPServer) -> HttpClient:
    return HttpClient(httpserver.url_for("/"), "", 5.0, 1)


def test_redirects_are_followed(client, httpserver):
    httpserver.expect_request("/old").respond_with_data(
        status=302, headers={"Location": httpserver.url_for("/new")}
    )
    httpserver.expect_request("/new", headers={"Range": "bytes=2-4"}).respond_with_data(
        b"cde", status=206, headers={"Content-Range": "bytes 2-4/26"}
    )
    assert client.read_range("old", 2, 3) == b"cde"


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"abc", 200), (b"cd", 206)],
    ids=["the whole file", "too little"],
)
def test_a_range_that_is_not_the_one_wanted_is_retried(content, status, client, httpserver):
    httpserver.expect_request("/file").respond_with_data(content, status=status)
    with pytest.raises(TransientError):
        client.read_range("file", 2, 3)


def test_the_validator_is_a_strong_etag_or_the_date(client, httpserver):
    date = "Tue, 03 Dec 2024 10:00:00 GMT"
    for path, etag in (("/weak", 'W/"1"'), ("/strong", '"1"')):
        headers = {"ETag": etag, "Last-Modified": date}
        httpserver.expect_request(path).respond_with_data(b"abc", headers=headers)
    assert client.version("weak") == Version(3, date)
    assert client.version("strong") == Version(3, '"1"')


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, UserError), (404, UserError), (410, UserError), (501, UserError), (509, TransientError)],
)
def test_a_status_is_an_error_that_says_whether_to_retry(status, error, client, httpserver):
    httpserver.expect_request("/file").respond_with_data("<b>Why</b> not", status=status)
    with pytest.raises(error, match=str(status)):
        client.version("file")


def test_an_answer_that_fills_the_memory_is_refused(client, httpserver, monkeypatch):
    monkeypatch.setattr("crawl2cart.crawl.download.http_client.MAX_TEXT_BYTES", 1 << 20)
    httpserver.expect_request("/text").respond_with_data(bytes((1 << 20) + 1))
    with pytest.raises(UserError, match="1 MiB"):
        client.text("text")


def test_a_stopped_run_waits_for_nothing():
    retry = Retry(3600.0, 12)
    retry.take_turn()
    retry.stopped.set()
    with pytest.raises(Stopped):
        retry.take_turn()
