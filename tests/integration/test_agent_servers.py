"""A merged checkpoint behind `transformers serve`, and a server among the agents of `evaluate`."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from openai import OpenAI

from crawl2cart.agent.agent import Agent, open_writer
from crawl2cart.core.device import Device
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_json, read_jsonl, write_json, write_jsonl
from crawl2cart.lm.formats import harmony
from crawl2cart.shop.db import open_store
from crawl2cart.shop.tool_schemas import TOOLS, compact
from crawl2cart.shop.tools import Session
from stages.evaluate import open_agent
from stages.router import train
from tests import recorded_dialogues as recorded
from tests.conftest import ROOT
from tests.servers.openai_server import Reply, completion, serve
from tests.taught_model import teach

QUESTION = "do you have a kettle under 60 dollars?"
ARGUMENTS = {"category": "kettle", "max_price": 60}
SECONDS_TO_START = 120


def right_dialogue() -> list[dict]:
    """The question, a real search, and a reply with its first match."""
    result = Session(open_store(ROOT / "data/store")).call("search_products", ARGUMENTS)
    first = result["results"][0]
    return [
        {"role": "user", "content": QUESTION},
        recorded.call_message("search_products", **ARGUMENTS),
        {"role": "tool", "name": "search_products", "content": compact(result)},
        {"role": "assistant", "content": f"The {first['name']} is ${first['price']}."},
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny GPT-OSS that knows this dialogue by heart, merged and saved as the stages do it."""
    user, call, result, reply = right_dialogue()
    folder = tmp_path_factory.mktemp("merged")
    examples = [([user], call), ([user, call, result], reply)]
    teach(folder, [{"prompt": prompt, "completion": [turn]} for prompt, turn in examples])
    return folder


@pytest.fixture(scope="module")
def served(checkpoint, tmp_path_factory) -> Iterator[str]:
    """The address of `transformers serve` with this checkpoint, without the network."""
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip("needs transformers[serving]: fastapi, uvicorn, pydantic, openai")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("serve")
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    arguments = f"--host 127.0.0.1 --port {port} --device cpu --dtype float32".split()
    program = [Path(sys.executable).with_name("transformers"), "serve", checkpoint, *arguments]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*program, "--attn-implementation", "eager"],
            env=os.environ | environment,
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not is_healthy(address):
            assert server.poll() is None and time.monotonic() < deadline, (
                folder / "log"
            ).read_text()[-2000:]
            time.sleep(0.3)
        yield f"{address}/v1"
    finally:
        server.terminate()
        server.wait(20)


def is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5):
            return True
    except OSError:
        return False


def ask(served: str, checkpoint: Path, messages: list[dict], **options: object):
    client = OpenAI(base_url=served, api_key="none", max_retries=0)
    return client.chat.completions.create(
        model=str(checkpoint),
        messages=messages,
        tools=TOOLS,
        max_tokens=60,
        temperature=0,
        **options,
    )


@pytest.mark.slow
def test_the_openai_client_gets_a_call_and_then_a_reply(served, checkpoint):
    user, _, result, reply = right_dialogue()
    first = ask(served, checkpoint, [user]).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls
    assert call.function.name == "search_products"
    assert json.loads(call.function.arguments) == ARGUMENTS
    tool = {"role": "tool", "tool_call_id": call.id, "content": result["content"]}
    messages = [user, first.message.model_dump(exclude_none=True), tool]
    second = ask(served, checkpoint, messages).choices[0]
    assert second.finish_reason == "stop" and second.message.content == reply["content"]


@pytest.mark.slow
def test_a_call_comes_whole_in_a_stream(served, checkpoint):
    stream = ask(served, checkpoint, right_dialogue()[:1], stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    (call,) = [call.function for delta in deltas for call in delta.tool_calls or []]
    assert (call.name, json.loads(call.arguments)) == ("search_products", ARGUMENTS)
    assert not any(delta.content for delta in deltas)


@pytest.mark.slow
def test_the_agent_answers_through_the_server_as_from_the_folder(served, checkpoint):
    def contents(messages: list[dict]) -> list[tuple[str, str]]:
        return [(message["role"], message["content"]) for message in messages]

    for place in (f"{served}#{checkpoint}", str(checkpoint)):
        agent = Agent(Session(open_store(ROOT / "data/store")), open_writer(place))
        agent(QUESTION)
        assert contents(agent.messages) == contents(right_dialogue()), place


# A server among the agents that `evaluate` measures


@pytest.fixture(scope="module")
def project(checkpoint, tmp_path_factory) -> Path:
    """A folder in which `evaluate` runs in seconds; base, SFT and DPO are the tiny model."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "data/sft").mkdir(parents=True)
    for name in ("dvc.yaml", "requirements.txt", "data/store", "data/queries"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("stages", "crawl2cart"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("base", "sft", "dpo"):
        shutil.copytree(checkpoint, folder / "models" / name)
    (folder / "models/router").mkdir()
    train(ROOT / "data/queries", ROOT / "data/store", 3.0, 0.6).save(folder / "models/router")
    splits = {
        "train": recorded.dialogues("train")[:20],
        "test": recorded.dialogues("test")[:12],
        "safety": recorded.safety_cases()[:: recorded.SAFETY_CASES],
    }
    for split, dialogues in splits.items():
        write_jsonl(folder / f"data/sft/{split}.jsonl", dialogues)
    write_json(folder / "data/sft/lexicon.json", recorded.vocabulary().to_dict())
    (folder / "metrics").mkdir()
    write_json(folder / "metrics/dpo.json", {"released": {"model": "sft"}})
    return folder


def evaluate(folder: Path, place: str) -> subprocess.CompletedProcess:
    """Run the stage on the smoke profile with one more agent."""
    text = (ROOT / "params.yaml").read_text()
    for old, new in (
        ("\nprofile: cpu\n", "\nprofile: smoke\n"),
        ("  max_new_tokens: 120\n", "  max_new_tokens: 4\n"),
        ("  models: ''\n", f'  models: "{place}"\n'),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    for key in ("threads", "num_processes"):  # more would wait for each other on a busy machine
        text = text.replace(f"{key}: 2\n", f"{key}: 1\n")
    (folder / "params.yaml").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "stages.evaluate"],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )


@pytest.mark.slow
def test_a_server_is_measured_on_the_tasks_of_the_models(project, server):
    server.answer = lambda body, key: Reply(completion("Which one?"))
    process = evaluate(project, f"{server.url}#m")
    assert process.returncode == 0, process.stderr[-3000:]
    name = re.sub(r"\W+", "_", f"{server.url}#m".partition("://")[2])
    metrics = read_json(project / "metrics/evaluate.json")
    ours, theirs = metrics["sft"], metrics[name]
    for key in ("n", "policy_violation_rate_n"):
        assert theirs[key] == ours[key]
    assert theirs["mean_reply_words"] == 2
    assert theirs["tool_accuracy"] == theirs["policy_violation_rate"] == 0
    assert "pass_3" in ours and "pass_3" not in theirs  # a server's seeds promise nothing
    turns = read_jsonl(project / "data/transcripts/turns.jsonl")
    assert {turn["answers"][name]["text"] for turn in turns} == {recorded.reply("Which one?")}
    replies = sum(turn["gold_tool"] == "reply" for turn in turns)
    assert theirs["call_or_reply_accuracy"] == pytest.approx(replies / len(turns), abs=1e-4)
    assert all(body["tools"] == TOOLS and body["model"] == "m" for body in server.requests)
    queries = {harmony.escape_markers(turn["before"][-1][1]) for turn in turns}
    assert queries <= {body["messages"][-1]["content"] for body in server.requests}


@pytest.mark.slow
def test_a_stopped_server_ends_the_evaluation_and_leaves_nothing(project):
    with serve() as server:
        stopped = server.url
    for out in ("metrics/evaluate.json", "data/transcripts"):
        path = project / out
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    process = evaluate(project, f"{stopped}#m")
    assert process.returncode == 1
    assert f"evaluate: {stopped}#m" in process.stderr
    assert not (project / "metrics/evaluate.json").exists()
    assert not (project / "data/transcripts").exists()


def test_a_server_without_a_model_is_a_problem():
    with serve() as server:
        stopped = server.url
    with pytest.raises(UserError, match=re.escape(stopped)):
        open_agent(stopped, Device("cpu", torch.float32), 4, 0.7, 7)
