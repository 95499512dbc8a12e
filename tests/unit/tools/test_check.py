"""`make check`, `make clean`, the profile, and what happens when a model fails to train."""

import shutil
import subprocess

import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.core.params import read_params
from tests.conftest import ROOT
from tests.unit.tools.test_bootstrap import program
from tools import check, repro, set_profile


def test_check_names_what_the_profile_and_dvc_need(monkeypatch, tmp_path):
    params = read_params(ROOT / "params.yaml")
    monkeypatch.setattr(check, "ROOT", tmp_path / "Müll")
    check.ROOT.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=check.ROOT, check=True)
    for variable in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(variable, "/dev/null")
    for variable in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(variable, raising=False)
    settings = [("user.useConfigOnly", "true"), ("user.name", "t")]
    for name, value in settings:
        subprocess.run(["git", "config", name, value], cwd=check.ROOT, check=True)
    smoke = params.profiles.smoke
    assert check.findings(params, smoke)["git identity"] == "no"
    identity, path = check.advice(params, "smoke", smoke)
    assert "user.email" in identity and "--queue" in identity
    assert "not ASCII" in path and "--temp" in path
    subprocess.run(["git", "config", "user.email", "t@example.com"], cwd=check.ROOT, check=True)
    assert check.advice(params, "smoke", smoke) == [path]
    with pytest.raises(UserError, match="no profile nothing .* cpu, smoke, gpu"):
        check.profile_named(params, "nothing")


def test_clean_leaves_what_git_has_and_removes_what_runs_make(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for name in ("Makefile", ".gitignore", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    results = [
        "data/raw/a",
        "data/tokens/a",
        "models/gru/a",
        "metrics/report.html",
        "runs/report.html",
        ".ckpt/sft/k/a",
        ".cache/filter/a",
        "dvc_plots/index.html",
        "data/.raw.partial/a",
    ]
    for name in [*results, ".venv/a"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    status = ["git", "status", "--short", "--ignored"]
    run = subprocess.run(status, cwd=tmp_path, capture_output=True, text=True)
    assert {line[3:] for line in run.stdout.splitlines() if line[:2] == "!!"} == {".venv/"}
    assert (tmp_path / "params.yaml").exists()


def test_setting_a_profile_changes_one_line_and_an_unknown_one_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(set_profile, "ROOT", tmp_path)
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    before = path.read_text()
    set_profile.set_profile("smoke")
    assert path.read_text() == before.replace("\nprofile: cpu\n", "\nprofile: smoke\n")
    with pytest.raises(UserError, match="huge is not one of cpu, smoke, gpu"):
        set_profile.set_profile("huge")
    assert set_profile.current_profile() == "smoke"


DVC = """
case "$*" in
*status*) echo '{"pretrain@mlp": [], "pretrain@gru": [], "pretrain@gpt_oss": []}' ;;
*) echo "$*" >> CALLS; case "$*" in *gpt_oss) exit 1 ;; esac ;;
esac
"""


def test_no_other_model_starts_after_one_that_failed(monkeypatch, tmp_path):
    """With a DVC that knows three models which are out of date, the last of which fails."""
    calls = tmp_path / "calls"
    monkeypatch.setattr(repro, "DVC", program(tmp_path / "dvc", DVC.replace("CALLS", str(calls))))
    with pytest.raises(UserError, match="a stage failed"):
        repro.pretrain(1)
    assert [line.split()[-1] for line in calls.read_text().splitlines()] == [
        "encode",
        "pretrain@gpt_oss",
    ]
