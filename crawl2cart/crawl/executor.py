"""Run one task for each file, on the processors of this machine or on a Ray cluster.

Each task writes one file. A file that is there is never made again, so that a worker that dies
costs the file it was working on and no other. Daft hands the tasks to its worker processes, which
must be able to import the function that does the work. Several machines must see the same folders.
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

# Daft, as soon as it is imported, and Ray send telemetry unless told otherwise. Workers inherit it.
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
Work = Callable[[Path, Path], None]
ROOT = Path(__file__).parents[2]
PARENT_POLL_SECONDS = 0.5
MESSAGE_CHARACTERS = 300  # of an error that are shown; the log has all of it


class Task(NamedTuple):
    """source: the file to read. target: the file that is there when the task is done."""

    source: str
    target: str


class Worker:
    """Runs `work(source, target)` for one task after the other in a worker process.

    parent: the worker ends when this process does. None on Ray, which ends its workers itself.
    """

    def __init__(self, work: Work, parent: int | None):
        self.work = work
        if parent is not None:
            threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()

    @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
    def run(self, sources: daft.Series, targets: daft.Series) -> list[str]:
        """Return for each task what `run_task` returns."""
        tasks = map(Task, sources.to_pylist(), targets.to_pylist())
        return [run_task(self.work, task) for task in tasks]


def run_task(work: Work, task: Task) -> str:
    """Do a task unless its target is there; return "", or the message of a UserError."""
    try:
        # Ray repeats a task if a machine is lost after the file was written.
        if not Path(task.target).exists():
            work(Path(task.source), Path(task.target))
    except UserError as error:
        return str(error)
    return ""


def exit_with_parent(parent: int) -> None:
    """End this process when its parent has ended.

    Linux's death signal comes when the *thread* that started the worker ends, and Daft starts
    workers in short-lived threads.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os._exit(1)


def start_engine(limits: Filter) -> None:
    """Choose the engine that Daft computes with: native, or Ray at `limits.ray_address`.

    Raises UserError if no cluster answers, or if this process has chosen the other engine before.
    """
    runner = daft.runners.get_or_infer_runner_type()
    if limits.engine == "native":
        if runner != "native":
            raise UserError(
                "This process has started Ray already and cannot go back to the native engine. "
                "Start another process."
            )
        return
    import ray

    if not ray.is_initialized():
        # Workers on other machines find the code and the files under the same paths as here.
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
                f"No Ray cluster answers at filter.ray_address {limits.ray_address!r}. Start one "
                "there (`ray start --head`), or set `local` or `engine: native`."
            ) from error
    daft.set_runner_ray(noop_if_initialized=True)


def run_tasks(work: Work, tasks: list[Task], limits: Filter, name: str, log: Path) -> None:
    """Run every task whose target is not there yet, `limits.workers` at a time.

    name: of the work, for the progress line. log: a file for the tracebacks of failed tasks.

    A worker that dies is replaced. If one dies before any task is done, the tasks that were running
    are tried one by one, and one that fails even so is left out. When all others are done, a
    UserError names the first task that was left out or raised a UserError of its own.

    One task at a time needs no worker process, which takes seconds to start.
    """
    start_engine(limits)
    left = [task for task in tasks if not Path(task.target).exists()]
    use_workers = limits.engine == "ray" or min(limits.workers, len(left)) > 1

    def messages(some: list[Task]) -> Iterator[str]:
        if use_workers:
            rows = iterate_in_thread(task_query(work, some, limits).iter_rows)
            return (row["message"] for row in rows)
        return iterate_in_thread(lambda: (run_task(work, task) for task in some))

    faults, done = {}, len(tasks) - len(left)
    while left:
        fault = first_fault(progress(messages(left), name, "file", len(tasks), done))
        left, before = [task for task in left if not Path(task.target).exists()], len(left)
        if fault is None:
            break
        if isinstance(fault, UserError) or len(left) == before:
            for task in left[: limits.workers]:
                alone = first_fault(messages([task]))
                faults |= {Path(task.source).name: alone} if alone else {}
            left = left[limits.workers :]
        done = len(tasks) - len(left)
    if faults:
        write_tracebacks(log, faults)
        file, error = next(iter(faults.items()))
        raise UserError(
            f"{len(faults)} files could not be filtered. The others are done and kept for the next "
            f"run. The first is {file}: {str(error)[:MESSAGE_CHARACTERS]}\n"
            f"{log} has all errors with their tracebacks."
        )


def write_tracebacks(log: Path, faults: dict[str, Exception]) -> None:
    entries = [f"{file}\n{''.join(format_exception(error))}" for file, error in faults.items()]
    with atomic_file(log) as temporary:
        temporary.write_text("\n\n".join(entries))


def first_fault(messages: Iterator[str]) -> Exception | None:
    """Return why the first task failed, None if all are done.

    Reads all messages: a query goes on unread, and the next would work on the same files.
    """
    try:
        faults = [message for message in messages if message]
    except Exception as error:  # of the task, of the worker, or of Daft
        return error
    return UserError(faults[0]) if faults else None


def task_query(work: Work, tasks: list[Task], limits: Filter) -> daft.DataFrame:
    """Build the query that does the tasks in worker processes.

    It has a row for each task that is done; column `message`: see `run_task`.
    """
    workers = min(limits.workers, len(tasks))
    parent = os.getpid() if limits.engine == "native" else None
    worker = daft.cls(Worker, use_process=True, max_concurrency=workers)(work, parent)
    table = daft.from_pydict(
        {"source": [task.source for task in tasks], "target": [task.target for task in tasks]}
    )
    if limits.engine == "ray":
        table = table.into_partitions(len(tasks))
    message = worker.run(table["source"], table["target"]).alias("message")
    return table.into_batches(1).select(message)


def iterate_in_thread(items: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    """Yield the items as a thread computes them.

    Python handles signals in its main thread, between its own steps. A query is one step that may
    take hours.
    """
    entries: queue.SimpleQueue = queue.SimpleQueue()

    def compute() -> None:
        try:
            for item in items():
                entries.put((item, None))
            entries.put(None)
        except BaseException as error:
            entries.put((None, error))

    threading.Thread(target=compute, daemon=True).start()
    try:
        while (entry := entries.get()) is not None:
            item, error = entry
            if error is not None:
                raise error
            yield item
    except SystemExit as stop:
        atexit.register(exit_at_once, stop.code)
        raise


def in_thread(compute: Callable[[], Item]) -> Item:
    """Return what `compute` returns, computed in a thread, see `iterate_in_thread`."""
    return next(iterate_in_thread(lambda: [compute()]))


def exit_at_once(status: int) -> None:
    """End the process without tearing its threads down.

    Python would stop the computing thread in the middle of Daft, which aborts the process instead
    of ending it with this status.
    """
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
