"""Opening a model, and the command line: what it prints, and how it fails."""

import re

import pytest
from safetensors.torch import save_file

from crawl2cart.agent.agent import main, open_writer
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import write_json
from tests.conftest import ROOT
from tests.servers.openai_server import Reply, completion, serve

QUESTION = "do you have a kettle under 60 dollars?"


@pytest.fixture
def stopped_server() -> str:
    """An address where no server is any more."""
    with serve() as server:
        return server.url


def fails(place: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The message with which the command ends."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as raised:
        main([place, QUESTION])
    return raised.value.code


def test_a_model_that_is_not_there_is_named(monkeypatch, tmp_path, stopped_server):
    assert "models/nope" in fails("models/nope", monkeypatch)
    assert str(tmp_path) in fails(str(tmp_path), monkeypatch)
    for place in (stopped_server, f"{stopped_server}#m"):
        message = fails(place, monkeypatch)
        assert stopped_server in message and "no connection" in message


def test_a_server_that_refuses_is_named_without_its_own_words(monkeypatch):
    with serve() as server:
        server.answer = lambda body, key: Reply(b"secret", status=404)
        message = fails(f"{server.url}#m", monkeypatch)
    assert server.url in message and "404" in message and "secret" not in message


def test_the_reply_alone_goes_to_stdout(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with serve() as server:
        server.answer = lambda body, key: Reply(completion("Which one?"))
        main([f"{server.url}#m", QUESTION])
    assert capsys.readouterr().out == "Which one?\n"


def test_a_baseline_is_refused(tmp_path):
    write_json(tmp_path / "config.json", {"model": "gru"})
    write_json(tmp_path / "tokenizer.json", {})
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))} .*baseline"):
        open_writer(str(tmp_path))
