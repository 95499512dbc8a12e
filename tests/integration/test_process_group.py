"""Processes that a stage starts by itself share its work, fail together and end together."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, wait_for

pytestmark = pytest.mark.slow
START = """
import os, signal, sys, time, torch
from crawl2cart.core.stage import die_with_parent, stop_on
from crawl2cart.lm.training.distributed import open_process_group
{before}
signal.signal(signal.SIGTERM, stop_on)
if "RANK" in os.environ: die_with_parent()
with open_process_group("cpu", {processes}, [__file__]) as group:
"""


def start(folder: Path, processes: int, work: str, before: str = "") -> subprocess.Popen:
    program = folder / "work.py"
    program.write_text(START.format(processes=processes, before=before) + work)
    return subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def fail(folder: Path, processes: int, work: str, before: str = "") -> str:
    """Run work that must fail; return what it wrote to stderr."""
    process = start(folder, processes, work, before)
    _, errors = process.communicate(timeout=60)
    assert process.returncode
    return errors


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_are_disjoint_and_come_back_in_order(tmp_path, processes):
    work = """
    own = [10 * item for item in group.shard(range(7))]
    print(group.all_gather(own), group.mean(torch.tensor(float(len(own)))).item(), len(own))"""
    process = start(tmp_path, processes, work)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    gathered, mean, own = output.rsplit(" ", 2)
    assert gathered == "[0, 10, 20, 30, 40, 50, 60]"
    assert float(mean) == pytest.approx(7 / processes) and int(own) == -(-7 // processes)


def test_when_one_process_fails_the_run_fails_and_says_why(tmp_path):
    work = """
    if group.rank: raise SystemExit("there is no such file")
    group.barrier()"""
    errors = fail(tmp_path, 2, work)
    assert "there is no such file" in errors and "processes of this run failed" in errors


def test_when_the_first_process_fails_the_others_end(tmp_path):
    work = """
    numbers = group.all_gather([os.getpid()])
    if group.is_main:
        print(*numbers, flush=True)
        raise SystemExit("no space left")
    time.sleep(60)"""
    process = start(tmp_path, 2, work)
    output, errors = process.communicate(timeout=60)
    assert process.returncode and "no space left" in errors
    wait_for(lambda: not is_alive(int(output.split()[1])), 10)


def test_a_process_that_never_arrives_is_not_waited_for(tmp_path):
    before = 'if os.environ.get("RANK") == "2": sys.exit("it did not start")'
    errors = fail(tmp_path, 3, "    group.barrier()", before)
    assert "it did not start" in errors and "processes of this run failed" in errors


def test_a_process_that_is_killed_is_named_so(tmp_path):
    work = """
    group.barrier()
    if group.rank: os.kill(os.getpid(), signal.SIGKILL)
    group.barrier()"""
    errors = fail(tmp_path, 2, work)
    assert "SIGKILL" in errors and "memory was short" in errors


def test_an_error_of_the_first_process_is_not_blamed_on_another(tmp_path):
    work = """
    if group.is_main: torch.ones(2) @ torch.ones(3)
    group.barrier()"""
    errors = fail(tmp_path, 2, work)
    assert "inconsistent tensor size" in errors and "processes of this run" not in errors


@pytest.mark.parametrize("where", ["in torch", "at work", "at the start"])
def test_when_the_first_process_is_killed_the_others_end(tmp_path, where):
    """One that waits in torch, where Python answers no signal, and one that has just begun, too."""
    note = tmp_path / "other"
    pause = 2 if where == "at the start" else 0
    before = (
        f"if 'RANK' in os.environ: open({str(note)!r}, 'w').write(str(os.getpid())); "
        f"time.sleep({pause})"
    )
    work = f"""
    while {where == "at work"} or group.is_main: torch.ones(300, 300) @ torch.ones(300, 300)
    group.barrier()"""
    process = start(tmp_path, 2, work, before)
    wait_for(lambda: note.is_file() and note.read_text(), 30)
    if where != "at the start":
        time.sleep(3)  # it has met the first and gone on
    process.kill()
    process.communicate()
    wait_for(lambda: not is_alive(int(note.read_text())), 30)


def is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{number}/status")
    return not status.is_file() or "zombie" not in status.read_text()


MUON_STEPS = """
import sys
import torch
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from crawl2cart.lm.training.optim import Muon
from crawl2cart.lm.training.distributed import ALONE, full_tensor, open_process_group

SHAPES = [(12, 20), (20, 12), (3, 12, 20), (3, 20, 12), (16, 16)]  # tall ones are transposed

def steps(group, hold):
    random = torch.Generator().manual_seed(15)
    draw = lambda shape: hold(torch.randn(shape, generator=random))
    parameters = [torch.nn.Parameter(draw(shape)) for shape in SHAPES]
    muon = Muon(parameters, 0.1, group=group)
    muon.param_groups[0]["lr"] = 0.02
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = draw(parameter.shape)
        muon.step()
    return {str(i): full_tensor(p.detach()).contiguous() for i, p in enumerate(parameters)}

with open_process_group("cpu", 2, sys.argv) as group:
    mesh = init_device_mesh("cpu", (2,))
    ways = {"alone": (ALONE, lambda x: x), "copies": (group, lambda x: x),
            "split": (group, lambda x: distribute_tensor(x, mesh, [Shard(0)]))}
    for name, how in ways.items():
        save_file(steps(*how), f"{sys.argv[1]}/{name}_{group.rank}.safetensors")
    group.barrier()   # behind the block the first ends the other
"""


def test_muon_takes_the_same_steps_on_two_processes_as_on_one(tmp_path):
    """To the bit, where the processes hold copies as where each holds a part."""
    program = tmp_path / "steps.py"
    program.write_text(MUON_STEPS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, program, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    alone = load_file(tmp_path / "alone_0.safetensors")
    for name in ("copies_0", "copies_1", "split_0", "split_1"):
        tensors = load_file(tmp_path / f"{name}.safetensors")
        assert tensors.keys() == alone.keys()
        assert all(torch.equal(tensors[key], alone[key]) for key in alone), name
