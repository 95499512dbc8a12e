"""Measure how far each metric moves with the seed, and write that as its tolerance into metrics/tolerances.json.

`make tolerances` runs the committed profile from nothing once for each seed, in clones of the last commit. What is finished
is kept in .cache/tolerances/<commit>/<seed>.json ({"seed": 7, "metrics": {"sft:sft.train_loss": 2.1, …}}), a clone that is
not finished beside it, so that a stopped measurement goes on where it was. Runs made elsewhere count too: put their files
there, or name the folder of each with `--take`.

The tolerance of a number is the distance of its largest from its smallest value. What another processor's rounding does is
smaller than what a seed does. What is no number, or is not there under every seed, is free to differ if a seed changes it.
"""

import argparse
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_json, write_json
from crawl2cart.core.metrics import rounded
from crawl2cart.core.params import read_params
from tools.repro import ROOT, run_graph
from tools.reproduce import fresh_clone, is_number, metrics_below

LEAST_SEEDS = 5
RULE = (
    "largest minus smallest value over the seeds; what is no number is free where a seed changes it"
)


def commit_of(clone: Path) -> str:
    said = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        cwd=clone,
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout.strip()


def set_seed(params: Path, seed: int) -> None:
    params.write_text(
        re.sub(r"^seed: \d+", f"seed: {seed}", params.read_text(), flags=re.MULTILINE)
    )


def keep(kept: Path, clone: Path) -> None:
    """Notes the metrics of a finished clone under its seed."""
    seed = read_params(clone / "params.yaml").seed
    write_json(kept / f"{seed}.json", {"seed": seed, "metrics": metrics_below(clone)})


def run_with_seed(seed: int, kept: Path) -> None:
    """Runs the graph with this seed unless its metrics are kept. A clone that was stopped goes on: `dvc repro` skips what
    is finished, and the stage that was under way has its checkpoint."""
    if (kept / f"{seed}.json").is_file():
        print(f"seed {seed}: measured before", flush=True)
        return
    folder = kept / f"seed-{seed}"
    clone = folder / "crawl2cart"
    if not (clone / ".venv").is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
        clone = fresh_clone(folder)
    set_seed(clone / "params.yaml", seed)
    params = read_params(clone / "params.yaml")
    profile = getattr(params.profiles, params.profile)
    with (folder / "log.txt").open("a") as log:
        print(f"seed {seed}: running, see {log.name}", flush=True)
        try:
            run_graph(profile.num_processes, "--no-run-cache", root=clone, log=log)
        except UserError as problem:
            raise UserError(
                f"the run with seed {seed} failed; its messages are in {log.name}. Run the same command again "
                "when that is mended: it goes on where it was."
            ) from problem
    keep(kept, clone)
    shutil.rmtree(folder)


def spread(runs: list[dict[str, object]]) -> tuple[dict[str, float], list[str]]:
    """(tolerance by metric, metrics that are free) of the flat metrics of several runs; what is equal in all is in neither."""
    tolerances, free = {}, []
    for name in sorted(set().union(*runs)):
        values = [run.get(name) for run in runs]
        if all(map(is_number, values)):
            if max(values) > min(values):
                tolerances[name] = rounded(float(max(values) - min(values)))
        elif any(value != values[0] for value in values):
            free.append(name)
    return tolerances, free


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.tolerances",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "seeds", type=int, nargs="*", help="seeds to run, as many as are missing from five"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time; each uses the threads of the profile"
    )
    parser.add_argument(
        "--take",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a finished run; again for another",
    )
    words = parser.parse_args()
    commits = {commit_of(folder) for folder in words.take} or {commit_of(ROOT)}
    if len(commits) > 1:
        raise UserError(
            f"the folders to take are of several commits, {', '.join(sorted(commits))}. Give runs of one."
        )
    (commit,) = commits
    if words.seeds and commit != commit_of(ROOT):
        raise UserError(
            f"the folders to take are of commit {commit}, but this is {commit_of(ROOT)}. Check {commit} out to add seeds."
        )
    kept = ROOT / ".cache" / "tolerances" / commit
    for folder in words.take:
        keep(kept, folder)
    with ThreadPoolExecutor(words.jobs) as pool:
        list(pool.map(lambda seed: run_with_seed(seed, kept), words.seeds))
    entries = sorted(
        (read_json(file) for file in kept.glob("*.json")), key=lambda entry: entry["seed"]
    )
    if len(entries) < LEAST_SEEDS:
        raise UserError(
            f"{len(entries)} seeds are measured for commit {commit}, {LEAST_SEEDS} are the least: "
            "python -m tools.tolerances 7 8 9 10 11"
        )
    tolerances, free = spread([entry["metrics"] for entry in entries])
    write_json(
        ROOT / "metrics" / "tolerances.json",
        {
            "origin": {
                "seeds": [entry["seed"] for entry in entries],
                "commit": commit,
                "profile": read_params(ROOT / "params.yaml").profile,
                "rule": RULE,
            },
            "tolerances": tolerances,
            "free": free,
        },
    )
    print(
        f"metrics/tolerances.json: {len(tolerances)} metrics move with the seed, {len(free)} are free, of {len(entries)} seeds"
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        sys.exit(f"make tolerances: {problem}")
