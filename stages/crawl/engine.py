"""One task a file, each leaving one file: on the processors of this machine or on a Ray cluster, by one parameter.

Daft hands the tasks to its worker processes. A task's file is there or it is not, so a file that is there is never made
again, and a worker that dies costs the file it was at. What a task does must be a function that a worker can import,
and on several machines they must see the same folders.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

# Both report to their makers unless told otherwise, Daft as soon as it is imported. Workers inherit this.
os.environ |= {"DAFT_ANALYTICS_ENABLED": "0", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0",
               "DAFT_PROGRESS_BAR": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
import daft  # noqa: E402

from stages.common.params import Filter  # noqa: E402
from stages.common.problem import Problem  # noqa: E402
from stages.common.progress import progress  # noqa: E402

Item = TypeVar("Item")
ROOT = Path(__file__).parents[2]
SECONDS_BETWEEN_LOOKS_AT_THE_PARENT = 0.5
NAMED = 3


class Task(NamedTuple):
    """source: what is read. target: the file that is there when the task is done."""

    source: str
    target: str


class Worker:
    """What runs in a worker process: `work(source, target)` for one task after the other.

    parent: the process that must be there for the worker to go on; None where it is this one, and on Ray, which ends
    its workers itself.
    """

    def __init__(self, work: Callable[[Path, Path], None], parent: int | None):
        self.work = work
        if parent is not None:
            threading.Thread(target=end_with, args=(parent,), daemon=True).start()

    @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
    def run(self, sources: daft.Series, targets: daft.Series) -> list[str]:
        """For each task "" or, if it failed in a way that the user can mend, the Problem's text."""
        said = []
        for source, target in zip(sources.to_pylist(), targets.to_pylist(), strict=True):
            try:
                self.work(Path(source), Path(target))
                said.append("")
            except Problem as problem:
                said.append(str(problem))
        return said


def end_with(parent: int) -> None:
    """Ends this process when its parent has. Linux's own signal for it would come when the thread that started the
    worker ends, and Daft starts workers in threads that come and go."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS_AT_THE_PARENT)
    os._exit(1)


def start(limits: Filter) -> None:
    """Chooses where Daft computes. A process can do so once; a second choice of another engine is a Problem."""
    runner = daft.runners.get_or_infer_runner_type()
    if limits.engine == "native":
        if runner != "native":
            raise Problem("This process has started Ray already and can not go back to the native engine.")
        return
    import ray

    if not ray.is_initialized():
        # Workers of other machines find the code and the files under the same path as here.
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        quiet = {name: os.environ[name] for name in ("DAFT_ANALYTICS_ENABLED", "DO_NOT_TRACK", "DAFT_PROGRESS_BAR")}
        try:
            ray.init(address=limits.ray_address, log_to_driver=False, include_dashboard=False if limits.ray_address == "local" else None,
                     num_cpus=limits.workers if limits.ray_address == "local" else None,
                     runtime_env={"env_vars": quiet | {"PYTHONPATH": paths}})
        except ConnectionError as error:
            raise Problem(f"No Ray cluster answers at filter.ray_address {limits.ray_address!r}. Start one there "
                          "(`ray start --head`), or set `local` or `engine: native`.") from error
    daft.set_runner_ray(noop_if_initialized=True)


def run_tasks(work: Callable[[Path, Path], None], tasks: list[Task], limits: Filter, name: str) -> None:
    """Runs every task whose target is not there yet, `limits.workers` at a time.

    A worker that dies is replaced as long as that brings more files; a file that fails for a reason the user can mend
    is a Problem, raised when the others are done.
    """
    start(limits)
    left = [task for task in tasks if not Path(task.target).exists()]
    done = len(tasks) - len(left)
    while left:
        faults = []
        try:
            for row in progress(stream(query(work, left, limits).iter_rows), name, "file", len(tasks), done):
                faults += filter(None, [row["said"]])
        except (RuntimeError, OSError, daft.exceptions.DaftCoreException) as error:
            died = error
        else:
            died = None
        if faults:
            raise Problem(faults[0])
        before, left = len(left), [task for task in left if not Path(task.target).exists()]
        done = len(tasks) - len(left)
        if left and len(left) == before:
            named = ", ".join(Path(task.source).name for task in left[:NAMED])
            raise Problem(f"A worker died twice before one more file was done; {len(left)} are left, the first of them "
                          f"{named}. Run again: what is done is kept. If it dies again, memory may be short (set "
                          f"filter.workers lower) or the file hostile. It said: {str(died)[-300:]}") from died


def query(work: Callable[[Path, Path], None], tasks: list[Task], limits: Filter) -> daft.DataFrame:
    """The tasks as a query, a row for each that is done. One at a time needs no process of its own, which takes more than
    a second to start."""
    workers = min(limits.workers, len(tasks))
    apart_from_here = workers > 1 or limits.engine == "ray"
    parent = os.getpid() if apart_from_here and limits.engine == "native" else None
    worker = daft.cls(Worker, use_process=apart_from_here, max_concurrency=workers)(work, parent)
    listed = daft.from_pydict({"source": [task.source for task in tasks], "target": [task.target for task in tasks]})
    if limits.engine == "ray":
        listed = listed.into_partitions(len(tasks))
    return listed.into_batches(1).select(worker.run(listed["source"], listed["target"]).alias("said"))


def stream(items: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    """The items as they come, computed in a thread: Python handles signals in its main thread only between its own
    steps, and a query is one step that may take hours."""
    found: queue.SimpleQueue = queue.SimpleQueue()

    def compute() -> None:
        try:
            for item in items():
                found.put((item, None))
            found.put(None)
        except BaseException as error:
            found.put((None, error))

    threading.Thread(target=compute, daemon=True).start()
    while (entry := found.get()) is not None:
        item, error = entry
        if error is not None:
            raise error
        yield item


def apart(compute: Callable[[], Item]) -> Item:
    """What `compute` returns, see `stream`."""
    return next(stream(lambda: [compute()]))
