"""build_prefs and dpo from end to end on a tiny model that knows its turns by heart."""

import functools
import json
import math
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from crawl2cart.core.dvc_yaml import read_yaml
from crawl2cart.core.files import read_json, read_jsonl, write_json, write_jsonl
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.preferences.pairs import make_pair
from tests import recorded_dialogues as recorded
from tests.conftest import ROOT
from tests.servers.openai_server import KEY, Server
from tests.taught_model import teach
from tests.unit.preferences.test_llm_judge import answers, prefers, question

pytestmark = pytest.mark.slow


def run_stage(project: Path, name: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"stages.{name}"],
        cwd=project,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(project)},
    )


def make_project(folder: Path) -> Path:
    """A folder with the code and the shop, in which a stage runs."""
    for name in ("dvc.yaml", "requirements.txt"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("stages", "crawl2cart"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data/sft").mkdir(parents=True)
    (folder / "data/store").symlink_to(ROOT / "data/store")
    write_json(folder / "data/sft/lexicon.json", recorded.vocabulary().to_dict())
    return folder


def write_params(project: Path, changes: dict[str, object]) -> None:
    """Write params.yaml on the smoke profile, one thread; changes: values by dotted key."""
    params = read_yaml(ROOT / "params.yaml")
    one_thread = {"profiles.smoke.threads": 1, "profiles.smoke.num_processes": 1}
    for path, value in {"profile": "smoke", **one_thread, **changes}.items():
        *sections, key = path.split(".")
        section = functools.reduce(dict.__getitem__, sections, params)
        assert key in section
        section[key] = value
    (project / "params.yaml").write_text(json.dumps(params))  # JSON is YAML


def shortened(dialogue: dict) -> dict:
    """The dialogue's first query and its answer."""
    return dialogue | {"messages": dialogue["messages"][:2], "notes": dialogue["notes"][:1]}


# dpo


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> tuple[Path, list[dict]]:
    """A project whose SFT model answers three calls and three replies rightly, and these turns."""
    dialogues = recorded.dialogues("validation")
    first = [to_examples(dialogue)[0] for dialogue in dialogues]
    turns = []
    for is_call in (True, False):
        turns += [t for t in first if bool(t["completion"][0].get("tool_calls")) == is_call][:3]
    project = make_project(tmp_path_factory.mktemp("dpo"))
    teach(project / "models/sft", turns)
    names = {turn["id"].rpartition(":")[0] for turn in turns}
    chosen = [shortened(dialogue) for dialogue in dialogues if dialogue["id"] in names]
    write_jsonl(project / "data/sft/validation.jsonl", chosen)
    return project, turns


def worse(turn: dict) -> dict:
    """Another call than the right one, or a reply that invents."""
    if turn["completion"][0].get("tool_calls"):
        return recorded.call_message("hand_off", reason="the customer asks")
    text = "Buy the blue one today, it is only $77.31 and it will be gone tomorrow."
    return {"role": "assistant", "content": text}


def run_dpo(
    project: Path, turns: list[dict], is_reversed: bool, learning_rate: float, sft_weight: float
) -> dict:
    """Train on the turns against worse ones, or the other way round; return the metrics."""
    pairs = []
    for turn in turns:
        sides = [(turn["completion"][0], 1.0), (worse(turn), 0.1)]
        pairs.append(make_pair(turn, *(sides[::-1] if is_reversed else sides), [], "sampled"))
    (project / "data/prefs").mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        write_jsonl(project / f"data/prefs/{split}.jsonl", pairs)
    sizes = {"max_steps": 24, "batch_size": 3, "eval_samples": 6}
    write_params(
        project,
        {"dpo.learning_rate": learning_rate, "dpo.sft_weight": sft_weight}
        | {f"profiles.smoke.dpo.{key}": value for key, value in sizes.items()},
    )
    process = run_stage(project, "dpo")
    assert process.returncode == 0, process.stderr
    metrics = read_json(project / "metrics/dpo.json")
    assert metrics["released"]["why"] in process.stdout
    return metrics


def weights(project: Path, name: str) -> bytes:
    return (project / "models" / name / "model.safetensors").read_bytes()


def test_reversed_pairs_release_sft_and_say_why(taught):
    project, turns = taught
    metrics = run_dpo(project, turns, is_reversed=True, learning_rate=0.01, sft_weight=0.1)
    assert not metrics["dpo"]["released_is_dpo"] and metrics["released"]["model"] == "sft"
    gates = metrics["guards"]
    assert not gates["quality"] and not (gates["tool_accuracy"] and gates["hallucination_rate"])
    assert "quality" in metrics["released"]["why"]
    assert weights(project, "released") == weights(project, "sft") != weights(project, "dpo")


def test_right_pairs_release_dpo(taught):
    project, turns = taught
    # Gently: a known turn has a log-probability near 0, of which 5 percent are next to nothing.
    metrics = run_dpo(project, turns, is_reversed=False, learning_rate=0.0003, sft_weight=4.0)
    assert metrics["released"]["model"] == "dpo" and all(metrics["guards"].values())
    assert metrics["dpo"]["reward_accuracy"] == 1 and metrics["dpo"]["kl"] > 0
    assert weights(project, "released") == weights(project, "dpo") != weights(project, "sft")
    header, *lines = (project / "metrics/dpo.tsv").read_text().splitlines()
    first, last = (
        dict(zip(header.split("\t"), map(float, line.split("\t")), strict=True))
        for line in (lines[0], lines[-1])
    )
    assert first["step"] == first["kl"] == 0
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert last["step"] == 24 and last["margin"] > 0 and last["loss"] < first["loss"]
    assert read_json(project / "models/released/config.json")["output_router_logits"] is False


# build_prefs with a judge

# Two right replies of one length, so that the balance of lengths removes no pair of them.
WARM = "That's outside the shop; stock and orders I can check."
PLAIN = "I can only do goods, orders and returns, nothing else."


@pytest.fixture(scope="module")
def sampled(tmp_path_factory) -> Path:
    """A project with a judge, whose SFT model declines in either of two right ways."""
    project = make_project(tmp_path_factory.mktemp("judged"))
    queries = {
        dialogue["messages"][0]["content"]: shortened(dialogue)
        for dialogue in recorded.generate("train", 400)
        if dialogue["intent"] == "out_of_scope"
    }
    dialogues = list(queries.values())[:5]
    taught_turns = [
        turn | {"completion": [{"role": "assistant", "content": text}]}
        for dialogue in dialogues
        for turn in to_examples(dialogue)
        for text in (WARM, PLAIN)
    ]
    teach(project / "models/sft", taught_turns)
    for split, some in (("train", dialogues[:3]), ("validation", dialogues[3:])):
        write_jsonl(project / f"data/sft/{split}.jsonl", some)
    write_params(project, {"build_prefs.judge": "openai", "profiles.smoke.build_prefs.prompts": 20})
    return project


def contradicted(server: Server) -> float:
    """The share of pairs for which the server named the same place in both orders."""
    places = defaultdict(set)
    for body in server.requests:
        asked = question(body)
        pair = json.dumps([asked["conversation"], sorted([asked["first"], asked["second"]])])
        places[pair].add(server.answer(body, KEY).body)
    return sum(len(answers) == 1 for answers in places.values()) / len(places)


def test_build_prefs_reports_how_often_the_judge_contradicts_itself(sampled, server):
    biased_query = read_jsonl(sampled / "data/sft/train.jsonl")[0]["messages"][0]["content"]
    unbiased = prefers("stock and orders")

    def answer(body: dict, key: str):
        is_biased = question(body)["conversation"][0]["text"] == biased_query
        return answers("first") if is_biased else unbiased(body, key)

    server.answer = answer
    process = run_stage(sampled, "build_prefs")
    assert process.returncode == 0, process.stderr[-2000:]
    judge = read_json(sampled / "metrics/prefs.json")["judge"]
    assert judge["asked"] == len(server.requests) / 2 >= 3
    assert judge["inconsistent"] == judge["ties"] == pytest.approx(contradicted(server), abs=1e-4)
    assert 0 < judge["inconsistent"] < 0.5
    assert KEY not in process.stdout + process.stderr
    pairs = [
        pair
        for split in ("train", "validation")
        for pair in read_jsonl(sampled / f"data/prefs/{split}.jsonl")
        if pair["origin"] == "sampled"
    ]
    assert pairs
    for pair in pairs:
        assert [pair[side][0]["content"] for side in ("chosen", "rejected")] == [WARM, PLAIN]
