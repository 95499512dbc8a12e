"""A merged checkpoint, unchanged, behind `transformers serve`: the openai client calls tools, and our agent talks through it."""

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

from crawl2cart.agent.agent import Agent, open_writer
from crawl2cart.core.device import Device
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_json, read_jsonl, write_json, write_jsonl
from crawl2cart.dialogues.generator import shop_lexicon
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.training.trl_utils import RESPONSE, save_merged
from crawl2cart.shop.db import open_store
from crawl2cart.shop.tool_schemas import TOOLS
from crawl2cart.shop.tools import Session
from stages.evaluate import open_agent
from stages.router import train
from tests.conftest import ROOT, maker_of
from tests.servers.openai_server import Reply, completion, serve

QUESTION = "do you have a kettle under 60 dollars?"
SECONDS_TO_START = 120
STEPS = 300


def right_dialogue() -> list[dict]:
    """The question, the search that was really made, and a reply with what it found."""
    session, arguments = (
        Session(open_store(ROOT / "data/store")),
        {"category": "kettle", "max_price": 60},
    )
    result = session.call("search_products", arguments)
    first = result["results"][0]
    return [
        {"role": "user", "content": QUESTION},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "type": "function",
                    "function": {"name": "search_products", "arguments": arguments},
                }
            ],
        },
        {
            "role": "tool",
            "name": "search_products",
            "content": json.dumps(result, separators=(",", ":")),
        },
        {"role": "assistant", "content": f"The {first['name']} is ${first['price']}."},
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny GPT-OSS that knows one dialogue by heart, exported and merged as the stages do it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from crawl2cart.lm.formats.save import save_model
    from crawl2cart.lm.models.gpt_oss import GptOss
    from crawl2cart.lm.models.init import initialise

    table = tokenizers.encoding(tokenizers.read_ranks(ROOT / "data/ranks/o200k_4096.tiktoken"))
    sizes = {
        "num_layers": 2,
        "hidden_size": 64,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 32,
        "intermediate_size": 64,
        "num_experts": 2,
        "experts_per_token": 1,
        "sliding_window": 64,
        "max_position_embeddings": 4096,
        "rope_factor": 1.0,
        "router_aux_loss_coef": 0.0,
        "router_z_loss_coef": 0.0,
    }
    base, merged = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("merged")
    save_model(initialise(GptOss(sizes, table.n_vocab), seed=1), base, table)
    (base / "chat_template.jinja").write_text(harmony.TEMPLATE)
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    spoken = tokenizer.apply_chat_template(
        right_dialogue(), tools=TOOLS, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens, written = (
        torch.tensor([spoken["input_ids"]]),
        torch.tensor([spoken["assistant_masks"]]).bool(),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    for _ in range(STEPS):
        loss = model(input_ids=tokens, labels=tokens.where(written, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.01:
            break
    assert loss < 0.01
    save_merged(model, tokenizer, merged)
    return merged


@pytest.fixture(scope="module")
def served(checkpoint, tmp_path_factory) -> Iterator[str]:
    """Address of `transformers serve` with this checkpoint, on a free port and without the network."""
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip(
            "needs transformers[serving]: fastapi, uvicorn, pydantic and openai of requirements.txt"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("serve")
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                Path(sys.executable).with_name("transformers"),
                "serve",
                checkpoint,
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--device",
                "cpu",
                "--dtype",
                "float32",
                "--attn-implementation",
                "eager",
            ],
            env=environment,
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        started = time.monotonic()
        while time.monotonic() - started < SECONDS_TO_START:
            assert server.poll() is None, (folder / "log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.3)
        yield f"{address}/v1"
    finally:
        server.terminate()
        server.wait(20)


def ask(served: str, checkpoint: Path, messages: list[dict], **more: object):
    from openai import OpenAI

    return OpenAI(base_url=served, api_key="none", max_retries=0).chat.completions.create(
        model=str(checkpoint), messages=messages, tools=TOOLS, max_tokens=60, temperature=0, **more
    )


def test_the_openai_client_gets_a_call_and_then_a_reply(served, checkpoint):
    user, call, result, reply = right_dialogue()
    first = ask(served, checkpoint, [user]).choices[0]
    assert first.finish_reason == "tool_calls"
    function = first.message.tool_calls[0].function
    assert (function.name, json.loads(function.arguments)) == tuple(
        call["tool_calls"][0]["function"].values()
    )
    answered = [
        user,
        first.message.model_dump(exclude_none=True),
        {
            "role": "tool",
            "tool_call_id": first.message.tool_calls[0].id,
            "content": result["content"],
        },
    ]
    second = ask(served, checkpoint, answered).choices[0]
    assert second.finish_reason == "stop"
    assert second.message.content == reply["content"]


def test_a_call_comes_whole_in_a_stream(served, checkpoint):
    chunks = [
        chunk.choices[0]
        for chunk in ask(served, checkpoint, right_dialogue()[:1], stream=True)
        if chunk.choices
    ]
    calls = [call.function for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("search_products", {"category": "kettle", "max_price": 60})
    ]
    assert not "".join(chunk.delta.content or "" for chunk in chunks)


def test_the_agent_answers_with_a_real_product_through_the_server_as_from_the_folder(
    served, checkpoint
):
    for place in (f"{served}#{checkpoint}", str(checkpoint)):
        agent = Agent(Session(open_store(ROOT / "data/store")), open_writer(place))
        agent(QUESTION)
        assert [
            {key: message[key] for key in ("role", "content")} for message in agent.messages
        ] == [{key: message[key] for key in ("role", "content")} for message in right_dialogue()], (
            place
        )


def test_a_server_of_transformers_reads_a_turn_as_we_do():
    from transformers.utils.chat_parsing import parse_response

    maker = maker_of(ROOT / "data/store", 4)
    turns = [
        harmony.completion(message)
        for dialogue in maker.split("test", 60)
        for message in dialogue["messages"]
        if message["role"] == "assistant"
    ]
    call = '<|message|>{"order":"TB-10984"}<|call|>'
    turns += [
        f"<|channel|>commentary to=functions.get_order {form}{call}"
        for form in ("<|constrain|>json", "json", "")
    ]
    turns += [
        f" to=functions.get_order<|channel|>commentary{call}",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello.<|return|>",
    ]
    for turn in turns:
        theirs, ours = (
            parse_response(turn, RESPONSE, prefix=harmony.START, tools=TOOLS),
            harmony.parse_completion(turn),
        )
        assert theirs.get("content") == ours.get("content"), turn
        assert theirs.get("tool_calls") == ours.get("tool_calls"), turn


@pytest.mark.parametrize(
    "turn",
    [
        "nonsense",
        "",
        ' to=functions.get_order<|channel|>commentary json<|message|>{"order": <|call|>',
    ],
)
def test_what_cannot_be_read_reaches_the_client_as_what_it_is(turn):
    """Rather than ending in a 500 of the server's: the agent then tells the model so once."""
    from transformers.utils.chat_parsing import parse_response

    parsed = parse_response(turn, RESPONSE, prefix=harmony.START, tools=TOOLS)
    calls = [
        {"function": {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}}
        for call in parsed.get("tool_calls", [])
    ]
    again = harmony.completion(
        {"role": "assistant", "content": parsed.get("content", ""), "tool_calls": calls}
    )
    assert isinstance(harmony.parse_completion(again), harmony.Malformed)


# What the command says when there is nothing to speak with


def command(place: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "crawl2cart.agent.agent", place, QUESTION],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_a_folder_or_server_that_is_not_there_is_named_in_a_sentence(tmp_path):
    with serve() as server:
        server.answer = lambda body, key: Reply(b"no", status=404)
        gone = server.url  # it is once the block ends
        unknown = command(f"{gone}#m")
    for said, words in (
        (command("models/nope"), "models/nope is neither a folder"),
        (command(str(tmp_path)), "holds no model"),
        (command(gone), "no connection"),
        (command(f"{gone}#m"), "did not answer (no connection)"),
        (unknown, "did not answer (status 404)"),
    ):
        assert said.returncode == 1
        assert words in said.stderr and said.stderr.startswith("agent: ") and not said.stdout
        assert "Traceback" not in said.stderr


def test_a_server_that_answers_has_its_reply_printed_alone():
    with serve() as server:
        server.answer = lambda body, key: Reply(completion("Which one?"))
        said = command(f"{server.url}#m")
    assert (said.returncode, said.stdout) == (0, "Which one?\n")


def test_models_that_write_no_calls_are_refused_by_name(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"no chat_template\.jinja"):
        open_writer(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model": "gru"}')
    with pytest.raises(UserError, match="one of the baselines"):
        open_writer(str(tmp_path))


# A server among the agents that `evaluate` measures


@pytest.fixture(scope="module")
def measured(checkpoint, tmp_path_factory) -> Path:
    """A folder in which `evaluate` runs in seconds: a few dialogues, and the tiny model as base, SFT and DPO."""
    folder, maker = tmp_path_factory.mktemp("evaluate"), maker_of(ROOT / "data/store", 7)
    for name in ("dvc.yaml", "requirements.txt", "data/store", "data/queries"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(ROOT / name)
    for name in ("stages", "demo"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("base", "sft", "dpo"):
        shutil.copytree(checkpoint, folder / "models" / name)
    (folder / "models/router").mkdir()
    train(ROOT / "data/queries", ROOT / "data/store", 3.0, 0.6).save(folder / "models/router")
    (folder / "data/sft").mkdir()
    for split, dialogues in (
        ("train", maker.split("train", 20)),
        ("test", maker.split("test", 12)),
        ("safety", maker.safety("test", 1)),
    ):
        write_jsonl(folder / f"data/sft/{split}.jsonl", dialogues)
    write_json(folder / "data/sft/lexicon.json", shop_lexicon(maker).to_dict())
    (folder / "metrics").mkdir()
    write_json(folder / "metrics/dpo.json", {"released": {"model": "sft"}})
    return folder


def evaluate(folder: Path, place: str) -> subprocess.CompletedProcess:
    text = (ROOT / "params.yaml").read_text()
    for old, new in (
        ("\nprofile: cpu\n", "\nprofile: smoke\n"),
        ("  max_new_tokens: 120\n", "  max_new_tokens: 4\n"),
        ('  models: ""\n', f'  models: "{place}"\n'),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "params.yaml").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "stages.evaluate"],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )


@pytest.mark.slow
def test_a_server_is_measured_on_the_tasks_of_the_models(measured, server):
    server.answer = lambda body, key: Reply(completion("Which one?"))
    said = evaluate(measured, f"{server.url}#m")
    assert said.returncode == 0, said.stderr[-3000:]
    name = re.sub(r"\W+", "_", f"{server.url}#m".partition("://")[2])
    found = read_json(measured / "metrics/evaluate.json")
    assert (
        found[name]["n"] == found["sft"]["n"] == 8
        and found[name]["policy_violation_rate_n"] == found["sft"]["policy_violation_rate_n"]
    )
    assert (
        found[name]["mean_reply_words"] == 2
        and found[name]["tool_accuracy"] == found[name]["policy_violation_rate"] == 0
    )
    assert "pass_3" in found["sft"] and "pass_3" not in found[name], (
        "a server's seeds promise nothing"
    )
    turns = read_jsonl(measured / "data/transcripts/turns.jsonl")
    assert {row["answers"][name]["text"] for row in turns} == {
        harmony.completion({"role": "assistant", "content": "Which one?"})
    }
    assert found[name]["call_or_reply_accuracy"] == pytest.approx(
        sum(row["gold_tool"] == "reply" for row in turns) / len(turns), abs=1e-4
    )
    assert all(body["tools"] == TOOLS and body["model"] == "m" for body in server.requests)
    asked = [body["messages"][-1]["content"] for body in server.requests]
    assert all(row["before"][-1][1] in asked for row in turns if row["before"][-1][0] == "customer")


@pytest.mark.slow
def test_a_server_that_is_down_ends_the_evaluation_in_a_sentence(measured):
    with serve() as server:
        gone = server.url  # it is once the block ends
    said = evaluate(measured, f"{gone}#m")
    assert said.returncode == 1
    problem = [line for line in said.stderr.splitlines() if line.startswith("evaluate: ")]
    assert (
        problem and f"{gone}#m does not answer" in problem[-1] and "Start the server" in problem[-1]
    ), said.stderr[-3000:]
    assert (
        not (measured / "metrics/evaluate.json").exists()
        and not (measured / "data/transcripts").exists()
    )


def test_a_server_without_a_model_to_measure_is_a_problem():
    with serve() as server:
        gone = server.url
    with pytest.raises(
        UserError, match=re.escape(f"{gone} does not list its models (no connection)")
    ):
        open_agent(gone, Device("cpu", torch.float32), 4, 0.7, 7)
