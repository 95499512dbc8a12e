"""The README says what is so: its tables are those of metrics/ and data/, its commands run, its files exist."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, ROOT
from tools.render_docs import filled

README = (ROOT / "README.md").read_text()
PLACEHOLDER = "/data/crawl/*.warc.gz"
# What needs a network, a card or a remote is run by tests of its own: test_commoncrawl, test_machine, test_remote, test_filter.
ELSEWHERE = (
    "commoncrawl",
    "profile=gpu",
    "dvc remote",
    "dvc push",
    "dvc pull",
    "--pull",
    "cache.type",
    "engine=ray",
)
COMMANDS = sorted(
    {
        command
        for command in [*re.findall(r"`(dvc [^`]+)`", README), *README.splitlines()]
        if command.startswith("dvc ") and not any(word in command for word in ELSEWHERE)
    }
)


def test_generated_parts_are_those_of_metrics_and_data():
    assert filled(README) == README, "run `python -m tools.render_docs`"


def test_every_file_it_names_exists():
    for name in re.findall(r"`((?:stages|data|demo|setup|metrics|tests)/[\w./-]*)`", README):
        made = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode == 0
        assert made or (ROOT / name).exists(), name


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M):
        assert target in targets, target


def test_the_commands_that_everybody_needs_are_there():
    assert {
        "dvc repro",
        "dvc repro pretrain@gru",
        "dvc exp run -S pretrain.gru.learning_rate=1e-5",
        "dvc status",
        "dvc dag",
        "dvc exp run -S profile=smoke --temp",
        "dvc metrics show",
        "dvc metrics diff HEAD~1",
        "dvc plots diff",
    } <= set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_its_dvc_commands_run(copy, tmp_path, command):
    raw = tmp_path / "crawl"
    shutil.copytree(copy / "data" / "raw", raw)
    subprocess.run(["git", "config", "user.name", "t"], cwd=copy, check=True)
    subprocess.run(["git", "config", "user.email", "t@example.com"], cwd=copy, check=True)
    activated = ENVIRONMENT | {"PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}
    said = subprocess.run(
        command.replace(PLACEHOLDER, f"{raw}/*.warc.gz"),
        shell=True,
        cwd=copy,
        env=activated,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]


SHOP = "/data/shop"


def your_own_shop() -> list[str]:
    """The commands of the section, with the second shop as the one that is brought."""
    section = README.partition("## Your own shop")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [
        line.replace(SHOP, str(ROOT / "tests/second_shop"))
        for block in blocks
        for line in block.splitlines()
    ]


def follow(commands: list[str], folder: Path) -> str:
    """What the last command says. All have to succeed, with this project's interpreter and DVC first on the path."""
    environment = ENVIRONMENT | {"PATH": f"{ROOT / '.venv' / 'bin'}:{ENVIRONMENT['PATH']}"}
    for command in commands:
        said = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert said.returncode == 0, command + said.stdout[-2000:] + said.stderr[-2000:]
    return said.stdout


def test_the_steps_to_a_shop_of_ones_own_lead_to_dialogues(project):
    commands = your_own_shop()
    assert [command.split()[0] for command in commands] == [
        "rm",
        "cp",
        "python",
        "dvc",
        "head",
        "dvc",
    ]
    assert "HR-" in follow(commands[:-1], project)
    texts = (project / "data/sft/train.jsonl").read_text() + (
        project / "data/sft/test.jsonl"
    ).read_text()
    assert "Oswin Treble" in texts and not re.search("Tarrowby|TB-|Velm", texts)


@pytest.mark.slow
def test_a_shop_of_ones_own_trains_no_language_model_again(copy):
    said = follow(your_own_shop(), copy)
    ran = set(re.findall(r"Running stage '([^']+)'", said))
    assert {"midtrain", "sft", "build_prefs", "dpo", "evaluate", "report"} <= ran
    assert not [
        name for name in ran if name.startswith(("download", "encode", "pretrain", "compare"))
    ]
    assert "Oswin Treble" in (copy / "data/sft/train.jsonl").read_text()
