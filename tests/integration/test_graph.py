"""The whole graph on the smoke profile: from nothing, again, killed, edited under way, changed."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from crawl2cart.core.dvc_yaml import definitions
from stages.report import DATA
from tests.conftest import DVC, ENVIRONMENT, ROOT, dvc
from tests.unit.test_dvc_consistency import covered, reachable

pytestmark = pytest.mark.slow
PYTHON = ROOT / ".venv" / "bin" / "python"


def ran(output: str) -> set[str]:
    """The stages that DVC says it ran."""
    return set(re.findall(r"Running stage '([^']+)'", output))


def digest(path: Path) -> str:
    """One hash over a file or over all names and bytes below a folder."""
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            total.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return total.hexdigest()


def test_a_repeated_run_does_nothing(finished):
    assert ran(dvc(finished, "repro")) == set()


def test_the_tables_and_plots_of_dvc_work(finished, tmp_path):
    shown = dvc(finished, "metrics", "show")
    assert "val_bits_per_byte" in shown and len(shown) < 20_000
    assert "val_bits_per_byte" in dvc(finished, "metrics", "diff", "HEAD~1")
    assert "pretrain@gru" in dvc(finished, "dag")
    assert "up to date" in dvc(finished, "status")
    output = dvc(finished, "plots", "diff", "HEAD", "-o", str(tmp_path))
    assert "failed" not in output.lower()
    page = (tmp_path / "index.html").read_text()
    assert all(f"{model}.tsv" in page for model in ("mlp", "rnn", "lstm", "gru", "gpt_oss"))


def test_every_out_has_few_files(finished):
    for stage in definitions(finished, "smoke").values():
        for out in stage.outs:
            files = [file for file in (finished / out).rglob("*") if file.is_file()]
            assert len(files) <= 100, f"{out} has {len(files)} files"


def test_the_report_needs_no_network(finished):
    page = (finished / "metrics" / "report.html").read_text()
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page)
    assert page.count("<svg") >= 4
    assert len(page) < 2_000_000


def alone(
    finished: Path, folder: Path, name: str, drop: str = "", add: str = ""
) -> tuple[int, set[str]]:
    """Run a stage in a folder that holds only what dvc.yaml lists for it.

    drop, add: change that list first. Returns the exit status and the listed dependencies that
    the stage did not open.
    """
    entry = name.split("@")[0]
    graph = YAML(typ="safe").load(finished / "dvc.yaml")
    deps = graph["stages"][entry]["deps"]
    deps[:] = [dep for dep in deps if dep != drop] + [add] * bool(add)
    folder.mkdir()
    with (folder / "dvc.yaml").open("w") as file:
        YAML().dump(graph, file)
    shutil.copy(finished / "params.yaml", folder)
    listed = definitions(folder, "smoke")[name].deps
    for dep in listed:
        (folder / dep).parent.mkdir(parents=True, exist_ok=True)
        for package in (folder / dep).parents:
            if folder in package.parents and dep.startswith(("stages/", "crawl2cart/")):
                (package / "__init__.py").touch()
        if (finished / dep).is_dir():
            shutil.copytree(
                finished / dep,
                folder / dep,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        else:
            shutil.copy(finished / dep, folder / dep)
    note = folder / "opened.json"
    output = subprocess.run(
        [
            PYTHON,
            ROOT / "tests" / "trace_file_access.py",
            note,
            f"stages.{entry}",
            *name.split("@")[1:],
        ],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""},
        capture_output=True,
    )
    opened = [folder / path for path in json.loads(note.read_text())]
    return output.returncode, {
        dep
        for dep in listed
        if not any(file == folder / dep or folder / dep in file.parents for file in opened)
    }


def not_opened(name: str) -> set[str]:
    """The dependencies that a stage need not open with the smoke parameters.

    These are packages that only functions import when a parameter asks for them, and
    requirements.txt, which stands for the installed packages.
    """
    stage = definitions(ROOT, "smoke")[name]
    at_once = reachable(stage, at_once=True)
    lazy = {dep for dep in stage.deps if not any(covered(file, (dep,)) for file in at_once)}
    return {"requirements.txt"} | {dep for dep in lazy if dep.startswith("crawl2cart/")}


# One of the five language models stands for all: they share one entry of dvc.yaml.
STAGES = [name for name in definitions(ROOT, "smoke") if "@" not in name or name.endswith("@gru")]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_needs_no_file_but_those_listed_and_opens_each(finished, tmp_path, name):
    """The report only prints the hashes of some inputs, which the stage itself has read."""
    status, idle = alone(finished, tmp_path / "alone", name)
    assert status == 0, f"{name} does not run with the files that dvc.yaml lists for it"
    assert idle - set(DATA if name == "report" else ()) <= not_opened(name)
    for out in definitions(ROOT, "smoke")[name].outs:
        assert digest(tmp_path / "alone" / out) == digest(finished / out), (
            f"{out} depends on files that dvc.yaml does not list"
        )


def test_a_file_that_is_not_listed_and_one_that_is_not_opened_are_found(finished, tmp_path):
    for number, missing in enumerate(("crawl2cart/router", "data/queries")):  # an import, and data
        assert alone(finished, tmp_path / str(number), "router", drop=missing)[0] != 0
    assert (
        alone(finished, tmp_path / "native", "encode", drop="data/corpus")[0] != 0
    )  # read by Arrow, not by Python
    assert alone(finished, tmp_path / "idle", "router", add="data/ranks")[1] == {
        "requirements.txt",
        "data/ranks",
    }


def checkpoints(folder: Path) -> dict[str, int]:
    """Every complete checkpoint below a folder, ours and TRL's, with its time of change."""
    return {
        str(file): file.stat().st_mtime_ns
        for pattern in ("[lno]*/tensors.safetensors", "trl/*/trainer_state.json")
        for file in folder.glob(f"*/{pattern}")
    }


def kill_at_work(command: list, folder: Path, seconds: float, watched: Path | None) -> None:
    """Kill a stage some seconds after its work began and, if `watched`, after a new checkpoint.

    The stage must not have ended before, or the test would prove nothing.
    """
    before = checkpoints(watched) if watched else {}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while " key " not in process.stdout.readline():  # packages are imported and inputs hashed
        assert process.poll() is None, "the stage ended before its work began"
    time.sleep(seconds)
    while watched and checkpoints(watched) == before:
        assert process.poll() is None, "the stage ended without a new checkpoint"
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the stage ended before it was killed"


# These stages resume from a checkpoint. The others finish pieces of work, or start again.
RESUMING = ("pretrain@lstm", "pretrain@gpt_oss", "midtrain", "sft", "dpo")
RESTARTING = ("filter", "build_sft", "build_prefs", "evaluate")


@pytest.mark.parametrize("name", RESUMING + RESTARTING)
def test_a_killed_stage_gives_the_same_bytes(copy, name):
    """Kill it after its first checkpoint and soon after it resumed, or once in the middle."""
    outs = definitions(copy, "smoke")[name].outs
    expected = {out: digest(copy / out) for out in outs}
    command = [PYTHON, "-m", f"stages.{name.split('@')[0]}", *name.split("@")[1:]]

    def remove_outs() -> None:  # as DVC does before it runs a command
        for out in outs:
            path = copy / out
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    for folder in (".cache", ".ckpt"):
        shutil.rmtree(copy / folder, ignore_errors=True)
    seconds = json.loads((copy / "runs" / f"{name}.json").read_text())["seconds"]
    watched = copy / ".ckpt" / name
    moments = [(0, watched), (0.1, None)] if name in RESUMING else [(0.2, None)]
    for part, folder in moments:
        remove_outs()
        kill_at_work(command, copy, part * seconds, folder)
    assert checkpoints(watched) or name in RESTARTING
    remove_outs()
    output = subprocess.run(
        command, cwd=copy, env=ENVIRONMENT, check=True, capture_output=True, text=True
    ).stdout
    assert {out: digest(copy / out) for out in outs} == expected
    assert not checkpoints(watched), "a finished stage leaves no checkpoint"
    if name.startswith(("pretrain", "midtrain")):
        assert "going on at step" in output


def start_stage(folder: Path, name: str) -> subprocess.Popen:
    """Start a stage through DVC and return when its work begins."""
    process = subprocess.Popen(
        [DVC, "repro", "-s", "-f", "--no-run-cache", name],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while f"{name}: key" not in (line := process.stdout.readline()):
        assert line or process.poll() is None
    return process


def test_dvc_killed_alone_takes_its_trainer_along(copy):
    process = start_stage(copy, "sft")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and stages_running(copy):
        time.sleep(0.2)
    assert not stages_running(copy)
    dvc(copy, "repro", "-s", "sft")  # a killed DVC leaves no lock in the way
    assert (copy / "models/sft/model.safetensors").is_file()


def stages_running(folder: Path) -> list[int]:
    """Process ids of the stages that run in a folder."""
    running = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                here = os.readlink(process / "cwd") == str(folder)
                if here and any(word.startswith(b"stages.") for word in words):
                    running.append(int(process.name))
            except OSError:
                continue
    return running


def test_a_comment_runs_nothing_and_a_learning_rate_what_stands_behind_it(copy):
    params = copy / "params.yaml"
    params.write_text("# another comment\n" + params.read_text())
    assert ran(dvc(copy, "repro")) == set()
    output = dvc(copy, "exp", "run", "-S", "pretrain.gru.learning_rate=1e-5")
    assert ran(output) == {"pretrain@gru", "compare", "report"}
    assert "pretrain.gru.learning_rate" in dvc(copy, "params", "diff", "HEAD")
    assert "gru.val_bits_per_byte" in dvc(copy, "metrics", "diff", "HEAD")


def test_a_price_runs_no_pretraining(copy):
    products = next((copy / "data" / "store" / "products").glob("*.jsonl"))
    first, rest = products.read_text().split("\n", 1)
    row = json.loads(first)
    row["price"] = round(row["price"] + 1, 2)
    products.write_text(json.dumps(row) + "\n" + rest)
    stale = set(re.findall(r"Running stage '([^']+)'", dvc(copy, "repro", "--dry")))
    assert "build_sft" in stale
    assert not {name for name in stale if name.startswith(("pretrain", "encode", "filter"))}


def test_an_edit_under_way_fails_the_stage_and_says_so(copy):
    code, lock = copy / "stages" / "router.py", (copy / "dvc.lock").read_text()
    process = start_stage(copy, "router")
    code.write_text(code.read_text() + "\n# edited\n")
    output = process.stdout.read()
    assert process.wait() != 0
    assert "stages/router.py changed while router was running" in output
    assert not (copy / "models" / "router").exists()
    assert (copy / "dvc.lock").read_text() == lock, "nothing is recorded"
    assert "router" in ran(dvc(copy, "repro", "-s", "router"))


def test_an_experiment_runs_in_a_temporary_copy(copy):
    before = (copy / "params.yaml").read_text()
    subprocess.run(["git", "config", "user.name", "t"], cwd=copy, check=True)
    subprocess.run(["git", "config", "user.email", "t@example.com"], cwd=copy, check=True)
    dvc(copy, "exp", "run", "--temp", "-S", "router.C=5", "router")
    assert (copy / "params.yaml").read_text() == before


def test_a_single_stage_can_be_asked_for(copy):
    shutil.rmtree(copy / "models" / "pretrain" / "gru")
    output = dvc(copy, "repro", "--force", "--single-item", "pretrain@gru")
    assert ran(output) == {"pretrain@gru"}
