"""Run the graph, print what came out, and write the report with the commit and the ledger: `make repro`.

The copy at runs/report.html is for people and stays outside DVC: it names the commit and what each stage took, which no
cached output may.
"""

import html
import subprocess
import sys
from pathlib import Path

from setup.choose import ROOT
from setup.ledger import ledger, ledger_table, total
from stages.common.files import read_json
from stages.common.machine import check_machine
from stages.common.params import read_params
from stages.common.problem import Problem

DVC = ROOT / ".venv" / "bin" / "dvc"


def results() -> list[tuple[str, str]]:
    """The numbers a reader wants first, as (what, value)."""
    filtered, pretrained = read_json(ROOT / "metrics/filter.json"), read_json(ROOT / "metrics/pretrain.json")
    router, evaluated = read_json(ROOT / "metrics/router.json"), read_json(ROOT / "metrics/evaluate.json")
    dpo = read_json(ROOT / "metrics/dpo.json")
    rows = [("pages kept of those crawled", f"{filtered['documents']['kept']} of {filtered['documents']['in']}")]
    rows += [(f"{model}: bits per byte on held-out pages", f"{values['val_bits_per_byte']:.3f}")
             for model, values in sorted(pretrained.items(), key=lambda item: -item[1]["val_bits_per_byte"])]
    for model in ("base", "sft", "dpo"):
        values = evaluated[model]
        rows.append((f"{model}: right tool / exact arguments on {values['n']} held-out turns",
                     f"{values['right_tool']:.2f} / {values['exact_arguments']:.2f}"))
    rows.append(("released model", "dpo" if dpo["dpo"]["released_is_dpo"] else "sft"))
    rows.append(("local router F1", f"{router['local']['f1']:.3f}"))
    return rows


def commit() -> str:
    """The commit that made this, and whether the working tree differs from it."""
    said = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True)
    return said.stdout.strip() or "no commit yet"


def report_copy() -> Path:
    """A copy of metrics/report.html with the commit and the ledger before its end."""
    section = (f"<section><h2>This run</h2><p>Commit {html.escape(commit())}. What each stage took when it last ran on this machine; "
               "FLOPs as they are counted for training, dollars at the profile's rate for an hour.</p>"
               f'<div class="scroll">{ledger_table(ledger())}</div></section>')
    page = (ROOT / "metrics/report.html").read_text()
    copy = ROOT / "runs" / "report.html"
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(page.replace("</main>", section + "</main>"))
    return copy


def main() -> None:
    check_machine(read_params(ROOT / "params.yaml"), ROOT)
    if subprocess.run([DVC, "repro"], cwd=ROOT).returncode:
        raise Problem("a stage failed; its message is above. Mend it and run `make repro` again: what was finished is "
                      "kept. If DVC says that a file is busy and nothing else is running, remove its stale locks with "
                      "`rm -f .dvc/tmp/rwlock .dvc/tmp/lock`.")
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
    except Problem as problem:
        sys.exit(f"make repro: {problem}")
