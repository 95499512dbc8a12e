"""Processes that a stage starts by itself share its work, fail together and end together."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

START = """
import os, time, torch
from stages.nn.parallel import open_world
with open_world("cpu", {processes}, [__file__]) as world:
"""


def started(folder: Path, processes: int, work: str) -> subprocess.Popen:
    program = folder / "work.py"
    program.write_text(START.format(processes=processes) + work)
    return subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_are_disjoint_and_come_back_in_order(tmp_path, processes):
    process = started(tmp_path, processes, """
    own = [10 * item for item in world.share(range(7))]
    print(world.together(own), world.mean(torch.tensor(float(len(own)))).item(), len(own))""")
    said, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    whole, mean, own = said.rsplit(" ", 2)
    assert whole == "[0, 10, 20, 30, 40, 50, 60]" and float(mean) == pytest.approx(7 / processes) and int(own) == -(-7 // processes)


def test_when_one_process_fails_the_run_fails_and_says_why(tmp_path):
    process = started(tmp_path, 2, """
    if world.rank: raise SystemExit("there is no such file")
    world.meet()""")
    _, complaints = process.communicate(timeout=60)
    assert process.returncode and "there is no such file" in complaints
    assert "One of the processes of this run failed" in complaints


def test_when_the_first_process_fails_the_others_end(tmp_path):
    process = started(tmp_path, 2, """
    numbers = world.together([os.getpid()])
    if world.first:
        print(*numbers, flush=True)
        raise SystemExit("no space left")
    time.sleep(60)""")
    said, complaints = process.communicate(timeout=60)
    assert process.returncode and "no space left" in complaints
    ends = time.monotonic() + 10
    while alive(int(said.split()[1])):
        assert time.monotonic() < ends
        time.sleep(0.1)


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{number}/status").read_text() if Path(f"/proc/{number}").is_dir() else True
