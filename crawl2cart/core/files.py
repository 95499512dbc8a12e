"""Write files that are either whole or absent, and read JSON with errors that name the file.

An output is first written beside its place, as `.<name>.<machine>-<process>.partial`, flushed to
the disk and then renamed. A process that dies leaves only the partial file, which the next writer
removes. The name holds machine and process because a cluster may restart a task while the first
worker still writes.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from crawl2cart.core.errors import UserError

FULL_DISK_BYTES = 2**16  # most writers need more than this for one block


def partial(path: Path) -> Path:
    """Return the name under which this process writes `path` until it is whole.

    Partial files of processes of this machine that have ended are removed.
    """
    prefix = f".{path.name}.{platform.node()}-"
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*.partial"):
        process = leftover.name.removeprefix(prefix).removesuffix(".partial")
        if process.isdecimal() and not is_running(int(process)):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
    return path.with_name(f"{prefix}{os.getpid()}.partial")


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def is_disk_full(path: Path, error: Exception) -> bool:
    """Return whether an error while writing below `path` means that the disk is full.

    The system's error code says so, and safetensors quotes its text. torch and numpy have texts of
    their own, so for them the free space decides.
    """
    codes = (errno.ENOSPC, errno.EDQUOT)
    if getattr(error, "errno", None) in codes or any(
        os.strerror(code) in str(error) for code in codes
    ):
        return True
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    return shutil.disk_usage(folder).free < FULL_DISK_BYTES


@contextlib.contextmanager
def disk_full_in_words(path: Path) -> Iterator[None]:
    """Turn errors of a full disk into a UserError that names `path`; let other errors pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(path, error):
            raise
        raise UserError(
            f"The disk is full while writing {path}. Free some space (`make clean` "
            "removes the results of runs, `dvc gc -w` old versions) and run again. "
            "No partial file is left."
        ) from error


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial(path)
    try:
        with disk_full_in_words(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `path` if the block succeeds."""
    path = Path(path)
    temporary = partial(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with disk_full_in_words(path):
            temporary.mkdir(parents=True)
            yield temporary
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path | str, value: object) -> None:
    """Write JSON with sorted keys, so that equal values give equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n")


def read_json(path: Path | str) -> object:
    """Read JSON. Raises UserError that names the file if it is missing or not valid."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing. Run the stage that makes it, or `dvc repro`."
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). Delete it and run the stage that makes it again."
        ) from error


def read_jsonl(path: Path | str) -> list[dict]:
    """Read JSON lines. Raises UserError with file and line number if a line is not valid."""
    rows = []
    # splitlines would also split at U+2028 and others, which may stand inside a JSON string.
    for number, line in enumerate(Path(path).read_text().split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not valid JSON ({error.msg}). Correct the line."
                ) from error
    return rows


def write_jsonl(path: Path | str, rows: list[dict]) -> None:
    """Write one JSON object per line, keys sorted."""
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
    with atomic_file(path) as temporary:
        temporary.write_text("".join(lines))


def file_hash(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(path: Path) -> list[Path]:
    """Return the file itself, or all files below a folder, sorted, without `__pycache__`."""
    if path.is_file():
        return [path]
    return sorted(
        file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    )
