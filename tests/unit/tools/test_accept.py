"""`tools.accept` records code that gives the same bytes, and nothing else."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from crawl2cart.core.errors import UserError
from tests.conftest import ROOT
from tools import accept

GRAPH = """
stages:
  midtrain:
    cmd: exec "$DVC_ROOT"/.venv/bin/python -m stages.midtrain
    deps: [requirements.txt, stages/midtrain.py, data/tokens]
    params:
      - seed
      - profiles.${profile}.midtrain
    outs:
      - models/base
"""
STAGE = """
from pathlib import Path
from ruamel.yaml import YAML

params = YAML(typ="safe").load(Path("params.yaml"))
steps = params["profiles"][params["profile"]]["midtrain"]["max_steps"]
Path("models/base").mkdir(parents=True)
for step in range(steps):
    with open("models/base/weights", "a") as file:
        file.write(f"{step} {params['seed']} {Path('data/tokens').read_text()}")
"""


def commit(folder: Path, message: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    for command in (["add", "-A"], [*identity, "commit", "-qm", message]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    head = ["git", "rev-parse", "HEAD"]
    return subprocess.run(head, cwd=folder, check=True, capture_output=True, text=True).stdout[:12]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A repository of one stage, which writes a line per step; it ran and its lock is committed."""
    folder = tmp_path_factory.mktemp("trained") / "project"
    for name in ("stages", "data", "artifacts"):
        (folder / name).mkdir(parents=True)
    (folder / "stages" / "__init__.py").touch()
    (folder / "stages" / "midtrain.py").write_text(STAGE)
    (folder / "data" / "tokens").write_text("tokens\n")
    (folder / accept.ACCEPTED).touch()
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / ".gitignore").write_text("/models/\n.venv\n__pycache__/\n")
    for name in ("params.yaml", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    accept.dvc("init", "-q", root=folder)
    accept.dvc("repro", "-q", root=folder)
    commit(folder, "trained")
    return folder


@pytest.fixture
def project(trained, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(trained, folder, symlinks=True)
    monkeypatch.setattr(accept, "ROOT", folder)
    return folder


def edit(folder: Path, name: str, old: str, new: str) -> str:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    return commit(folder, "edit")


@pytest.mark.slow
def test_code_that_gives_the_same_bytes_is_recorded_and_compared_from_then_on(project, tmp_path):
    weights = (project / "models" / "base" / "weights").read_bytes()
    maker = accept.made_by("midtrain")[:12]
    current = edit(project, "stages/midtrain.py", "params =", "# The parameters.\nparams =")
    assert accept.changes("midtrain", project) == {"stages/midtrain.py": "modified"}
    shutil.rmtree(project / "models")  # restored from DVC's cache
    accept.accept("midtrain", tmp_path / "clones")
    assert accept.changes("midtrain", project) == {}
    assert (project / "models" / "base" / "weights").read_bytes() == weights
    lines = (tmp_path / "clones").glob("20-steps/*/models/base/weights")
    assert [len(file.read_text().splitlines()) for file in lines] == [20, 20]
    accepted = (project / accept.ACCEPTED).read_text()
    assert f"`midtrain`: {maker} and {current} (smoke graph and 20 steps)" in accepted
    acceptance = commit(project, "accepted")
    assert accept.made_by("midtrain")[:12] == acceptance


@pytest.mark.parametrize(
    ("condition", "compared"),
    [
        ("step == 0", "smoke graph"),
        pytest.param(
            "step == 15", "20 steps", marks=pytest.mark.slow
        ),  # no step of the smoke graph
    ],
)
def test_code_that_gives_other_bytes_is_refused(project, tmp_path, condition, compared):
    lock = (project / "dvc.lock").read_bytes()
    edit(project, "stages/midtrain.py", "{step} ", f"{{step + ({condition})}} ")
    with pytest.raises(UserError, match=re.escape(f"({compared}): models/base/weights")):
        accept.accept("midtrain", tmp_path / "clones")
    assert (project / "dvc.lock").read_bytes() == lock
    assert (project / accept.ACCEPTED).read_text() == ""


@pytest.mark.parametrize(
    ("name", "old", "new", "fact"),
    [
        ("params.yaml", "seed: 7", "seed: 8", "seed: 7 recorded, 8 now"),
        (
            "params.yaml",
            "max_steps: 850",
            "max_steps: 9",
            "midtrain.max_steps: 850 recorded, 9 now",
        ),
        ("data/tokens", "tokens", "other tokens", "data/tokens: modified"),
        ("dvc.yaml", ", data/tokens]", "]", "data/tokens: no longer listed"),
    ],
)
def test_changed_parameters_and_data_are_refused_by_name(project, tmp_path, name, old, new, fact):
    edit(project, name, old, new)
    with pytest.raises(UserError, match=re.escape(fact)):
        accept.accept("midtrain", tmp_path / "clones")
    assert not (tmp_path / "clones").exists()


def test_a_renamed_parameter_of_the_same_value_is_no_change(project):
    lock = YAML(typ="safe").load(project / "dvc.lock")
    params = lock["stages"]["midtrain"]["params"]["params.yaml"]
    scale = params["profiles.cpu.midtrain"]
    scale["steps"] = scale.pop("max_steps")
    YAML().dump(lock, project / "dvc.lock")
    assert accept.refusals("midtrain", {}) == []
    scale["steps"] += 1
    YAML().dump(lock, project / "dvc.lock")
    assert len(accept.refusals("midtrain", {})) == 1


def test_uncommitted_code_is_refused(project):
    accept.check_committed()
    (project / "stages" / "new.py").touch()
    with pytest.raises(UserError, match="stages/new.py"):
        accept.check_committed()
