"""Check model folders, which hold weights, config and tokenizer."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_json

WEIGHTS = "model.safetensors"


def check_model(folder: Path | str) -> dict:
    """Return the config of a model folder after checking its weights, config and tokenizer.

    Raises UserError that names the missing or damaged file and what to do.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))  # a model of the hub may have several
    for name in (WEIGHTS, "config.json", "tokenizer.json"):
        if not (folder / name).is_file() and not (name == WEIGHTS and files):
            raise UserError(
                f"{folder / name} is missing, so {folder} holds no model. `dvc repro` makes it; "
                "`dvc checkout` fetches it from the cache."
            )
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                weights.keys()
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise UserError(
                f"{file} is damaged ({error}). Delete {folder} and run `dvc repro`."
            ) from error
    return read_json(folder / "config.json")
