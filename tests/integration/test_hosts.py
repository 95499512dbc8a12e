"""Two hosts, as processes of this machine, one of which is lost in the middle of the work."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from crawl2cart.core.stage import Stage
from stages import download
from tests.conftest import ROOT, wait_for
from tests.encoded_project import encoded, losses, outs  # noqa: F401
from tests.unit.crawl.samples import members, page
from tests.unit.crawl.workplace import (  # noqa: F401
    digest,
    run_both,
    set_params,
    take_files,
    workplace,
)

pytestmark = pytest.mark.slow
FILES, PAGES = 6, 150
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# A node whose agents have given ports need not wait for them to choose some, for which it has 15 s.
PORTS = (
    "metrics_agent_port",
    "runtime_env_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def processes_of(host) -> list[psutil.Process]:
    """All that a host of the cluster runs, but for the raylet that started it."""
    return psutil.Process(host.all_processes["raylet"][0].process.pid).children(recursive=True)


def shards_at(host, kept: Path) -> set[str]:
    """The unfinished files below `kept` that processes of a host of the cluster have open."""
    found = set()
    for process in processes_of(host):
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {file.path for file in process.open_files() if Path(file.path).parent == kept}
    return found


def lose(cluster, host) -> None:
    """Ends all processes of a host, as when its power goes."""
    processes = processes_of(host)
    cluster.remove_node(host, allow_graceful=False)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=20)


def test_a_host_of_a_ray_cluster_that_is_lost_costs_the_shard_it_was_at(workplace, monkeypatch):  # noqa: F811
    """Finished work is not repeated when a host dies, and the corpus is that of one process."""
    from ray.cluster_utils import Cluster

    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    take_files(
        workplace,
        **{
            f"crawl{number}": members([page(number * PAGES + of) for of in range(PAGES)])
            for number in range(FILES)
        },
    )
    run_both()
    whole, kept = digest(workplace), workplace / ".cache" / "filter"
    for shard in kept.glob("*.parquet"):
        shard.unlink()

    def node(**more: bool) -> dict:
        return {"num_cpus": 1, **{name: free_port() for name in PORTS}, **more}

    try:
        cluster = Cluster(initialize_head=True, head_node_args=node(include_dashboard=False))
        other = cluster.add_node(**node())
    except Exception as error:  # what Ray raises has no name of its own
        if "timed out during startup" not in str(error):
            raise
        pytest.skip(f"Ray does not start on this machine, or not in the 15 s that it has: {error}")
    try:
        set_params(workplace, engine="ray", workers="2", ray_address=cluster.address)
        download.main(Stage("download"))
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.filter"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        wait_for(
            lambda: (
                process.poll() is not None
                or len(list(kept.glob("*.parquet"))) >= 2
                and shards_at(other, kept)
            ),
            300,
        )
        assert process.poll() is None, process.stdout.read()
        lose(cluster, other)
        finished = {shard.name: shard.stat().st_mtime_ns for shard in kept.glob("*.parquet")}
        assert 2 <= len(finished) < FILES, "the host was lost too late to prove anything"
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        assert {name: (kept / name).stat().st_mtime_ns for name in finished} == finished, (
            "a finished shard was made again"
        )
        assert digest(workplace) == whole
    finally:
        cluster.shutdown()


def host(project: Path, port: int, hosts: str) -> subprocess.Popen:
    """One host's agent, with the words of scale/README.md."""
    command = [
        "torch.distributed.run",
        f"--nnodes={hosts}",
        "--nproc_per_node=1",
        "--rdzv_backend=c10d",
        "--rdzv_id=test",
        f"--rdzv_endpoint=127.0.0.1:{port}",
        "--max_restarts=3",
        "-m",
        "stages.pretrain",
        "gru",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )


def listens(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def hosts_of(project: Path, hosts: str) -> Iterator[list[subprocess.Popen]]:
    """Yield two agents of one rendezvous after their first checkpoint; kill them at the end."""
    port, checkpoints = free_port(), project / ".ckpt" / "pretrain@gru"
    agents = [host(project, port, hosts)]
    try:
        wait_for(
            lambda: listens(port) or agents[0].poll() is not None, 120
        )  # else the second might be the one whom all ask
        agents.append(host(project, port, hosts))
        wait_for(
            lambda: (
                list(checkpoints.glob("*/last/state.json"))
                or any(agent.poll() is not None for agent in agents)
            ),
            120,
        )
        assert all(agent.poll() is None for agent in agents), agents[0].communicate()[0][-3000:]
        yield agents
    finally:
        for agent in agents:
            if agent.poll() is None:
                lose_all_of(agent)


def lose_all_of(agent: subprocess.Popen) -> None:
    """Ends an agent and all that it started, as when its machine's power goes."""
    for process in [*psutil.Process(agent.pid).children(recursive=True), agent]:
        process.kill()


def trainer_of(agent: subprocess.Popen) -> psutil.Process | None:
    """The training process that an agent started."""
    return next(iter(psutil.Process(agent.pid).children()), None)


def test_pretraining_goes_on_by_itself_when_a_process_of_another_host_is_killed(encoded):  # noqa: F811
    """Kill the trainer of one of two agents after the first checkpoint."""
    with hosts_of(encoded, "2") as agents:
        os.kill(trainer_of(agents[1]).pid, signal.SIGKILL)
        output = [agent.communicate(timeout=200)[0] for agent in agents]
        assert [agent.returncode for agent in agents] == [0, 0], (
            output[0][-3000:] + output[1][-3000:]
        )
    assert "gru: going on at step" in "".join(output)
    equals_one_process(encoded)


def test_pretraining_goes_on_by_itself_with_the_machines_that_are_left(encoded):  # noqa: F811
    """Kill everything on the second host, which is not the one that both connect to."""
    with hosts_of(encoded, "1:2") as agents:
        lose_all_of(agents[1])
        output = agents[0].communicate(timeout=300)[0]
        assert agents[0].returncode == 0, output[-3000:]
    assert "gru: going on at step" in output
    equals_one_process(encoded)


def test_slurm_s_script_starts_an_agent_on_each_machine_and_records_the_result(tmp_path):
    """There is no Slurm here: stand-ins for its commands note what they are told."""
    for name, does in (
        ("scontrol", "printf 'node7\\nnode8\\n'"),
        ("srun", 'echo "srun $*" >> output'),
        ("dvc", 'echo "dvc $*" >> output'),
    ):
        command = tmp_path / (".venv/bin" if name == "dvc" else "bin") / name
        command.parent.mkdir(parents=True, exist_ok=True)
        command.write_text(f"#!/bin/sh\n{does}\n")
        command.chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_ID": "31",
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }
    subprocess.run(
        ["bash", str(ROOT / "scale/slurm.sh"), "gpt_oss"], env=os.environ | slurm, check=True
    )
    started, recorded = (tmp_path / "output").read_text().splitlines()
    assert started == (
        "srun .venv/bin/python -m torch.distributed.run --nnodes=2 --nproc_per_node=8 "
        "--rdzv_backend=c10d --rdzv_id=31 "
        "--rdzv_endpoint=node7:29500 --max_restarts=3 -m stages.pretrain gpt_oss"
    )
    assert recorded == "dvc commit -f pretrain@gpt_oss"


def equals_one_process(encoded: Path) -> None:  # noqa: F811
    together = losses(encoded, "gru")
    alone = subprocess.run(
        [sys.executable, "-m", "stages.pretrain", "gru"],
        cwd=encoded,
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0, alone.stderr
    assert together == pytest.approx(losses(encoded, "gru"), abs=1e-5)
    assert json.loads(outs(encoded, "gru")["gru.json"])["gru"]["tokens"] == 6 * 256
