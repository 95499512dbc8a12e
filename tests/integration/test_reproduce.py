"""The smoke graph a second time from nothing, and a stale lock."""

import subprocess
import sys
from pathlib import Path

import pytest

from crawl2cart.core.dvc_yaml import definitions
from crawl2cart.core.errors import UserError
from tests.conftest import ENVIRONMENT, ROOT
from tools import reproduce

pytestmark = pytest.mark.slow


def run_tool(folder: Path, *command: str) -> subprocess.CompletedProcess:
    options = {"cwd": folder, "env": ENVIRONMENT, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, "-m", *command], **options)


def test_a_run_from_nothing_gives_the_same_lock_and_a_changed_metric_is_named(copy):
    """`make reproduce` trains models in parallel, in a fresh clone, and gives the same bytes."""
    run = run_tool(copy, "tools.reproduce")
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert "dvc.lock and metrics are the same bytes" in run.stdout
    for stage in definitions(copy, "smoke"):  # also one whose outs are all in git
        assert f"Running stage '{stage}':" in run.stdout, stage
    committed = reproduce.metrics_below(copy)
    reproduce.compare_metrics(copy, committed)
    name = "evaluate:sft.n"
    with pytest.raises(UserError, match=f"{name}: {committed[name] + 1} committed"):
        reproduce.compare_metrics(copy, committed | {name: committed[name] + 1})


def test_a_stale_lock_is_found_and_a_clean_clone_has_none(finished, tmp_path):
    """The check needs only what is in git."""
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", finished, folder], check=True)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    assert run_tool(folder, "tools.check_lock").returncode == 0
    code = folder / "stages" / "router.py"
    code.write_text(code.read_text() + "\n# edited\n")
    run = run_tool(folder, "tools.check_lock")
    assert run.returncode == 1 and "dvc.lock is stale" in run.stderr
