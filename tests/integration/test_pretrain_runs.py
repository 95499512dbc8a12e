"""Pretraining that is killed, resumed, and shared by several processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crawl2cart.core.stage import Stage
from crawl2cart.lm.formats.save import load_model
from stages import pretrain
from tests.encoded_project import (  # noqa: F401
    encoded,
    losses,
    outs,
    set_param,
    start_pretrain,
)

pytestmark = pytest.mark.slow
# With dropout, so that what is drawn after the kill counts as well. test_graph.py kills others.
KILLS = [
    pytest.param("lstm", [("lstm", "dropout", "0.2")], id="lstm with dropout"),
    pytest.param("mlp", [], id="mlp"),
    pytest.param(
        "gpt_oss", [("loop", "optimizer", "muon"), ("loop", "schedule", "wsd")], id="muon and wsd"
    ),
]


@pytest.mark.parametrize(("name", "changes"), KILLS)
def test_a_run_killed_and_repeated_gives_the_same_bytes(encoded, name, changes):  # noqa: F811
    for section, key, value in changes:
        set_param(encoded, section, key, value)
    pretrain.main(Stage(f"pretrain@{name}"), name)
    whole = outs(encoded, name)

    with start_pretrain(encoded, name) as killed:
        for line in killed.stdout:
            if "step 4 of 6" in line:  # between two validations, after the first checkpoint
                killed.send_signal(signal.SIGKILL)
                break
    assert killed.returncode == -signal.SIGKILL
    with start_pretrain(encoded, name) as repeated:
        output = repeated.stdout.read()
    assert repeated.returncode == 0
    assert "going on at step" in output
    assert outs(encoded, name) == whole


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def torchrun(project: Path, name: str, processes: int) -> str:
    command = [*TORCHRUN, f"--nproc_per_node={processes}", "-m", "stages.pretrain", name]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def weights(project: Path, name: str) -> dict[str, torch.Tensor]:
    return load_model(project / "models" / "pretrain" / name).state_dict()


@pytest.mark.parametrize(
    ("sharded", "processes"), [("false", 2), ("true", 4)], ids=["copies", "split"]
)
@pytest.mark.parametrize("name", ["gpt_oss", "lstm"])
def test_any_number_of_processes_gives_the_same_curve(encoded, name, sharded, processes):  # noqa: F811
    pretrain.main(Stage(f"pretrain@{name}"), name)
    curve, alone = losses(encoded, name), weights(encoded, name)
    set_param(encoded, "loop", "sharded", sharded)
    torchrun(encoded, name, processes)
    assert losses(encoded, name) == pytest.approx(curve, abs=1e-5)
    for key, tensor in weights(encoded, name).items():
        torch.testing.assert_close(tensor, alone[key], rtol=0, atol=1e-4)


DIE_AT_STEP_4 = """
from stages import pretrain
from crawl2cart.core.stage import Stage

save = pretrain.Checkpoint.save

def save_and_die(checkpoint, tensors, state):
    save(checkpoint, tensors, state)
    if state["step"] == 4:
        raise KeyboardInterrupt

pretrain.Checkpoint.save = save_and_die
pretrain.main(Stage("pretrain@gru"), "gru")
"""


@pytest.mark.parametrize(
    ("sharded", "first", "then"),
    [("false", 1, 2), ("true", 1, 2), ("true", 2, 1)],
    ids=["copies, 1 then 2", "split, 1 then 2", "split, 2 then 1"],
)
def test_a_run_goes_on_with_another_number_of_processes(
    encoded,  # noqa: F811
    tmp_path,
    sharded,
    first,
    then,
):
    set_param(encoded, "loop", "sharded", sharded)
    pretrain.main(Stage("pretrain@gru"), "gru")
    curve = losses(encoded, "gru")
    program = tmp_path / "die.py"
    program.write_text(DIE_AT_STEP_4)
    command = [*TORCHRUN, f"--nproc_per_node={first}", program]
    environment = os.environ | {"PYTHONPATH": str(encoded)}
    died = subprocess.run(command, cwd=encoded, env=environment, capture_output=True, text=True)
    assert died.returncode and "KeyboardInterrupt" in died.stderr, died.stderr
    assert "gru: going on at step 4" in torchrun(encoded, "gru", then)
    assert losses(encoded, "gru") == pytest.approx(curve, abs=1e-5)
