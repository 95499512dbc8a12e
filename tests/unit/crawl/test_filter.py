"""From WARC files to a corpus: the same bytes always, and every page accounted for."""

import contextlib
import os
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.core.params import read_params
from crawl2cart.core.stage import Stage, exclusive
from crawl2cart.crawl.embedded_web.sites import gold_text, read_sites
from crawl2cart.crawl.executor import Task, run_tasks
from crawl2cart.crawl.explain import explain, file_table
from crawl2cart.crawl.filters.blocklist import read_hosts
from crawl2cart.crawl.filters.decontaminate import read_held_out
from crawl2cart.crawl.shards import KEPT_RUNS, prune
from stages import download, filter
from tests.conftest import ROOT
from tests.unit.crawl.samples import (
    GERMAN,
    RECORDS,
    english,
    http_block,
    members,
    page,
    warc_record,
)
from tests.unit.crawl.workplace import (  # noqa: F401
    choose_sites,
    corpus,
    corpus_urls,
    digest,
    make_workplace,
    rejects,
    run_both,
    run_filter,
    set_params,
    take_files,
    workplace,
)

LIMITS = read_params(ROOT / "params.yaml").filter


def html(host: str, body: str) -> bytes:
    block = http_block(f"<html><body>{body}</body></html>".encode())
    return warc_record(f"https://{host}.example/", block)


def explained(host: str) -> str:
    """What the last run did with the page of a host."""
    url, hosts = f"https://{host}.example/", read_hosts(Path(LIMITS.blocked_hosts))
    return "\n".join(explain(url, Path.cwd(), LIMITS, hosts, None))


# ---- some sites of the embedded web ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    """A workplace in which the stage has run on three sites to tune on and two held-out ones."""
    folder = make_workplace(tmp_path_factory.mktemp("filter") / "finished", choose_sites(3, 2))
    with contextlib.chdir(folder):
        return folder, run_both()


@pytest.fixture
def metrics(finished, monkeypatch) -> dict:
    """The metrics of the finished run; its workplace is the working directory."""
    monkeypatch.chdir(finished[0])
    return finished[1]


def test_two_runs_in_two_places_give_the_same_bytes(finished, tmp_path, monkeypatch):
    folder = make_workplace(tmp_path / "another place", choose_sites(3, 2))
    monkeypatch.chdir(folder)
    run_both()
    assert digest(folder) == digest(finished[0])


def test_every_page_is_kept_or_has_a_reason(metrics):
    kept, removed, pages = corpus("train") + corpus("val"), rejects(), metrics["documents"]
    assert pages["in"] == len(read_sites(Path("data/web/sites"))) == len(kept) + len(removed)
    assert pages["kept"] == len(kept) == pages["train"] + pages["val"]
    assert metrics["removed"] == Counter(row["reason"] for row in removed)
    files = list(Path("data/raw").glob("*.gz"))
    assert metrics["records"]["read"] == pages["in"] + len(files)  # each starts with a warcinfo
    assert metrics["records"]["dropped"] == 0
    assert metrics["bytes"]["train"] == sum(len(row["text"].encode()) for row in corpus("train"))
    assert all(len(row["text"]) <= 200 for row in removed)
    for split in ("train", "val"):
        urls = [row["url"] for row in corpus(split)]
        assert urls == sorted(urls) and urls
    assert not {row["key"] for row in corpus("train")} & {row["key"] for row in corpus("val")}
    assert all(row["language_score"] >= LIMITS.language_threshold for row in kept)


def test_quality_is_measured_on_held_out_sites_only(metrics):
    held_out = [page for page in read_sites(Path("data/web/sites")) if page.site.held_out]
    good = [page.url for page in held_out if len(gold_text(page).split()) > 120]
    kept = corpus_urls() & {page.url for page in held_out}
    keep = metrics["keep"]
    assert keep["n"] == len(held_out) > 0
    assert keep["recall"] == pytest.approx(len(kept & set(good)) / len(good), rel=1e-4)
    lost, wrong = (sum(keep[name].values()) for name in ("false_negatives", "false_positives"))
    assert keep["recall"] == pytest.approx(1 - lost / len(good), rel=1e-4)
    assert keep["precision"] == pytest.approx(1 - wrong / len(kept), rel=1e-4)
    assert metrics["extraction"]["n"] == len(good)
    assert 0.75 < metrics["extraction"]["f1"] <= 1


def test_the_waterfall_leads_from_all_pages_to_those_kept(metrics):
    head, *steps = [line.split("\t") for line in open("metrics/filter.tsv").read().splitlines()]
    assert head == ["rule", "pages", "removed", "removed_bytes", "removed_words"]
    left = [int(step[1]) for step in steps]
    assert (left[0], left[-1]) == (metrics["documents"]["in"], metrics["documents"]["kept"])
    removed = [int(step[2]) for step in steps]
    assert [before - gone for before, gone in zip(left, removed[1:], strict=False)] == left[1:]
    assert {step[0]: int(step[2]) for step in steps[1:]} == metrics["removed"]
    assert {step[0]: int(step[3]) for step in steps[1:]} == metrics["removed_bytes"]


@pytest.fixture(scope="module")
def embedded_web(tmp_path_factory) -> dict:
    """The metrics of the whole embedded web with the project's own parameters."""
    folder = tmp_path_factory.mktemp("embedded")
    (folder / "data").mkdir()
    names = ("stages", "crawl2cart", "requirements.txt", "dvc.yaml", "data/web", "data/store")
    for name in names:
        (folder / name).symlink_to(ROOT / name)
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    set_params(folder, workers="1")
    with contextlib.chdir(folder):
        return run_both()


def test_the_text_of_the_embedded_web_is_extracted(embedded_web):
    assert embedded_web["extraction"]["f1"] > 0.95
    assert embedded_web["records"]["dropped"] == 0


@pytest.mark.xfail(
    raises=AssertionError,
    strict=True,
    reason="recall 0.93 and precision 0.87 on held-out sites: the aim is missed",
)
def test_what_is_kept_of_held_out_sites_is_what_people_would_keep(embedded_web):
    assert embedded_web["keep"]["recall"] >= 0.95
    assert embedded_web["keep"]["precision"] >= 0.95


# ---- crawls made for one rule ----

REJECTED = {
    "http_status": http_block(english(1).encode()).replace(b"200 OK", b"404 Not Found"),
    "content_type": b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n\x89PNG",
    "too_large": http_block(b"<html>" + b"<br>" * 300_000),
    "no_text": http_block(b"<html><script>x</script></html>"),
    "language": http_block(f"<p>{GERMAN * 30}".encode()),
    "words": http_block(b"<html>The kettle is in the harbour."),
    "top_2gram_characters": http_block(
        b"<p>" + b"The kettle of the harbour and the lantern of the barrel. " * 40
    ),
}


def test_each_rule_names_itself_in_the_rejects(workplace):  # noqa: F811
    untyped = f"HTTP/1.1 200 OK\r\n\r\n<!DOCTYPE html><html>{english(9)}".encode()
    crawl = [
        page(2),
        warc_record("https://untyped.example/", untyped),
        warc_record("dns:a.example", b"20240301 a.example 127.0.0.1", content_type="text/dns"),
        *(warc_record(f"https://a.example/{reason}", block) for reason, block in REJECTED.items()),
    ]
    take_files(workplace, crawl=members(crawl))
    metrics = run_both()
    assert corpus_urls() == {"https://a.example/002", "https://untyped.example/"}
    reasons = {row["url"].rpartition("/")[2]: row["reason"] for row in rejects()}
    assert reasons == {"dns:a.example": "no_web_page"} | {reason: reason for reason in REJECTED}
    assert metrics["removed"] == dict.fromkeys([*REJECTED, "no_web_page"], 1)
    # Two pages are enough for a corpus, one on each side.
    assert (metrics["documents"]["train"], metrics["documents"]["val"]) == (1, 1)


def test_rules_across_pages_remove_copies_lines_and_held_out_texts(workplace):  # noqa: F811
    text = english(1)
    line = "Subscribe to the weekly letter of the harbour today."
    texts = read_held_out(ROOT / "data/store/wordings", ROOT / "data/store/plans.jsonl")
    held_out = next(text for text in texts if "{" not in text and len(text.split()) >= 12)
    pages = {
        "a": text,
        "copy": text.replace("The ", "the ").replace(".", " ! "),
        "near": text.replace("carried", "lifted", 3),
        "short": "<p>The kettle is of the harbour.</p>",
        "shop": english(2) + f"<p>{held_out}</p>",
        **{f"line{number}": f"<p>{line}</p>{english(10 + number)}" for number in range(6)},
    }
    records = [html(host, body) for host, body in pages.items()]
    take_files(workplace, one=members(records[2:]), two=members(records[:2]))
    metrics = run_both()
    assert metrics["removed"] == {
        "duplicate": 1,
        "near_duplicate": 1,
        "words": 1,
        "contaminated": 1,
    }
    assert metrics["repeated_lines"] == {"pages": 6, "lines": 6, "bytes": 6 * len(line + "\n")}
    assert not any(line in row["text"] for row in corpus("train") + corpus("val"))
    because = {row["reason"]: row["because"] for row in rejects()}
    assert because["duplicate"] == because["near_duplicate"] == "https://a.example/"
    for host, facts in {
        "a": ["-> kept"],
        "copy": ["duplicate", "https://a.example/"],
        "near": ["near_duplicate", "https://a.example/"],
        "short": ["FAILS  words: 6 ", "rule words"],
        "shop": ["contaminated", because["contaminated"]],
        "line3": [line, "-> kept"],
    }.items():
        assert all(fact in explained(host) for fact in facts), explained(host)
    with pytest.raises(UserError, match="nowhere"):
        explained("nowhere")


def test_damage_is_counted_and_the_rest_kept(workplace):  # noqa: F811
    records = [page(number) for number in range(12)]
    packed = bytearray(members(records))
    packed[len(members(records[:6])) + 60] ^= 255
    cut = members([page(number) for number in range(50, 55)])[:-300]
    take_files(workplace, rotten=bytes(packed), cut=cut)
    metrics = run_both()
    assert metrics["records"] == {
        "read": 16,
        "recovered": 1,
        "dropped": 1,
        "dropped_by": {"damaged_gzip": 1},
        "recovered_by": {"cut_short": 1},
    }
    assert "keep" not in metrics
    assert [line.split(maxsplit=4) for line in file_table(workplace)] == [
        ["records", "recovered", "dropped", "pages", "file"],
        ["5", "1", "0", "5", "00000-cut.warc.gz (recovered cut_short 1)"],
        ["11", "0", "1", "11", "00001-rotten.warc.gz (dropped damaged_gzip 1)"],
    ]


def test_rejects_are_a_sample_of_each_reason(workplace):  # noqa: F811
    set_params(workplace, rejects_per_reason="2")
    short = [html(f"s{number}", "The kettle is of the harbour.") for number in range(9)]
    german = html("german", GERMAN * 30)
    take_files(workplace, crawl=members([*short, german, page(1), page(2)]))
    assert run_both()["removed"] == {"words": 9, "language": 1}
    assert Counter(row["reason"] for row in rejects()) == {"words": 2, "language": 1}


def test_a_large_corpus_lies_in_several_files(workplace, monkeypatch):  # noqa: F811
    monkeypatch.setattr(filter, "MIN_PART_BYTES", 2000)
    monkeypatch.setattr(filter, "PARTS", 10**6)
    monkeypatch.setattr("crawl2cart.crawl.shards.BATCH_ROWS", 2)
    take_files(workplace, crawl=members([page(number) for number in range(24)]))
    run_both()
    files = sorted(Path("data/corpus/train").iterdir())
    assert len(files) > 5 and files[0].name == "part-00000.parquet"
    urls = [url for file in files for url in pq.read_table(file)["url"].to_pylist()]
    assert urls == sorted(urls) and len(urls) == len(set(urls)) > 18


def test_an_empty_corpus_says_which_rule_took_most(workplace):  # noqa: F811
    take_files(workplace, crawl=members(RECORDS[:20]))
    with pytest.raises(UserError, match=r"0 of 20 .*language.* 20"):
        run_both()
    assert not Path("data/corpus").exists()


def test_a_crawl_without_pages_is_an_error(workplace):  # noqa: F811
    request = warc_record("https://a.example/", b"GET / HTTP/1.1\r\n\r\n", "request")
    take_files(workplace, crawl=members([request]))
    with pytest.raises(UserError, match="no page"):
        run_both()


def test_explaining_before_the_first_run_is_an_error(workplace):  # noqa: F811
    for explanation in (lambda: explained("a"), lambda: list(file_table(workplace))):
        with pytest.raises(UserError, match="has not run"):
            explanation()


def test_sizes_that_contradict_each_other_are_an_error_before_the_crawl_is_read(workplace):  # noqa: F811
    text = (workplace / "params.yaml").read_text()
    (workplace / "params.yaml").write_text(
        text.replace("    min_ngram: 8\n", "    min_ngram: 20\n")
    )
    take_files(workplace, crawl=members([page(1), page(2)]))
    with pytest.raises(UserError, match="min_ngram is 20"):
        run_both()
    assert not Path(".cache/filter").exists()


# ---- shards ----


def test_other_parameters_use_no_shard_of_before(workplace):  # noqa: F811
    take_files(workplace, crawl=members([page(1), page(2), html("short", english(3, words=70))]))
    assert run_both()["documents"]["kept"] == 3
    set_params(workplace, min_words="100")
    assert run_filter()["documents"]["kept"] == 2


def test_two_filters_do_not_share_a_cache(workplace):  # noqa: F811
    """As when DVC runs two experiments, each in its own folder, with the project's cache."""
    take_files(workplace, crawl=members([page(1), page(2)]))
    download.main(Stage("download"))
    with (
        exclusive(Path(".cache/filter/lock"), "the other"),
        pytest.raises(UserError, match="same .cache"),
    ):
        run_filter()
    assert run_filter()["documents"]["kept"] == 2


def test_shards_that_no_recent_run_used_are_removed(tmp_path):
    for number in range(KEPT_RUNS + 3):
        shards = [tmp_path / f"{number}.parquet", tmp_path / "always.parquet"]
        for shard in shards:
            shard.touch()
        prune(tmp_path, shards)
        prune(tmp_path, shards)  # a repeated run pushes none out
    recent = map(str, range(3, KEPT_RUNS + 3))
    assert {file.stem for file in tmp_path.glob("*.parquet")} == {"always", *recent}


def test_a_task_whose_file_is_there_by_now_is_not_done_again(tmp_path, monkeypatch):
    """A cluster repeats a task if the first machine is lost after the file was written."""
    monkeypatch.chdir(ROOT)
    tasks = [Task(str(tmp_path / name), str(tmp_path / "done")) for name in ("first", "again")]
    one_worker = LIMITS.model_copy(update={"workers": 1})
    run_tasks(append_start, tasks, one_worker, "repeating", tmp_path / "errors.log")
    assert (tmp_path / "done").read_text() == "first"


def append_start(source: Path, target: Path) -> None:
    with target.open("a") as file:
        file.write(source.name)


def test_an_error_of_a_task_is_logged_with_its_traceback(tmp_path):
    log = tmp_path / "runs/errors.log"
    tasks = [Task(str(tmp_path / "page"), str(tmp_path / f"done.{number}")) for number in (1, 2)]
    one_worker = LIMITS.model_copy(update={"workers": 1})
    with pytest.raises(UserError, match=os.fspath(log)):
        run_tasks(divide_by_zero, tasks, one_worker, "failing", log)
    assert "divide_by_zero" in log.read_text() and "ZeroDivisionError" in log.read_text()


def divide_by_zero(source: Path, target: Path) -> None:
    target.write_text(str(1 / len("")))
