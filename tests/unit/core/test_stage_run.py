"""What every stage relies on: parameters checked in words, files whole or absent, hashes at both ends, signals."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, atomic_file, read_json, read_jsonl
from crawl2cart.core.metrics import share_interval, write_metrics
from crawl2cart.core.model_folder import check_model
from crawl2cart.core.params import Listed, Params, read_params
from crawl2cart.core.stage import Stage
from crawl2cart.core.training_state import open_checkpoint
from tests.conftest import ROOT


def changed_params(tmp_path: Path, old: str, new: str) -> Path:
    text = (ROOT / "params.yaml").read_text()
    assert old in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("min_words: 50", "min_wrods: 50", "filter.min_wrods: no such key"),
        ("min_words: 50", "min_wrods: 50", "filter.min_words: this key is missing"),
        ("seed: 7", "seed: seven", "seed: input should be a valid integer, but it is 'seven'"),
        ("validation_share: 0.08", "validation_share: 1.5", "filter.validation_share"),
        ("source: embedded", "source: internet", "download.source"),
        (
            "threads: 2",
            "threads: 3",
            "profiles.cpu: 3 threads can not be shared equally by 2 processes. Set `processes`",
        ),
        (
            "threads: 2",
            "threads: 1",
            "profiles.cpu: 1 threads can not be shared equally by 2 processes",
        ),
        ("processes: 1", "processes: 2", "profiles.gpu: `processes` are for a CPU. Set it to 1"),
        ("profile: cpu", "profile: gpuu", "profile: gpuu is not one of the profiles"),
    ],
)
def test_a_bad_parameter_is_named(tmp_path, old, new, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        read_params(changed_params(tmp_path, old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("min_words: 50", "min_wrods: 50"),
        ("seed: 7", "seed: seven"),
        ("profile: cpu", "profile: gpuu"),
    ],
)
def test_a_stage_stops_at_a_bad_parameter_before_anything_is_written(tmp_path, old, new):
    changed_params(tmp_path, old, new)
    for name in ("dvc.yaml", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    said = subprocess.run(
        [sys.executable, "-m", "stages.encode"], cwd=tmp_path, capture_output=True, text=True
    )
    assert said.returncode == 1
    assert re.match(r"encode: params\.yaml.*Nothing was run\.$", said.stderr.strip(), re.DOTALL)
    assert {path.name for path in tmp_path.iterdir()} == {
        "dvc.yaml",
        "params.yaml",
        "stages",
        "runs",
    }


def test_a_missing_input_is_named_with_the_command_that_makes_it(tmp_path):
    for name in ("dvc.yaml", "params.yaml", "requirements.txt", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    said = subprocess.run(
        [sys.executable, "-m", "stages.encode"], cwd=tmp_path, capture_output=True, text=True
    )
    assert said.returncode == 1
    assert (
        said.stderr.strip()
        == "encode: encode needs data/ranks, which is missing. `dvc repro encode` makes it."
    )


def test_small_numbers_that_dvc_writes_are_numbers(tmp_path):
    params = read_params(
        changed_params(
            tmp_path,
            "    learning_rate: 0.0032\n    # Weight",
            "    learning_rate: 1e-05\n    # Weight",
        )
    )
    assert params.pretrain.gpt_oss.learning_rate == 1e-5  # PyYAML reads this as the text "1e-05"


def test_a_stage_can_not_read_what_dvc_does_not_watch():
    params: Params = read_params(ROOT / "params.yaml")
    listed = Listed(params, ("seed", "pretrain.gru", f"profiles.{params.profile}.threads"))
    assert listed.pretrain.gru.learning_rate > 0
    assert listed.profile.threads >= 1
    for read in (
        lambda: listed.pretrain.lstm,
        lambda: listed.filter,
        lambda: listed.profile.pretrain,
    ):
        with pytest.raises(AttributeError, match="not listed"):
            read()


def uncommented(text: str) -> list[str]:
    """Sections and parameters of a params.yaml without a comment in the line above, by dotted key.

    Sections within a section may do without. A profile after the first has the same keys as the first, and a model after another, or a
    profile's parameter after one of its name in the same section, means the same.
    """
    path, known, found = [], set(), []
    lines = text.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if not (entry := re.match(r"( *)(\w+):(.*)", line)):
            continue
        path = [*path[: len(entry[1]) // 2], entry[2]]
        key = tuple(path)
        if path[0] == "profiles" and len(path) > 1:
            if path[1] != "cpu":
                continue
            key = (*path[2:3], path[-1])
        if above.strip().startswith("#"):
            known.add(key)
        elif key not in known and (entry[3].strip() or len(path) == 1):
            found.append(".".join(path))
    return found


def test_params_have_no_list_and_a_comment_above_every_section_and_parameter():
    text = (ROOT / "params.yaml").read_text()
    assert not re.search(r"^\s*- |: \[", text, re.MULTILINE)
    assert uncommented(text) == []
    values = read_params(ROOT / "params.yaml").model_dump()
    assert not re.search(r"(?i)(api_?key|secret|password)", str(values.keys()))


def test_a_parameter_or_section_without_a_comment_is_found():
    text = "\n".join(
        line
        for line in (ROOT / "params.yaml").read_text().splitlines()
        if "nearer to it" not in line
    )
    assert uncommented(text.replace("# Scale only", "")) == ["dpo.beta", "profiles"]
    assert uncommented("# one\na: 1\nb:\n  # two\n  c: 2\n  d: 3\n") == ["b", "b.d"]


def test_profiles_have_the_same_keys():
    def keys(section, above=""):
        return {
            path
            for key, value in section.items()
            for path in (
                keys(value, f"{above}{key}.") if isinstance(value, dict) else {above + key}
            )
        }

    profiles = read_params(ROOT / "params.yaml").model_dump()["profiles"]
    shapes = {name: keys(profile) for name, profile in profiles.items() if profile}
    assert len(set(map(frozenset, shapes.values()))) == 1, shapes


def test_an_interrupted_file_is_absent_and_the_old_one_stays(tmp_path):
    path = tmp_path / "deep" / "out.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(ZeroDivisionError):
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["out.txt"]


def test_an_interrupted_folder_is_absent(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with atomic_directory(tmp_path / "out") as folder:
            (folder / "a").write_text("a")
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_in_words(tmp_path):
    with pytest.raises(UserError, match=r"disk is full while writing .*out\.txt"):
        with atomic_file(tmp_path / "out.txt"), open("/dev/full", "w") as full:
            full.write("x")
            full.flush()
    with pytest.raises(UserError, match="disk is full"), atomic_directory(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


FULL = """
import sys
import numpy, pyarrow, pyarrow.parquet, torch
from pathlib import Path
from safetensors.torch import save_file
from crawl2cart.core.files import atomic_directory
from crawl2cart.core.errors import UserError

many = numpy.random.default_rng(0).random(10**5)
for write in (lambda path: save_file({"a": torch.from_numpy(many)}, path), lambda path: torch.save(torch.from_numpy(many), path),
              lambda path: pyarrow.parquet.write_table(pyarrow.table({"a": many}), path), many.tofile,
              lambda path: path.write_bytes(many.tobytes())):
    try:
        with atomic_directory(Path(sys.argv[1]) / "out") as folder:
            write(folder / "a")
    except UserError as problem:
        print(problem)
    assert not list(Path(sys.argv[1]).iterdir())
"""


def test_whoever_fills_the_disk_it_is_said_in_words(tmp_path):
    """A real disk of 256 KiB, on which each library that writes our outs writes 800 kB."""
    (tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o size=256k none {tmp_path / 'disk'}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs a kernel that lets users mount a tmpfs in a namespace of their own")
    (tmp_path / "full.py").write_text(FULL)
    said = subprocess.run(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            f"{mount} && {sys.executable} {tmp_path}/full.py {tmp_path}/disk",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("The disk is full while writing") == 5


WRITING = """
import sys, time
from crawl2cart.core.files import atomic_file

with atomic_file(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    time.sleep(60)
"""


def test_what_a_dead_process_left_goes_and_what_another_still_writes_stays(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", WRITING, str(out)]
    dead, alive = (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)
    )
    left = [Path(process.stdout.readline().strip()) for process in (dead, alive)]
    try:
        dead.kill()
        dead.wait()
        assert all(part.read_text() == "half" for part in left) and left[0] != left[1]
        with atomic_file(out) as temporary:
            temporary.write_text("whole")
        assert out.read_text() == "whole" and [part.exists() for part in left] == [False, True]
    finally:
        alive.kill()


def test_an_error_that_is_no_full_disk_stays_itself(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "out"):
        raise ZeroDivisionError


def test_broken_inputs_are_named_with_file_and_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: not valid JSON"):
        read_jsonl(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="is missing"):
        read_json(tmp_path / "none.json")


def test_metrics_must_be_finite(tmp_path):
    with pytest.raises(UserError, match="nan"):
        write_metrics(tmp_path / "m.json", {"model": {"loss": float("nan")}})


def test_headlines_stand_in_a_file_of_their_own_and_what_was_not_measured_is_left_out(tmp_path):
    values = {
        "sft": {"tool_accuracy": 0.7123456, "n": 300},
        "dpo": {"tool_accuracy": 0.5, "loss": 1.0},
        "compared": {"n": 3},
    }
    write_metrics(tmp_path / "m.json", values, ("*.tool_accuracy", "dpo.loss", "compared.p"))
    assert read_json(tmp_path / "m.json")["sft"] == {"tool_accuracy": 0.71235, "n": 300}
    assert read_json(tmp_path / "headlines" / "m.json") == {
        "sft": {"tool_accuracy": 0.71235},
        "dpo": {"tool_accuracy": 0.5, "loss": 1.0},
    }


def test_what_dvc_shows_are_few_of_the_metrics_and_all_of_them_there():
    stages = {
        path.stem: read_json(path)
        for path in (ROOT / "metrics").glob("*.json")
        if path.stem != "tolerances"
    }
    shown = {path.stem: read_json(path) for path in (ROOT / "metrics" / "headlines").glob("*.json")}
    assert shown.keys() == stages.keys()
    assert sum(len(group) for groups in shown.values() for group in groups.values()) <= 60
    for stage, groups in shown.items():
        for name, group in groups.items():
            assert group.items() <= stages[stage][name].items()


def test_interval_of_a_share_is_wilsons():
    for hits, n in ((8, 10), (0, 7), (300, 300)):
        low, high = binomtest(hits, n).proportion_ci(method="wilson")
        assert share_interval(hits, n) == pytest.approx((low, high), abs=1e-6)
    assert share_interval(0, 0) == (0.0, 1.0)


def test_a_missing_or_damaged_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        check_model(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00 not a checkpoint")
    with pytest.raises(UserError, match="is damaged"):
        check_model(tmp_path)


@pytest.fixture
def small_project(tmp_path, monkeypatch) -> Path:
    """A project of one stage, `download`, that depends on one file."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  download:\n    cmd: x\n    deps: [data/in]\n    params: [download, seed]\n    outs: [data/out]\n"
    )
    (tmp_path / "data" / "in").mkdir(parents=True)
    (tmp_path / "data" / "in" / "page").write_text("page")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def test_the_key_depends_on_inputs_and_listed_parameters_alone(small_project):
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


def test_what_changes_during_a_run_is_found(small_project):
    stage = Stage("download")
    assert stage.fingerprint
    stage.check_unchanged()
    os.utime(small_project / "data" / "in" / "page")  # touched, not changed
    stage.check_unchanged()
    (small_project / "data" / "in" / "page").write_text("other")
    (small_project / "data" / "in" / "new").write_text("new")
    text = (small_project / "params.yaml").read_text()
    (small_project / "params.yaml").write_text(text.replace("seed: 7", "seed: 8"))
    with pytest.raises(
        UserError, match="seed, data/in/new, data/in/page changed while download was running"
    ):
        stage.check_unchanged()


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
    (small_project / "stages" / "download.py").write_text(STAGE)
    (small_project / "stages" / "common").symlink_to(ROOT / "stages" / "common")
    return small_project


def start(folder: Path, **options) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.download"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    while process.stdout.readline().strip() != "working":
        assert process.poll() is None, process.stderr.read()
    return process


def test_code_edited_while_packages_are_imported_stops_the_stage(waiting):
    """DVC would hash the new file and keep what the old one made. A comment changes nothing that runs."""
    file = waiting / "stages" / "download.py"
    slow = STAGE.replace(
        "import time\n", "import time; print('importing', flush=True); time.sleep(1)\n"
    ).replace("sleep(60)", "sleep(0)")
    for edit, status in (("# a comment\n", 0), ("LIMIT = 3\n", 1)):
        file.write_text(slow)
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.download"],
            cwd=waiting,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "importing\n"
        file.write_text(slow + edit)
        said = process.communicate()
        assert process.returncode == status, said
    assert "download.py changed while it was starting. Run it again." in said[1]
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
    second = subprocess.run(
        [sys.executable, "-m", "stages.download"], cwd=waiting, capture_output=True, text=True
    )
    first.kill()
    first.wait()
    assert second.returncode == 1
    assert "Another process is running download here" in second.stderr
    assert (waiting / "data" / "out").exists(), "what the first has made stays"


ELSEWHERE = (
    "import runpy, sys, crawl2cart.core.stage; sys.platform = 'darwin'; sys.argv = ['stages.download']; "
    "runpy.run_module('stages.download', run_name='__main__', alter_sys=True)"
)


@pytest.mark.parametrize(
    "words", [["-m", "stages.download"], ["-c", ELSEWHERE]], ids=["Linux", "elsewhere"]
)
def test_a_stage_ends_with_the_process_that_started_it(waiting, words):
    """DVC killed alone (a cancelled job) must not leave its trainer running; only Linux tells a child of its parent's death."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            f"p = subprocess.Popen([{sys.executable!r}, *{words!r}], stdout=subprocess.PIPE, text=True)\n"
            "while p.stdout.readline().strip() != 'working': pass\n"
            "print(p.pid, flush=True); time.sleep(60)",
        ],
        cwd=waiting,
        env=os.environ | {"DVC_STAGE": "download"},
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{child}").exists():
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists(), "the stage outlived its parent"


def test_help_is_the_contract(waiting):
    said = subprocess.run(
        [sys.executable, "-m", "stages.download", "--help"],
        cwd=waiting,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0
    assert said.stdout.strip() == "Docstring of a stage that waits."
