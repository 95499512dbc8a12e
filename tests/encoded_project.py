"""A small project with encoded tokens, for tests that run `pretrain`."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crawl2cart.core.stage import Stage
from stages import encode
from tests.conftest import ROOT


@pytest.fixture
def encoded(project: Path, monkeypatch) -> Path:
    """A copy of the project, which is the current folder, with its own sources as the corpus."""
    monkeypatch.chdir(project)
    files = sorted((ROOT / "stages").rglob("*.py"))
    texts = [file.read_text() for file in files if file.stat().st_size]
    for split, part in (("train", texts[4:]), ("val", texts[:4])):
        folder = project / "data" / "corpus" / split
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"text": part}), folder / "0.parquet")
    encode.main(Stage("encode"))
    return project


def outs(project: Path, name: str) -> dict[str, bytes]:
    """Return the files that `pretrain` of a model wrote."""
    files = [
        *(project / "models" / "pretrain" / name).iterdir(),
        *(project / "metrics" / "pretrain").glob(f"{name}.*"),
    ]
    return {file.name: file.read_bytes() for file in files}


def losses(project: Path, name: str) -> list[float]:
    """Return the training loss of each point of the curve."""
    rows = (project / "metrics" / "pretrain" / f"{name}.tsv").read_text().splitlines()
    return [float(row.split("\t")[1]) for row in rows[1:]]


def set_param(project: Path, section: str, key: str, value: str) -> None:
    """Change a key of one model's section under `pretrain`, or of its loop."""
    params = project / "params.yaml"
    text = params.read_text()
    at = text.index(f" {key}:", text.index(f"  {section}:", text.index("\npretrain:")))
    params.write_text(text[:at] + f" {key}: {value}" + text[text.index("\n", at) :])


def start_pretrain(project: Path, name: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "stages.pretrain", name]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True)
