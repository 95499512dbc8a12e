"""Files are whole or absent, whatever happens to the process or the disk."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, atomic_file, read_json, read_jsonl
from crawl2cart.core.model_folder import check_model
from tests.conftest import ROOT


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
def test_a_full_disk_is_reported_with_the_path(tmp_path):
    with pytest.raises(UserError, match=r"disk is full .*out\.txt"):
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
for write in (
    lambda path: save_file({"a": torch.from_numpy(many)}, path),
    lambda path: torch.save(torch.from_numpy(many), path),
    lambda path: pyarrow.parquet.write_table(pyarrow.table({"a": many}), path),
    many.tofile,
    lambda path: path.write_bytes(many.tobytes()),
):
    try:
        with atomic_directory(Path(sys.argv[1]) / "out") as folder:
            write(folder / "a")
    except UserError as error:
        print(error)
    assert not list(Path(sys.argv[1]).iterdir())
"""


def test_a_full_disk_is_recognized_whichever_library_writes(tmp_path):
    """A real disk of 256 KiB, on which each library that writes our outs writes 800 kB."""
    (tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o size=256k none {tmp_path / 'disk'}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs a kernel that lets users mount a tmpfs in a namespace of their own")
    (tmp_path / "full.py").write_text(FULL)
    script = f"{mount} && {sys.executable} {tmp_path}/full.py {tmp_path}/disk"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = ["unshare", "-rm", "sh", "-c", script]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("disk is full") == 5


WRITING = """
import sys, time
from crawl2cart.core.files import atomic_file

with atomic_file(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    time.sleep(60)
"""


def test_files_of_a_dead_process_are_removed_and_those_of_a_living_one_stay(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", WRITING, str(out)]
    dead, alive = (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)
    )
    partial = [Path(process.stdout.readline().strip()) for process in (dead, alive)]
    try:
        dead.kill()
        dead.wait()
        assert all(path.read_text() == "half" for path in partial) and partial[0] != partial[1]
        with atomic_file(out) as temporary:
            temporary.write_text("whole")
        assert out.read_text() == "whole"
        assert [path.exists() for path in partial] == [False, True]
    finally:
        alive.kill()
        alive.wait()


def test_broken_inputs_are_named_with_file_and_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2"):
        read_jsonl(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"a": "\u2028"}\n')  # a line separator inside a string
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"a": "\u2028"}]
    with pytest.raises(UserError, match=r"none\.json is missing"):
        read_json(tmp_path / "none.json")


def test_a_missing_or_damaged_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        check_model(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00 not a checkpoint")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        check_model(tmp_path)
