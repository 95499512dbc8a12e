"""A folder in which `download` and `filter` run, and what they leave there."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from crawl2cart.core.stage import Stage
from crawl2cart.crawl.embedded_web.sites import gold_text, read_sites
from crawl2cart.crawl.evaluate import COLUMNS
from stages import download, filter
from tests.conftest import ROOT

OUTS = ("data/corpus", "data/rejects", "metrics/filter.json", "metrics/filter.tsv")
LINKED = (
    "stages",
    "crawl2cart",
    "requirements.txt",
    "data/web/designs",
    "data/web/personal.csv",
    "data/web/topics.csv",
    "data/web/blocked_hosts.txt",
    "data/store",
)


def choose_sites(tuned: int, held_out: int) -> list[Path]:
    """So many sites of the embedded web that are held out, and that are not."""
    by_host = {page.host: page.site.held_out for page in read_sites(ROOT / "data/web/sites")}
    hosts = [
        [host for host in sorted(by_host) if by_host[host] == which] for which in (False, True)
    ]
    return [ROOT / "data/web/sites" / host for host in hosts[0][:tuned] + hosts[1][:held_out]]


def make_workplace(folder: Path, sites: list[Path]) -> Path:
    """Put the project's code, its parameters and some sites into a folder.

    A file has three pages, and one process does them all: starting others takes seconds. A page is
    labelled keep if its gold text is long, which is true enough for these tests.
    """
    (folder / "data/web/sites").mkdir(parents=True)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    for name in ("dvc.yaml", "params.yaml"):
        (folder / name).write_text((ROOT / name).read_text())
    set_params(folder, pages_per_file="3", workers="1")
    for site in sites:
        shutil.copytree(site, folder / "data/web/sites" / site.name)
    rows = [
        f"{page.url},{'keep' if len(gold_text(page).split()) > 120 else 'drop'},,en,,0"
        for page in (read_sites(folder / "data/web/sites") if sites else [])
    ]
    (folder / "data/web/labels.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return folder


def set_params(folder: Path, **changed: str) -> None:
    """Set keys of the sections `download` and `filter`."""
    text = (folder / "params.yaml").read_text()
    for key, value in changed.items():
        text, count = re.subn(rf"(?m)^  {key}: .*$", f"  {key}: {value}", text, count=1)
        assert count == 1, key
    (folder / "params.yaml").write_text(text)


def take_files(folder: Path, **contents: bytes) -> None:
    """Let `download` take files with these names and contents."""
    for name, content in contents.items():
        (folder / f"{name}.warc.gz").write_bytes(content)
    set_params(folder, source="files", paths='"*.warc.gz"')


def run_both() -> dict:
    """Run download and filter in the working directory; return the metrics."""
    download.main(Stage("download"))
    return run_filter()


def run_filter() -> dict:
    filter.main(Stage("filter"))
    return json.loads(Path("metrics/filter.json").read_text())


def digest(folder: Path) -> str:
    """One hash over all outs of the filter."""
    total = hashlib.sha256()
    for out in OUTS:
        path = folder / out
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                total.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return total.hexdigest()


def corpus(split: str) -> list[dict]:
    return pq.read_table(f"data/corpus/{split}/part-00000.parquet").to_pylist()


def corpus_urls() -> set[str]:
    return {row["url"] for row in corpus("train") + corpus("val")}


def rejects() -> list[dict]:
    return pq.read_table("data/rejects/part-00000.parquet").to_pylist()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workplace without sites as the working directory, for files of a test's own."""
    folder = make_workplace(tmp_path / "workplace", [])
    monkeypatch.chdir(folder)
    return folder
