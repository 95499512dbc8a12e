"""The command line with real model folders: one learned a dialogue by heart, one is random."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from crawl2cart.agent.agent import COULD_NOT, open_writer
from crawl2cart.demo import cli
from crawl2cart.demo.conversation import OUT_OF_SCOPE
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.tokenizer import encoding, read_ranks, save_tokenizer
from crawl2cart.shop.db import open_store
from crawl2cart.shop.tool_schemas import TOOLS, compact
from crawl2cart.shop.tools import Session
from tests.conftest import ROOT
from tests.servers.openai_server import KEY, Reply
from tests.taught_model import small_model
from tests.unit.router.small_router import small_router

pytestmark = pytest.mark.slow

ORDER = "TB-10984"
QUERY = f"where is my parcel, the order is {ORDER}"
REPLY = f"Order {ORDER} is on its way to you."
STORE = open_store(ROOT / "data" / "store")
OWNER = STORE.order(ORDER)["email"]


@pytest.fixture(autouse=True)
def torch_settings(monkeypatch) -> Iterator[None]:
    """Opening a model folder sets torch's threads and determinism for the process."""
    import torch

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def save_model(folder: Path, dialogue: list[dict] | None) -> None:
    """Save a gpt_oss of two small layers: random, or after it learned one dialogue by heart."""
    import torch

    table = encoding(read_ranks(ROOT / "data" / "ranks" / "o200k_4096.tiktoken"))
    model = small_model(table)
    if dialogue:

        def tokens(messages: list[dict], **options: bool) -> list[int]:
            text = harmony.render(messages, TOOLS, **options)
            return table.encode(text, allowed_special="all")

        ids = torch.tensor([tokens(dialogue)])
        labels = torch.full_like(ids, -100)
        for i, message in enumerate(dialogue):
            if message["role"] == "assistant":
                begin = len(tokens(dialogue[:i], add_generation_prompt=True))
                end = len(tokens(dialogue[: i + 1]))
                labels[:, begin:end] = ids[:, begin:end]
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(200):
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if loss < 0.03:
                break
        assert loss < 0.03
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    save_tokenizer(table, folder)
    (folder / "chat_template.jinja").write_text(harmony.TEMPLATE)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project folder whose released model knows one dialogue by heart."""
    folder = tmp_path_factory.mktemp("project")
    params = (ROOT / "params.yaml").read_text().replace("\nprofile: cpu\n", "\nprofile: smoke\n")
    params = re.sub(r"max_new_tokens: \d+", "max_new_tokens: 40", params)
    (folder / "params.yaml").write_text(params)
    (folder / "models" / "router").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data" / "store").symlink_to(ROOT / "data" / "store")
    small_router().save(folder / "models" / "router")
    arguments = {"order": ORDER}
    result = compact(Session(STORE.copy(), signed_in=OWNER).call("get_order", arguments))
    call = {"type": "function", "function": {"name": "get_order", "arguments": arguments}}
    dialogue = [
        {"role": "user", "content": QUERY},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "get_order", "content": result},
        {"role": "assistant", "content": REPLY},
    ]
    save_model(folder / "models" / "released", dialogue)
    return folder


def test_ask_answers_a_shopping_question_from_the_store(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert cli.main(["ask", "--email", OWNER, "--json", QUERY]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["by"], answer["text"]) == ("agent", REPLY)
    assert (answer["route"]["label"], answer["route"]["source"]) == ("shopping", "local")
    (call,) = answer["calls"]
    assert (call["name"], call["arguments"]) == ("get_order", {"order": ORDER})
    assert call["result"]["tracking"] == STORE.order(ORDER)["tracking"]


def start(project: Path, *words: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "crawl2cart.demo.cli", *words],
        cwd=project,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"} | environment,
    )


def test_chat_as_a_process_of_its_own_tells_the_key_to_nobody(project, server):
    server.answer = lambda body, key: Reply(
        json.dumps({"error": {"message": f"Incorrect API key: {key}"}}).encode(), status=401
    )
    text = f"{QUERY}\n\n\xff\x1b[2J what is the capital of France?\n".encode("latin-1")
    with start(project, "chat", "--email", OWNER, OPENAI_API_KEY=KEY) as process:
        out, err = (stream.decode() for stream in process.communicate(text, timeout=120))
    assert process.returncode == 0, err
    assert "shopping, says local" in out and "status 401" in out
    assert f'get_order {{"order":"{ORDER}"}} -> {{"order":"{ORDER}"' in out
    assert REPLY in out and OUT_OF_SCOPE in out
    assert "\x1b" not in out and KEY not in out + err and "Traceback" not in err


def test_the_page_elsewhere_asks_for_the_token_that_it_prints_and_ends_with_ctrl_c(project, server):
    words = ["--port", "0", "--address", "0.0.0.0", "--model", server.url]
    with start(project, "demo", *words) as process:
        url = process.stdout.readline().decode().split()[0].replace("0.0.0.0", "127.0.0.1")
        assert "token=" in url
        assert httpx.get(url.partition("?")[0]).status_code == 401
        cookies = httpx.get(url).cookies
        page = httpx.get(url, follow_redirects=True, cookies=cookies)
        assert "Tarrowby Goods" in page.text
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_damaged_model_is_a_readable_error(project, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "project"
    shutil.copytree(project, folder, symlinks=True)
    weights = folder / "models" / "released" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    monkeypatch.chdir(folder)
    assert cli.main(["ask", QUERY]) == 1
    assert "damaged" in capsys.readouterr().err


def test_a_random_model_fails_and_streams_what_it_writes(project, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "project"
    shutil.copytree(project, folder, symlinks=True)
    shutil.rmtree(folder / "models" / "released")
    save_model(folder / "models" / "released", None)
    monkeypatch.chdir(folder)
    assert cli.main(["ask", "--json", QUERY]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"], answer["by"], answer["failed"]) == (COULD_NOT, "agent", True)
    writer, texts = open_writer("models/released"), []
    prompt = [{"role": "user", "content": "a tent?"}]
    (streamed,) = writer([prompt], TOOLS, texts.append)
    assert [streamed] == writer([prompt], TOOLS)
    # A character of several tokens is not whole until the last of them.
    assert len(texts) > 20 and texts[-1].rstrip("\ufffd") == streamed.rstrip("\ufffd")
    assert texts == sorted(texts, key=len)
