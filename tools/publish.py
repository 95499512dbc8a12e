"""Push a checkpoint and its model card to a hub. No stage of the graph does this.

  python -m tools.publish dpo somebody/shopping-agent          # lists the files, pushes nothing
  python -m tools.publish dpo somebody/shopping-agent --push   # pushes; private without --public

in   models/{pretrain/gpt_oss,sft,dpo}, metrics/cards
out  a model repository of the hub at HF_ENDPOINT (default: huggingface.co); token: HF_TOKEN
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import files_below
from crawl2cart.core.model_folder import check_model

FOLDERS = {
    "pretrained": Path("models/pretrain/gpt_oss"),
    "sft": Path("models/sft"),
    "dpo": Path("models/dpo"),
}
# The adapter and the samples belong to the training, not to the merged model.
LEFT_OUT = ("adapter", "samples.json")


def prepare(name: str, folder: Path) -> list[Path]:
    """Copy a checkpoint and its card, as README.md, into an empty folder and return the files.

    Raises UserError if either is missing or damaged.
    """
    check_model(FOLDERS[name])
    card = Path("metrics/cards") / f"{name}.md"
    if not card.is_file():
        raise UserError(f"{card} is missing. `dvc repro report` writes it.")
    left_out = shutil.ignore_patterns(*LEFT_OUT)
    shutil.copytree(FOLDERS[name], folder, dirs_exist_ok=True, ignore=left_out)
    shutil.copy(card, folder / "README.md")
    return files_below(folder)


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder in one commit and return its address. Raises UserError if the hub refuses."""
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN"))
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="A checkpoint of crawl2cart"
        )
        return str(commit.commit_url)
    except (HTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"{hub.endpoint} did not take {repository}: {error}. "
            "Check HF_TOKEN, HF_ENDPOINT and the name."
        ) from error


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=FOLDERS, help="which checkpoint")
    parser.add_argument("repository", help="owner/name on the hub")
    parser.add_argument("--push", action="store_true", help="push the files")
    parser.add_argument("--public", action="store_true", help="for everybody to see")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for file in prepare(arguments.name, Path(folder)):
            print(f"{file.relative_to(folder)}  {file.stat().st_size:,} bytes")
        if arguments.push:
            print(push(Path(folder), arguments.repository, private=not arguments.public))
        else:
            print(f"Nothing was pushed. `--push` sends these files to {arguments.repository}.")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"publish: {error}")
