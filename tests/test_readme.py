"""The README says what is so: its tables are those of metrics/ and data/, its commands run, its files exist."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from setup.readme import filled
from setup.reproduce import differences, flat
from tests.conftest import ROOT
from tests.test_graph import ENVIRONMENT, copy, finished  # noqa: F401  the finished smoke graph

README = (ROOT / "README.md").read_text()
PLACEHOLDER = "/data/crawl/*.warc.gz"
COMMANDS = sorted({command for command in [*re.findall(r"`(dvc [^`]+)`", README), *README.splitlines()]
                   if command.startswith("dvc ") and "commoncrawl" not in command})  # those: tests/test_commoncrawl.py


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


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_its_dvc_commands_run(copy, tmp_path, command):  # noqa: F811
    raw = tmp_path / "crawl"
    shutil.copytree(copy / "data" / "raw", raw)
    words = shlex.split(command.replace(PLACEHOLDER, f"{raw}/*.warc.gz"))
    words[0] = str(ROOT / ".venv" / "bin" / "dvc")
    subprocess.run(["git", "config", "user.name", "t"], cwd=copy, check=True)
    subprocess.run(["git", "config", "user.email", "t@example.com"], cwd=copy, check=True)
    said = subprocess.run(words, cwd=copy, env=ENVIRONMENT, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]


def bootstrap(*words: str, code: str | None = None, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    run = [sys.executable, "-c", code] if code else [sys.executable, "setup/bootstrap.py", *words]
    return subprocess.run(run, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True)


def test_an_old_python_is_told_so(tmp_path):
    code = f"import runpy, sys; sys.version_info = (3, 9, 2); runpy.run_path({str(ROOT / 'setup/bootstrap.py')!r}, run_name='__main__')"
    said = bootstrap(code=code, PATH=str(tmp_path))
    assert said.returncode == 1
    assert "Python 3.11 or newer is needed, but python3 here is 3.9" in said.stderr


def test_a_folder_without_git_is_told_so(tmp_path):
    (tmp_path / "setup").mkdir()
    for name in ("setup/bootstrap.py", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    said = bootstrap(cwd=tmp_path)
    assert said.returncode == 1
    assert "not a git repository of its own" in said.stderr


def test_check_says_what_the_profiles_need():
    for profile, status in (("smoke", 0), ("nothing", 1)):
        said = subprocess.run([sys.executable, "-m", "setup.check", profile], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert said.returncode == status, said.stdout + said.stderr
        assert ("free memory" in said.stdout) if profile == "smoke" else ("no profile nothing" in said.stderr)


def test_metrics_beyond_their_tolerance_are_named():
    committed = flat({"gru": {"bits": 2.0, "n": 10}, "released": True})
    measured = flat({"gru": {"bits": 2.3, "n": 10}, "released": False, "new": 1})
    assert differences(committed, committed, {}) == []
    assert differences(committed, measured, {"gru.bits": 0.5, "released": 1.0}) == ["new is only in the measured metrics"]
    found = differences(committed, measured, {"gru.*": 0.1})
    assert [line.split(":")[0].split(" ")[0] for line in found] == ["gru.bits", "new", "released"]
