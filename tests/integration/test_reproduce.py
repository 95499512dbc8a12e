"""Whole runs of the smoke graph: from nothing twice, models in parallel, a stale lock."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from crawl2cart.core.dvc_yaml import definitions
from crawl2cart.core.errors import UserError
from tests.conftest import ENVIRONMENT, ROOT
from tools import reproduce

pytestmark = pytest.mark.slow


def run_tool(folder: Path, *command: str) -> subprocess.CompletedProcess:
    options = {"cwd": folder, "env": ENVIRONMENT, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, "-m", *command], **options)


def test_a_run_from_nothing_gives_the_same_lock_and_a_changed_metric_is_named(copy):
    """`make reproduce`: a fresh clone with an empty cache gives what the first run committed."""
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


def test_models_trained_in_parallel_give_the_same_lock(copy, finished):
    """`make parallel` from nothing: no run-cache, no outs."""
    for name in ("models", "data/tokens", ".cache", ".dvc/cache"):
        shutil.rmtree(copy / name, ignore_errors=True)
    for name in ("metrics/report.html", "dvc.lock"):
        (copy / name).unlink()
    command = ["make", "parallel", "PYTHON=true"]  # the packages are there, so no set-up
    run = subprocess.run(command, cwd=copy, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    locks = [YAML(typ="safe").load(folder / "dvc.lock") for folder in (copy, finished)]
    assert locks[0] == locks[1]  # as mappings: entries stand in the order of the runs


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
