"""What this machine has beside what a profile needs: memory, card, disk, the hub and the crawl within reach.

`make check` prints it. A stage of a profile that computes on a card looks before it starts, so that nothing is fetched or
trained in vain; profiles for a CPU are not held up, since their needs are small and what lacks shows at once.
"""

import os
import shutil
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

import psutil

from crawl2cart.core.errors import UserError
from crawl2cart.core.params import Params, Profile

SECONDS_TO_ANSWER = 20
HUB_GIB = 13  # what from_pretrained fetches of gpt-oss-20b: three files of four-bit experts
MADE = ("data", "models", ".cache", ".ckpt", ".dvc/cache")


@cache
def cards() -> list[tuple[str, float]]:
    """Name and GiB of memory of every CUDA device."""
    import torch  # a second or two, which stages without a tensor need not wait

    found = [
        torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())
    ]
    return [(card.name, card.total_memory / 2**30) for card in found]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def held_gib(root: Path) -> float:
    """GiB that runs have made below the root already; a file that is linked twice counts once."""
    sizes = {}
    for folder in MADE:
        for path, _, names in os.walk(root / folder):
            for name in names:
                stat = os.lstat(os.path.join(path, name))
                sizes[stat.st_ino] = stat.st_size
    return sum(sizes.values()) / 2**30


def hub_cache() -> Path:
    """The nearest folder to huggingface_hub's cache that is there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    path = Path(HF_HUB_CACHE).absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def is_cached(model: str, revision: str) -> bool:
    """Whether every weight file of a revision of a hub model is on this disk."""
    from huggingface_hub import try_to_load_from_cache

    from crawl2cart.core.files import read_json

    index = try_to_load_from_cache(model, "model.safetensors.index.json", revision=revision)
    files = (
        set(read_json(index)["weight_map"].values())
        if isinstance(index, str)
        else {"model.safetensors"}
    )
    return all(
        isinstance(try_to_load_from_cache(model, name, revision=revision), str)
        for name in files | {"config.json"}
    )


def hub_fault(model: str, revision: str) -> str | None:
    """Why this revision of a hub model can not be had, None if it is here or can be fetched."""
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if is_cached(model, revision):
        return None
    remedy = "Fetch it where there is a network (`hf download`), bring the cache here and point HF_HOME at it."
    if constants.HF_HUB_OFFLINE:
        return f"{model} at revision {revision} is not in {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set. {remedy}"
    try:
        HfApi().model_info(model, revision=revision, timeout=SECONDS_TO_ANSWER)
    except RevisionNotFoundError:
        return f"The hub at {constants.ENDPOINT} has no revision {revision} of {model}. Correct midtrain.revision in the profile."
    except RepositoryNotFoundError:
        return f"The hub at {constants.ENDPOINT} shows no {model} to you. Correct midtrain.base_model, or set HF_TOKEN if it is private."
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        return f"The hub at {constants.ENDPOINT} does not give {model} ({type(error).__name__}). {remedy}"
    free = shutil.disk_usage(hub_cache()).free / 2**30
    if free < HUB_GIB:
        return f"{free:.1f} GiB are free at {constants.HF_HUB_CACHE}, {HUB_GIB} GiB are needed for {model}. Free some, or set HF_HOME."
    return None


def crawl_fault(base: str, crawl: str) -> str | None:
    """Why the list of a crawl's files can not be had, None if it can. S3 is not asked: that would need credentials."""
    if not base.startswith("http"):
        return None
    address = f"{base}crawl-data/{crawl}/warc.paths.gz"
    try:
        urllib.request.urlopen(
            urllib.request.Request(address, method="HEAD"), timeout=SECONDS_TO_ANSWER
        ).close()
    except (urllib.error.URLError, OSError) as error:
        return (
            f"Common Crawl's {address} can not be had ({error}). Is there a network? A mirror: download.base; files of your "
            "own: download.source=files."
        )
    return None


def faults(params: Params, profile: Profile, root: Path) -> list[str]:
    """What this machine lacks for a profile, a sentence each with its remedy. Asks the network only for what is not here."""
    needs, found = profile.requirements, []
    memory, free = (
        psutil.virtual_memory().total / 2**30,
        shutil.disk_usage(root).free / 2**30 + held_gib(root),
    )
    if profile.device == "cuda" and not cards():
        found.append(
            "torch finds no CUDA device, and this profile computes on one. Install a driver and the CUDA build of torch "
            "(`rm -r .venv && make setup` takes it where there is one), or choose `profile: cpu`."
        )
    elif profile.device == "cuda" and cards()[0][1] < needs.card_gib:
        found.append(
            f"The card {cards()[0][0]} has {cards()[0][1]:.0f} GiB, {needs.card_gib} GiB are needed. Take one of 80 GB, "
            "or shorten sft.max_length and dpo.max_length in the profile and lower needs.card_gib."
        )
    if memory < needs.memory_gib:
        found.append(
            f"The machine has {memory:.1f} GiB of memory, {needs.memory_gib} GiB are needed. Take a larger one."
        )
    if free < needs.disk_gib:
        found.append(
            f"{free:.1f} GiB of disk are free or hold results already, {needs.disk_gib} GiB are needed. Free some, take "
            "fewer files (download.files), or let DVC link instead of copy (`dvc config --local cache.type hardlink`)."
        )
    if profile.midtrain.base_model != "pretrained":
        found.append(hub_fault(profile.midtrain.base_model, profile.midtrain.revision))
    download = params.download.at(profile.download)
    if download.source == "commoncrawl" and not (root / "data" / "raw" / "manifest.json").is_file():
        found.append(crawl_fault(download.base, download.crawl))
    return [fault for fault in found if fault]


def check_machine(params: Params, root: Path) -> None:
    """Raises UserError with all that lacks if the chosen profile computes on a card."""
    profile: Profile = getattr(params.profiles, params.profile)
    if profile.device == "cuda" and (found := faults(params, profile, root)):
        raise UserError(
            "this machine lacks what the profile needs, so nothing was started.\n  "
            + "\n  ".join(found)
            + f"\n`make check PROFILE={params.profile}` says more."
        )
