"""Say what this machine has and what a profile needs: `make check PROFILE=cpu`."""

import os
import platform
import shutil
import sys

import psutil
import torch

from setup.choose import ROOT, current_profile
from stages.common.device import has_fast_bfloat16
from stages.common.params import NAMES, read_params
from stages.common.problem import Problem


def findings(name: str) -> tuple[list[str], list[str]]:
    """(what was found against what is needed, what is missing) for a profile."""
    if name not in NAMES:
        raise Problem(f"there is no profile {name} in params.yaml; there are {', '.join(NAMES)}.")
    profile = getattr(read_params(ROOT / "params.yaml").profiles, name)
    memory = psutil.virtual_memory().available / 2**30
    disk = shutil.disk_usage(ROOT).free / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fast = has_fast_bfloat16()
    lines = [
        f"machine          {platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        f"torch            {torch.__version__}, CUDA {'yes' if torch.cuda.is_available() else 'no'}",
        f"cores            {cores}, the profile uses {profile.threads} threads",
        f"free memory      {memory:.1f} GiB, needed {profile.needs.memory_gib} GiB",
        f"free disk        {disk:.1f} GiB, needed {profile.needs.disk_gib} GiB",
        f"time             about {profile.needs.minutes} minutes from nothing"
        + (" on 2 cores with fast bfloat16" if profile.device == "cpu" else ""),
        f"fast bfloat16    {'yes' if fast else 'no'}; the profile computes in {profile.dtype}",
    ]
    missing = []
    if profile.device == "cuda" and not torch.cuda.is_available():
        missing.append("a CUDA device")
    if memory < profile.needs.memory_gib:
        missing.append(f"{profile.needs.memory_gib - memory:.1f} GiB of memory")
    if disk < profile.needs.disk_gib:
        missing.append(f"{profile.needs.disk_gib - disk:.1f} GiB of disk")
    if not fast and profile.dtype == "bfloat16":
        lines.append(f"advice           `dvc exp run -S profiles.{name}.dtype=float32` is faster on this processor")
    return lines, missing


def main() -> None:
    name = sys.argv[1] if sys.argv[1:] else current_profile()
    lines, missing = findings(name)
    print(f"profile {name}")
    print("\n".join(lines))
    if missing:
        sys.exit(f"missing          {', '.join(missing)}")
    print("missing          nothing")


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(f"make check: {problem}")
