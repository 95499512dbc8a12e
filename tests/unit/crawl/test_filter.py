"""From WARC files to a corpus: the same bytes always, counted to the last page, whatever happens on the way."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.core.params import read_params
from crawl2cart.core.stage import Stage, exclusive
from crawl2cart.crawl.embedded_web.sites import gold_text, read_sites
from crawl2cart.crawl.evaluate import COLUMNS
from crawl2cart.crawl.executor import Task, run_tasks
from crawl2cart.crawl.filters.decontaminate import read_held_out
from crawl2cart.crawl.shards import KEPT_RUNS, prune
from stages import download, filter
from tests.conftest import ROOT
from tests.unit.crawl.test_warc import RECORDS, http_block, members, warc_record

OUTS = ("data/corpus", "data/rejects", "metrics/filter.json", "metrics/filter.tsv")
LIMITS = read_params(ROOT / "params.yaml").filter
# Three pages a file, and all files in one process unless a test is about several: starting them takes seconds.
SMALL = {"pages_per_file: 100": "pages_per_file: 3", "  workers: 2\n": "  workers: 1\n"}


def make_workplace(folder: Path, sites: list[Path]) -> Path:
    """A folder in which stages run: the project's code and parameters and the given sites, three pages a file. A page is
    labelled keep if its gold text is long; that is truth enough for what is tested here."""
    (folder / "data/web/sites").mkdir(parents=True)
    for name in (
        "stages",
        "requirements.txt",
        "data/web/designs",
        "data/web/personal.csv",
        "data/web/topics.csv",
        "data/web/blocked_hosts.txt",
        "data/store",
    ):
        (folder / name).symlink_to(ROOT / name)
    (folder / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    params = (ROOT / "params.yaml").read_text()
    for ours, theirs in SMALL.items():
        params = params.replace(ours, theirs)
    (folder / "params.yaml").write_text(params)
    for site in sites:
        shutil.copytree(site, folder / "data/web/sites" / site.name)
    rows = [
        f"{page.url},{'keep' if len(gold_text(page).split()) > 120 else 'drop'},,en,,0"
        for page in read_sites(folder / "data/web/sites")
    ]
    (folder / "data/web/labels.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def sites() -> list[Path]:
    """Two sites of the embedded web that are held out and three that are not."""
    held_out = {page.host: page.site.held_out for page in read_sites(ROOT / "data/web/sites")}
    ours, others = (
        [host for host in sorted(held_out) if held_out[host] is wanted] for wanted in (False, True)
    )
    return [ROOT / "data/web/sites" / host for host in ours[:3] + others[:2]]


@pytest.fixture
def workplace(tmp_path, monkeypatch, sites) -> Path:
    folder = make_workplace(tmp_path / "workplace", sites)
    monkeypatch.chdir(folder)
    return folder


def run_both() -> dict:
    """Runs download and filter here and returns the metrics."""
    download.main(Stage("download"))
    filter.main(Stage("filter"))
    return json.loads(Path("metrics/filter.json").read_text())


def take_files(folder: Path, **contents: bytes) -> None:
    """Makes `download` take files of these contents."""
    for name, content in contents.items():
        (folder / f"{name}.warc.gz").write_bytes(content)
    params = folder / "params.yaml"
    text = params.read_text().replace("source: embedded", "source: files")
    params.write_text(text.replace('paths: ""', 'paths: "*.warc.gz"'))


def digest(folder: Path) -> str:
    """One hash over the outs of the filter."""
    total = hashlib.sha256()
    for out in OUTS:
        for file in (
            sorted((folder / out).rglob("*")) if (folder / out).is_dir() else [folder / out]
        ):
            if file.is_file():
                total.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return total.hexdigest()


def corpus(part: str) -> list[dict]:
    return pq.read_table(f"data/corpus/{part}/part-00000.parquet").to_pylist()


def rejects() -> list[dict]:
    return pq.read_table("data/rejects/part-00000.parquet").to_pylist()


def english(number: int, words: int = 160) -> str:
    """Prose of its own for each number: English words in an order that passes the rules."""
    draw = random.Random(number)
    nouns = "kettle harbour ladder winter copper neighbour barrel ticket garden lantern engine window sailor bucket".split()
    verbs = "carried painted forgot mended borrowed watched counted dropped praised measured sold found".split()
    joints = "with the|of a|near the|by that|to the|and his|under a|for one|behind the|without the".split(
        "|"
    )
    text = []
    while len(" ".join(text).split()) < words:
        sentence = [draw.choice("The A Her Every Our No That".split())]
        for _ in range(draw.randint(2, 5)):
            sentence += [draw.choice(nouns), draw.choice(verbs), draw.choice(joints)]
        text.append(" ".join([*sentence, draw.choice(nouns)]) + ".")
    return "\n".join(f"<p>{sentence}</p>" for sentence in text)


def page(number: int) -> bytes:
    body = f"<html><body><h1>Page</h1>{english(number)}</body></html>"
    return warc_record(f"https://a.example/{number:03}", http_block(body.encode()))


def test_two_runs_in_two_places_give_the_same_bytes(workplace, tmp_path, sites, monkeypatch):
    run_both()
    first = digest(workplace)
    other = make_workplace(tmp_path / "another place", sites)
    monkeypatch.chdir(other)
    run_both()
    assert digest(other) == first


def test_every_page_is_kept_or_has_a_reason(workplace):
    metrics = run_both()
    kept, gone = corpus("train") + corpus("val"), rejects()
    assert (
        metrics["documents"]["in"]
        == len(read_sites(Path("data/web/sites")))
        == len(kept) + len(gone)
    )
    assert (
        metrics["documents"]["kept"]
        == len(kept)
        == metrics["documents"]["train"] + metrics["documents"]["val"]
    )
    assert metrics["removed"] == Counter(row["reason"] for row in gone)
    assert metrics["records"]["read"] == metrics["documents"]["in"] + len(
        list(Path("data/raw").glob("*.gz"))
    )
    assert metrics["records"]["dropped"] == 0
    assert metrics["bytes"]["train"] == sum(len(row["text"].encode()) for row in corpus("train"))
    assert all(len(row["text"]) <= 200 for row in gone)
    for part in ("train", "val"):
        urls = [row["url"] for row in corpus(part)]
        assert urls == sorted(urls) and urls
    assert not {row["key"] for row in corpus("train")} & {row["key"] for row in corpus("val")}
    assert all(row["language_score"] >= LIMITS.language_threshold for row in kept)


def test_quality_is_measured_on_held_out_sites_only(workplace):
    metrics = run_both()
    held_out = [entry for entry in read_sites(Path("data/web/sites")) if entry.site.held_out]
    assert metrics["keep"]["n"] == len(held_out) > 0
    good = [entry for entry in held_out if len(gold_text(entry).split()) > 120]
    kept = {row["url"] for row in corpus("train") + corpus("val")} & {
        entry.url for entry in held_out
    }
    assert metrics["keep"]["recall"] == pytest.approx(
        sum(entry.url in kept for entry in good) / len(good), rel=1e-4
    )
    assert metrics["keep"]["recall"] == pytest.approx(
        1 - sum(metrics["keep"]["false_negatives"].values()) / len(good), rel=1e-4
    )
    assert metrics["keep"]["precision"] == pytest.approx(
        1 - sum(metrics["keep"]["false_positives"].values()) / len(kept), rel=1e-4
    )
    assert metrics["extraction"]["n"] == len(good)
    assert 0.75 < metrics["extraction"]["f1"] <= 1


def set_params(folder: Path, **changed: str) -> None:
    """Other values for keys that stand once in params.yaml."""
    text = (folder / "params.yaml").read_text()
    for key, value in changed.items():
        text, count = re.subn(rf"(?m)^  {key}: .*$", f"  {key}: {value}", text)
        assert count == 1, key
    (folder / "params.yaml").write_text(text)


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes in which a stage's tasks run, without those that Python keeps for shared memory."""
    return [
        child
        for child in psutil.Process(pid).children(recursive=True)
        if "daft.execution.udf_worker" in child.cmdline()
    ]


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_the_stage(workplace, end):
    set_params(workplace, workers="2")
    download.main(Stage("download"))
    process = subprocess.Popen([sys.executable, "-m", "stages.filter"], stdout=subprocess.DEVNULL)
    workers = []
    while process.poll() is None and not (
        len(workers) == 2 and list(Path(".cache").glob("filter/*.parquet"))
    ):
        workers = workers_of(
            process.pid
        )  # on a busy machine the second starts after the first file is done
        time.sleep(0.02)
    assert len(workers) == 2
    process.send_signal(end)
    assert process.wait(20) == (-signal.SIGKILL if end == signal.SIGKILL else 128 + signal.SIGTERM)
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "a worker went on without its stage"
        time.sleep(0.05)


def test_a_killed_worker_costs_its_file_only(workplace):
    set_params(workplace, workers="2")
    run_both()
    whole = digest(workplace)
    shutil.rmtree(".cache")
    process = subprocess.Popen([sys.executable, "-m", "stages.filter"], stdout=subprocess.DEVNULL)
    while process.poll() is None and not (before := list(Path(".cache").glob("filter/*.parquet"))):
        time.sleep(0.005)
    times = {file: file.stat().st_mtime_ns for file in before}
    workers_of(process.pid)[0].kill()
    assert process.wait(60) == 0
    assert digest(workplace) == whole
    assert all(file.stat().st_mtime_ns == time_ns for file, time_ns in times.items()), (
        "a finished shard was made again"
    )


def test_a_file_that_kills_its_workers_is_left_out_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # workers import from where they start
    sources = [tmp_path / name for name in ("good", "deadly")]
    for source in sources:
        source.write_text(source.name)
    tasks = [Task(str(source), str(source.with_suffix(".done"))) for source in sources]
    with pytest.raises(UserError, match="1 files .* deadly"):
        run_tasks(die_of_one, tasks, LIMITS, "dying", tmp_path / "errors.log")
    assert (tmp_path / "good.done").exists()


def test_no_file_is_worked_on_twice_at_a_time_when_another_fails(tmp_path, monkeypatch):
    """What is said of the first file may not start those again that are still under way or wait."""
    monkeypatch.chdir(ROOT)
    sources = [tmp_path / name for name in ("1-bad", "2-slow", "3-slow", "4-slow", "5-slow")]
    for source in sources:
        source.write_text(source.name)
    with pytest.raises(UserError, match="1 files .* 1-bad: this one is bad"):
        run_tasks(
            one_is_bad,
            [Task(str(source), str(source.with_suffix(".done"))) for source in sources],
            LIMITS,
            "failing",
            tmp_path / "errors.log",
        )
    starts = Counter((tmp_path / "starts").read_text().split())
    assert starts == {source.name: 2 if source.name == "1-bad" else 1 for source in sources}


def test_a_task_whose_file_has_come_meanwhile_is_not_done_again(tmp_path, monkeypatch):
    """A cluster gives a task to another machine when the first is lost with its answer, not with its file."""
    monkeypatch.chdir(ROOT)
    sources = [tmp_path / name for name in ("first", "again")]
    for source in sources:
        source.write_text(source.name)
    run_tasks(
        do_it,
        [Task(str(source), str(tmp_path / "done")) for source in sources],
        LIMITS.model_copy(update={"workers": 1}),
        "repeating",
        tmp_path / "errors.log",
    )
    assert (tmp_path / "starts").read_text().split() == ["first"]


def test_an_error_in_a_worker_is_kept_with_its_place_in_the_code(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    source, log = tmp_path / "page", tmp_path / "runs/errors.log"
    source.touch()
    tasks = [Task(str(source), str(source.with_suffix(f".{number}"))) for number in range(2)]
    with pytest.raises(UserError, match=re.escape(str(log))):
        run_tasks(go_wrong, tasks, LIMITS, "failing", log)
    assert "go_wrong" in log.read_text() and "division by zero" in log.read_text()


def go_wrong(source: Path, target: Path) -> None:
    target.write_text(str(1 / len(source.read_text())))


def test_shards_that_no_recent_run_used_are_removed(tmp_path):
    for number in range(KEPT_RUNS + 3):
        shards = [tmp_path / f"{number}.parquet", tmp_path / "always.parquet"]
        for shard in shards:
            shard.touch()
        prune(tmp_path, shards)
        prune(tmp_path, shards)  # a run that is repeated pushes none out
    assert {file.stem for file in tmp_path.glob("*.parquet")} == {
        "always",
        *map(str, range(3, KEPT_RUNS + 3)),
    }


def note_start(source: Path) -> None:
    with (source.parent / "starts").open("a") as file:
        file.write(f"{source.name}\n")


def do_it(source: Path, target: Path) -> None:
    note_start(source)
    target.write_text("done")


def one_is_bad(source: Path, target: Path) -> None:
    note_start(source)
    if source.name == "1-bad":
        raise UserError("this one is bad")
    time.sleep(0.3)
    target.write_text("done")


def die_of_one(source: Path, target: Path) -> None:
    """A task as a worker gets it: one kind of file ends the process as a fault in C would."""
    if source.name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    target.write_text(source.read_text())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_run_repeats_nothing_and_gives_the_same_bytes(workplace, workers):
    set_params(workplace, workers=workers)
    run_both()
    whole = digest(workplace)
    shards = set(Path(".cache/filter").glob("*.parquet"))
    assert len(shards) >= 8
    for out in (*OUTS, ".cache"):
        shutil.rmtree(out) if Path(out).is_dir() else Path(out).unlink()
    for _ in range(3):
        done = (
            len(list(Path(".cache/filter").glob("*.parquet")))
            if Path(".cache/filter").exists()
            else 0
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.filter"], stdout=subprocess.DEVNULL
        )
        while process.poll() is None and len(list(Path(".cache/filter").glob("*.parquet"))) <= done:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = {file: file.stat().st_mtime_ns for file in Path(".cache/filter").glob("*.parquet")}
    assert before
    filter.main(Stage("filter"))
    assert digest(workplace) == whole
    assert set(Path(".cache/filter").glob("*.parquet")) == shards
    assert all(file.stat().st_mtime_ns == time_ns for file, time_ns in before.items()), (
        "a finished shard was made again"
    )


def test_two_filters_do_not_share_a_cache(workplace):
    """As when DVC runs two experiments at once: each in a folder of its own, both with the project's cache."""
    download.main(Stage("download"))
    with (
        exclusive(Path(".cache/filter/lock"), "the other"),
        pytest.raises(UserError, match="a filter with the same .cache"),
    ):
        filter.main(Stage("filter"))
    filter.main(Stage("filter"))


def test_lengths_that_contradict_each_other_stop_before_the_crawl_is_read(workplace):
    set_params(workplace, contamination_words="5")
    with pytest.raises(UserError, match="contamination_least_words is 8"):
        run_both()
    assert not Path(".cache/filter").exists()


def test_other_parameters_use_no_shard_of_before(workplace):
    kept = run_both()["documents"]["kept"]
    params = workplace / "params.yaml"
    params.write_text(params.read_text().replace("  min_words: 50\n", "  min_words: 250\n"))
    assert run_both()["documents"]["kept"] < kept
    assert all(len(row["text"].split()) >= 250 for row in corpus("train"))


def test_copies_go_and_the_smallest_url_stays(workplace):
    text = english(1)
    pages = [
        warc_record(f"https://{host}.example/", http_block(body.encode()))
        for host, body in (
            ("mirror", f"<html><body>{text}</body></html>"),
            ("b", f"<html><div>{text.replace('.', ' ! ')}</div></html>"),
            ("zeta", f"<html><body>{text}</body></html>"),
        )
    ]
    take_files(
        workplace,
        one=members([pages[0], page(2), page(3)]),
        two=members([pages[1], pages[2], page(4)]),
    )
    metrics = run_both()
    assert metrics["removed"] == {"duplicate": 2}
    assert {row["url"] for row in corpus("train") + corpus("val")} == {
        "https://b.example/",
        *(f"https://a.example/{number:03}" for number in (2, 3, 4)),
    }


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            warc_record(
                "https://a.example/",
                http_block(english(1).encode()).replace(b"200 OK", b"404 Not Found"),
            ),
            "http_status",
        ),
        (
            warc_record(
                "https://a.example/", b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n\x89PNG"
            ),
            "content_type",
        ),
        (warc_record("https://a.example/", http_block(b"<html>" + b"<br>" * 300_000)), "too_large"),
        (
            warc_record("https://a.example/", http_block(b"<html><script>x</script></html>")),
            "no_text",
        ),
        (
            warc_record(
                "dns:a.example",
                b"20240301 a.example 127.0.0.1",
                "response",
                content_type="text/dns",
            ),
            "no_web_page",
        ),
        (
            warc_record(
                "https://a.example/",
                http_block(
                    "<p>".join(
                        ["Der Hafen ist heute wieder leer, und niemand weiß warum. "] * 30
                    ).encode()
                ),
            ),
            "language",
        ),
        (
            warc_record("https://a.example/", http_block(b"<html>The kettle is in the harbour.")),
            "words",
        ),
        (
            warc_record(
                "https://a.example/",
                http_block(
                    b"<p>" + b"The kettle of the harbour and the lantern of the barrel. " * 40
                ),
            ),
            "top_2gram_characters",
        ),
    ],
)
def test_each_rule_names_itself_in_the_rejects(record, reason, workplace):
    take_files(workplace, crawl=members([record, page(2), page(3)]))
    run_both()
    (row,) = rejects()
    assert row["reason"] == reason


def test_a_page_without_a_content_type_is_looked_at(workplace):
    untyped = warc_record(
        "https://a.example/", f"HTTP/1.1 200 OK\r\n\r\n<!DOCTYPE html><html>{english(9)}".encode()
    )
    take_files(workplace, crawl=members([untyped, page(2)]))
    assert run_both()["documents"]["kept"] == 2


def test_damage_is_counted_and_the_rest_kept(workplace, capsys):
    records = [page(number) for number in range(40)]
    packed = bytearray(members(records))
    packed[len(members(records[:20])) + 60] ^= 255
    take_files(
        workplace,
        rotten=bytes(packed),
        cut=members([page(number) for number in range(50, 60)])[:-300],
    )
    metrics = run_both()
    assert metrics["records"] == {
        "read": 49,
        "recovered": 1,
        "dropped": 1,
        "dropped_by": {"damaged_gzip": 1},
        "recovered_by": {"cut_short": 1},
    }
    assert "keep" not in metrics
    capsys.readouterr()
    assert filter.show_files() is None
    assert [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()] == [
        ["records", "recovered", "lost", "pages", "file"],
        ["10", "1", "0", "10", "00000-cut.warc.gz (recovered cut_short 1)"],
        ["39", "0", "1", "39", "00001-rotten.warc.gz (lost damaged_gzip 1)"],
    ]


def test_an_empty_corpus_says_which_rule_took_most(workplace):
    take_files(workplace, crawl=members(RECORDS))
    with pytest.raises(UserError, match="language") as problem:
        run_both()
    assert "60" in str(problem.value)
    assert not Path("data/corpus").exists()


def test_a_crawl_without_pages_is_a_problem(workplace):
    take_files(
        workplace,
        crawl=members([warc_record("https://a.example/", b"GET / HTTP/1.1\r\n\r\n", "request")]),
    )
    with pytest.raises(UserError, match="no page at all"):
        run_both()


def test_two_pages_make_a_corpus_of_one_and_one(workplace):
    take_files(workplace, crawl=members([page(1), page(2)]))
    metrics = run_both()
    assert (metrics["documents"]["train"], metrics["documents"]["val"]) == (1, 1)


@pytest.fixture
def embedded_web(tmp_path, monkeypatch):
    """A folder with the shipped web and the project's own parameters, as the working directory."""
    for name in ("stages", "requirements.txt", "dvc.yaml", "params.yaml", "data/web", "data/store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)


def test_the_embedded_web_is_filtered_in_seconds(embedded_web):
    started = time.monotonic()
    metrics = run_both()
    assert time.monotonic() - started < 20
    assert metrics["extraction"]["f1"] > 0.85
    assert metrics["records"]["dropped"] == 0


@pytest.mark.xfail(
    raises=AssertionError,
    strict=True,
    reason="recall 0.93 and precision 0.87 on held-out sites: the aim is missed",
)
def test_what_is_kept_of_held_out_sites_is_what_people_would_keep(embedded_web):
    keep = run_both()["keep"]
    assert keep["recall"] >= 0.95
    assert keep["precision"] >= 0.95


def test_help_is_the_contract():
    said = subprocess.run(
        [sys.executable, "-m", "stages.filter", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert said.stdout.strip() == filter.__doc__.strip()


def test_real_crawls_go_through(shared_data, workplace, capsys):
    params = workplace / "params.yaml"
    params.write_text(
        params.read_text()
        .replace("source: embedded", "source: files")
        .replace('paths: ""', f'paths: "{shared_data}/web/*/*"')
    )
    metrics = run_both()
    assert metrics["records"]["read"] == 2140 and metrics["records"]["dropped"] == 0
    assert metrics["documents"]["in"] == 812
    assert (
        metrics["documents"]["kept"] > 90
    )  # of some 250 English ones; FineWeb's rules alone take 50
    assert metrics["removed"]["language"] > 100
    capsys.readouterr()
    assert filter.show_files() is None
    listed = [line.split(maxsplit=5) for line in capsys.readouterr().out.splitlines()[1:]]
    assert {line[4].partition("-")[2] for line in listed} == {
        file.name for file in (shared_data / "web").glob("*/*")
    }
    assert [sum(int(line[column].replace(",", "")) for line in listed) for column in range(4)] == [
        *(metrics["records"][name] for name in ("read", "recovered", "dropped")),
        metrics["documents"]["in"],
    ]


def test_a_page_can_be_asked_why(workplace, capsys):
    text = english(1)
    line = "<p>Subscribe to the weekly letter of the harbour today.</p>"
    held_out = next(
        text
        for text in read_held_out(ROOT / "data/store/wordings", ROOT / "data/store/plans.jsonl")
        if "{" not in text and len(text.split()) >= 12
    )
    pages = [
        warc_record(
            f"https://{host}.example/", http_block(f"<html><body>{body}</body></html>".encode())
        )
        for host, body in (
            ("a", text),
            ("b", text.replace("The ", "the ")),
            ("short", "<p>The kettle is of the harbour.</p>"),
            ("shop", english(2) + f"<p>{held_out}</p>"),
            ("near", text.replace("carried", "lifted", 3)),
            *((f"l{number}", line + english(10 + number)) for number in range(6)),
        )
    ]
    take_files(workplace, crawl=members(pages))
    metrics = run_both()
    assert metrics["removed"] == {
        "duplicate": 1,
        "near_duplicate": 1,
        "words": 1,
        "contaminated": 1,
    }
    assert metrics["repeated_lines"] == {
        "pages": 6,
        "lines": 6,
        "bytes": 6 * len(line.removeprefix("<p>").removesuffix("</p>") + "\n"),
    }
    assert not any("weekly letter" in row["text"] for row in corpus("train") + corpus("val"))
    for host, words in (
        ("b", "word by word a copy of https://a.example/"),
        ("near", "https://a.example/ stays"),
        ("short", "removed by the rule words"),
        ("shop", "held-out wording"),
        ("a", "-> kept"),
        ("l3", "weekly letter"),
    ):
        assert filter.show([f"https://{host}.example/"]) is None
        assert words in capsys.readouterr().out
    assert "saw no page" in filter.show(["https://nowhere.example/"])
    assert {
        row["url"]: row["because"] for row in rejects() if row["because"].startswith("https://")
    } == {"https://b.example/": "https://a.example/", "https://near.example/": "https://a.example/"}


def test_asking_before_the_first_run_says_what_to_do(workplace):
    assert "has not run here" in filter.show(["https://a.example/"])
    assert "has not run here" in filter.show_files()


def test_rejects_are_a_sample_of_each_reason(workplace):
    set_params(workplace, rejects_per_reason="2")
    short = [
        warc_record(
            f"https://s.example/{number}", http_block(b"<html>The kettle is of the harbour.")
        )
        for number in range(9)
    ]
    german = warc_record(
        "https://g.example/",
        http_block(("<p>Der Hafen ist heute leer, niemand weiß warum. " * 30).encode()),
    )
    take_files(workplace, crawl=members([*short, german, page(1), page(2)]))
    metrics = run_both()
    assert metrics["removed"] == {"words": 9, "language": 1}
    assert Counter(row["reason"] for row in rejects()) == {"words": 2, "language": 1}


def test_the_waterfall_leads_from_all_pages_to_those_kept(workplace):
    metrics = run_both()
    steps = [line.split("\t") for line in Path("metrics/filter.tsv").read_text().splitlines()]
    assert steps[0] == ["rule", "pages", "removed", "removed_bytes", "removed_words"]
    left = [int(step[1]) for step in steps[1:]]
    assert (left[0], left[-1]) == (metrics["documents"]["in"], metrics["documents"]["kept"])
    assert all(
        before - int(step[2]) == after
        for before, after, step in zip(left, left[1:], steps[2:], strict=False)
    )
    assert {step[0]: int(step[2]) for step in steps[2:]} == metrics["removed"]
    assert {step[0]: int(step[3]) for step in steps[2:]} == metrics["removed_bytes"]


def test_a_large_corpus_lies_in_several_files(workplace, monkeypatch):
    monkeypatch.setattr(filter, "SMALLEST_PART", 2000)
    monkeypatch.setattr(filter, "PARTS", 10**6)
    monkeypatch.setattr("crawl2cart.crawl.shards.ROWS_AT_ONCE", 2)
    take_files(workplace, crawl=members([page(number) for number in range(40)]))
    run_both()
    files = sorted(Path("data/corpus/train").iterdir())
    assert len(files) > 5 and files[0].name == "part-00000.parquet"
    urls = [url for file in files for url in pq.read_table(file)["url"].to_pylist()]
    assert urls == sorted(urls) and len(urls) == len(set(urls)) > 30


@pytest.mark.slow
def test_ray_gives_the_same_bytes(workplace, tmp_path, sites, monkeypatch):
    """In a process of its own: an engine is chosen once in a process. Two workers of a cluster that it starts here."""
    run_both()
    whole = digest(workplace)
    other = make_workplace(tmp_path / "on ray", sites)
    set_params(other, engine="ray", workers="2")
    monkeypatch.chdir(other)
    download.main(Stage("download"))
    said = subprocess.run(
        [sys.executable, "-m", "stages.filter"], capture_output=True, text=True, timeout=600
    )
    if said.returncode and "ray.init" in said.stderr:
        pytest.skip(f"Ray does not start on this machine: {said.stderr[-300:]}")
    assert said.returncode == 0, said.stderr
    assert digest(other) == whole


@pytest.mark.parametrize(
    ("module", "tells"), [("crawl2cart.crawl.executor", False), ("daft", True)]
)
def test_nothing_is_reported_to_the_makers_of_the_engine(module, tells):
    """Daft tells its makers of each import and start; imported through our module it must not."""
    code = (
        "import threading, urllib.request; asked = []; urllib.request.urlopen = lambda *words, **more: asked.append(words); "
        f"import {module}; import daft; daft.from_pydict({{'a': [1]}}).collect(); "
        "[thread.join(5) for thread in threading.enumerate() if thread.daemon]; print(len(asked))"
    )
    free = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DAFT_", "DO_NOT", "SCARF_"))
    }
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=free
    )
    assert (int(said.stdout) > 0) == tells
