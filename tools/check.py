"""Say what this machine has, what a profile needs and what its stages will take: `make check PROFILE=gpu`.

It ends with a sentence for everything that lacks and status 1, or with `missing nothing`.
"""

import platform
import shutil
import sys

import psutil
import torch

from crawl2cart.core.device import has_fast_bfloat16
from crawl2cart.core.errors import UserError
from crawl2cart.core.machine import cards, cores, faults, held_gib
from crawl2cart.core.params import NAMES, Params, Profile, read_params
from tools.estimate_resources import needs, needs_table
from tools.set_profile import ROOT, current_profile


def profile_of(params: Params, name: str) -> Profile:
    if name not in NAMES:
        raise UserError(f"there is no profile {name} in params.yaml; there are {', '.join(NAMES)}.")
    return getattr(params.profiles, name)


def findings(params: Params, name: str) -> list[str]:
    """What was found against what is needed."""
    profile = profile_of(params, name)
    memory = psutil.virtual_memory()
    fast, card = (
        has_fast_bfloat16(),
        ", ".join(f"{model} with {size:.0f} GiB" for model, size in cards()),
    )
    lines = [
        f"machine          {platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        f"torch            {torch.__version__}, CUDA {torch.version.cuda or 'no'}",
        f"card             {card or 'none'}, needed {f'one of {profile.requirements.card_gib} GiB' if profile.requirements.card_gib else 'none'}",
        f"cores            {cores()}, the profile uses {profile.threads} threads, the filter {params.filter.workers} processes",
        f"free memory      {memory.available / 2**30:.1f} GiB of {memory.total / 2**30:.1f} GiB, needed {profile.requirements.memory_gib} GiB",
        f"free disk        {shutil.disk_usage(ROOT).free / 2**30:.1f} GiB, and {held_gib(ROOT):.1f} GiB hold results, needed "
        f"{profile.requirements.disk_gib} GiB",
        f"time             about {profile.requirements.minutes} minutes from nothing"
        + (" on 2 cores with fast bfloat16" if profile.device == "cpu" else ", not measured"),
        f"fast bfloat16    {'yes' if fast else 'no'}; the profile computes in {profile.dtype}",
        f"base model       {profile.midtrain.base_model}, revision {profile.midtrain.revision}",
    ]
    if not fast and profile.dtype == "bfloat16":
        lines.append(
            f"advice           `dvc exp run -S profiles.{name}.dtype=float32` is faster on this processor"
        )
    if profile.device == "cuda" and cores() > 2 * params.filter.workers:
        lines.append(
            f"advice           `-S filter.workers={cores()}` lets the filter use all cores; the corpus is the same"
        )
    if profile.midtrain.base_model != "pretrained":
        lines += ["", *needs_table(needs(params, profile)), ""]
    return lines


def main() -> None:
    name = sys.argv[1] if sys.argv[1:] else current_profile()
    params = read_params(ROOT / "params.yaml")
    print(f"profile {name}")
    print("\n".join(findings(params, name)), flush=True)
    if missing := faults(params, profile_of(params, name), ROOT):
        sys.exit("\n".join(f"missing          {fault}" for fault in missing))
    print("missing          nothing")


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        sys.exit(f"make check: {problem}")
