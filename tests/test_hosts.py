"""Two hosts, as processes of this machine, one of whose trainers is lost in the middle of the work."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.test_pretrain import encoded, losses, outs  # noqa: F401

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(what, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def host(project: Path, port: int, hosts: str) -> subprocess.Popen:
    """One host's agent, with the words of scale/README.md."""
    command = ["torch.distributed.run", f"--nnodes={hosts}", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=test",
               f"--rdzv_endpoint=127.0.0.1:{port}", "--max_restarts=3", "-m", "stages.pretrain", "gru"]
    return subprocess.Popen([sys.executable, "-m", *command], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def trainer_of(agent: subprocess.Popen) -> psutil.Process | None:
    """The training process that an agent started."""
    return next(iter(psutil.Process(agent.pid).children()), None)


def test_pretraining_goes_on_by_itself_when_a_process_of_another_host_is_killed(encoded):  # noqa: F811
    """Two agents that meet at a rendezvous; the trainer of one is killed behind the first checkpoint."""
    port, checkpoints = free_port(), encoded / ".ckpt" / "pretrain@gru"
    agents = [host(encoded, port, "2"), host(encoded, port, "2")]
    try:
        wait_for(lambda: list(checkpoints.glob("*/last/state.json")) or any(agent.poll() is not None for agent in agents))
        assert all(agent.poll() is None for agent in agents), agents[0].communicate()[0][-3000:]
        os.kill(trainer_of(agents[1]).pid, signal.SIGKILL)
        said = [agent.communicate(timeout=200)[0] for agent in agents]
        assert [agent.returncode for agent in agents] == [0, 0], said[0][-3000:] + said[1][-3000:]
    finally:
        for agent in agents:
            agent.kill()
    assert "gru: going on at step" in "".join(said)
    together = losses(encoded, "gru")
    alone = subprocess.run([sys.executable, "-m", "stages.pretrain", "gru"], cwd=encoded, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    assert together == pytest.approx(losses(encoded, "gru"), abs=1e-5)
    assert json.loads(outs(encoded, "gru")["gru.json"])["gru"]["tokens"] == 6 * 256
