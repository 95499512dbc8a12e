"""The command line with a real store, a real router, and a server in the place of both models."""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from crawl2cart.agent.agent import CHANGED
from crawl2cart.demo import cli
from crawl2cart.demo.conversation import OUT_OF_SCOPE, UNAVAILABLE
from crawl2cart.demo.page import token_for
from crawl2cart.shop.db import open_store
from tests.conftest import ROOT
from tests.scripted_assistant import call
from tests.servers.openai_server import KEY, Reply, completion
from tests.unit.router.small_router import small_router

ORDER = "TB-10984"
QUERY = f"where is my parcel, the order is {ORDER}"
OTHER = "what is the capital of France"
STORE = open_store(ROOT / "data" / "store")
OWNER = STORE.order(ORDER)["email"]


@pytest.fixture(autouse=True)
def no_key(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A project folder with a shop and a router, and no model."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "models" / "router").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data" / "store").symlink_to(ROOT / "data" / "store")
    small_router().save(folder / "models" / "router")
    return folder


@pytest.fixture
def folder(template, tmp_path, monkeypatch) -> Path:
    """A copy of the project folder that is the current one."""
    copy = tmp_path / "project"
    shutil.copytree(template, copy, symlinks=True)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def endpoint(server, monkeypatch):
    """The server as a shopping model that looks an order up and replies; GPT-4 has no key."""
    monkeypatch.delenv("OPENAI_API_KEY")

    def answer(body: dict, key: str) -> Reply:
        first = body["messages"][-1]["role"] == "user"
        lookup, reply = call("get_order", order=ORDER), completion("It is on its way.")
        return Reply(lookup if first else reply, pause=0.01)

    server.answer = answer
    return server


def type_in(monkeypatch, text: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))


# ask


def test_ask_speaks_to_an_endpoint_as_to_a_folder(folder, endpoint, capsys):
    words = ["ask", "--json", "--model", endpoint.url, "--email", OWNER, QUERY]
    assert cli.main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"], answer["by"]) == ("It is on its way.", "agent")
    assert (answer["route"]["label"], answer["route"]["source"]) == ("shopping", "local")
    assert answer["calls"][0]["result"]["tracking"] == STORE.order(ORDER)["tracking"]


def test_ask_needs_no_model_for_other_questions(folder, capsys):
    assert cli.main(["ask", OTHER]) == 0
    assert capsys.readouterr().out.strip() == OUT_OF_SCOPE


def test_ask_fails_when_gpt_does(folder, server, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.answer = lambda body, key: Reply(b"", status=500)
    assert cli.main(["ask", "--json", OTHER]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["failed"] is True
    assert KEY not in output.out + output.err


# Errors


@pytest.mark.parametrize("words", [["chat"], ["ask", QUERY]])
def test_a_missing_model_is_a_readable_error(folder, capsys, words):
    assert cli.main(words) == 1
    output = capsys.readouterr()
    assert output.out == ("" if words == ["chat"] else UNAVAILABLE + "\n")
    assert "models/released" in output.err and "dvc repro" in output.err


def test_an_unknown_customer_is_a_readable_error(folder, capsys):
    assert cli.main(["chat", "--email", "nobody@example.com"]) == 1
    assert "nobody@example.com" in capsys.readouterr().err


def test_a_missing_router_and_another_folder_are_readable_errors(
    folder, tmp_path, monkeypatch, capsys
):
    shutil.rmtree(folder / "models")
    assert cli.main(["ask", QUERY]) == 1
    assert "dvc repro router" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ask", QUERY]) == 1
    assert "dvc.yaml" in capsys.readouterr().err


def test_an_endpoint_that_is_not_there_or_is_something_else_is_a_readable_error(
    folder, endpoint, capsys
):
    for url in ("http://127.0.0.1:9/v1", endpoint.url.replace("/v1", "/nothing")):
        assert cli.main(["ask", "--model", url, QUERY]) == 1
        output = capsys.readouterr()
        assert output.out == UNAVAILABLE + "\n"
        assert url in output.err and "Traceback" not in output.err


# chat


def test_chat_prints_route_calls_and_the_reply_while_it_is_written(
    folder, endpoint, monkeypatch, capsys
):
    type_in(monkeypatch, f"{QUERY}\n\n\xff\x1b[2J {OTHER}?\n".encode("latin-1"))
    assert cli.main(["chat", "--model", endpoint.url, "--email", OWNER]) == 0
    output = capsys.readouterr()
    steps = r"shopping, says local.*\n  get_order .*\nIt is on its way\.\n"
    assert re.search(steps, output.out), output.out
    assert output.out.count("It is on its way.") == output.out.count("get_order") == 1
    assert OUT_OF_SCOPE in output.out
    assert "\x1b" not in output.out and "Traceback" not in output.err


def test_chat_does_not_deny_a_change_when_the_model_fails_after_it(
    folder, server, monkeypatch, capsys
):
    monkeypatch.delenv("OPENAI_API_KEY")
    order, email, total = next(
        (row["id"], row["email"], row["total"])
        for row in STORE.all(
            "SELECT o.id, c.email, o.total FROM orders o JOIN customers c ON c.id = o.customer "
            "WHERE o.state = 'placed' ORDER BY o.id"
        )
    )
    question = f"Order {order} is placed, ${total:.2f} in all. Shall I cancel it?"

    def answer(body: dict, key: str) -> Reply:
        last = body["messages"][-1]
        if last["role"] == "tool":
            changed = "refund" in last["content"]
            return Reply(status=500) if changed else Reply(completion(question))
        tool = "cancel_order" if last["content"] == "yes" else "get_order"
        return Reply(call(tool, order=order))

    server.answer = answer
    type_in(monkeypatch, f"please cancel my order {order}\nyes\n".encode())
    assert cli.main(["chat", "--model", server.url, "--email", email]) == 0
    output = capsys.readouterr()
    assert re.search(rf"  cancel_order .*{order}.*\n{re.escape(CHANGED)}\n", output.out), output.out
    assert UNAVAILABLE not in output.out and "InternalServerError" in output.err


# replay, shop check, demo


def test_queries_are_recorded_without_their_text_and_replayed(folder, capsys):
    texts = [OTHER, "how do I read a payslip"]
    for text in texts:
        assert cli.main(["ask", text]) == 0
        assert capsys.readouterr().err.count("OPENAI_API_KEY") == 1, "the notice comes once"
    log = Path("runs/decisions.jsonl")
    assert not [text for text in texts if text in log.read_text()]
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert cli.main(["replay", "--texts", "texts.jsonl"]) == 0
    assert "2 unchanged, 0 changed, 0 without" in capsys.readouterr().err
    log.write_text(log.read_text().replace('"route": "other"', '"route": "shopping"'))
    assert cli.main(["replay", "--texts", "texts.jsonl", "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["same"] for line in lines] == [False, False]
    assert cli.main(["replay"]) == 0
    assert "2 without" in capsys.readouterr().err


def test_shop_check_passes_a_good_shop_and_names_the_faults_of_another(tmp_path, capsys):
    shop = tmp_path / "shop"
    shutil.copytree(ROOT / "tests" / "second_shop", shop)
    assert cli.main(["shop", "check", str(shop)]) == 0
    (shop / "shop.json").write_text("{}")
    with pytest.raises(SystemExit) as end:
        cli.main(["shop", "check", str(shop)])
    assert end.value.code and "shop.json" in str(end.value.code)


def test_the_page_serves_this_machine_alone_by_default(monkeypatch):
    monkeypatch.delenv("CRAWL2CART_TOKEN", raising=False)
    address = cli.build_parser().parse_args(["demo"]).address
    assert address == "127.0.0.1" and token_for(address) is None
    assert len(token_for("0.0.0.0")) > 20


def test_help_names_every_command_and_the_key(capsys):
    for words in (["--help"], ["chat", "--help"], ["ask", "--help"], ["shop", "check", "--help"]):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == 0
    output = capsys.readouterr().out
    for word in ("demo", "chat", "ask", "replay", "shop check", "--email", "OPENAI_API_KEY"):
        assert word in output
