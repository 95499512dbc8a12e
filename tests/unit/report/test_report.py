"""The report as a browser shows it, the model cards, and a checkpoint on its way to a hub."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from crawl2cart.core.files import read_json, write_json, write_jsonl
from crawl2cart.core.metrics import write_curve
from crawl2cart.evaluation.release_gates import Gate
from crawl2cart.report import figures
from crawl2cart.report.cards import MEASURED, ORIGINS
from stages.report import agent_row, agents_of
from tests.conftest import ROOT
from tests.servers.local_server import listening
from tools import costs as ledger
from tools import repro

SHARES = (*MEASURED, "call_or_reply_accuracy")
FAILED = Gate("tool_accuracy", before=0.8, after=0.7, least=0.75)
ATTACK = "</pre><script>document.title = 'owned'</script><img src=http://evil.example/x.png>"


def agent(value: float) -> dict:
    shares = {
        f"{name}{end}": given
        for name in SHARES
        for end, given in (("", value), ("_low", value / 2), ("_high", 1.0), ("_n", 40))
    }
    return shares | {
        "n": 40,
        "fact_recall": value,
        "mean_reply_words": 12.5,
        "policy_violation_count": 0,
    }


def transcripts(folder: Path) -> None:
    """30 turns and one play; what a model wrote is markup that would run if the page let it."""
    answers = {
        model: {
            "text": f"{ATTACK} {model}",
            "right": model == "base",
            "reasons": ["other arguments"],
            "partial": 0.5,
            "tool": "get_order",
        }
        for model in ("base", "sft", "dpo", "served_gpt")
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
    played = {
        model: {
            "messages": [["customer", ATTACK]],
            "success": False,
            "state": False,
            "missing": ["$5"],
            "policy_violation_rate": 0,
        }
        for model in answers
    }
    write_jsonl(folder / "turns.jsonl", turns)
    write_jsonl(
        folder / "plays.jsonl",
        [
            {
                "id": "test-0001",
                "line": 2,
                "plan": "p",
                "intent": "price",
                "right": [["customer", "hello"]],
                "played": played,
            }
        ],
    )


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> Path:
    """A folder in which the report was made: the committed metrics of the other stages, a guard that failed, and an evaluation made up
    here.
    """
    folder = tmp_path_factory.mktemp("report")
    for name in ("dvc.yaml", "params.yaml", "requirements.txt", "stages"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "metrics", folder / "metrics")
    for name in ("web", "store", "queries", "tokens", "sft", "prefs"):
        write_jsonl(folder / "data" / name / "rows.jsonl", [{"id": name}])
    for model in ("mlp", "rnn", "lstm", "gru", "gpt_oss"):
        write_json(
            folder / "models/pretrain" / model / "samples.json",
            [{"prompt": "The kettle", "text": ATTACK}],
        )
    transcripts(folder / "data/transcripts")
    dpo = read_json(folder / "metrics/dpo.json")
    write_json(
        folder / "metrics/dpo.json",
        dpo
        | {
            "guards": dict.fromkeys(dpo["guards"], True) | {FAILED.name: FAILED.passed},
            "dpo": dpo["dpo"] | {"released_is_dpo": False},
            "released": {"model": "sft", "why": f"SFT is released: {FAILED.reason}"},
        },
    )
    pair = {
        "n": 40,
        "wins": 20,
        "ties": 15,
        "losses": 5,
        "p": 0.004,
        "win_rate": 0.69,
        "win_rate_low": 0.6,
        "win_rate_high": 0.78,
        "length_controlled_win_rate": 0.7,
        "length_controlled_win_rate_low": 0.6,
        "length_controlled_win_rate_high": 0.8,
    }
    baseline = {
        key: value
        for key, value in agent(0.2).items()
        if key.startswith(("tool_accuracy", "argument_exact_match"))
    }
    write_json(
        folder / "metrics/evaluate.json",
        {
            "base": agent(0.25),
            "sft": agent(0.5),
            "dpo": agent(0.75) | {"schema_valid_rate_n": 39},
            "served_gpt": agent(0.875),
            "released": agent(0.5),
            "dpo_vs_sft": pair,
            "judge": {"tone_accuracy": 0.9},
            "baselines": {"nearest": baseline},
            "routed": {
                "n": 9,
                "routing_accuracy": 0.9,
                "routing_accuracy_low": 0.8,
                "routing_accuracy_high": 1.0,
            },
        },
    )
    write_curve(
        folder / "metrics/evaluate.tsv",
        [
            {
                "model": model,
                "intent": intent,
                "metric": metric,
                "value": 0.5,
                "low": 0.3,
                "high": 0.7,
                "n": n,
            }
            for model in ("base", "sft", "dpo")
            for intent in ("price", "search")
            for metric, n in (("right", 15), ("tool_accuracy", 7))
        ]
        + [
            {
                "model": model,
                "intent": "out_of_scope",
                "metric": metric,
                "value": 0.0,
                "low": 0.0,
                "high": 1.0,
                "n": n,
            }
            for model in ("base", "sft", "dpo")
            for metric, n in (("right", 9), ("tool_accuracy", 0))
        ],
    )
    said = subprocess.run(
        [sys.executable, "-m", "stages.report"],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )
    assert said.returncode == 0, said.stderr[-3000:]
    return folder


def test_the_page_shows_every_part_in_one_small_file(reported):
    page = (reported / "metrics/report.html").read_text()
    assert page.count("<svg") == 6 and len(page.encode()) < 2_000_000
    for words in (
        "sha256",
        "build_sft.multi_turn_ratio",
        "GPT-OSS",
        "nearest",
        "served_gpt",
        "15 times",
        "0.750 (0.38 to 1.00)",
        "guard",
        "0.750 (0.38 to 1.00) of 39",
        "right tools and right turns by intent",
    ):
        assert words in page
    assert page.count('<details id="test-') == page.count('<a href="#test-') == 20
    assert "data/sft/test.jsonl:2" in page


def test_the_page_says_which_guard_failed_and_by_how_much(reported):
    page = (reported / "metrics/report.html").read_text()
    assert not FAILED.passed
    assert "SFT is released: right tool is 0.7, was 0.8 and has to be at least 0.75." in page
    assert page.count('<td class="failed">') == 1


def test_the_page_and_the_card_name_where_the_pairs_come_from(reported):
    pairs = read_json(ROOT / "metrics/prefs.json")["pairs"]
    made = {name: pairs[name] for name in ORIGINS if pairs[name]}
    assert sum(made.values()) == pairs["train"] + pairs["validation"]
    for file in ("report.html", "cards/dpo.md"):
        text = (reported / "metrics" / file).read_text()
        assert all(f"{count} {name} (" in text for name, count in made.items())
        assert ("feedback (" in text) == bool(pairs["feedback"])


def test_each_cell_has_its_own_n_where_the_agents_differ():
    evaluated = {
        "sft": agent(0.5),
        "dpo": agent(0.75) | {"schema_valid_rate_n": 39},
        "served": {"tool_accuracy": 0.5},
    }
    assert agent_row(evaluated, list(evaluated), "tool_accuracy")["n"] == 40
    assert agent_row(evaluated, list(evaluated), "fact_recall")["n"] == ""
    row = agent_row(evaluated, list(evaluated), "schema_valid_rate")
    assert row == {
        "": "valid calls",
        "sft": "0.500 (0.25 to 1.00) of 40",
        "dpo": "0.750 (0.38 to 1.00) of 39",
        "served": "",
        "n": "",
    }


def test_the_copy_of_the_released_model_is_no_agent_of_its_own(reported):
    evaluated = read_json(reported / "metrics/evaluate.json")
    without = {name: values for name, values in evaluated.items() if name != "released"}
    assert "released" in evaluated and agents_of(evaluated) == agents_of(without) == [
        "base",
        "sft",
        "dpo",
        "served_gpt",
    ]


def test_the_figure_by_intent_shows_right_tools_where_a_tool_is_due(reported):
    figures.style()
    table = pd.read_csv(reported / "metrics/evaluate.tsv", sep="\t")
    drawn = figures.intents(table)
    for metric, due, same in (
        ("right", True, False),
        ("tool_accuracy", True, False),
        ("tool_accuracy", False, True),
    ):
        rows = (table["metric"] == metric) & ((table["n"] > 0) == due)
        assert (
            rows.any()
            and (figures.intents(table.assign(value=table["value"].where(~rows, 0.6))) == drawn)
            == same
        )


def test_ids_are_unique_on_the_page(reported):
    """Six figures drawn apart have the same ids; a browser would take the first one's for all."""
    ids = re.findall(r'\bid="([^"]+)"', (reported / "metrics/report.html").read_text())
    assert len(ids) == len(set(ids))


def test_the_drawn_graph_is_the_same_in_every_process():
    """Python orders the members of a set of strings anew in each process, unless it is told how."""
    draw = (
        "import pathlib; from stages.page import figures; from stages.report import stages_of; figures.style(); "
        "print(figures.graph(stages_of(pathlib.Path('.'), 'smoke')))"
    )
    drawn = {
        subprocess.run(
            [sys.executable, "-c", draw],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(drawn) == 1


def test_the_parameters_on_the_page_are_those_of_the_active_profile(reported):
    page = (reported / "metrics/report.html").read_text()
    assert "profiles.cpu.evaluate.turns" in page and "profiles.gpu" not in page


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 375)])
def test_a_browser_shows_the_page_without_errors_or_requests(reported, browser, scheme, width):
    with browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 800}
    ) as context:
        page = context.new_page()
        errors, requests = [], []
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((reported / "metrics/report.html").as_uri())
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.title().startswith("crawl2cart")  # what a model wrote is shown and not run
        page.locator("#worst ol a").first.click()
        assert page.locator("#worst details").first.evaluate("turn => turn.open")
        assert [
            url for url in requests if not url.startswith(("file:", "data:"))
        ] == [] and errors == []


def test_the_copy_with_the_ledger_fits_a_phone_too(reported, browser, monkeypatch):
    for module in (ledger, repro):
        monkeypatch.setattr(module, "ROOT", reported)
    with browser.new_context(viewport={"width": 375, "height": 800}) as context:
        page = context.new_page()
        page.goto(repro.report_copy().as_uri())
        assert page.get_by_role("heading", name="This run").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_cards_hold_the_measured_numbers(reported):
    cards = {
        name: (reported / "metrics/cards" / f"{name}.md").read_text()
        for name in ("pretrained", "sft", "dpo")
    }
    assert "| right tool | 0.500 (0.25 to 1.00) | 40 |" in cards["sft"]
    assert (
        "| right tool | 0.750 (0.38 to 1.00) | 40 |" in cards["dpo"]
        and "20 wins, 15 ties, 5 losses" in cards["dpo"]
    )
    bits = json.loads((ROOT / "metrics/pretrain.json").read_text())["gpt_oss"]["val_bits_per_byte"]
    assert f"{bits:.3f}" in cards["pretrained"]
    assert all(text.startswith("---\nlicense: mit\n") for text in cards.values())


# Publishing


@pytest.fixture
def checkpoint(reported) -> Path:
    folder = reported / "models/dpo"
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    for name in ("config.json", "tokenizer.json"):
        write_json(folder / name, {})
    return reported


def publish(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tools.publish", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ
        | {"PYTHONPATH": str(folder), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        | environment,
    )


class Hub(BaseHTTPRequestHandler):
    """The parts of the Hugging Face hub's API that an upload uses."""

    requests: list[tuple[str, str]] = []
    files: dict[str, bytes] = {}
    status = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        type(self).requests.append((self.path, self.headers.get("Authorization", "")))
        address = f"http://{self.headers['Host']}"
        if self.path.endswith("/repos/create"):
            assert b"private" in body
            answer = {"url": f"{address}/somebody/agent"}
        elif "/preupload/" in self.path:
            answer = {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
            }
        elif self.path.endswith("/validate-yaml"):  # of the card
            answer = {"errors": [], "warnings": []}
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    type(self).files[line["value"]["path"]] = base64.b64decode(
                        line["value"]["content"]
                    )
            answer = {
                "commitUrl": f"{address}/somebody/agent/commit/abc",
                "commitOid": "abc",
                "success": True,
                "hookOutput": "",
            }
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(
            json.dumps(answer if self.status == 200 else {"error": "no such token"}).encode()
        )

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_nothing_is_pushed_unless_asked(checkpoint):
    said = publish(checkpoint, "dpo", "somebody/agent", HF_ENDPOINT="http://127.0.0.1:9")
    assert said.returncode == 0 and "Nothing was pushed" in said.stdout
    assert "README.md" in said.stdout and "adapter" not in said.stdout


def test_a_checkpoint_arrives_with_its_card_and_a_refusal_is_said_in_words(checkpoint):
    class Ours(Hub):
        requests, files = [], {}

    with listening(Ours) as address:
        said = publish(
            checkpoint,
            "dpo",
            "somebody/agent",
            "--push",
            HF_ENDPOINT=address,
            HF_TOKEN="secret-token",
        )
        assert said.returncode == 0, said.stderr[-2000:]
        assert "commit/abc" in said.stdout
        assert Ours.files["README.md"] == (checkpoint / "metrics/cards/dpo.md").read_bytes()
        assert set(Ours.files) == {
            "README.md",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        }
        assert all(key == "Bearer secret-token" for _, key in Ours.requests)
        Ours.status = 401
        said = publish(
            checkpoint,
            "dpo",
            "somebody/agent",
            "--push",
            HF_ENDPOINT=address,
            HF_TOKEN="secret-token",
        )
    assert (
        said.returncode == 1
        and "did not take somebody/agent" in said.stderr
        and "HF_TOKEN" in said.stderr
    )
    assert "secret-token" not in said.stderr + said.stdout and "Traceback" not in said.stderr


def test_a_card_that_is_missing_is_named(checkpoint):
    (checkpoint / "metrics/cards/dpo.md").rename(checkpoint / "metrics/cards/away.md")
    try:
        said = publish(checkpoint, "dpo", "somebody/agent")
    finally:
        (checkpoint / "metrics/cards/away.md").rename(checkpoint / "metrics/cards/dpo.md")
    assert said.returncode == 1 and "metrics/cards/dpo.md is missing" in said.stderr
