"""The README says what is so: its tables are those of metrics/ and data/, its commands run, its files exist."""

import os
import re
import shutil
import subprocess

import pytest

from setup.readme import filled
from tests.conftest import ROOT
from tests.test_graph import ENVIRONMENT, copy, finished  # noqa: F401  the finished smoke graph

README = (ROOT / "README.md").read_text()
PLACEHOLDER = "/data/crawl/*.warc.gz"
COMMANDS = sorted(set(re.findall(r"`(dvc [^`]+)`", README)) | {line for line in README.splitlines() if line.startswith("dvc ")})


def test_generated_parts_are_those_of_metrics_and_data():
    assert filled(README) == README, "run `python -m setup.readme`"


def test_every_file_it_names_exists():
    for name in re.findall(r"`((?:stages|data|demo|setup|metrics|tests)/[\w./-]*)`", README):
        made = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode == 0
        assert made or (ROOT / name).exists(), name


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M):
        assert target in targets, target


def test_the_commands_that_everybody_needs_are_there():
    assert {"dvc repro", "dvc repro pretrain@gru", "dvc exp run -S pretrain.gru.learning_rate=1e-5", "dvc status", "dvc dag",
            "dvc exp run -S profile=smoke --temp", "dvc metrics show", "dvc metrics diff HEAD~1", "dvc plots diff"} <= set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_its_dvc_commands_run(copy, tmp_path, command):  # noqa: F811
    raw = tmp_path / "crawl"
    shutil.copytree(copy / "data" / "raw", raw)
    subprocess.run(["git", "config", "user.name", "t"], cwd=copy, check=True)
    subprocess.run(["git", "config", "user.email", "t@example.com"], cwd=copy, check=True)
    activated = ENVIRONMENT | {"PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}
    said = subprocess.run(command.replace(PLACEHOLDER, f"{raw}/*.warc.gz"), shell=True, cwd=copy, env=activated, capture_output=True,
                          text=True)
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
