"""What a run cost is noted outside DVC's outs and added up in the copy of the report."""

import json
import re
import subprocess
import sys

import pytest

from crawl2cart.core.dvc_yaml import definitions
from crawl2cart.core.params import read_params
from tools import costs as ledgers
from tools import repro


@pytest.fixture
def noted(project, monkeypatch):
    """A project in which `download` ran and pretraining left the note of a run whose figures are known."""
    subprocess.run(
        [sys.executable, "-m", "stages.download"], cwd=project, check=True, capture_output=True
    )
    (project / "runs" / "pretrain@gru.json").write_text(
        json.dumps(
            {
                "seconds": 1800.0,
                "tokens": 655_360,
                "flops": 2.5e12,
                "peak_memory_mib": 1e6,
                "peak_card_mib": 2048.0,
                "read_bytes": 10**6,
                "written_bytes": 2 * 10**6,
            }
        )
    )
    (project / "runs" / "sft.json").write_text(
        '{"seconds": 1.0, "peak_memory_mib": 1.0}'
    )  # of an older version
    for module in (ledgers, repro):
        monkeypatch.setattr(module, "ROOT", project)
    return project


def test_a_stage_notes_what_it_read_and_wrote(noted):
    found = json.loads((noted / "runs" / "download.json").read_text())
    inputs = [noted / dep for dep in definitions(noted, "smoke")["download"].deps]
    files = [
        file
        for path in inputs
        for file in (path.rglob("*") if path.is_dir() else [path])
        if file.is_file() and "__pycache__" not in file.parts
    ]
    assert found["read_bytes"] == sum(file.stat().st_size for file in files)
    assert found["written_bytes"] == sum(
        file.stat().st_size for file in (noted / "data" / "raw").iterdir()
    )
    assert found["seconds"] > 0 and found["peak_memory_mib"] > 20
    assert (found["tokens"], found["flops"], found["peak_card_mib"]) == (0, 0, 0)


def test_the_ledger_adds_up_and_counts_dollars_at_the_profile_s_rate(noted):
    entries = ledgers.ledger()
    assert [entry.stage for entry in entries] == ["download", "pretrain@gru"]
    rate = read_params(noted / "params.yaml").profiles.smoke.dollars_per_hour
    assert entries[1].dollars == pytest.approx(rate / 2)
    whole = ledgers.total(entries)
    assert whole.seconds == pytest.approx(1800 + entries[0].seconds)
    assert (whole.tokens, whole.flops, whole.peak_memory_mib) == (655_360, 2.5e12, 1e6)
    assert whole.written_bytes == 2 * 10**6 + entries[0].written_bytes


def test_the_copy_of_the_report_shows_it_and_the_report_itself_does_not(noted):
    report = noted / "metrics" / "report.html"
    report.write_text("<html><main><h1>Report</h1></main></html>")
    page = repro.report_copy().read_text()
    rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert rows[0] == list(ledgers.COLUMNS.values())
    assert rows[2][:5] == ["pretrain@gru", "1,800.0", "655,360", "2.5", "1,000,000"]
    assert rows[-1][0] == "all"
    assert page.endswith("</main></html>") and "This run" not in report.read_text()
