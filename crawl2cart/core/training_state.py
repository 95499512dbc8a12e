"""Keep checkpoints of long stages outside DVC's outs, in a folder named by the stage's fingerprint.

A stage that was killed finds its checkpoint and resumes. A stage whose code, inputs or parameters
changed has another fingerprint and starts from the beginning.
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
    """The checkpoint of one stage run.

    directory: may also be given to a library that writes checkpoints of its own.
    """

    def __init__(self, stage: Stage):
        self.directory = stage.repo_root / ".ckpt" / stage.name / stage.fingerprint

    def save(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Replace the saved state. tensors: by name. state: JSON values; floats stay exact."""
        with atomic_directory(self.directory / "next") as folder:
            save_file(
                {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
                folder / "tensors.safetensors",
            )
            (folder / "state.json").write_text(json.dumps(state))
        # A folder cannot be replaced in one step, so the older state stays until the new one is in
        # place.
        last, older = self.directory / "last", self.directory / "older"
        shutil.rmtree(older, ignore_errors=True)
        if last.exists():
            os.replace(last, older)
        os.replace(self.directory / "next", last)
        shutil.rmtree(older, ignore_errors=True)

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        """Return the saved tensors and state, or None. Raises UserError if they are damaged."""
        for name in ("last", "next", "older"):
            folder = self.directory / name
            if folder.is_dir():
                try:
                    state = json.loads((folder / "state.json").read_text())
                    return load_file(folder / "tensors.safetensors"), state
                except (SafetensorError, OSError, json.JSONDecodeError) as error:
                    raise UserError(
                        f"The checkpoint {folder} is damaged ({error}). "
                        f"Delete {self.directory} to start this stage from the beginning."
                    ) from error
        return None


@contextlib.contextmanager
def open_checkpoint(stage: Stage) -> Iterator[Checkpoint]:
    """Yield the checkpoint of this run under a lock, and remove it if the block succeeds.

    Of several processes of one run the first holds the lock and removes it; the others read the
    same checkpoint.
    """
    checkpoint = Checkpoint(stage)
    if not is_first():
        yield checkpoint
        return
    with exclusive(checkpoint.directory / "lock", f"{stage.name} with the same inputs"):
        with disk_full_in_words(checkpoint.directory):  # covers a library's own checkpoints
            yield checkpoint
        shutil.rmtree(checkpoint.directory)
