"""The set-up and the proofs around the graph: what they say where something lacks, and that they find what is wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from crawl2cart.core.dvc_yaml import definitions
from crawl2cart.core.errors import UserError
from tests.conftest import ENVIRONMENT, ROOT
from tools import repro, reproduce, tolerances
from tools.reproduce import differences, flat, metrics_below


@pytest.fixture
def clone(tmp_path) -> Path:
    """A git repository with what the set-up reads, and no .venv."""
    folder = tmp_path / "clone"
    (folder / "tools").mkdir(parents=True)
    for name in ("tools/bootstrap.py", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q", folder], check=True)
    return folder


def bootstrap(folder: Path, before: str = "", **environment: str) -> str:
    """What the set-up says on its way to failure. before: Python that makes the machine what it is to be."""
    code = f"{before}\nimport runpy\nrunpy.run_path({str(folder / 'tools/bootstrap.py')!r}, run_name='__main__')"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 1, said.stdout + said.stderr
    assert "Traceback" not in said.stderr
    assert not (folder / ".venv" / "installed").exists()
    return said.stderr


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_old_python_is_told_so(clone, tmp_path):
    program(tmp_path / "python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127")
    said = bootstrap(clone, "import sys; sys.version_info = (3, 9, 2)", PATH=str(tmp_path))
    assert "Python 3.11 or newer is needed, but python3 here is 3.9" in said


def test_an_environment_that_is_only_linked_here_is_not_emptied(clone, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "precious").touch()
    (clone / ".venv").symlink_to(tmp_path / "shared")
    assert ".venv is a link to" in bootstrap(clone)
    assert (tmp_path / "shared" / "precious").exists()


def test_a_machine_without_git_and_a_folder_without_a_repository_are_told_so(clone, tmp_path):
    assert "git is needed and not on PATH" in bootstrap(clone, PATH=str(tmp_path))
    shutil.rmtree(clone / ".git")
    assert "not a git repository of its own" in bootstrap(clone)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)  # unpacked inside another project
    assert "not a git repository of its own" in bootstrap(clone)


def test_too_small_a_disk_is_told_so(clone):
    said = bootstrap(
        clone,
        "import shutil, types; shutil.disk_usage = lambda path: types.SimpleNamespace(free=2**30)",
    )
    assert re.search(r"1\.0 GiB are free on the disk of .*, \d+ GiB are needed", said)


def test_a_python_without_venv_is_told_so(clone, tmp_path):
    python = program(tmp_path / "python3", "echo 'ensurepip is not available' >&2; exit 1")
    assert "apt install python3-venv" in bootstrap(
        clone, f"import sys; sys.executable = {str(python)!r}"
    )


@pytest.mark.slow  # makes an environment
def test_a_machine_without_a_package_index_is_told_so(clone):
    nothing = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    assert "pip could not install torch" in bootstrap(clone, **nothing)


def test_every_make_target_explains_itself():
    targets = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)[1].split()
    said = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [line.split()[0] for line in said.splitlines()] == targets
    assert all(len(line.split()) > 3 for line in said.splitlines())


def test_clean_leaves_what_git_has_and_removes_what_runs_make(project):
    shutil.rmtree(project / ".dvc" / "tmp", ignore_errors=True)
    made = [
        "data/raw/a",
        "data/tokens/a",
        "models/gru/a",
        "metrics/report.html",
        "runs/report.html",
        ".ckpt/sft/k/a",
        ".cache/filter/a",
        "dvc_plots/index.html",
        "data/.raw.partial/a",
        ".dvc/tmp/rwlock",
    ]
    for name in made:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    subprocess.run(["make", "clean"], cwd=project, check=True, capture_output=True)
    left = subprocess.run(
        ["git", "status", "--short", "--ignored"], cwd=project, capture_output=True, text=True
    ).stdout
    assert left.split() == ["!!", ".venv"]


@pytest.mark.parametrize(
    ("skipped", "there", "status"), [(False, True, 0), (True, False, 0), (True, True, 1)]
)
def test_ci_fails_if_a_test_was_skipped_for_want_of_a_folder_that_is_there(
    tmp_path, skipped, there, status
):
    """With a `make` whose tests end as pytest's do; the line is that of the fixture `shared_data`."""
    ci = tmp_path / "project" / ".ci"
    ci.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", ci)
    if there:
        (tmp_path / "shared").mkdir()
    line = (
        "SKIPPED [1] tests/unit/crawl/test_download.py:196: needs ../shared: /x/shared/data is absent\n"
        * skipped
    )
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin" / "make", f"printf '{line}7 passed, 2 deselected in 1.00s\\n'")
    environment = ENVIRONMENT | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    said = subprocess.run([ci / "run"], env=environment, capture_output=True, text=True)
    assert said.returncode == status, said.stdout + said.stderr
    assert ("was skipped although the folder is there" in said.stdout) == bool(status)
    assert "7 passed" in said.stdout
    program(tmp_path / "bin" / "make", "printf '1 failed, 6 passed in 1.00s\\n'; exit 2")
    assert subprocess.run([ci / "run"], env=environment, capture_output=True).returncode == 2


def setup(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )


def test_check_says_what_the_profiles_need():
    said = setup(ROOT, "tools.check", "smoke").stdout
    for word in (
        "machine",
        "cores",
        "free memory",
        "free disk",
        "time",
        "fast bfloat16",
        "missing",
    ):
        assert f"\n{word}" in said
    said = setup(ROOT, "tools.check", "nothing")
    assert said.returncode == 1
    assert "no profile nothing in params.yaml; there are cpu, smoke, gpu" in said.stderr


def test_choosing_a_profile_changes_one_line_and_an_unknown_one_nothing(project):
    before = (project / "params.yaml").read_text()
    assert setup(project, "tools.set_profile", "cpu").returncode == 0
    assert (project / "params.yaml").read_text() == before.replace(
        "\nprofile: smoke\n", "\nprofile: cpu\n"
    )
    said = setup(project, "tools.set_profile", "huge")
    assert (said.returncode, said.stderr) == (
        1,
        "make: PROFILE=huge is not one of cpu, smoke, gpu.\n",
    )


def test_metrics_beyond_their_tolerance_are_named():
    committed = flat({"gru": {"bits": 2.0, "n": 10}, "released": True})
    measured = flat({"gru": {"bits": 2.3, "n": 11}, "released": False, "new": 1})
    assert differences(committed, committed, {}, []) == []
    assert differences(committed, measured, {"gru.bits": 0.5, "gru.n": 1.0}, ["released"]) == [
        "new is only in the measured metrics"
    ]
    found = differences(committed, measured, {"gru.*": 0.1}, [])
    assert [re.match(r"[\w.]+", line)[0] for line in found] == [
        "gru.bits",
        "gru.n",
        "new",
        "released",
    ]


def test_a_float_may_differ_in_the_last_digit_it_is_rounded_to_and_a_count_may_not():
    assert differences({"f1": 0.75664}, {"f1": 0.75665}, {}, []) == []
    assert differences({"f1": 0.75664}, {"f1": 0.75694}, {}, []) == [
        "f1: 0.75664 committed, 0.75694 measured, 7.5664e-05 allowed"
    ]
    assert len(differences({"n": 123456}, {"n": 123457}, {}, [])) == 1


def test_a_tolerance_is_the_distance_of_the_largest_from_the_smallest():
    runs = [
        {"bits": 2.5, "n": 160, "pairs": 30, "released": True, "best": "gru", "wins": 4},
        {"bits": 2.25, "n": 160, "pairs": 33, "released": True, "best": "mlp"},
        {"bits": 2.375, "n": 160, "pairs": 31, "released": False, "best": "gru"},
    ]
    assert tolerances.spread(runs) == ({"bits": 0.25, "pairs": 3.0}, ["best", "released", "wins"])


def test_the_committed_metrics_lie_within_their_own_tolerances():
    said = json.loads((ROOT / "metrics" / "tolerances.json").read_text())
    assert said["origin"]["rule"] and said["origin"]["seeds"]
    metrics = metrics_below(ROOT)
    assert differences(metrics, metrics, said["tolerances"], said["free"]) == []
    for name in (
        "filter:documents.in",
        "filter:documents.kept",
        "router:local.n",
    ):  # no seed moves these
        assert (
            len(
                differences(
                    metrics, metrics | {name: metrics[name] + 1}, said["tolerances"], said["free"]
                )
            )
            == 1
        )


def test_seeds_that_are_measured_are_not_measured_again(project, monkeypatch):
    """Runs from elsewhere count: four as files, one as a folder."""
    monkeypatch.setattr(tolerances, "ROOT", project)
    kept = project / ".cache" / "tolerances" / tolerances.commit_of(project)
    kept.mkdir(parents=True)
    metrics = metrics_below(project)
    for seed in (8, 9, 10):
        moved = metrics | {"sft:sft.train_loss": metrics["sft:sft.train_loss"] + seed}
        (kept / f"{seed}.json").write_text(json.dumps({"seed": seed, "metrics": moved}))
    monkeypatch.setattr(sys, "argv", ["tolerances", "--take", str(project), "8", "9", "10"])
    with pytest.raises(UserError, match="4 seeds are measured"):
        tolerances.main()
    (kept / "11.json").write_text(json.dumps({"seed": 11, "metrics": metrics}))
    tolerances.main()
    written = json.loads((project / "metrics" / "tolerances.json").read_text())
    assert written["origin"]["seeds"] == [7, 8, 9, 10, 11]
    assert written["tolerances"] == {"sft:sft.train_loss": 10.0}
    assert written["free"] == []


@pytest.mark.slow
def test_two_runs_from_nothing_give_one_lock_and_a_tampered_metric_is_found(copy):
    """`make reproduce`: the second run, in a fresh clone with an empty cache, must come to what the first committed."""
    said = setup(copy, "tools.reproduce")
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
    assert "metrics within tolerance; dvc.lock and metrics are the same bytes" in said.stdout
    for stage in definitions(
        copy, "smoke"
    ):  # none is taken for done, not even one whose outs are all in git
        assert f"Running stage '{stage}':" in said.stdout, stage

    committed = metrics_below(copy)
    reproduce.verdict(copy, committed)
    name = "evaluate:sft.n"
    with pytest.raises(
        UserError, match=rf"{name}: {committed[name] + 1} committed, {committed[name]} measured"
    ):
        reproduce.verdict(copy, committed | {name: committed[name] + 1})


def test_no_further_model_begins_after_one_that_failed(monkeypatch, tmp_path):
    """A DVC of three models that are out of date, the last of which fails."""
    program(
        tmp_path / "dvc",
        f"""case "$*" in
        *status*) echo '{{"pretrain@mlp": [], "pretrain@gru": [], "pretrain@gpt_oss": []}}';;
        *) echo "$*" >> {tmp_path}/called; case "$*" in *gpt_oss) exit 1;; *gru) sleep 0.5;; esac;;
        esac""",
    )
    monkeypatch.setattr(repro, "DVC", tmp_path / "dvc")
    with pytest.raises(UserError, match="a stage failed; its message is above"):
        repro.pretrain(1)
    said = (tmp_path / "called").read_text().splitlines()
    assert said == ["repro encode", "--wait-for-lock repro --single-item pretrain@gpt_oss"]


@pytest.mark.slow
def test_models_trained_side_by_side_give_the_same_lock(finished, copy):
    """`make parallel`, from nothing: no run cache, no outs. The packages are there, so the set-up is left out."""
    for made in ("models", "data/tokens", "metrics/report.html", ".cache", ".dvc/cache"):
        shutil.rmtree(copy / made) if (copy / made).is_dir() else (copy / made).unlink(
            missing_ok=True
        )
    (copy / "dvc.lock").unlink()
    said = subprocess.run(
        ["make", "parallel", "PYTHON=true"],
        cwd=copy,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
    locks = [
        YAML(typ="safe").load(folder / "dvc.lock") for folder in (copy, finished)
    ]  # the order of entries is that of the runs
    assert locks[0] == locks[1]


@pytest.mark.slow
def test_a_stale_lock_is_found_and_a_clean_checkout_has_none(finished, tmp_path):
    """Nothing is checked out of DVC's cache: all that the check needs is in git."""
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", finished, folder], check=True)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    assert setup(folder, "tools.check_lock").returncode == 0
    code = folder / "stages" / "router.py"
    code.write_text(code.read_text() + "\n# edited\n")
    said = setup(folder, "tools.check_lock")
    assert said.returncode == 1
    assert "dvc.lock is stale" in said.stderr
