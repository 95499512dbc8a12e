"""The commands of README.md and docs/ run as they stand, in a copy of the finished smoke graph."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, ROOT
from tests.documents import all_commands, blocks, elsewhere

OWN_CRAWL = "/data/crawl/*.warc.gz"
OWN_SHOP = "/data/shop"
COMMANDS = [command for command in all_commands() if elsewhere(command) is None]
CHANGING = [command for command in COMMANDS if re.match(r"dvc (repro|exp run)", command)]
READING = [command for command in COMMANDS if command not in CHANGING]


def first_stage_only(command: str) -> str:
    """Limit `dvc exp run -S` to the stage that reads the value: others are tested elsewhere."""
    match = re.search(r"-S ['\"]?(\w+)(?:\.(\w+))?", command)
    if not match:
        return command
    section, key = match.groups()
    target = {"pretrain": f"pretrain@{key}", "profile": "download"}.get(section, section)
    return f"{command} {target}"


def run(command: str, folder: Path) -> str:
    """Run a command with this project's programs first on the path; it has to succeed."""
    environment = ENVIRONMENT | {"PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, command + done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def unchanged(finished, tmp_path_factory) -> Path:
    """A copy of the finished project for commands that only read it."""
    folder = tmp_path_factory.mktemp("unchanged") / "project"
    return shutil.copytree(finished, folder, symlinks=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", READING)
def test_commands_that_read_run(unchanged, command):
    run(command, unchanged)


@pytest.mark.slow
@pytest.mark.parametrize("command", CHANGING)
def test_commands_that_change_something_run(copy, tmp_path, command):
    crawl = shutil.copytree(copy / "data/raw", tmp_path / "crawl")
    for setting in ("user.name t", "user.email t@example.com"):
        subprocess.run(["git", "config", *setting.split()], cwd=copy, check=True)
    run(first_stage_only(command.replace(OWN_CRAWL, f"{crawl}/*.warc.gz")), copy)


def own_shop() -> list[str]:
    """The commands of docs/your-own-shop.md, with the second shop as the one that is brought."""
    steps = blocks(ROOT / "docs/your-own-shop.md")
    return [step.replace(OWN_SHOP, str(ROOT / "tests/second_shop")) for step in steps]


def follow(commands: list[str], folder: Path) -> str:
    """Run the commands one after the other and return the output of the last."""
    return [run(command, folder) for command in commands][-1]


def test_the_steps_to_a_shop_of_ones_own_lead_to_dialogues(project):
    steps = own_shop()
    assert [step.split()[0] for step in steps] == ["rm", "cp", "python", "dvc", "head", "dvc"]
    assert "HR-" in follow(steps[:-1], project)
    texts = [(project / f"data/sft/{split}.jsonl").read_text() for split in ("train", "test")]
    assert "Oswin Treble" in "".join(texts)
    assert not re.search("Tarrowby|TB-|Velm", "".join(texts))


@pytest.mark.slow
def test_a_shop_of_ones_own_trains_no_language_model_again(copy):
    output = follow(own_shop(), copy)
    ran = set(re.findall(r"Running stage '([^'@]+)", output))
    assert {"midtrain", "sft", "build_prefs", "dpo", "evaluate", "report"} <= ran
    assert not ran & {"download", "encode", "pretrain", "compare"}
    assert "Oswin Treble" in (copy / "data/sft/train.jsonl").read_text()
