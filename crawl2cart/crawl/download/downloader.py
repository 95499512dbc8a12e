"""Download files whole: resume where a connection broke, check the content, keep the result.

A file grows as `<key>.part`. `<key>.json` beside it says which version of the file that is, so
that a run killed at any moment resumes, or starts over if the server has another version by then.
"""

import contextlib
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import disk_full_in_words, file_hash, read_json, write_json
from crawl2cart.core.progress import progress
from crawl2cart.crawl.download.file_type import GZIP_MAGIC, check_gzip, looks_like
from crawl2cart.crawl.download.http_client import FileChanged, HttpClient, Version
from crawl2cart.crawl.download.retry import Retry, Stopped, TransientError
from crawl2cart.crawl.download.s3 import S3Client

MIB = 1 << 20
PROGRESS_BYTES = MIB  # an attempt that brings as much counts as progress, even if it fails then
SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class LocalFile:
    """A complete file on disk: read-only, checked to its end."""

    name: str
    path: Path
    sha256: str


class Downloader:
    """Downloads files of `remote` into `folder`.

    Threads may share it, but no two of them may download the same name. A file's name in `folder`
    depends on the base address and its name there.
    """

    def __init__(self, remote: HttpClient | S3Client, retry: Retry, folder: Path, connections: int):
        self.remote, self.retry, self.folder, self.connections = remote, retry, folder, connections
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where the file lies once it is complete."""
        key = hashlib.sha256(f"{self.remote.base}{name}".encode()).hexdigest()[:16]
        return self.folder / f"{key}-{PurePosixPath(name).name}"

    def files(self, names: list[str], prefix: bytes) -> list[LocalFile]:
        """Download these files, unless an earlier run did, and return them in this order.

        prefix: how each must begin once it is unpacked. Raises UserError if the disk is too small,
        or if a file cannot be had.
        """
        complete = [name for name in names if self.is_complete(name)]
        self.in_parallel(self.remove_if_damaged, complete, "checking downloaded files", "file")
        missing = [name for name in names if not self.is_complete(name)]
        versions = self.in_parallel(self.version, missing, "asking for sizes", "file")
        self.check_disk_space(missing, versions)
        total = sum(version.bytes for version in versions)
        paths = [self.path(name) for name in missing]
        here = bytes_on_disk(paths)
        with self.workers() as pool:
            futures = [
                pool.submit(self.download, name, prefix, version)
                for name, version in zip(missing, versions, strict=True)
            ]
            ticks = each_mebibyte(futures, paths, here // MIB)
            for _ in progress(ticks, "downloading", "MiB", total // MIB, first=here // MIB):
                pass
        return [LocalFile(name, self.path(name), self.sidecar(name)["sha256"]) for name in names]

    def file(self, name: str, prefix: bytes) -> Path:
        """Download one small file, unless an earlier run did."""
        self.remove_if_damaged(name)
        if not self.is_complete(name):
            self.download(name, prefix)
        return self.path(name)

    def download(self, name: str, prefix: bytes, version: Version | None = None) -> None:
        """Download one file with as many attempts as it takes.

        version: what the server said before. We trust a length that the server stated twice: a
        wrong one that ends between two gzip members would show nowhere else. None: trust it once.
        """
        statements = Counter([version]) if version else None
        self.retry.retry(name, lambda: self.attempt(name, prefix, statements))

    def attempt(self, name: str, prefix: bytes, statements: Counter[Version] | None) -> None:
        """Request what is missing of a file. Raises TransientError unless it is complete then."""
        part, version = part_path(self.path(name)), self.known_version(name)
        offset = size_of(part)
        if not (version and version.validator and offset <= version.bytes):
            offset = 0
        if offset == 0 or offset < version.bytes:
            try:
                version = self.receive(name, offset, version, statements)
            except FileChanged:
                part.unlink(missing_ok=True)
                raise
            except TransientError as error:
                error.progressed = size_of(part) - offset >= PROGRESS_BYTES
                raise
        try:
            sha256 = check_gzip(part, prefix)
        except TransientError:
            part.unlink()
            raise
        part.chmod(0o444)
        self.write_sidecar(name, version, sha256=sha256)
        os.replace(part, self.path(name))

    def receive(
        self, name: str, offset: int, version: Version | None, statements: Counter[Version] | None
    ) -> Version:
        """Append to the part what follows byte `offset`, and return the version it is of."""
        part = part_path(self.path(name))
        with self.remote.open(name, offset, version) as body:
            current = body.version
            if statements is not None:
                statements[current] += 1
                if statements[current] < 2:
                    raise TransientError("length", f"the server now says {current}")
            if body.start == 0:
                part.unlink(missing_ok=True)
                self.write_sidecar(name, current)
            with disk_full_in_words(part), part.open("ab") as file:
                for piece in body.pieces:
                    if file.tell() == 0 and not GZIP_MAGIC.startswith(piece[: len(GZIP_MAGIC)]):
                        raise TransientError("no gzip", f"the answer {looks_like(piece)}")
                    file.write(piece)
                    if self.retry.stopped.is_set():
                        raise Stopped
                file.flush()
                os.fsync(file.fileno())
        if size_of(part) != current.bytes:
            raise TransientError("cut", f"{size_of(part):,} of {current.bytes:,} bytes came")
        return current

    def is_complete(self, name: str) -> bool:
        return self.path(name).exists() and "sha256" in self.sidecar(name)

    def remove_if_damaged(self, name: str) -> None:
        """Delete a complete file whose bytes have changed since it was downloaded."""
        if self.is_complete(name) and file_hash(self.path(name)) != self.sidecar(name)["sha256"]:
            print(f"{self.path(name)} changed on disk; downloading it again", flush=True)
            self.path(name).unlink()
            sidecar_path(self.path(name)).unlink()

    def sidecar(self, name: str) -> dict:
        """What we know of a file: its version's fields, and sha256 once it is complete."""
        with contextlib.suppress(UserError):  # absent, or half-written when the machine died
            return read_json(sidecar_path(self.path(name)))
        return {}

    def write_sidecar(self, name: str, version: Version, **more: str) -> None:
        write_json(sidecar_path(self.path(name)), {"name": name} | asdict(version) | more)

    def known_version(self, name: str) -> Version | None:
        sidecar = self.sidecar(name)
        if {"bytes", "validator"} <= sidecar.keys():
            return Version(sidecar["bytes"], sidecar["validator"])
        return None

    def version(self, name: str) -> Version:
        """What the server says of a file, or said to an earlier run that did not complete it."""
        version = self.known_version(name)
        if not version:
            version = self.retry.retry(name, lambda: self.remote.version(name))
            self.write_sidecar(name, version)
        return version

    def check_disk_space(self, names: list[str], versions: list[Version]) -> None:
        """Raise UserError if what is to come does not fit on the disk."""
        parts = [part_path(self.path(name)) for name in names]
        needed = sum(
            max(0, version.bytes - size_of(part))
            for version, part in zip(versions, parts, strict=True)
        )
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            for name, part in zip(names, parts, strict=True):
                if not part.exists():  # ask again next time: the size may be wrong
                    sidecar_path(self.path(name)).unlink()
            raise UserError(
                f"{len(names):,} files need {needed / 2**30:,.1f} GiB, but {self.folder} has only "
                f"{free / 2**30:,.1f} GiB free (and DVC keeps a second copy where the file system "
                "cannot share one). Nothing was downloaded. Free some space, or choose fewer files "
                "(download.files)."
            )

    def in_parallel(self, task: Callable, items: list, label: str, unit: str) -> list:
        """Call `task` on each item, on as many connections as allowed; results keep the order."""
        with self.workers() as pool:
            futures = [pool.submit(task, item) for item in items]
            finished = (future.result() for future in as_completed(futures))
            for _ in progress(finished, label, unit, total=len(futures)):
                pass
            return [future.result() for future in futures]

    @contextlib.contextmanager
    def workers(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that stop at once when an error or a signal ends the block."""
        with ThreadPoolExecutor(self.connections) as pool:
            try:
                yield pool
            except BaseException:
                self.retry.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                self.remote.close()
                raise


def part_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def sidecar_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def bytes_on_disk(paths: list[Path]) -> int:
    """Bytes of these files so far, complete or not."""
    return sum(size_of(part_path(path)) or size_of(path) for path in paths)


def each_mebibyte(futures: list[Future], paths: list[Path], reported: int) -> Iterator[None]:
    """Yield for every MiB beyond `reported` until all is done. Raises the first error met."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        arrived = bytes_on_disk(paths) // MIB
        for _ in range(arrived - reported):
            yield
        reported = max(reported, arrived)
