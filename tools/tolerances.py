"""Measure how much each metric varies with the seed and write metrics/tolerances.json.

`make tolerances` runs the committed profile from nothing for each seed, in clones of the last
commit. Finished runs are kept in .cache/tolerances/<commit>/<seed>.json ({"seed": 7, "metrics":
{"sft:sft.train_loss": 2.1, …}}) and unfinished clones beside them, so that a stopped measurement
resumes. Runs from elsewhere count too: put their files there, or name their folders with `--take`.

The tolerance of a number is its largest minus its smallest value; another processor's rounding
changes less than a seed. A metric that is no number, or that some runs lack, may differ freely if a
seed changes it.
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

MIN_SEEDS = 5
RULE = "largest minus smallest value over the seeds; other values are free if a seed changes them"


def commit_of(clone: Path) -> str:
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    run = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def set_seed(params: Path, seed: int) -> None:
    text = re.sub(r"^seed: \d+", f"seed: {seed}", params.read_text(), flags=re.MULTILINE)
    params.write_text(text)


def save_run(runs: Path, clone: Path) -> None:
    """Save the metrics of a finished clone under its seed."""
    seed = read_params(clone / "params.yaml", keys=()).seed
    write_json(runs / f"{seed}.json", {"seed": seed, "metrics": metrics_below(clone)})


def run_with_seed(seed: int, runs: Path) -> None:
    """Run the graph with this seed unless its metrics are saved.

    A stopped clone resumes: `dvc repro` skips finished stages, and the stage that was running has
    its checkpoint.
    """
    if (runs / f"{seed}.json").is_file():
        print(f"seed {seed}: already measured", flush=True)
        return
    folder = runs / f"seed-{seed}"
    clone = folder / "crawl2cart"
    if not (clone / ".venv").is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
        clone = fresh_clone(folder)
    set_seed(clone / "params.yaml", seed)
    jobs = read_params(clone / "params.yaml").active_profile.num_processes
    with (folder / "log.txt").open("a") as log:
        print(f"seed {seed}: running, see {log.name}", flush=True)
        try:
            run_graph(jobs, "--no-run-cache", root=clone, log=log)
        except UserError as error:
            raise UserError(
                f"the run with seed {seed} failed; see {log.name}. Correct the error and run the "
                "same command again, which resumes the run."
            ) from error
    save_run(runs, clone)
    shutil.rmtree(folder)


def spread(runs: list[dict[str, object]]) -> tuple[dict[str, float], list[str]]:
    """Return tolerances by metric, and the free metrics. Metrics equal in all runs are in neither.

    runs: flat metrics of each run.
    """
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
    parser.add_argument("seeds", type=int, nargs="*", help="seeds to run")
    parser.add_argument("--jobs", type=int, default=1, help="runs in parallel")
    take = {"metavar": "FOLDER", "help": "folder of a finished run; may be repeated"}
    parser.add_argument("--take", type=Path, action="append", default=[], **take)
    arguments = parser.parse_args()
    commits = {commit_of(folder) for folder in arguments.take} or {commit_of(ROOT)}
    if len(commits) > 1:
        raise UserError(
            f"the folders to take are of several commits: {', '.join(sorted(commits))}. Give runs "
            "of one commit."
        )
    (commit,) = commits
    if arguments.seeds and commit != commit_of(ROOT):
        raise UserError(
            f"the folders to take are of commit {commit}, but this is {commit_of(ROOT)}. "
            f"Check out {commit} to add seeds."
        )
    runs = ROOT / ".cache" / "tolerances" / commit
    for folder in arguments.take:
        save_run(runs, folder)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda seed: run_with_seed(seed, runs), arguments.seeds))
    write_tolerances(runs, commit)


def write_tolerances(runs: Path, commit: str) -> None:
    """Write metrics/tolerances.json from the saved runs. Raises UserError if there are too few."""
    entries = sorted(map(read_json, runs.glob("*.json")), key=lambda entry: entry["seed"])
    if len(entries) < MIN_SEEDS:
        raise UserError(
            f"{len(entries)} seeds are measured for commit {commit}, at least {MIN_SEEDS} are "
            "needed: python -m tools.tolerances 7 8 9 10 11"
        )
    tolerances, free = spread([entry["metrics"] for entry in entries])
    origin = {
        "seeds": [entry["seed"] for entry in entries],
        "commit": commit,
        "profile": read_params(ROOT / "params.yaml", keys=()).profile,
        "rule": RULE,
    }
    values = {"origin": origin, "tolerances": tolerances, "free": free}
    write_json(ROOT / "metrics" / "tolerances.json", values)
    print(
        f"metrics/tolerances.json: of {len(entries)} seeds; {len(tolerances)} metrics vary with "
        f"the seed, {len(free)} are free"
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"make tolerances: {error}")
