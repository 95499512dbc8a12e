"""The report as a browser shows it, its tables and figures, and the model cards."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import networkx
import pandas as pd
import pytest

from crawl2cart.core.files import read_json, write_json, write_jsonl
from crawl2cart.core.metrics import write_curve
from crawl2cart.evaluation.release_gates import Gate
from crawl2cart.report import figures
from crawl2cart.report.cards import MEASURED, ORIGINS
from crawl2cart.report.stage_graph import draw_graph, stage_graph
from crawl2cart.report.tables import agent_row, agents_of
from tests.conftest import ROOT
from tools import costs, repro

RATES = (*MEASURED, "call_or_reply_accuracy")
FAILED = Gate("tool_accuracy", before=0.8, after=0.7, least=0.75)
ATTACK = "</pre><script>document.title = 'owned'</script><img src=http://evil.example/x.png>"
MODELS = ("base", "sft", "dpo", "served_gpt")


def agent(value: float) -> dict:
    """The metrics of an agent, every rate of which is `value`."""
    rates = {}
    for name in RATES:
        rates |= {name: value, f"{name}_low": value / 2, f"{name}_high": 1.0, f"{name}_n": 40}
    others = {"fact_recall": value, "mean_reply_words": 12.5, "policy_violation_count": 0}
    return rates | {"n": 40} | others


def write_transcripts(folder: Path) -> None:
    """Write 30 turns and one dialogue. What models wrote is markup that would run in a browser."""
    answers = {
        model: {
            "text": f"{ATTACK} {model}",
            "right": model == "base",
            "reasons": ["other arguments"],
            "partial": 0.5,
            "tool": "get_order",
        }
        for model in MODELS
    }
    turns = [
        {
            "id": f"test-{number:04d}:1",
            "line": number + 1,
            "intent": ("price", "search")[number % 2],
            "gold": "x",
            "gold_tool": ("get_order", "reply")[number % 2],
            "answers": answers,
            "before": [["customer", ATTACK], ["call", "get_order {}"], ["tool", "{}"]],
        }
        for number in range(30)
    ]
    result = {
        "messages": [["customer", ATTACK]],
        "success": False,
        "state": False,
        "missing": ["$5"],
        "policy_violations": 0,
    }
    episode = {
        "id": "test-0001",
        "line": 2,
        "plan": "p",
        "intent": "price",
        "right": [["customer", "hello"]],
        "played": dict.fromkeys(answers, result),
    }
    write_jsonl(folder / "turns.jsonl", turns)
    write_jsonl(folder / "plays.jsonl", [episode])


def evaluated() -> dict:
    """An evaluation in which DPO beats SFT, and DPO made one call less."""
    interval = {"win_rate": 0.69, "win_rate_low": 0.6, "win_rate_high": 0.78}
    controlled = {f"length_controlled_{name}": value for name, value in interval.items()}
    pair = {"n": 40, "wins": 20, "ties": 15, "losses": 5, "p": 0.004} | interval | controlled
    routing = {"routing_accuracy": 0.9, "routing_accuracy_low": 0.8, "routing_accuracy_high": 1.0}
    return {
        "base": agent(0.25),
        "sft": agent(0.5),
        "dpo": agent(0.75) | {"schema_valid_rate_n": 39},
        "served_gpt": agent(0.875),
        "released": agent(0.5),
        "dpo_vs_sft": pair,
        "judge": {"tone_accuracy": 0.9},
        "baselines": {"nearest": agent(0.2)},
        "routed": {"n": 9} | routing,
    }


def by_intent() -> list[dict]:
    """Metrics by intent; nobody should call a tool where the intent is out_of_scope."""
    counts = {("price", "right"): 15, ("price", "tool_accuracy"): 7}
    counts |= {("search", "right"): 15, ("search", "tool_accuracy"): 7}
    counts |= {("out_of_scope", "right"): 9, ("out_of_scope", "tool_accuracy"): 0}
    return [
        {
            "model": model,
            "intent": intent,
            "metric": metric,
            "value": 0.5 if intent != "out_of_scope" else 0.0,
            "low": 0.3 if intent != "out_of_scope" else 0.0,
            "high": 0.7 if intent != "out_of_scope" else 1.0,
            "n": n,
        }
        for model in ("base", "sft", "dpo")
        for (intent, metric), n in counts.items()
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder in which the stage ran, on the committed metrics and an evaluation made up here."""
    folder = tmp_path_factory.mktemp("report")
    for name in ("dvc.yaml", "params.yaml", "requirements.txt", "stages", "crawl2cart"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "metrics", folder / "metrics")
    for name in ("web", "store", "queries", "tokens", "sft", "prefs"):
        write_jsonl(folder / "data" / name / "rows.jsonl", [{"id": name}])
    for model in ("mlp", "rnn", "lstm", "gru", "gpt_oss"):
        samples = [{"prompt": "The kettle", "text": ATTACK}]
        write_json(folder / "models/pretrain" / model / "samples.json", samples)
    write_transcripts(folder / "data/transcripts")
    dpo = read_json(folder / "metrics/dpo.json")
    dpo["guards"] = dict.fromkeys(dpo["guards"], True) | {FAILED.name: FAILED.passed}
    dpo["dpo"]["released_is_dpo"] = False
    dpo["released"] = {"model": "sft", "why": f"SFT is released: {FAILED.reason}"}
    write_json(folder / "metrics/dpo.json", dpo)
    write_json(folder / "metrics/evaluate.json", evaluated())
    write_curve(folder / "metrics/evaluate.tsv", by_intent())
    process = subprocess.run(
        [sys.executable, "-m", "stages.report"],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "metrics/report.html").read_text()


# The page


def test_the_page_has_every_part_in_one_small_file(page):
    assert page.count("<svg") == 6 and len(page.encode()) < 2_000_000
    for fact in (
        "build_sft.multi_turn_ratio",  # a parameter
        "profiles.cpu.evaluate.turns",
        "served_gpt",  # an agent of evaluate.models
        "nearest",  # a baseline
        "0.750 (0.38 to 1.00)",
        "0.750 (0.38 to 1.00) of 39",
        "data/sft/test.jsonl:2",
    ):
        assert fact in page
    assert "profiles.gpu" not in page
    assert page.count('<details id="test-') == page.count('<a href="#test-') == 20


def test_the_page_says_which_gate_failed_and_why(page):
    assert not FAILED.passed and FAILED.reason in page
    assert page.count('<td class="failed">') == 1


def test_page_and_card_name_the_origins_of_the_pairs(folder):
    pairs = read_json(ROOT / "metrics/prefs.json")["pairs"]
    counts = {name: pairs[name] for name in ORIGINS if pairs[name]}
    assert sum(counts.values()) == pairs["train"] + pairs["validation"]
    for file in ("report.html", "cards/dpo.md"):
        text = (folder / "metrics" / file).read_text()
        assert all(f"{count:,} {name} (" in text for name, count in counts.items())
        assert ("feedback (" in text) == bool(pairs["feedback"])


def test_ids_are_unique_on_the_page(page):
    """Figures drawn apart have the same ids; a browser would take the first one's for all."""
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 375)])
def test_a_browser_shows_the_page_without_errors_or_requests(folder, browser, scheme, width):
    viewport = {"width": width, "height": 800}
    with browser.new_context(color_scheme=scheme, viewport=viewport) as context:
        page = context.new_page()
        errors, urls = [], []
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: urls.append(request.url))
        page.goto((folder / "metrics/report.html").as_uri())
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.title().startswith("crawl2cart")  # what a model wrote does not run
        page.locator("#worst ol a").first.click()
        assert page.locator("#worst details").first.evaluate("turn => turn.open")
    assert not errors
    assert not [url for url in urls if not url.startswith(("file:", "data:"))]


def test_the_copy_with_the_costs_fits_a_phone_too(folder, browser, monkeypatch):
    for module in (costs, repro):
        monkeypatch.setattr(module, "ROOT", folder)
    with browser.new_context(viewport={"width": 375, "height": 800}) as context:
        page = context.new_page()
        page.goto(repro.report_copy().as_uri())
        assert page.get_by_role("heading", name="This run").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 375


# Tables, figures, cards


def test_each_cell_has_its_own_n_where_the_agents_differ():
    agents = {
        "sft": agent(0.5),
        "dpo": agent(0.75) | {"schema_valid_rate_n": 39},
        "served": {"tool_accuracy": 0.5},
    }
    assert agent_row(agents, list(agents), "tool_accuracy")["n"] == 40
    assert agent_row(agents, list(agents), "fact_recall")["n"] == ""
    assert agent_row(agents, list(agents), "schema_valid_rate") == {
        "": "schema valid rate",
        "sft": "0.500 (0.25 to 1.00) of 40",
        "dpo": "0.750 (0.38 to 1.00) of 39",
        "served": "",
        "n": "",
    }


def test_the_copy_of_the_released_model_is_no_agent_of_its_own():
    assert "released" in evaluated() and agents_of(evaluated()) == list(MODELS)


def test_the_figure_by_intent_shows_tool_accuracy_only_where_a_tool_is_due():
    figures.style()
    table = pd.DataFrame(by_intent())
    drawn = figures.intents(table)
    for metric, tool_is_due, same in (
        ("right", True, False),
        ("tool_accuracy", True, False),
        ("tool_accuracy", False, True),
    ):
        changed = (table["metric"] == metric) & ((table["n"] > 0) == tool_is_due)
        values = table["value"].where(~changed, 0.6)
        assert changed.any() and (figures.intents(table.assign(value=values)) == drawn) == same


def test_the_drawn_graph_has_the_stages_of_dvc_yaml_and_is_the_same_in_every_process():
    """Python orders a set of strings anew in each process, and a graph's edges come from sets."""
    graph = stage_graph(ROOT, "smoke")
    assert networkx.is_directed_acyclic_graph(graph)
    assert {("filter", "encode"), ("data/web", "download"), ("dpo", "evaluate")} <= set(graph.edges)
    sinks = [node for node in graph if not graph.out_degree(node)]
    assert sinks == ["report"]
    draw = (
        "from pathlib import Path; from crawl2cart.report import figures, stage_graph as s; "
        "figures.style(); print(s.draw_graph(s.stage_graph(Path('.'), 'smoke')))"
    )
    process = subprocess.run(
        [sys.executable, "-c", draw],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    figures.style()
    assert process.stdout.rstrip("\n") == draw_graph(graph).rstrip("\n")


def test_cards_hold_the_measured_numbers(folder):
    cards = {path.stem: path.read_text() for path in (folder / "metrics/cards").glob("*.md")}
    assert set(cards) == {"pretrained", "sft", "dpo"}
    assert "| tool accuracy | 0.500 (0.25 to 1.00) | 40 |" in cards["sft"]
    assert "| tool accuracy | 0.750 (0.38 to 1.00) | 40 |" in cards["dpo"]
    assert "20 wins, 15 ties, 5 losses" in cards["dpo"]
    bits = read_json(ROOT / "metrics/pretrain.json")["gpt_oss"]["val_bits_per_byte"]
    assert f"{bits:.3f}" in cards["pretrained"]
    assert all(text.startswith("---\nlicense: mit\n") for text in cards.values())
