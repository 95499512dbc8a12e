"""Processes that a stage starts by itself share its work, fail together and end together."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_for

START = """
import os, signal, sys, time, torch
from crawl2cart.core.stage import die_with_parent, stop_on
from crawl2cart.lm.training.distributed import open_world
{before}
signal.signal(signal.SIGTERM, stop_on)
if "RANK" in os.environ: die_with_parent()
with open_world("cpu", {processes}, [__file__]) as world:
"""


def started(folder: Path, processes: int, work: str, before: str = "") -> subprocess.Popen:
    program = folder / "work.py"
    program.write_text(START.format(processes=processes, before=before) + work)
    return subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_are_disjoint_and_come_back_in_order(tmp_path, processes):
    process = started(
        tmp_path,
        processes,
        """
    own = [10 * item for item in world.shard(range(7))]
    print(world.all_gather(own), world.mean(torch.tensor(float(len(own)))).item(), len(own))""",
    )
    said, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    whole, mean, own = said.rsplit(" ", 2)
    assert (
        whole == "[0, 10, 20, 30, 40, 50, 60]"
        and float(mean) == pytest.approx(7 / processes)
        and int(own) == -(-7 // processes)
    )


def test_when_one_process_fails_the_run_fails_and_says_why(tmp_path):
    process = started(
        tmp_path,
        2,
        """
    if world.rank: raise SystemExit("there is no such file")
    world.barrier()""",
    )
    _, complaints = process.communicate(timeout=60)
    assert process.returncode and "there is no such file" in complaints
    assert "One of the processes of this run failed" in complaints


def test_when_the_first_process_fails_the_others_end(tmp_path):
    process = started(
        tmp_path,
        2,
        """
    numbers = world.all_gather([os.getpid()])
    if world.is_main:
        print(*numbers, flush=True)
        raise SystemExit("no space left")
    time.sleep(60)""",
    )
    said, complaints = process.communicate(timeout=60)
    assert process.returncode and "no space left" in complaints
    wait_for(lambda: not alive(int(said.split()[1])), 10)


def test_a_process_that_never_arrives_is_not_waited_for(tmp_path):
    began = time.monotonic()
    process = started(
        tmp_path,
        3,
        "    world.barrier()",
        before='if os.environ.get("RANK") == "2": sys.exit("it did not start")',
    )
    _, complaints = process.communicate(timeout=60)
    assert (
        process.returncode
        and "it did not start" in complaints
        and "One of the processes of this run failed" in complaints
    )
    assert time.monotonic() - began < 40


def test_a_process_that_is_killed_is_named_so(tmp_path):
    process = started(
        tmp_path,
        2,
        """
    world.barrier()
    if world.rank: os.kill(os.getpid(), signal.SIGKILL)
    world.barrier()""",
    )
    _, complaints = process.communicate(timeout=60)
    assert (
        process.returncode and "ended by SIGKILL" in complaints and "memory was short" in complaints
    )


def test_an_error_of_the_first_process_is_not_blamed_on_another(tmp_path):
    process = started(
        tmp_path,
        2,
        """
    if world.is_main: torch.ones(2) @ torch.ones(3)
    world.barrier()""",
    )
    _, complaints = process.communicate(timeout=60)
    assert process.returncode and "inconsistent tensor size" in complaints
    assert "One of the processes" not in complaints


@pytest.mark.parametrize("where", ["in torch", "at work", "at the start"])
def test_when_the_first_process_is_killed_the_others_end(tmp_path, where):
    """Also one that waits within torch for the first, where Python answers no signal, or that has not yet come so far as to look."""
    note = f"open({str(tmp_path / 'other')!r}, 'w').write(str(os.getpid()))"
    early = f"if 'RANK' in os.environ: {note}; time.sleep({2 if where == 'at the start' else 0})"
    process = started(
        tmp_path,
        2,
        f"""
    while {str(where == "at work")} or world.is_main: torch.ones(300, 300) @ torch.ones(300, 300)
    world.barrier()""",
        early,
    )
    wait_for(lambda: (tmp_path / "other").is_file() and (tmp_path / "other").read_text(), 30)
    if where != "at the start":
        time.sleep(3)  # it has met the first and gone on
    process.kill()
    process.communicate()
    number = int((tmp_path / "other").read_text())
    wait_for(lambda: not alive(number), 30)


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return (
        "zombie" not in Path(f"/proc/{number}/status").read_text()
        if Path(f"/proc/{number}").is_dir()
        else True
    )
