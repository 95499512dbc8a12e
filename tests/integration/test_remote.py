"""What DVC keeps can be pushed to a remote and had from it again: a folder, S3, HTTP."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from tests.conftest import ROOT, copy_project
from tests.servers.local_server import listening

pytestmark = pytest.mark.slow
ENVIRONMENT = os.environ | {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
TARGETS = ("build_sft", "download")
OUTS = ("data/sft", "data/raw")
S3_PINS = "dvc-s3==3.3.0 moto[server]==5.2.5"


def dvc(folder: Path, *words: str, fails: bool = False) -> str:
    """Runs this interpreter's DVC, which is the one that has dvc-s3 where that is installed."""
    said = subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert bool(said.returncode) == fails, said.stdout[-3000:] + said.stderr[-3000:]
    return said.stdout + said.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for out in OUTS
        for file in sorted((folder / out).rglob("*"))
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A project in which two stages that need no other ran, committed."""
    project = copy_project(tmp_path_factory.mktemp("made") / "project")
    dvc(project, "repro", *TARGETS)
    subprocess.run(["git", "add", "-A"], cwd=project, check=True)
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", "made"],
        cwd=project,
        check=True,
    )
    return project


def clone_of(project: Path, folder: Path, url: str, **settings: str) -> Path:
    """A fresh clone that knows a remote, as the README says."""
    subprocess.run(["git", "clone", "-q", project, folder], check=True)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    add_remote(folder, url, **settings)
    return folder


def add_remote(folder: Path, url: str, **settings: str) -> None:
    dvc(folder, "remote", "add", "--local", "-f", "-d", "store", url)
    for name, value in settings.items():
        dvc(folder, "remote", "modify", "--local", "store", name, value)


def goes_around(made: Path, tmp_path: Path, url: str, **settings: str) -> None:
    """Push from one clone; pull in another; in a third fetch only what a changed stage needs, and find its result by itself."""
    add_remote(made, url, **settings)
    dvc(made, "push", "--run-cache", *TARGETS)
    pulled = clone_of(made, tmp_path / "pulled", url, **settings)
    dvc(pulled, "pull", "--run-cache", *TARGETS)
    assert contents(pulled) == contents(made)

    fetched = clone_of(made, tmp_path / "fetched", url, **settings)
    said = dvc(fetched, "repro", "--pull", "--allow-missing", "build_sft")
    assert "up to date" in said and "Running stage" not in said
    assert (
        not (fetched / ".dvc" / "cache" / "files").exists()
        or not (fetched / "data" / "raw").exists()
    ), "nothing else was fetched"

    (fetched / "dvc.lock").unlink()  # the run cache knows the result without it
    said = dvc(fetched, "repro", "--pull", "build_sft")
    assert "Running stage" not in said, said
    assert (fetched / "data/sft/train.jsonl").read_bytes() == (
        made / "data/sft/train.jsonl"
    ).read_bytes()


def test_a_folder_is_a_remote(made, tmp_path):
    goes_around(made, tmp_path, str(tmp_path / "store"))


def test_a_web_server_is_a_remote_to_read_from(made, tmp_path):
    """Any server of files will do; pushing is for a folder or S3."""
    add_remote(made, str(tmp_path / "store"))
    dvc(made, "push", "--run-cache", *TARGETS)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with listening(partial(Quiet, directory=str(tmp_path / "store"))) as address:
        clone = clone_of(made, tmp_path / "clone", address)
        dvc(clone, "pull", "--run-cache", *TARGETS)
        assert contents(clone) == contents(made)
        (clone / "new.txt").write_text("new")
        dvc(clone, "add", "new.txt")
        assert "ERROR" in dvc(clone, "push", "new.txt", fails=True)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("dvc_s3", "moto"))), reason=f"needs {S3_PINS}"
)
def test_s3_is_a_remote(made, tmp_path):
    """A server of S3's protocol on this machine (moto's), started by the test."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(
                    urllib.request.Request(f"{address}/shop", method="PUT"), timeout=5
                )
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None
                time.sleep(0.2)
        goes_around(made, tmp_path, "s3://shop/store", endpointurl=address)
    finally:
        server.terminate()
        server.wait()


def test_links_instead_of_copies_keep_one_copy_of_large_data(made, tmp_path):
    """With `cache.type hardlink` an out and DVC's cache are one file on the disk."""
    clone = clone_of(made, tmp_path / "clone", str(tmp_path / "store"))
    shutil.copytree(made / ".dvc" / "cache", clone / ".dvc" / "cache")
    dvc(clone, "config", "--local", "cache.type", "hardlink,copy")
    dvc(clone, "checkout", *TARGETS)
    links = {file.stat().st_nlink for file in (clone / "data" / "raw").glob("*.warc.gz")}
    assert links == {2}
