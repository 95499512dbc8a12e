"""Run the graph, print what came out, and write the report with the commit and the ledger: `make repro`.

Language models are trained side by side, as many at a time as the profile has processes, or `--jobs`: each takes one process's threads,
and on a CPU two small ones at once are done sooner than one after the other on twice the threads.
The copy at runs/report.html is for people and stays outside DVC: it names the commit and what each stage took, which no cached output
may.
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
    """The numbers a reader wants first, as (what, value)."""
    filtered, pretrained = (
        read_json(ROOT / "metrics/filter.json"),
        read_json(ROOT / "metrics/pretrain.json"),
    )
    router, evaluated = (
        read_json(ROOT / "metrics/router.json"),
        read_json(ROOT / "metrics/evaluate.json"),
    )
    dpo = read_json(ROOT / "metrics/dpo.json")
    rows = [
        (
            "pages kept of those crawled",
            f"{filtered['documents']['kept']} of {filtered['documents']['in']}",
        )
    ]
    rows += [
        (f"{model}: bits per byte on held-out pages", f"{values['val_bits_per_byte']:.3f}")
        for model, values in sorted(
            pretrained.items(), key=lambda item: -item[1]["val_bits_per_byte"]
        )
    ]
    for model in ("base", "sft", "dpo"):
        values = evaluated[model]
        rows.append(
            (
                f"{model}: right tool / exact arguments on {values['n']} held-out turns",
                f"{values['tool_accuracy']:.2f} / {values['argument_exact_match']:.2f}",
            )
        )
    rows.append(("released model", "dpo" if dpo["dpo"]["released_is_dpo"] else "sft"))
    rows.append(("local router F1", f"{router['local']['f1']:.3f}"))
    return rows


def commit() -> str:
    """The commit that made this, and whether the working tree differs from it."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return said.stdout.strip() or "no commit yet"


def report_copy() -> Path:
    """A copy of metrics/report.html with the commit and the ledger before its end."""
    section = (
        f"<section><h2>This run</h2><p>Commit {html.escape(commit())}. What each stage took when it last ran on this machine; "
        "FLOPs as they are counted for training, dollars at the profile's rate for an hour.</p>"
        f'<div class="scroll">{ledger_table(ledger())}</div></section>'
    )
    page = (ROOT / "metrics/report.html").read_text()
    copy = ROOT / "runs" / "report.html"
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(page.replace("</main>", section + "</main>"))
    return copy


def dvc(*words: str, root: Path = ROOT, log: TextIO | None = None) -> None:
    """Runs DVC in a checkout; what it says goes to the terminal or to log. Raises UserError if a stage fails."""
    if subprocess.run(
        [DVC, *words], cwd=root, stdout=log, stderr=log and subprocess.STDOUT
    ).returncode:
        raise UserError(
            "a stage failed; its message is above. Mend it and run `make repro` again: what was finished is "
            "kept. If DVC says that a file is busy and nothing else is running, remove its stale locks with "
            "`rm -f .dvc/tmp/rwlock .dvc/tmp/lock`."
        )


def pretrain(jobs: int, *options: str, root: Path = ROOT, log: TextIO | None = None) -> None:
    """Trains the language models that are not up to date, `jobs` at a time: the last of the list, which takes longest, first.

    options: of `dvc repro`.
    """
    dvc("repro", *options, "encode", root=root, log=log)
    said = subprocess.run(
        [DVC, "status", "--json", "pretrain"], cwd=root, capture_output=True, text=True, check=True
    )
    stop = Event()  # after an error, or Ctrl-C, no further one begins

    def train(model: str) -> None:
        if not stop.is_set():
            try:
                dvc(
                    "--wait-for-lock", "repro", *options, "--single-item", model, root=root, log=log
                )
            except UserError:
                stop.set()
                raise

    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(train, list(json.loads(said.stdout))[::-1]))
        finally:
            stop.set()


def run_graph(jobs: int, *options: str, root: Path = ROOT, log: TextIO | None = None) -> None:
    """Brings the whole graph of a checkout up to date, training `jobs` language models at a time. options: of `dvc repro`."""
    if jobs > 1:
        pretrain(jobs, *options, root=root, log=log)
    dvc("repro", *options, root=root, log=log)


def main() -> None:
    params = read_params(ROOT / "params.yaml")
    parser = argparse.ArgumentParser(
        prog="python -m tools.repro", description=__doc__.split(":")[0]
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=getattr(params.profiles, params.profile).processes,
        help="language models trained at a time (%(default)s)",
    )
    words = parser.parse_args()
    check_machine(params, ROOT)
    run_graph(words.jobs)
    table = results()
    width = max(len(what) for what, _ in table)
    print()
    for what, value in table:
        print(f"{what:<{width}}  {value}")
    cost = total(ledger())
    print(f"\n{'seconds in the stages':<{width}}  {cost.seconds:.0f}")
    print(f"{'US dollars for them':<{width}}  {cost.dollars:.2f}")
    print(f"{'report':<{width}}  {report_copy()}")


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        sys.exit(f"make repro: {problem}")
