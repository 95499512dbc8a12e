"""`download` as a process: interrupted, killed, through DVC, and with `--latest`."""

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator

from tests.conftest import DVC, ROOT, wait_for
from tests.servers.commoncrawl_server import CRAWL, Fault, Request, Server, serve
from tests.unit.crawl.test_commoncrawl import URLS, WARCS, WETS

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "stages.download"]
GIT = {
    f"GIT_{role}_{key}": "test@saltnes.example"
    for role in ("AUTHOR", "COMMITTER")
    for key in ("NAME", "EMAIL")
}
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
DOCUMENTED = [
    line
    for document in DOCUMENTS
    for line in document.read_text().splitlines()
    if line.startswith("dvc ") and "source=commoncrawl" in line
]


@pytest.fixture
def server() -> Server:
    with serve() as server:
        server.add_crawl(WARCS, WETS)
        yield server


def set_params(folder: Path, **values: object) -> None:
    """Set keys of the section `download`, the first in params.yaml."""
    text = (folder / "params.yaml").read_text()
    for key, value in values.items():
        text, count = re.subn(rf"(?m)^  {key}: .*$", f"  {key}: {value}", text, count=1)
        assert count == 1, key
    (folder / "params.yaml").write_text(text)


@pytest.fixture
def folder(tmp_path, server, monkeypatch) -> Path:
    """The working directory: the project's code, and parameters that download from the server."""
    for name in ("stages", "crawl2cart", "requirements.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("sites", "designs"):  # the stage hashes its dependencies
        (tmp_path / "data/web" / name).mkdir(parents=True)
    set_params(tmp_path, source="commoncrawl", files=3, base=server.url, index=server.url)
    set_params(tmp_path, seconds_between_requests=0.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def on_files(fault: Fault, downloads: int = 10**9) -> Callable[[Request], Fault | None]:
    """Inject a fault into the first downloads of each WARC file."""
    return lambda request: (
        fault
        if request.method == "GET" and "/warc/" in request.path and request.number < downloads
        else None
    )


def wait_in(process: subprocess.Popen, what: Callable[[], bool]) -> None:
    """Wait for something that has to happen while the process runs."""
    wait_for(lambda: what() or process.poll() is not None, 60)
    assert process.poll() is None, "the process ended too early"


def test_ctrl_c_ends_it_while_a_server_is_silent(folder, server):
    set_params(folder, files=4, read_timeout=600.0)
    server.fault_for = on_files(Fault(silent=True))
    process = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_in(process, lambda: len(server.requests_for(".warc.gz")) == 4)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=25)
    assert process.returncode == 130, errors


def test_a_run_killed_at_any_moment_resumes(folder, server):
    subprocess.run(COMMAND, check=True)
    whole = raw_files(folder)
    for name in (".cache", "data/raw"):
        shutil.rmtree(folder / name)
    server.requests.clear()
    server.fault_for = on_files(Fault(drip=0.0002), downloads=2)
    for size in (3000, 6000):
        process = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL)
        wait_in(process, lambda size=size: bytes_of_parts(folder) > size)
        process.kill()
        process.wait()
    subprocess.run(COMMAND, check=True)
    assert raw_files(folder) == whole
    assert any("range" in request.headers for request in server.requests_for(".warc.gz"))


def bytes_of_parts(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob(".cache/download/*.part"))


def raw_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "data/raw").iterdir()}


def test_latest_prints_the_newest_crawl_and_writes_it_into_params_yaml(folder, server):
    server.index["CC-MAIN-2026-47"] = []
    text = (folder / "params.yaml").read_text()
    process = subprocess.run([*COMMAND, "--latest"], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "CC-MAIN-2026-47\n"), process.stderr
    newer = text.replace(f"crawl: {CRAWL}", "crawl: CC-MAIN-2026-47")
    assert (folder / "params.yaml").read_text() == newer
    set_params(folder, index="http://127.0.0.1:9/", max_attempts=1)
    process = subprocess.run([*COMMAND, "--latest"], capture_output=True, text=True)
    assert process.returncode == 1 and process.stderr.startswith("download: ")


@pytest.fixture
def large_crawl(server, monkeypatch) -> Server:
    """A crawl of 20,000 names, so that a share of 0.0001 is two files, with six contents."""
    for kind, contents in (("warc", WARCS), ("wet", WETS)):
        names = [f"crawl-data/{CRAWL}/segments/1/{kind}/{i:05}.{kind}.gz" for i in range(20_000)]
        server.set_paths(kind, names)
        server.files |= {name: contents[i % len(contents)] for i, name in enumerate(names)}
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    return server


def check_download(command: str, contents: list[bytes]) -> None:
    """Assert that these files are what the command asks for."""
    match re.search(r"(files|urls|base)=(\S+)", command).groups():
        case ("files", "1"):
            assert contents == WETS[:1]
        case ("files", "100-103"):
            assert contents == [WARCS[i % 6] for i in range(100, 104)]
        case ("files", "0.0001"):
            assert len(contents) == 2 and set(contents) <= set(WARCS)
        case ("urls", _):
            records = [r for content in contents for r in ArchiveIterator(io.BytesIO(content))]
            urls = {url for url in URLS if "shop.example" in url or "garden.example/blog" in url}
            assert {record.headers["WARC-Target-URI"] for record in records} == urls
        case ("base", _):
            assert contents == WARCS[:1]
        case _:
            pytest.fail(f"no expectation for {command}")


@pytest.mark.parametrize("command", DOCUMENTED)
def test_the_documented_commands_download_what_they_say(command, project, large_crawl):
    """As written, but for the stage `download` alone: the rest of the graph is the same."""
    url = large_crawl.url
    set_params(project, base=url, index=url, seconds_between_requests=0.0)
    words = shlex.split(command.replace("https://mirror.example/", url))
    process = subprocess.run(
        [DVC, *words[1:], "download"],
        cwd=project,
        capture_output=True,
        text=True,
        env=os.environ | GIT,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    files = sorted((project / "data/raw").glob("*.gz"))
    check_download(command, [file.read_bytes() for file in files])


def test_the_documents_have_commands_for_common_crawl():
    assert len(DOCUMENTED) >= 6
