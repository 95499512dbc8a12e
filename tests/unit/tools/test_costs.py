"""The costs of stages are added up in the copy of the report."""

import json
import re
import shutil

import pytest

from crawl2cart.core.params import read_params
from tests.conftest import ROOT
from tools import costs, repro

GRU = {
    "seconds": 1800.0,
    "tokens": 655_360,
    "flops": 2.5e12,
    "peak_memory_mib": 1e6,
    "peak_card_mib": 2048.0,
    "read_bytes": 10**6,
    "written_bytes": 2 * 10**6,
}
DOWNLOAD = dict.fromkeys(GRU, 0) | {"seconds": 3.0, "peak_memory_mib": 25.0, "written_bytes": 7}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project in which stages wrote costs; those of `sft` are of an older version."""
    (tmp_path / "runs").mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "runs" / "download.json").write_text(json.dumps(DOWNLOAD))
    (tmp_path / "runs" / "pretrain@gru.json").write_text(json.dumps(GRU))
    (tmp_path / "runs" / "sft.json").write_text('{"seconds": 1.0, "peak_memory_mib": 1.0}')
    for module in (costs, repro):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


def test_costs_add_up_and_dollars_follow_from_the_profile(project):
    entries = costs.ledger()
    assert [entry.stage for entry in entries] == ["download", "pretrain@gru"]
    rate = read_params(project / "params.yaml").active_profile.dollars_per_hour
    assert entries[1].dollars == pytest.approx(rate / 2)
    total = costs.total(entries)
    assert (total.seconds, total.tokens, total.flops) == (1803.0, 655_360, 2.5e12)
    assert (total.peak_memory_mib, total.written_bytes) == (1e6, 2 * 10**6 + 7)


def test_the_copy_of_the_report_shows_costs_and_the_report_does_not(project):
    report = project / "metrics" / "report.html"
    report.parent.mkdir()
    report.write_text("<html><main><h1>Report</h1></main></html>")
    page = repro.report_copy().read_text()
    rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert rows[0] == list(costs.COLUMNS.values())
    assert rows[2][:5] == ["pretrain@gru", "1,800.0", "655,360", "2.5", "1,000,000"]
    assert rows[-1][0] == "all"
    assert page.endswith("</main></html>") and "This run" not in report.read_text()
