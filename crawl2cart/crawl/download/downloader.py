"""Brings files here whole: resumed where they broke off, read to their end before they count, kept for the next run.

A file grows as `<key>.part`; beside it `<key>.json` notes which version of it that is, so that a run killed at any moment
goes on where it stopped, or from the beginning if the server has another version by then.
"""

import contextlib
import hashlib
import os
import queue
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import disk_full_in_words, file_hash, read_json, write_json
from crawl2cart.core.progress import progress
from crawl2cart.crawl.download.file_type import check_gzip, looks_like
from crawl2cart.crawl.download.http_client import Changed, Version, Web
from crawl2cart.crawl.download.retry import Fault, Retry
from crawl2cart.crawl.download.s3 import S3

GZIP = b"\x1f\x8b\x08"
MIB = 1 << 20
GAIN = MIB  # an attempt that brings as much has not failed, even if it broke off then
SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Kept:
    """A finished file: read-only, checked to its end."""

    name: str
    path: Path
    sha256: str


class Fetcher:
    """Fetches from `remote` into `folder`. Shared by threads; no two of them may fetch the same name.

    folder: where finished files are kept, by the base they come from and their name.
    """

    def __init__(self, remote: Web | S3, retry: Retry, folder: Path, connections: int):
        self.remote, self.retry, self.folder, self.connections = remote, retry, folder, connections
        folder.mkdir(parents=True, exist_ok=True)

    def place(self, name: str) -> Path:
        key = hashlib.sha256(f"{self.remote.base}{name}".encode()).hexdigest()[:16]
        return self.folder / f"{key}-{PurePosixPath(name).name}"

    def is_kept(self, name: str) -> bool:
        return self.place(name).exists() and "sha256" in self.note(name)

    def note(self, name: str) -> dict:
        """What is known of a file: bytes and mark of its version, sha256 once it is whole."""
        with contextlib.suppress(UserError):  # none, or one that a dying machine left half-written
            return read_json(note_path(self.place(name)))
        return {}

    def files(self, names: list[str], starts: bytes) -> list[Kept]:
        """All of these files, in this order. starts: how each must begin when unpacked."""
        self.in_parallel(
            self.check_kept,
            [name for name in names if self.is_kept(name)],
            "checking what is kept",
            "file",
        )
        missing = [name for name in names if not self.is_kept(name)]
        versions = dict(
            zip(
                missing,
                self.in_parallel(self.version, missing, "asking for sizes", "file"),
                strict=True,
            )
        )
        self.check_space(versions)
        total = sum(version.bytes for version in versions.values())
        here = {name: size_of(part_path(self.place(name))) for name in missing}
        arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
        with self.workers() as pool:
            futures = [
                pool.submit(
                    self.fetch, name, starts, versions[name], high_water(here[name], arrived)
                )
                for name in missing
            ]
            for _ in progress(
                each_mebibyte(futures, arrived),
                "fetching",
                "MiB",
                total=total // MIB,
                first=sum(here.values()) // MIB,
            ):
                pass
        return [Kept(name, self.place(name), self.note(name)["sha256"]) for name in names]

    def version(self, name: str) -> Version:
        """What the server says of a file, or said to an earlier run that was to fetch it."""
        version = self.noted_version(name)
        if not version:
            version = self.retry.retry(name, lambda: self.remote.version(name))
            self.write_note(name, version)
        return version

    def noted_version(self, name: str) -> Version | None:
        note = self.note(name)
        return Version(note["bytes"], note["mark"]) if {"bytes", "mark"} <= note.keys() else None

    def write_note(self, name: str, version: Version, **more: str) -> None:
        write_json(
            note_path(self.place(name)),
            {"name": name, "bytes": version.bytes, "mark": version.mark} | more,
        )

    def file(self, name: str, starts: bytes) -> Path:
        """One small file."""
        self.check_kept(name)
        if not self.is_kept(name):
            self.fetch(name, starts, None, lambda size: None)
        return self.place(name)

    def check_kept(self, name: str) -> None:
        """Removes a finished file that is not what it was: nothing of it can be used."""
        if self.is_kept(name) and file_hash(self.place(name)) != self.note(name)["sha256"]:
            print(
                f"{self.place(name)} has changed since it was fetched, and is fetched again",
                flush=True,
            )
            self.place(name).unlink()

    def check_space(self, versions: dict[str, Version]) -> None:
        """Raises UserError if the files that are still to come are larger than the free space."""
        needed = sum(
            version.bytes - min(version.bytes, size_of(part_path(self.place(name))))
            for name, version in versions.items()
        )
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            for name in versions:
                if not part_path(self.place(name)).exists():
                    note_path(
                        self.place(name)
                    ).unlink()  # it is asked again, in case it was not true
            raise UserError(
                f"{len(versions):,} files are to be fetched, {needed / 2**30:,.1f} GiB, but only {free / 2**30:,.1f} GiB are "
                f"free where {self.folder} lies (and DVC keeps a copy where the file system can not share one). "
                "Nothing was fetched. Free some space, or choose fewer files (download.files)."
            )

    def fetch(
        self, name: str, starts: bytes, expected: Version | None, reached: Callable[[int], None]
    ) -> None:
        """expected: the version that a look at the file has shown. reached: is told how many bytes of it are here."""
        said = Counter([expected]) if expected else None
        self.retry.retry(name, lambda: self.attempt(name, starts, said, reached))

    def attempt(
        self,
        name: str,
        starts: bytes,
        said: Counter[Version] | None,
        reached: Callable[[int], None],
    ) -> None:
        """One more request for what is missing of a file; returns when it is whole. Raises Fault."""
        place, begun = self.place(name), self.noted_version(name)
        part = part_path(place)
        have = size_of(part)
        if not begun or not begun.mark or not part.exists() or have > begun.bytes:
            begun, have = None, 0
        if not begun or have < begun.bytes:
            try:
                begun = self.receive(name, part, have, begun, said, reached)
            except Changed:
                part.unlink(missing_ok=True)
                raise
        try:
            digest = check_gzip(part, starts)
        except Fault:
            part.unlink()
            raise
        part.chmod(0o444)
        self.write_note(name, begun, sha256=digest)
        os.replace(part, place)

    def receive(
        self,
        name: str,
        part: Path,
        have: int,
        begun: Version | None,
        said: Counter[Version] | None,
        reached: Callable[[int], None],
    ) -> Version:
        """Writes what comes behind the first `have` bytes of the part, and returns the version it is of.

        said: how often the server has named which version. A length counts when it was said twice: one that is wrong and
        ends between two gzip members would show nowhere else.
        """
        with self.remote.open(name, have, begun) as body:
            now, size = body.version, body.start
            if said is not None:
                said[now] += 1
                if said[now] < 2:
                    raise Fault(
                        "length",
                        f"the server says something else about the file than before: {now.bytes:,} bytes, {now.mark}",
                    )
            if body.start == 0:
                part.unlink(missing_ok=True)
                self.write_note(name, now)
            with disk_full_in_words(part), part.open("ab") as file:
                try:
                    for piece in body.pieces:
                        if size == 0 and not GZIP.startswith(piece[: len(GZIP)]):
                            raise Fault(
                                "no gzip", f"what came is no gzip file: it {looks_like(piece)}"
                            )
                        file.write(piece)
                        size += len(piece)
                        reached(size)
                        self.retry.check()
                except Fault as fault:
                    fault.gained = size - have >= GAIN
                    raise
                file.flush()
                os.fsync(file.fileno())
        if size > now.bytes:
            part.unlink()
            raise Fault(
                "length", f"{size:,} bytes came, more than the {now.bytes:,} that the server said"
            )
        if size < now.bytes:
            raise Fault("cut", f"{size:,} of {now.bytes:,} bytes came", gained=size - have >= GAIN)
        return now

    def in_parallel(self, task: Callable, items: list, name: str, unit: str) -> list:
        """What `task` returns for each item, in the order of the items, with as many connections as allowed."""
        with self.workers() as pool:
            futures = [pool.submit(task, item) for item in items]
            for _ in progress(each_finished(futures), name, unit, total=len(futures)):
                pass
            return [future.result() for future in futures]

    @contextlib.contextmanager
    def workers(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that stop at once when the block is left by an error or a signal, also where a server is silent."""
        with ThreadPoolExecutor(self.connections) as pool:
            try:
                yield pool
            except BaseException:
                self.retry.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                self.remote.close()
                raise


def part_path(place: Path) -> Path:
    return place.with_name(f"{place.name}.part")


def note_path(place: Path) -> Path:
    return place.with_name(f"{place.name}.json")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def high_water(size: int, arrived: queue.SimpleQueue) -> Callable[[int], None]:
    """Puts what a file grows beyond its greatest size so far: bytes that come a second time are no progress."""

    def reached(now: int) -> None:
        nonlocal size
        if now > size:
            arrived.put(now - size)
            size = now

    return reached


def each_finished(futures: list[Future]) -> Iterator[object]:
    """The result of each as it is done; the error of the first that failed is raised."""
    for future in as_completed(futures):
        yield future.result()


def each_mebibyte(futures: list[Future], arrived: queue.SimpleQueue) -> Iterator[None]:
    """Yields once for every MiB that arrives until all are done; the error of the first that failed is raised."""
    pending, size = set(futures), 0
    while pending:
        done, pending = wait(pending, timeout=SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        while not arrived.empty():
            size += arrived.get()
        while size >= MIB:
            size -= MIB
            yield
