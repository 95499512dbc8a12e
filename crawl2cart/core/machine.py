"""Compare this machine with what a profile needs: memory, card, disk, base model, network.

`make check` prints the comparison. On a profile that computes on a card every stage checks before
it starts, so that nothing is fetched or trained in vain. CPU profiles need little and start at
once.
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

TIMEOUT_SECONDS = 20
HUB_GIB = 13  # download of gpt-oss-20b: three files of four-bit experts
RESULT_FOLDERS = ("data", "models", ".cache", ".ckpt", ".dvc/cache")


@cache
def cards() -> list[tuple[str, float]]:
    """Return name and memory in GiB of every CUDA device."""
    import torch  # slow to import, and most stages on a CPU do not need it here

    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [(device.name, device.total_memory / 2**30) for device in devices]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def held_gib(root: Path) -> float:
    """Return the GiB of results below the root. A file with two hard links counts once."""
    sizes = {}
    for folder in RESULT_FOLDERS:
        for path, _, names in os.walk(root / folder):
            for name in names:
                stat = os.lstat(os.path.join(path, name))
                sizes[stat.st_ino] = stat.st_size
    return sum(sizes.values()) / 2**30


def hub_cache() -> Path:
    """Return huggingface_hub's cache folder, or its nearest parent that exists."""
    from huggingface_hub.constants import HF_HUB_CACHE

    path = Path(HF_HUB_CACHE).absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def is_cached(model: str, revision: str) -> bool:
    """Return whether every weight file of a revision of a hub model is on this disk."""
    from huggingface_hub import try_to_load_from_cache

    from crawl2cart.core.files import read_json

    def cached(name: str) -> str | None:
        path = try_to_load_from_cache(model, name, revision=revision)
        return path if isinstance(path, str) else None

    index = cached("model.safetensors.index.json")
    weights = set(read_json(index)["weight_map"].values()) if index else {"model.safetensors"}
    return all(map(cached, weights | {"config.json"}))


def hub_fault(model: str, revision: str) -> str | None:
    """Say why a revision of a hub model is not available, None if it is."""
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if is_cached(model, revision):
        return None
    hub, folder = f"The hub at {constants.ENDPOINT}", constants.HF_HUB_CACHE
    remedy = (
        "Fetch it on a machine with a network (`hf download`), copy the cache to this machine and "
        "set HF_HOME to it."
    )
    if constants.HF_HUB_OFFLINE:
        return (
            f"{model} at revision {revision} is not in {folder} and HF_HUB_OFFLINE is set. {remedy}"
        )
    try:
        HfApi().model_info(model, revision=revision, timeout=TIMEOUT_SECONDS)
    except RevisionNotFoundError:
        return (
            f"{hub} has no revision {revision} of {model}. Correct midtrain.revision in the "
            "profile."
        )
    except RepositoryNotFoundError:
        return (
            f"{hub} does not show you {model}. Correct midtrain.base_model, or set HF_TOKEN if the "
            "model is private."
        )
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        return f"{hub} does not give {model} ({type(error).__name__}). {remedy}"
    free = shutil.disk_usage(hub_cache()).free / 2**30
    if free < HUB_GIB:
        return (
            f"{free:.1f} GiB are free at {folder}, {model} needs {HUB_GIB} GiB. Free some space, "
            "or set HF_HOME to another disk."
        )
    return None


def crawl_fault(base: str, crawl: str) -> str | None:
    """Say why the file list of a crawl is not available, None if it is.

    base: address that the crawl's paths are below. S3 is not checked, since that needs credentials.
    """
    if not base.startswith("http"):
        return None
    address = f"{base}crawl-data/{crawl}/warc.paths.gz"
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()
    except (urllib.error.URLError, OSError) as error:
        return (
            f"Common Crawl's {address} is not available ({error}). Check the network, set "
            "download.base to a mirror, or use files of your own (download.source=files)."
        )
    return None


def faults(params: Params, profile: Profile, root: Path) -> list[str]:
    """Return one message, with its remedy, for each thing that this machine lacks.

    Asks the network only for what is not on this disk.
    """
    needs = profile.requirements
    messages = [
        card_fault(profile),
        memory_fault(needs.memory_gib),
        disk_fault(needs.disk_gib, root),
    ]
    if profile.midtrain.base_model != "pretrained":
        messages.append(hub_fault(profile.midtrain.base_model, profile.midtrain.revision))
    download = params.download.at(profile.download)
    if download.source == "commoncrawl" and not (root / "data" / "raw" / "manifest.json").is_file():
        messages.append(crawl_fault(download.base, download.crawl))
    return [message for message in messages if message]


def card_fault(profile: Profile) -> str | None:
    """Say what is wrong with the card, None if the profile needs none or it is large enough."""
    if profile.device != "cuda":
        return None
    if not cards():
        return (
            "This profile computes on a card, and torch finds no CUDA device. Install a driver and "
            "the CUDA build of torch (`rm -r .venv && make setup` takes it where there is a card), "
            "or set `profile: cpu`."
        )
    (name, gib), needed = cards()[0], profile.requirements.card_gib
    if gib < needed:
        return (
            f"The card {name} has {gib:.0f} GiB, {needed} GiB are needed. Take one of 80 GB, or "
            "lower sft.max_length, dpo.max_length and requirements.card_gib in the profile."
        )
    return None


def memory_fault(needed: int) -> str | None:
    """Say that the machine has less memory than needed (GiB), None if it has enough."""
    memory = psutil.virtual_memory().total / 2**30
    if memory >= needed:
        return None
    return (
        f"The machine has {memory:.1f} GiB of memory, {needed} GiB are needed. Take a larger one."
    )


def disk_fault(needed: int, root: Path) -> str | None:
    """Say that the disk is too small (GiB, results included), None if it is not."""
    available = shutil.disk_usage(root).free / 2**30 + held_gib(root)
    if available >= needed:
        return None
    return (
        f"{available:.1f} GiB of disk are free or hold results, {needed} GiB are needed. Free some "
        "space, take fewer files (download.files), or let DVC link instead of copy "
        "(`dvc config --local cache.type hardlink`)."
    )


def check_machine(params: Params, root: Path) -> None:
    """Raise UserError if the active profile computes on a card and this machine lacks something."""
    if params.active_profile.device != "cuda":
        return
    if messages := faults(params, params.active_profile, root):
        raise UserError(
            "This machine lacks what the profile needs, so nothing was started.\n  "
            + "\n  ".join(messages)
            + f"\n`make check PROFILE={params.profile}` gives the details."
        )
