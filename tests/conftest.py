"""What tests of several packages share: project copies, the finished smoke graph, servers."""

import os

# Workers of pytest-xdist share the cores; torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from playwright.sync_api import Browser, sync_playwright

from crawl2cart.core.params import read_params
from crawl2cart.dialogues.episode_setup import EventRates
from crawl2cart.dialogues.generator import DialogueGenerator
from stages.build_sft import mixture_of
from tests.servers.openai_server import KEY, Server, serve

ROOT = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DVC = ROOT / ".venv" / "bin" / "dvc"
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": ""}
# `stages` and `tools` are not installed: tests that start one in another folder find it here.
os.environ["PYTHONPATH"] = str(ROOT)
SHARED = Path(os.environ.get("CRAWL2CART_SHARED", ROOT.parent / "shared"))
COMMITTER = ("-c", "user.name=t", "-c", "user.email=t@example.com")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real crawls, gold texts and the full rank table, where they lie beside the checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs ../shared: {folder} is absent")
    return folder


def copy_project(folder: Path, profile: str = "smoke") -> Path:
    """Make a git repository of this working tree without any results, on the given profile."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("\nprofile: cpu\n", f"\nprofile: {profile}\n"))
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "copy"]):
        subprocess.run(["git", *COMMITTER, *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project on the smoke profile, committed, without caches."""
    return copy_project(tmp_path / "project")


def dialogue_generator(folder: Path, seed: int, **rates: float) -> DialogueGenerator:
    """Open a generator of a shop's dialogues with the mixture of params.yaml, as build_sft does.

    rates: event rates that differ from the defaults.
    """
    params = read_params(ROOT / "params.yaml").build_sft
    event_rates = EventRates(**{"multi_turn": params.multi_turn_ratio} | rates)
    return DialogueGenerator(folder, seed, params.max_characters, mixture_of(params), event_rates)


def wait_for(what: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def dvc(folder: Path, *words: str, fails: bool = False) -> str:
    output = subprocess.run(
        [DVC, *words], cwd=folder, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert bool(output.returncode) == fails, output.stdout[-3000:] + output.stderr[-3000:]
    return output.stdout + output.stderr


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A copy of the project in which the smoke graph ran from nothing: once for all workers."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    folder, done = shared / "finished" / "project", shared / "finished" / "done"
    with FileLock(shared / "finished.lock"):
        if not done.exists():
            copy_project(folder)
            started = time.monotonic()
            dvc(folder, "repro", "--no-run-cache")
            print(f"the smoke graph took {time.monotonic() - started:.0f} s")
            subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
            subprocess.run(["git", *COMMITTER, "commit", "-qm", "smoke"], cwd=folder, check=True)
            done.touch()
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the finished project that a test may change, with its outs and DVC cache."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder, symlinks=True)
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine in the place of OpenAI's, with a key."""
    with serve() as running:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium or one like it, without a window."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path:
        pytest.skip(f"needs a browser: install one of {', '.join(BROWSERS)}")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser,
    ):
        yield browser
