"""Run a stage and write down which files it opens.

python tests/trace_file_access.py note.json stages.router, in the folder in which the stage runs

Files that are opened without Python (by FastWARC, Arrow, safetensors) are not seen. So the folder
should hold only what dvc.yaml lists for the stage: a file that is not listed is then missing.
"""

import json
import os
import runpy
import sys
from pathlib import Path

# Every stage hashes what dvc.yaml lists for it (core/stage.py). That is no use of a file.
HASHING = {"file_hash", "files_below"}


def main(note: Path, module: str, words: list[str]) -> None:
    here, opened = Path.cwd().resolve(), set()

    def note_access(event: str, arguments: tuple) -> None:
        if event not in ("open", "os.listdir", "os.scandir") or not isinstance(
            arguments[0], str | bytes | os.PathLike
        ):
            return
        frame = sys._getframe()
        while frame:
            if frame.f_code.co_name in HASHING:
                return
            frame = frame.f_back
        path = Path(os.path.abspath(os.fsdecode(arguments[0])))
        if here in path.parents:
            opened.add(str(path.relative_to(here)))

    # Only the folder counts, not this file's folder nor the checkout that .venv belongs to.
    sys.path[0] = str(here)
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")
    ]
    sys.argv = [module, *words]
    sys.addaudithook(note_access)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        note.write_text(json.dumps(sorted(opened)))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3:])
