"""`python -m tools.accept` on the project: a comment is accepted, another result is not."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, dvc

pytestmark = pytest.mark.slow
MODEL = "models/pretrain/gru/model.safetensors"


def accept(folder: Path, stage: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.accept", stage]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def commit(folder: Path) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    for command in (["add", "-A"], [*identity, "commit", "-qm", "edit"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "crawl2cart" / "lm" / "training" / "optim.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    commit(folder)


def test_a_comment_in_the_optimizer_is_accepted_and_another_update_is_not(copy):
    weights = (copy / MODEL).read_bytes()
    edit(copy, "\nimport ", "\n# The optimizers.\nimport ")
    assert "pretrain@gru" in dvc(copy, "status", "--json", "pretrain@gru")
    run = accept(copy, "pretrain@gru")
    assert run.returncode == 0, run.stderr
    assert "`pretrain@gru`" in (copy / "artifacts" / "ACCEPTED.md").read_text()
    assert dvc(copy, "status", "--json", "pretrain@gru").strip() == "{}"
    assert (copy / MODEL).read_bytes() == weights
    commit(copy)
    no_update = "import torch\n\ntorch.optim.AdamW.step = lambda self, closure=None: None\n"
    edit(copy, "# The optimizers.\n", no_update)
    lock = (copy / "dvc.lock").read_bytes()
    run = accept(copy, "pretrain@gru")
    assert run.returncode == 1 and MODEL in run.stderr, run.stdout + run.stderr
    assert (copy / "dvc.lock").read_bytes() == lock
