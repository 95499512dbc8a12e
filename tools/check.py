"""Compare this machine with what a profile needs: `make check PROFILE=gpu`.

Prints what the machine has, advice, and for a profile with a hub model estimates per stage. Ends
with `missing nothing`, or with a message for each thing that is missing and exit status 1.
"""

import platform
import shutil
import subprocess
import sys

import psutil
import torch

from crawl2cart.core.device import has_fast_bfloat16
from crawl2cart.core.errors import UserError
from crawl2cart.core.machine import cards, cores, faults, held_gib
from crawl2cart.core.params import PROFILES, Params, Profile, read_params
from tools.estimate_resources import needs, needs_table
from tools.set_profile import ROOT, current_profile


def profile_named(params: Params, name: str) -> Profile:
    if name not in PROFILES:
        raise UserError(
            f"there is no profile {name} in params.yaml; there are {', '.join(PROFILES)}."
        )
    return getattr(params.profiles, name)


def findings(params: Params, profile: Profile) -> dict[str, str]:
    """Return what the machine has and what the profile needs, by topic."""
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(ROOT)
    needed, base, dtype = profile.requirements, profile.midtrain, profile.dtype
    card = ", ".join(f"{model} with {size:.0f} GiB" for model, size in cards()) or "none"
    card_needed = f"one of {needed.card_gib} GiB" if needed.card_gib else "none"
    on_what = "on 2 cores with fast bfloat16" if profile.device == "cpu" else "(an estimate)"
    return {
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'no'}",
        "card": f"{card}, needed {card_needed}",
        "cores": f"{cores()}, the profile uses {profile.threads} threads, "
        f"the filter {params.filter.workers} processes",
        "free memory": f"{memory.available / 2**30:.1f} GiB of {memory.total / 2**30:.1f} GiB, "
        f"needed {needed.memory_gib} GiB",
        "free disk": f"{disk.free / 2**30:.1f} GiB, and {held_gib(ROOT):.1f} GiB hold results, "
        f"needed {needed.disk_gib} GiB",
        "time": f"about {needed.minutes} minutes from nothing {on_what}",
        "fast bfloat16": f"{'yes' if has_fast_bfloat16() else 'no'}; the profile uses {dtype}",
        "base model": f"{base.base_model}, revision {base.revision}",
        "git identity": "yes" if has_git_identity() else "no",
    }


def has_git_identity() -> bool:
    """Return whether git knows who commits here."""
    command = ["git", "var", "GIT_COMMITTER_IDENT"]
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def advice(params: Params, name: str, profile: Profile) -> list[str]:
    """Return what to change, though the graph runs without it."""
    messages = []
    if not has_fast_bfloat16() and profile.dtype == "bfloat16":
        option = f"-S profiles.{name}.dtype=float32"
        messages.append(f"`dvc exp run {option}` is faster on this processor")
    if profile.device == "cuda" and cores() > 2 * params.filter.workers:
        option = f"-S filter.workers={cores()}"
        messages.append(f"`{option}` lets the filter use all cores; the corpus is the same")
    if not has_git_identity():
        messages.append(
            "`dvc exp run --temp` and `--queue` need a git identity: "
            "git config user.name NAME, git config user.email ADDRESS"
        )
    if not str(ROOT).isascii():
        messages.append(
            "`dvc exp run --temp` fails below a path that is not ASCII; move the project"
        )
    return messages


def main() -> None:
    name = sys.argv[1] if sys.argv[1:] else current_profile()
    params = read_params(ROOT / "params.yaml")
    profile = profile_named(params, name)
    print(f"profile {name}")
    for topic, finding in findings(params, profile).items():
        print(f"{topic:<16} {finding}")
    for message in advice(params, name, profile):
        print(f"{'advice':<16} {message}")
    if profile.midtrain.base_model != "pretrained":
        print("", *needs_table(needs(params, profile)), "", sep="\n")
    sys.stdout.flush()
    if messages := faults(params, profile, ROOT):
        sys.exit("\n".join(f"{'missing':<16} {message}" for message in messages))
    print(f"{'missing':<16} nothing")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"make check: {error}")
