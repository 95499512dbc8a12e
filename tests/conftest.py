"""What tests of several areas share: the real material beside the checkout, fresh copies of the project, and its finished smoke graph."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from crawl2cart.core.params import read_params
from crawl2cart.dialogues.episode import EventRates
from crawl2cart.dialogues.generator import DialogueGenerator
from stages.build_sft import mix_of
from tests.servers.openai_server import KEY, Server, serve

ROOT = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DVC = ROOT / ".venv" / "bin" / "dvc"
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": ""}
# `stages` and `tools` are no installed packages: tests that start one in another folder find it here.
os.environ["PYTHONPATH"] = str(ROOT)
SHARED = Path(os.environ.get("CRAWL2CART_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real crawls, gold texts and the full rank table, beside the checkout where they are at hand."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs ../shared: {folder} is absent")
    return folder


def copy_project(folder: Path, profile: str = "smoke") -> Path:
    """A git repository with this working tree's files and nothing that a run made, ready for DVC, on the given profile."""
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
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *command],
            cwd=folder,
            check=True,
        )
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project on the smoke profile, committed, without caches."""
    return copy_project(tmp_path / "project")


def maker_of(folder: Path, seed: int, **shares: float) -> DialogueGenerator:
    """A maker of a shop's dialogues with the mix and the longest dialogue of params.yaml, as build_sft opens it."""
    params = read_params(ROOT / "params.yaml").build_sft
    return DialogueGenerator(
        folder,
        seed,
        params.max_characters,
        mix_of(params),
        EventRates(**{"plan": params.multi_turn_ratio} | shares),
    )


def wait_for(what: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def dvc(folder: Path, *words: str, fails: bool = False) -> str:
    said = subprocess.run(
        [DVC, *words], cwd=folder, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert bool(said.returncode) == fails, said.stdout[-3000:] + said.stderr[-3000:]
    return said.stdout + said.stderr


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A copy of the project in which the smoke graph ran from nothing."""
    folder = copy_project(tmp_path_factory.mktemp("finished") / "project")
    started = time.monotonic()
    dvc(folder, "repro", "--no-run-cache")
    print(f"the smoke graph took {time.monotonic() - started:.0f} s")
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", "smoke"],
        cwd=folder,
        check=True,
    )
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the finished project that a test may change; outs are there, DVC's cache is not shared."""
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
        pytest.skip(
            f"needs a browser: none of {', '.join(BROWSERS)} is installed (Debian: apt install chromium)"
        )
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser,
    ):
        yield browser
