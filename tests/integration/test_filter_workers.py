"""The filter in several processes: killed and resumed, stopped, failing, on Ray, on real crawls."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.core.params import read_params
from crawl2cart.core.stage import Stage
from crawl2cart.crawl.executor import Task, run_tasks
from crawl2cart.crawl.explain import file_table
from stages import download
from tests.conftest import ROOT, wait_for
from tests.unit.crawl.samples import members, page
from tests.unit.crawl.workplace import (  # noqa: F401
    OUTS,
    digest,
    make_workplace,
    run_both,
    run_filter,
    set_params,
    take_files,
    workplace,
)

pytestmark = pytest.mark.slow
LIMITS = read_params(ROOT / "params.yaml").filter
SHARDS = Path(".cache/filter")


@pytest.fixture
def crawl(workplace) -> Path:  # noqa: F811
    """A workplace with ten files of four pages, downloaded."""
    files = {
        f"part{number}": members([page(number * 4 + turn) for turn in range(4)])
        for number in range(10)
    }
    take_files(workplace, **files)
    download.main(Stage("download"))
    return workplace


def start_filter() -> subprocess.Popen:
    command = [sys.executable, "-m", "stages.filter"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def shard_times() -> dict[Path, int]:
    """The finished shards and when they were written."""
    return {file: file.stat().st_mtime_ns for file in SHARDS.glob("*.parquet")}


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a stage."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "daft.execution.udf_worker" in child.cmdline()]


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_the_stage(crawl, end):
    set_params(crawl, workers="2")
    process = start_filter()
    workers = []
    while process.poll() is None and not (len(workers) == 2 and shard_times()):
        workers = workers_of(process.pid)  # the second may start after the first file is done
        time.sleep(0.02)
    assert len(workers) == 2
    process.send_signal(end)
    assert process.wait(20) == (-signal.SIGKILL if end == signal.SIGKILL else 128 + signal.SIGTERM)
    wait_for(lambda: not any(map(is_alive, workers)), 20)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_run_repeats_nothing_and_gives_the_same_bytes(crawl, workers):
    set_params(crawl, workers=workers)
    run_filter()
    whole, shards = digest(crawl), set(shard_times())
    assert len(shards) == 10
    for out in (*OUTS, ".cache"):
        shutil.rmtree(out) if Path(out).is_dir() else Path(out).unlink()
    for _ in range(2):
        done = len(shard_times())
        process = start_filter()
        while process.poll() is None and len(shard_times()) <= done:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = shard_times()
    assert before
    run_filter()
    assert digest(crawl) == whole and set(shard_times()) == shards
    assert before.items() <= shard_times().items(), "a finished shard was made again"


def test_a_killed_worker_costs_its_file_only(crawl):
    set_params(crawl, workers="2")
    run_filter()
    whole = digest(crawl)
    shutil.rmtree(".cache")
    process = start_filter()
    while process.poll() is None and not (before := shard_times()):
        time.sleep(0.005)
    workers_of(process.pid)[0].kill()
    assert process.wait(60) == 0
    assert digest(crawl) == whole
    assert before.items() <= shard_times().items(), "a finished shard was made again"


# ---- tasks that fail ----


def make_tasks(folder: Path, *names: str) -> list[Task]:
    for name in names:
        (folder / name).write_text(name)
    return [Task(str(folder / name), str(folder / f"{name}.done")) for name in names]


def kill_worker_of_deadly(source: Path, target: Path) -> None:
    """A task that one kind of file ends as a fault in C would."""
    if source.name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    target.write_text(source.read_text())


def fail_for_bad(source: Path, target: Path) -> None:
    with (source.parent / "starts").open("a") as file:
        file.write(f"{source.name}\n")
    if source.name == "1-bad":
        raise UserError("this one is bad")
    time.sleep(0.3)
    target.write_text("done")


def test_a_file_that_kills_its_workers_is_left_out_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # workers import from where they start
    tasks = make_tasks(tmp_path, "good", "deadly")
    with pytest.raises(UserError, match="1 files .* deadly"):
        run_tasks(kill_worker_of_deadly, tasks, LIMITS, "dying", tmp_path / "errors.log")
    assert (tmp_path / "good.done").exists()


def test_no_file_is_worked_on_twice_at_a_time_when_another_fails(tmp_path, monkeypatch):
    """The failure of the first file must not restart those that still run or wait."""
    monkeypatch.chdir(ROOT)
    tasks = make_tasks(tmp_path, "1-bad", "2-slow", "3-slow", "4-slow", "5-slow")
    with pytest.raises(UserError, match="1 files .* 1-bad: this one is bad"):
        run_tasks(fail_for_bad, tasks, LIMITS, "failing", tmp_path / "errors.log")
    starts = Counter((tmp_path / "starts").read_text().split())
    names = [Path(task.source).name for task in tasks]
    assert starts == {name: 2 if name == "1-bad" else 1 for name in names}


# ---- engines ----


def test_ray_gives_the_same_bytes(crawl, tmp_path, monkeypatch):
    """In a process of its own, which chooses its engine once, on a cluster that it starts."""
    run_filter()
    other = make_workplace(tmp_path / "on ray", [])
    set_params(other, engine="ray", workers="2", source="files", paths=f'"{crawl}/*.warc.gz"')
    monkeypatch.chdir(other)
    download.main(Stage("download"))
    command = [sys.executable, "-m", "stages.filter"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if process.returncode and "ray.init" in process.stderr:
        pytest.skip(f"Ray does not start on this machine: {process.stderr[-300:]}")
    assert process.returncode == 0, process.stderr
    assert digest(other) == digest(crawl)


@pytest.mark.parametrize(
    ("module", "reports"), [("crawl2cart.crawl.executor", False), ("daft", True)]
)
def test_nothing_is_reported_to_the_makers_of_the_engine(module, reports):
    """Daft reports each import and start, unless it is imported through our module."""
    code = (
        "import threading, urllib.request; requests = []; "
        "urllib.request.urlopen = lambda *args, **options: requests.append(args); "
        f"import {module}; import daft; daft.from_pydict({{'a': [1]}}).collect(); "
        "[thread.join(5) for thread in threading.enumerate() if thread.daemon]; "
        "print(len(requests))"
    )
    prefixes = ("DAFT_", "DO_NOT", "SCARF_")
    environment = {name: os.environ[name] for name in os.environ if not name.startswith(prefixes)}
    command = [sys.executable, "-c", code]
    output = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert (int(output) > 0) == reports


# ---- real crawls ----


def test_real_crawls_go_through(shared_data, workplace):  # noqa: F811
    set_params(workplace, source="files", paths=f'"{shared_data}/web/*/*"')
    metrics = run_both()
    assert metrics["records"]["read"] == 2140 and metrics["records"]["dropped"] == 0
    assert metrics["documents"]["in"] == 812
    # Some 250 pages are English; FineWeb's rules alone remove 50.
    assert metrics["documents"]["kept"] > 90
    assert metrics["removed"]["language"] > 100
    _, *lines = file_table(workplace)
    cells = [line.split(maxsplit=5) for line in lines]
    names = {row[4].partition("-")[2] for row in cells}
    assert names == {file.name for file in (shared_data / "web").glob("*/*")}
    sums = [sum(int(row[column].replace(",", "")) for row in cells) for column in range(4)]
    records = [metrics["records"][name] for name in ("read", "recovered", "dropped")]
    assert sums == [*records, metrics["documents"]["in"]]
