"""The record of routing decisions: what it holds, what it must not hold, and its replay."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_jsonl
from crawl2cart.demo.conversation import Conversation
from crawl2cart.router.gpt4 import Gpt4
from crawl2cart.router.policy import PROMPT_VERSION, Route, Router
from crawl2cart.router.routing_log import RoutingLog, replay
from tests.servers.openai_server import KEY, Reply, completion, verdict
from tests.unit.router.small_router import QUERIES, queries, small_router

PARCEL = "my parcel TB-48213 has not arrived"


@pytest.fixture
def router(monkeypatch) -> Router:
    """The local router, without a key."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return Router(small_router(), Gpt4("gpt-test"))


def test_a_decision_is_recorded_with_its_cost_and_without_text_and_key(server, tmp_path):
    path = tmp_path / "runs" / "decisions.jsonl"
    router = Router(small_router(), Gpt4("gpt-test", input_price=2.0, output_price=8.0))
    conversation = Conversation(router, lambda: None, RoutingLog(path))
    reply = json.loads(verdict("unclear")) | {"reason": f"they write: {PARCEL}"}
    replies = [Reply(completion("no JSON")), Reply(completion(json.dumps(reply)))]
    server.answer = lambda body, key: replies.pop(0)
    conversation(PARCEL)
    error = json.dumps({"error": {"message": f"{KEY} may not ask {PARCEL}"}}).encode()
    server.answer = lambda body, key: Reply(error, status=401)
    RoutingLog(path)(PARCEL, (), router(PARCEL), "other")
    first, second = read_jsonl(path)
    assert first["hash"] == second["hash"] == hashlib.sha256(PARCEL.encode()).hexdigest()
    assert (first["route"], first["went"], first["source"]) == ("unclear", None, "gpt")
    assert (first["requests"], first["input_tokens"], first["output_tokens"]) == (2, 2000, 100)
    assert first["dollars"] == pytest.approx((2000 * 2 + 100 * 8) / 1e6)
    assert first["seconds"] > 0 and first["prompt"] == PROMPT_VERSION
    assert second["source"] == "local" and "401" in second["why"]
    log = path.read_text()
    assert not [secret for secret in (PARCEL, "TB-48213", KEY) if secret in log]


def test_texts_are_kept_only_on_request_and_replayed(router, tmp_path):
    texts = [row["text"] for row in queries("validation")[:20]]
    with_text, without_text = tmp_path / "with.jsonl", tmp_path / "without.jsonl"
    for path in (with_text, without_text):
        log = RoutingLog(path, keep_text=path == with_text)
        for text in texts:
            log(text, ("hello",), router(text), "other")
    assert [entry["text"] for entry in read_jsonl(with_text)] == texts
    assert [line["same"] for line in replay(with_text, None, router)] == [True] * 20
    assert [line["now"] for line in replay(without_text, None, router)] == [None] * 20
    known = QUERIES / "validation.jsonl"
    assert [line["same"] for line in replay(without_text, known, router)] == [True] * 20

    def other_router(text: str, before: tuple[str, ...]) -> Route:
        assert before == ("hello",)
        label = "other" if router(text).label == "shopping" else "shopping"
        return Route(label, "local", 1.0, "")

    assert not any(line["same"] for line in replay(with_text, None, other_router))


@pytest.mark.parametrize("line", ["[]", '{"route": "shopping"}', "not JSON"])
def test_a_file_that_is_no_log_is_an_error_that_names_the_line(router, tmp_path, line):
    path = tmp_path / "decisions.jsonl"
    with pytest.raises(UserError, match="missing"):
        list(replay(path, None, router))
    path.write_text(line + "\n")
    with pytest.raises(UserError, match="decisions.jsonl:1"):
        list(replay(path, None, router))


@pytest.mark.parametrize(
    ("content", "fault"), [(None, "missing"), ('{"text": "a"}\n{"query": "b"}', "entry 2")]
)
def test_a_file_without_texts_is_an_error_that_names_it(router, tmp_path, content, fault):
    texts, log = tmp_path / "texts.jsonl", tmp_path / "decisions.jsonl"
    log.touch()
    if content:
        texts.write_text(content)
    with pytest.raises(UserError, match=f"texts.jsonl.*{fault}"):
        list(replay(log, texts, router))


def test_a_log_that_cannot_be_written_costs_no_answer_and_is_reported_once(
    router, tmp_path, capsys
):
    (tmp_path / "runs").write_text("a file where a folder should be")
    log = RoutingLog(tmp_path / "runs" / "decisions.jsonl")
    conversation = Conversation(router, lambda: None, log)
    for _ in range(2):
        assert conversation("what is the capital of France").text
    assert capsys.readouterr().err.count("decisions.jsonl") == 1


def test_lines_of_many_threads_stay_whole(tmp_path):
    path: Path = tmp_path / "decisions.jsonl"
    log = RoutingLog(path, keep_text=True)

    def write(number: int) -> None:
        log(f"query {number} " + "x" * 5000, (), Route("other", "local", 0.9, ""), "other")

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(write, range(200)))
    numbers = [int(entry["text"].split()[1]) for entry in read_jsonl(path)]
    assert sorted(numbers) == list(range(200))
