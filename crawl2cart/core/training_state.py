"""Checkpoints of long stages, outside DVC's outs, keyed by everything the result depends on.

A stage that is killed and repeated finds the folder of its own key and goes on; a stage whose code, inputs or parameters
changed has another key and starts anew.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, disk_full_in_words
from crawl2cart.core.stage import Stage, exclusive, is_first


class Checkpoint:
    """The checkpoint folder of one stage run. `directory` may also be given to a library that keeps its own files."""

    def __init__(self, stage: Stage):
        self.directory = stage.repo_root / ".ckpt" / stage.name / stage.fingerprint

    def save(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Replaces the saved state. tensors: by name. state: whatever JSON holds, floats exactly."""
        with atomic_directory(self.directory / "next") as folder:
            save_file(
                {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
                folder / "tensors.safetensors",
            )
            (folder / "state.json").write_text(json.dumps(state))
        # A folder can not be exchanged in one step, so the older state stays under its own name until the new one is in.
        last, older = self.directory / "last", self.directory / "older"
        shutil.rmtree(older, ignore_errors=True)
        if last.exists():
            os.replace(last, older)
        os.replace(self.directory / "next", last)
        shutil.rmtree(older, ignore_errors=True)

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        """The saved tensors and state, or None if there is none. A damaged one is a UserError, never a silent restart."""
        for name in ("last", "next", "older"):
            folder = self.directory / name
            if folder.is_dir():
                try:
                    return load_file(folder / "tensors.safetensors"), json.loads(
                        (folder / "state.json").read_text()
                    )
                except (SafetensorError, OSError, json.JSONDecodeError) as error:
                    raise UserError(
                        f"The checkpoint {folder} is damaged ({error}). Delete {self.directory} to start "
                        "this stage from its beginning."
                    ) from error
        return None


@contextlib.contextmanager
def open_checkpoint(stage: Stage) -> Iterator[Checkpoint]:
    """Yields the checkpoint of this run under a lock against a second trainer; removes it when the block succeeds.

    Of several processes of one run the first does so, the others read the same.
    """
    checkpoint = Checkpoint(stage)
    if not is_first():
        yield checkpoint
        return
    with exclusive(checkpoint.directory / "lock", f"{stage.name} with the same inputs"):
        with disk_full_in_words(checkpoint.directory):  # a library's own checkpoints too
            yield checkpoint
        shutil.rmtree(checkpoint.directory)
