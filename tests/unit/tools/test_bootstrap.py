"""The set-up names what a machine lacks."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, ROOT


@pytest.fixture
def clone(tmp_path) -> Path:
    """A git repository with what the set-up reads, and without .venv."""
    folder = tmp_path / "clone"
    (folder / "tools").mkdir(parents=True)
    for name in ("tools/bootstrap.py", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q", folder], check=True)
    return folder


def bootstrap(folder: Path, before: str = "", **environment: str) -> str:
    """Return the message with which the set-up fails. before: Python that changes the machine."""
    script = folder / "tools" / "bootstrap.py"
    code = f"{before}\nimport runpy\nrunpy.run_path({str(script)!r}, run_name='__main__')"
    options = {"cwd": folder, "env": ENVIRONMENT | environment, "capture_output": True}
    run = subprocess.run([sys.executable, "-c", code], text=True, **options)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert not (folder / ".venv" / "installed").exists()
    return run.stderr


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_old_python_can_read_it():
    ast.parse((ROOT / "tools" / "bootstrap.py").read_text(), feature_version=(3, 5))


def test_an_old_python_is_named(clone, tmp_path):
    program(tmp_path / "python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127")
    message = bootstrap(clone, "import sys; sys.version_info = (3, 9, 2)", PATH=str(tmp_path))
    assert "3.11 or newer" in message and "3.9" in message


def test_an_environment_that_is_a_link_is_not_emptied(clone, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "precious").touch()
    (clone / ".venv").symlink_to(tmp_path / "shared")
    assert str(tmp_path / "shared") in bootstrap(clone)
    assert (tmp_path / "shared" / "precious").exists()


def test_a_machine_without_git_and_a_folder_without_a_repository_are_named(clone, tmp_path):
    assert "git is needed" in bootstrap(clone, PATH=str(tmp_path))
    shutil.rmtree(clone / ".git")
    assert "not a git repository of its own" in bootstrap(clone)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)  # unpacked inside another project
    assert "not a git repository of its own" in bootstrap(clone)


def test_too_small_a_disk_is_named(clone):
    small = "import shutil, types; shutil.disk_usage = lambda _: types.SimpleNamespace(free=2**30)"
    assert re.search(r"1\.0 GiB are free .* \d+ GiB are needed", bootstrap(clone, small))


def test_a_python_without_venv_is_named(clone, tmp_path):
    python = program(tmp_path / "python3", "echo 'ensurepip is not available' >&2; exit 1")
    message = bootstrap(clone, f"import sys; sys.executable = {str(python)!r}")
    assert str(python) in message and "python3-venv" in message


@pytest.mark.slow  # makes an environment
def test_a_machine_without_a_package_index_is_named(clone):
    nothing = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    assert "pip could not install torch" in bootstrap(clone, **nothing)
