"""Run the graph, print its results and write a report with the commit and the costs: `make repro`.

`--jobs` language models train in parallel (default: the profile's num_processes). Each uses the
threads of one process: on a CPU that is faster than one model after another on all threads. The
copy of the report in runs/ stays outside DVC, since outs may not hold a commit or a duration.
"""

import argparse
import html
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TextIO

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_json
from crawl2cart.core.machine import check_machine
from crawl2cart.core.params import read_params
from tools.costs import ledger, ledger_table, total
from tools.set_profile import ROOT

DVC = ROOT / ".venv" / "bin" / "dvc"


def results() -> list[tuple[str, str]]:
    """Return the main results as (what, value)."""
    names = ("filter", "pretrain", "router", "evaluate", "dpo")
    filtered, pretrained, router, evaluated, dpo = (
        read_json(ROOT / "metrics" / f"{name}.json") for name in names
    )
    documents = filtered["documents"]
    rows = [("pages kept of those crawled", f"{documents['kept']} of {documents['in']}")]
    bits = {model: values["val_bits_per_byte"] for model, values in pretrained.items()}
    for model in sorted(bits, key=bits.get, reverse=True):
        rows.append((f"{model}: bits per byte on held-out pages", f"{bits[model]:.3f}"))
    for model in ("base", "sft", "dpo"):
        values = evaluated[model]
        what = f"{model}: right tool / exact arguments on {values['n']} held-out turns"
        accuracy = f"{values['tool_accuracy']:.2f} / {values['argument_exact_match']:.2f}"
        rows.append((what, accuracy))
    rows.append(("released model", "dpo" if dpo["dpo"]["released_is_dpo"] else "sft"))
    rows.append(("local router F1", f"{router['local']['f1']:.3f}"))
    return rows


def commit() -> str:
    """Return the current commit, with `-dirty` if the working tree differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() or "no commit yet"


def report_copy() -> Path:
    """Write a copy of metrics/report.html that ends with the commit and the costs."""
    section = (
        f"<section><h2>This run</h2><p>Commit {html.escape(commit())}. Costs of each stage when it "
        "last ran on this machine. TFLOP are those of training; dollars follow from the profile's "
        "hourly rate.</p>"
        f'<div class="scroll">{ledger_table(ledger())}</div></section>'
    )
    page = (ROOT / "metrics/report.html").read_text()
    copy = ROOT / "runs" / "report.html"
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(page.replace("</main>", section + "</main>"))
    return copy


def dvc(*arguments: str, root: Path = ROOT, log: TextIO | None = None) -> None:
    """Run DVC in a checkout. Raises UserError if a stage fails.

    log: receives the output (default: the terminal).
    """
    command = [DVC, *arguments]
    run = subprocess.run(command, cwd=root, stdout=log, stderr=log and subprocess.STDOUT)
    if run.returncode:
        raise UserError(
            "a stage failed; its message is above. Correct the error and run `make repro` again, "
            "which keeps finished stages. If DVC says that a file is busy and no other DVC is "
            "running, remove its locks: `rm -f .dvc/tmp/rwlock .dvc/tmp/lock`."
        )


def pretrain(jobs: int, *options: str, root: Path = ROOT, log: TextIO | None = None) -> None:
    """Train the language models that are out of date, `jobs` at a time.

    The last of the list takes longest and starts first. options: of `dvc repro`.
    """
    dvc("repro", *options, "encode", root=root, log=log)
    command = [DVC, "status", "--json", "pretrain"]
    status = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    stop = Event()  # after an error or Ctrl-C no other model starts
    repro = ("--wait-for-lock", "repro", *options, "--single-item")

    def train(model: str) -> None:
        if not stop.is_set():
            try:
                dvc(*repro, model, root=root, log=log)
            except UserError:
                stop.set()
                raise

    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(train, list(json.loads(status.stdout))[::-1]))
        finally:
            stop.set()


def run_graph(jobs: int, *options: str, root: Path = ROOT, log: TextIO | None = None) -> None:
    """Bring the graph of a checkout up to date with `jobs` language models at a time.

    options: of `dvc repro`.
    """
    if jobs > 1:
        pretrain(jobs, *options, root=root, log=log)
    dvc("repro", *options, root=root, log=log)


def main() -> None:
    params = read_params(ROOT / "params.yaml")
    description = __doc__.split(":")[0]
    parser = argparse.ArgumentParser(prog="python -m tools.repro", description=description)
    parser.add_argument(
        "--jobs",
        type=int,
        default=params.active_profile.num_processes,
        help="language models to train in parallel (default: %(default)s)",
    )
    arguments = parser.parse_args()
    check_machine(params, ROOT)
    run_graph(arguments.jobs)
    table = results()
    width = max(len(what) for what, _ in table)
    print()
    for what, value in table:
        print(f"{what:<{width}}  {value}")
    cost = total(ledger())
    print(f"\n{'seconds in the stages':<{width}}  {cost.seconds:.0f}")
    print(f"{'their cost in US dollars':<{width}}  {cost.dollars:.2f}")
    print(f"{'report':<{width}}  {report_copy()}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"make repro: {error}")
