"""One task a file, each leaving one file: on the processors of this machine or on a Ray cluster, by one parameter.

Daft hands the tasks to its worker processes. A task's file is there or it is not, so a file that is there is never made
again, and a worker that dies costs the file it was at. What a task does must be a function that a worker can import,
and on several machines they must see the same folders.
"""

import atexit
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from traceback import format_exception
from typing import NamedTuple, TypeVar

# Both report to their makers unless told otherwise, Daft as soon as it is imported. Workers inherit this.
os.environ |= {
    "DAFT_ANALYTICS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DAFT_PROGRESS_BAR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
import daft  # noqa: E402

from crawl2cart.core.errors import UserError  # noqa: E402
from crawl2cart.core.files import atomic_file  # noqa: E402
from crawl2cart.core.progress import progress  # noqa: E402
from crawl2cart.crawl.params import Filter  # noqa: E402

Item = TypeVar("Item")
ROOT = Path(__file__).parents[2]
SECONDS_BETWEEN_LOOKS_AT_THE_PARENT = 0.5
LONGEST_FAULT = 300  # characters of an error in a message; all of it goes to the log


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
                if not Path(
                    target
                ).exists():  # Ray does a task again of which only the answer went with a machine
                    self.work(Path(source), Path(target))
                said.append("")
            except UserError as problem:
                said.append(str(problem))
        return said


def end_with(parent: int) -> None:
    """Ends this process when its parent has. Linux's own signal for it would come when the thread that started the
    worker ends, and Daft starts workers in threads that come and go."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS_AT_THE_PARENT)
    os._exit(1)


def start(limits: Filter) -> None:
    """Chooses where Daft computes. A process can do so once; a second choice of another engine is a UserError."""
    runner = daft.runners.get_or_infer_runner_type()
    if limits.engine == "native":
        if runner != "native":
            raise UserError(
                "This process has started Ray already and can not go back to the native engine."
            )
        return
    import ray

    if not ray.is_initialized():
        # Workers of other machines find the code and the files under the same path as here.
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        quiet = {
            name: os.environ[name]
            for name in ("DAFT_ANALYTICS_ENABLED", "DO_NOT_TRACK", "DAFT_PROGRESS_BAR")
        }
        try:
            ray.init(
                address=limits.ray_address,
                log_to_driver=False,
                include_dashboard=False if limits.ray_address == "local" else None,
                num_cpus=limits.workers if limits.ray_address == "local" else None,
                runtime_env={"env_vars": quiet | {"PYTHONPATH": paths}},
            )
        except ConnectionError as error:
            raise UserError(
                f"No Ray cluster answers at filter.ray_address {limits.ray_address!r}. Start one there "
                "(`ray start --head`), or set `local` or `engine: native`."
            ) from error
    daft.set_runner_ray(noop_if_initialized=True)


def run_tasks(
    work: Callable[[Path, Path], None], tasks: list[Task], limits: Filter, name: str, log: Path
) -> None:
    """Runs every task whose target is not there yet, `limits.workers` at a time.

    log: where the errors of tasks are written with their tracebacks, if there are any.

    A worker that dies is replaced. When one dies before any task is done, those that were at work are tried alone, and
    a file that ends its worker even so is left out. What was left out, and what failed for a reason that the user can
    mend, is a UserError at the end, when all others are done.
    """
    start(limits)
    left = [task for task in tasks if not Path(task.target).exists()]
    apart_from_here = limits.engine == "ray" or min(limits.workers, len(left)) > 1
    faults, done = {}, len(tasks) - len(left)
    while left:
        said = stream(query(work, left, limits, apart_from_here).iter_rows)
        fault = attempt(progress(said, name, "file", len(tasks), done))
        left, before = [task for task in left if not Path(task.target).exists()], len(left)
        if fault is None:
            break
        if isinstance(fault, UserError) or len(left) == before:
            for task in left[: limits.workers]:
                alone = attempt(stream(query(work, [task], limits, apart_from_here).iter_rows))
                faults |= {Path(task.source).name: alone} if alone else {}
            left = left[limits.workers :]
        done = len(tasks) - len(left)
    if faults:
        with atomic_file(log) as temporary:
            temporary.write_text(
                "\n\n".join(
                    f"{file}\n{''.join(format_exception(error))}" for file, error in faults.items()
                )
            )
        file, error = next(iter(faults.items()))
        raise UserError(
            f"{len(faults)} files could not be filtered; the others are done and kept for the next run. The first is "
            f"{file}: {str(error)[:LONGEST_FAULT]}\nAll of it, with the places in the code, is in {log}."
        )


def attempt(said: Iterator[dict]) -> Exception | None:
    """Why not all tasks of a query were done, None if they were.

    Heard to its end: a query goes on when nobody listens, and another would be at the same files.
    """
    try:
        problems = [row["said"] for row in said if row["said"]]
        return UserError(problems[0]) if problems else None
    except (RuntimeError, OSError, daft.exceptions.DaftCoreException) as error:
        return error


def query(
    work: Callable[[Path, Path], None], tasks: list[Task], limits: Filter, apart_from_here: bool
) -> daft.DataFrame:
    """The tasks as a query, a row for each that is done.

    apart_from_here: in processes of their own; one task at a time needs none, and starting it takes more than a second.
    """
    workers = min(limits.workers, len(tasks))
    parent = os.getpid() if apart_from_here and limits.engine == "native" else None
    worker = daft.cls(Worker, use_process=apart_from_here, max_concurrency=workers)(work, parent)
    listed = daft.from_pydict(
        {"source": [task.source for task in tasks], "target": [task.target for task in tasks]}
    )
    if limits.engine == "ray":
        listed = listed.into_partitions(len(tasks))
    return listed.into_batches(1).select(
        worker.run(listed["source"], listed["target"]).alias("said")
    )


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
    try:
        while (entry := found.get()) is not None:
            item, error = entry
            if error is not None:
                raise error
            yield item
    except SystemExit as stop:
        atexit.register(leave, stop.code)
        raise


def leave(status: int) -> None:
    """Ends the process as the last of its steps. Python would take the computing thread down in the middle of Daft,
    which aborts the process instead of ending it with this status."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def apart(compute: Callable[[], Item]) -> Item:
    """What `compute` returns, see `stream`."""
    return next(stream(lambda: [compute()]))
