"""Files that are either whole or absent.

Outputs are written beside their place under a name that starts with a dot and ends in `.partial`, flushed to the disk and
renamed. A process that dies at any moment leaves the partial name only, which the next one that writes there removes. The
name holds machine and process: a cluster may start a task again while its first worker, believed dead, still writes.
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

FULL_BYTES = 2**16  # less than one block of most writers


def partial(path: Path) -> Path:
    """The name under which this process writes `path` until it is whole. Those of processes that are no more are removed."""
    written_here = f".{path.name}.{platform.node()}-"
    for left in path.parent.glob(f"{glob.escape(written_here)}*.partial"):
        process = left.name.removeprefix(written_here).removesuffix(".partial")
        if process.isdecimal() and not is_running(int(process)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(
                missing_ok=True
            )
    return path.with_name(f"{written_here}{os.getpid()}.partial")


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def is_disk_full(path: Path, error: Exception) -> bool:
    """Whether an error while writing below `path` means that there is no space.

    The system's own error says so, and safetensors quotes it; torch and numpy have other words, so the disk itself is asked.
    """
    codes = (errno.ENOSPC, errno.EDQUOT)
    if getattr(error, "errno", None) in codes or any(
        os.strerror(code) in str(error) for code in codes
    ):
        return True
    there = next(folder for folder in path.absolute().parents if folder.exists())
    return shutil.disk_usage(there).free < FULL_BYTES


@contextlib.contextmanager
def disk_full_in_words(path: Path) -> Iterator[None]:
    """Turns what a full disk raises into a UserError that names the place; other errors pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(path, error):
            raise
        raise UserError(
            f"The disk is full while writing {path}. Free some space (`make clean` removes what a run "
            "makes, `dvc gc -w` old versions) and run again; nothing half-written was left."
        ) from error


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path to write to; renames it to `path` when the block ends without an error."""
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
    """Yields an empty temporary folder; it takes the place of `path` when the block ends without an error."""
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
    """Writes JSON with sorted keys, so that equal values are equal bytes."""
    with atomic_file(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        )


def read_json(path: Path | str) -> object:
    """Reads JSON; a missing or broken file is a UserError that names it."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing. Run the stage that makes it (`dvc repro` does)."
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). Delete it and run the stage that makes it again."
        ) from error


def read_jsonl(path: Path | str) -> list[dict]:
    """Reads JSON lines; a bad line is a UserError that gives file and line number."""
    rows = []
    # Not splitlines: it also cuts at U+2028 and its like, which JSON leaves as they are inside a text.
    for number, line in enumerate(Path(path).read_text().split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not valid JSON ({error.msg}). Mend the line."
                ) from error
    return rows


def write_jsonl(path: Path | str, rows: list[dict]) -> None:
    """Writes one JSON object a line, keys sorted."""
    with atomic_file(path) as temporary:
        temporary.write_text(
            "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
        )


def file_hash(path: Path | str) -> str:
    """sha256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(path: Path) -> list[Path]:
    """The file itself, or all files below a folder in sorted order, without what Python compiles."""
    if path.is_file():
        return [path]
    return sorted(
        file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    )
