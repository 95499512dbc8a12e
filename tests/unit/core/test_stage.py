"""A stage: fingerprint, changes during a run, checkpoints, locks, signals, costs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crawl2cart.core.errors import UserError
from crawl2cart.core.stage import Stage
from crawl2cart.core.training_state import open_checkpoint
from tests.conftest import ROOT, wait_for

PYTHON = [sys.executable, "-m"]


GRAPH = """
stages:
  download:
    cmd: x
    deps: [data/in]
    params: [download, seed]
    outs: [data/out]
"""


@pytest.fixture
def small_project(tmp_path, monkeypatch) -> Path:
    """A project of one stage, `download`, that depends on one file."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "data" / "in").mkdir(parents=True)
    (tmp_path / "data" / "in" / "page").write_text("page")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def test_the_fingerprint_depends_on_inputs_and_listed_parameters_alone(small_project):
    key = Stage("download").fingerprint
    text = (small_project / "params.yaml").read_text()
    (small_project / "params.yaml").write_text(
        "# a comment\n" + text.replace("min_words: 50", "min_words: 51")
    )
    assert Stage("download").fingerprint == key
    (small_project / "params.yaml").write_text(text.replace("seed: 7", "seed: 8"))
    assert Stage("download").fingerprint != key
    (small_project / "params.yaml").write_text(text)
    (small_project / "data" / "in" / "page").write_text("edit")
    assert Stage("download").fingerprint != key


def test_a_change_during_a_run_is_an_error(small_project):
    stage = Stage("download")
    assert stage.fingerprint
    stage.check_unchanged()
    os.utime(small_project / "data" / "in" / "page")  # touched, not changed
    stage.check_unchanged()
    (small_project / "data" / "in" / "page").write_text("other")
    (small_project / "data" / "in" / "new").write_text("new")
    text = (small_project / "params.yaml").read_text()
    (small_project / "params.yaml").write_text(text.replace("seed: 7", "seed: 8"))
    with pytest.raises(UserError, match="seed, data/in/new, data/in/page changed"):
        stage.check_unchanged()


def test_a_missing_input_is_named_with_the_command_that_makes_it(small_project):
    (small_project / "data" / "in" / "page").unlink()
    (small_project / "data" / "in").rmdir()
    with pytest.raises(UserError, match=r"data/in, which is missing.*dvc repro download"):
        _ = Stage("download").inputs


def test_an_unknown_stage_is_named(small_project):
    with pytest.raises(UserError, match="no stage upload"):
        Stage("upload")


def test_a_checkpoint_comes_back_exactly_and_goes_when_done(small_project):
    tensors = {"w": torch.randn(3, 4), "rng": torch.get_rng_state()}
    with pytest.raises(ZeroDivisionError):
        with open_checkpoint(Stage("download")) as checkpoint:
            assert checkpoint.load() is None
            checkpoint.save(tensors, {"step": 1, "loss": 0.1})
            checkpoint.save(tensors, {"step": 2, "loss": 0.1 + 0.2})
            raise ZeroDivisionError
    with open_checkpoint(Stage("download")) as checkpoint:
        loaded, state = checkpoint.load()
        assert state == {"step": 2, "loss": 0.1 + 0.2}
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert not checkpoint.directory.exists()


def test_a_damaged_checkpoint_stops_and_names_itself(small_project):
    with pytest.raises(UserError, match=r"checkpoint .* is damaged .* Delete"):
        with open_checkpoint(Stage("download")) as checkpoint:
            checkpoint.save({"w": torch.zeros(9)}, {"step": 1})
            weights = checkpoint.directory / "last" / "tensors.safetensors"
            weights.write_bytes(weights.read_bytes()[:-5])
            checkpoint.load()


def test_a_second_trainer_is_refused(small_project):
    with open_checkpoint(Stage("download")):
        with pytest.raises(UserError, match="Another process is running download"):
            with open_checkpoint(Stage("download")):
                pass


STAGE = '''
"""Docstring of a stage that waits."""
import time
from pathlib import Path
from crawl2cart.core.files import atomic_directory
from crawl2cart.core.stage import run

def main(stage):
    with atomic_directory("data/out") as folder:
        (folder / "half").write_text("half")
        print("working", flush=True)
        time.sleep(60)

if __name__ == "__main__":
    run(main)
'''


@pytest.fixture
def waiting(small_project) -> Path:
    """The small project with a `download` that never ends by itself."""
    (small_project / "stages").mkdir()
    (small_project / "stages" / "__init__.py").touch()  # or another folder's stages would count
    (small_project / "stages" / "download.py").write_text(STAGE)
    return small_project


def start(folder: Path, **options) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*PYTHON, "stages.download"], cwd=folder, **pipes, **options)
    while (line := process.stdout.readline()).strip() != "working":
        assert line, process.communicate()
    return process


def test_code_edited_while_packages_are_imported_stops_the_stage(waiting):
    """DVC would record the old code's results for the new file. A comment changes no code."""
    file = waiting / "stages" / "download.py"
    slow = STAGE.replace(
        "import time\n", "import time; print('importing', flush=True); time.sleep(1)\n"
    ).replace("sleep(60)", "sleep(0)")
    for edit, status in (("# a comment\n", 0), ("LIMIT = 3\n", 1)):
        file.write_text(slow)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([*PYTHON, "stages.download"], cwd=waiting, **pipes)
        assert process.stdout.readline() == "importing\n"
        file.write_text(slow + edit)
        _, errors = process.communicate()
        assert process.returncode == status, errors
    assert "download.py changed while it was starting" in errors
    assert not (waiting / "data" / "out").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_stage_with_its_status_and_leaves_nothing(waiting, number, status):
    process = start(waiting)
    process.send_signal(number)
    assert process.wait(10) == status
    assert [path.name for path in (waiting / "data").iterdir()] == ["in"]


def test_two_runs_of_one_stage_do_not_share_files(waiting):
    first = start(waiting)
    (waiting / "data" / "out").mkdir()
    command = [*PYTHON, "stages.download"]
    second = subprocess.run(command, cwd=waiting, capture_output=True, text=True)
    first.kill()
    first.communicate()
    assert second.returncode == 1
    assert "Another process is running download here" in second.stderr
    assert (waiting / "data" / "out").exists(), "the files of the first run stay"


OTHER_PLATFORM = """
import runpy, sys, crawl2cart.core.stage
sys.platform, sys.argv = "darwin", ["stages.download"]
runpy.run_module("stages.download", run_name="__main__", alter_sys=True)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
while (line := child.stdout.readline()).strip() != "working":
    assert line
print(child.pid, flush=True)
time.sleep(60)
"""


def is_alive(process: int) -> bool:
    """Return whether a process runs. One that nobody has waited for yet is a zombie."""
    stat = Path(f"/proc/{process}/stat")
    try:
        return stat.read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    "arguments",
    [["-m", "stages.download"], ["-c", OTHER_PLATFORM]],
    ids=["Linux", "other platforms"],
)
def test_a_stage_ends_with_the_process_that_started_it(waiting, arguments):
    """Killing DVC alone (a cancelled job) must not leave its trainer running."""
    environment = os.environ | {"DVC_STAGE": "download"}
    command = [sys.executable, "-c", PARENT, *arguments]
    pipe = {"stdout": subprocess.PIPE, "text": True}
    parent = subprocess.Popen(command, cwd=waiting, env=environment, **pipe)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    wait_for(lambda: not is_alive(child), seconds=20)


def test_help_is_the_docstring(waiting):
    command = [*PYTHON, "stages.download", "--help"]
    run = subprocess.run(command, cwd=waiting, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "Docstring of a stage that waits."


QUICK = STAGE.replace("time.sleep(60)", "stage.log_cost(tokens=5, flops=2e9)")


def test_a_stage_writes_what_it_cost(waiting):
    (waiting / "stages" / "download.py").write_text(QUICK)
    subprocess.run([*PYTHON, "stages.download"], cwd=waiting, check=True, capture_output=True)
    costs = json.loads((waiting / "runs" / "download.json").read_text())
    assert costs["read_bytes"] == len("page") and costs["written_bytes"] == len("half")
    assert costs["seconds"] > 0 and costs["peak_memory_mib"] > 20
    assert (costs["tokens"], costs["flops"], costs["peak_card_mib"]) == (5, 2e9, 0)


def test_a_failed_stage_leaves_no_outs(waiting):
    failing = STAGE.replace("import time", "from crawl2cart.core.errors import UserError")
    failing = failing.replace(
        "    with", "    Path('data/out').mkdir()\n    raise UserError('no')\n    with"
    )
    (waiting / "stages" / "download.py").write_text(failing)
    command = [*PYTHON, "stages.download"]
    run = subprocess.run(command, cwd=waiting, capture_output=True, text=True)
    assert (run.returncode, run.stderr.strip()) == (1, "download: no")
    assert not (waiting / "data" / "out").exists()
