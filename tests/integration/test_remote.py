"""DVC restores what was made: from its run-cache, and from remotes (a folder, S3, HTTP)."""

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
from dvc.utils.hydra import apply_overrides

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


def dvc(folder: Path, *arguments: str, fails: bool = False) -> str:
    """Run this interpreter's DVC, which has dvc-s3 where that is installed."""
    command = [sys.executable, "-m", "dvc", *arguments]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT)
    assert bool(run.returncode) == fails, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout + run.stderr


def contents(folder: Path, *outs: str) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for out in outs
        for file in sorted((folder / out).rglob("*"))
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A project in which two stages that need no other ran, committed."""
    project = copy_project(tmp_path_factory.mktemp("made") / "project")
    dvc(project, "repro", *TARGETS)
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    for command in (["add", "-A"], [*identity, "commit", "-qm", "made"]):
        subprocess.run(["git", *command], cwd=project, check=True)
    return project


def fresh_clone(project: Path, folder: Path) -> Path:
    subprocess.run(["git", "clone", "-q", project, folder], check=True)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


def add_remote(folder: Path, url: str, **settings: str) -> Path:
    dvc(folder, "remote", "add", "--local", "-f", "-d", "store", url)
    for name, value in settings.items():
        dvc(folder, "remote", "modify", "--local", "store", name, value)
    return folder


def test_a_clone_with_a_shared_cache_restores_each_value_and_trains_nothing(
    finished, copy, tmp_path
):
    shared = tmp_path / "cache"
    shutil.move(copy / ".dvc" / "cache", shared)
    clone = fresh_clone(finished, tmp_path / "clone")
    for folder in (copy, clone):
        dvc(folder, "cache", "dir", "--local", str(shared))
    dvc(clone, "checkout", "data/tokens", "data/tokenizer")
    outs = ("models/pretrain/gru", "metrics/pretrain")
    models = {}
    for rate in (0.001, 0.002):
        apply_overrides(copy / "params.yaml", [f"pretrain.gru.learning_rate={rate}"])
        assert "Running stage" in dvc(copy, "repro", "--single-item", "pretrain@gru")
        models[rate] = contents(copy, *outs)
    assert models[0.001] != models[0.002]
    for rate, model in models.items():
        apply_overrides(clone / "params.yaml", [f"pretrain.gru.learning_rate={rate}"])
        assert "Running stage" not in dvc(clone, "repro", "--single-item", "pretrain@gru")
        assert contents(clone, *outs) == model


def test_metrics_are_few_and_every_plot_can_be_drawn(finished, tmp_path):
    shown = dvc(finished, "metrics", "show", "--md").splitlines()
    assert len(shown) <= 12, "a line per file of metrics/headlines"
    output = dvc(finished, "plots", "show", "-o", str(tmp_path))
    assert "fail" not in output.lower() and "error" not in output.lower()
    assert (tmp_path / "index.html").is_file()


def check_remote(made: Path, tmp_path: Path, url: str, **settings: str) -> None:
    """Push, pull in a clone, and in another clone fetch only what `build_sft` needs."""
    add_remote(made, url, **settings)
    dvc(made, "push", "--run-cache", *TARGETS)
    pulled = add_remote(fresh_clone(made, tmp_path / "pulled"), url, **settings)
    dvc(pulled, "pull", "--run-cache", *TARGETS)
    assert contents(pulled, *OUTS) == contents(made, *OUTS)

    fetched = add_remote(fresh_clone(made, tmp_path / "fetched"), url, **settings)
    output = dvc(fetched, "repro", "--pull", "--allow-missing", "build_sft")
    assert "up to date" in output and "Running stage" not in output
    assert not (fetched / "data" / "raw").exists(), "nothing else is fetched"

    (fetched / "dvc.lock").unlink()  # the run-cache holds the result without it
    output = dvc(fetched, "repro", "--pull", "build_sft")
    assert "Running stage" not in output, output
    assert contents(fetched, "data/sft") == contents(made, "data/sft")


def test_a_folder_is_a_remote(made, tmp_path):
    check_remote(made, tmp_path, str(tmp_path / "store"))


def test_a_web_server_is_a_remote_to_read_from(made, tmp_path):
    add_remote(made, str(tmp_path / "store"))
    dvc(made, "push", "--run-cache", *TARGETS)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with listening(partial(Quiet, directory=str(tmp_path / "store"))) as address:
        clone = add_remote(fresh_clone(made, tmp_path / "clone"), address)
        dvc(clone, "pull", "--run-cache", *TARGETS)
        assert contents(clone, *OUTS) == contents(made, *OUTS)
        (clone / "new.txt").write_text("new")
        dvc(clone, "add", "new.txt")
        assert "ERROR" in dvc(clone, "push", "new.txt", fails=True)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("dvc_s3", "moto"))), reason=f"needs {S3_PINS}"
)
def test_s3_is_a_remote(made, tmp_path):
    """A server of S3's protocol on this machine (moto's)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    make_bucket = urllib.request.Request(f"{address}/shop", method="PUT")
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(make_bucket, timeout=5)
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None
                time.sleep(0.2)
        check_remote(made, tmp_path, "s3://shop/store", endpointurl=address)
    finally:
        server.terminate()
        server.wait()


def test_hard_links_keep_one_copy_of_large_data(made, tmp_path):
    """With `cache.type hardlink` an out and DVC's cache are one file on the disk."""
    clone = fresh_clone(made, tmp_path / "clone")
    shutil.copytree(made / ".dvc" / "cache", clone / ".dvc" / "cache")
    dvc(clone, "config", "--local", "cache.type", "hardlink,copy")
    dvc(clone, "checkout", *TARGETS)
    links = {file.stat().st_nlink for file in (clone / "data" / "raw").glob("*.warc.gz")}
    assert links == {2}
