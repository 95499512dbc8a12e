"""The teacher against a local server that misbehaves: only what passes every check is used."""

import copy
import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.dialogues.generator import DialogueGenerator, shop_vocabulary
from crawl2cart.dialogues.sft_examples import texts_of
from crawl2cart.dialogues.teacher import (
    Rejected,
    Teacher,
    add_wordings,
    dialogue_fault,
    normalize,
    repeats,
    teach_dialogues,
    wording_fault,
)
from crawl2cart.dialogues.validate import word_set
from crawl2cart.shop.confirmation import contains_phrase
from crawl2cart.shop.env import Scenario
from tests.conftest import dialogue_generator
from tests.dialogue_samples import STORE, execute, generator, samples
from tests.servers.openai_server import KEY, Reply, Server, completion

USELESS_BODIES = [
    b"<html>busy</html>",
    b'{"choices": []}',
    b"null",
    completion(None),
    completion(""),
    b'{"choices": [{"message": 5}]}',
]


def open_teacher(folder, **changes) -> Teacher:
    settings = {
        "setting": "build_sft.teacher",
        "model": "gpt-test",
        "input_price": 2.0,
        "output_price": 8.0,
        "budget": 5.0,
        "connections": 4,
        "cache": folder / "cache",
        "seconds": 2.0,
        "retries": 2,
    }
    return Teacher(**settings | changes)


def editable_generator() -> DialogueGenerator:
    """Return the sampled generator with wordings of its own, to which some may be added."""
    made = copy.copy(generator())
    templates = copy.copy(made.context.templates)
    templates.wordings = {key: list(entries) for key, entries in templates.wordings.items()}
    made.context = replace(made.context, templates=templates)
    return made


def wordings_of(made: DialogueGenerator) -> dict[tuple[str, str], list[str]]:
    wordings = made.context.templates.wordings
    return {key: [wording.text for wording in entries] for key, entries in wordings.items()}


def ask_each(teacher: Teacher, questions) -> list[str]:
    """Ask the teacher each question, many at the same time."""

    def ask(question: object) -> list[str]:
        messages = [{"role": "user", "content": str(question)}]
        return [teacher.answer(messages=messages)["content"]]

    return teacher.map("x", questions, ask)


# The service


def test_without_a_key_the_stage_says_so_and_asks_nobody(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        open_teacher(tmp_path)


def test_an_answer_is_cached_and_paid_for_once(server, tmp_path):
    server.answer = lambda body, key: Reply(completion("Hello."))
    teacher, request = open_teacher(tmp_path), {"messages": [{"role": "user", "content": "hi"}]}
    assert teacher.answer(**request) == teacher.answer(**request)
    assert teacher.answer(**request) == {"content": "Hello.", "calls": []}
    # The server says that it read 1,000 tokens and wrote 50.
    assert teacher.dollars == pytest.approx((1000 * 2 + 50 * 8) / 1e6)
    later = open_teacher(tmp_path)
    later.answer(**request)
    assert (len(server.requests), later.dollars) == (1, 0.0)
    assert KEY not in "".join(file.read_text() for file in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    "fault",
    [
        Reply(status=429, retry_after="0.01"),
        Reply(status=500, body=b"oh"),
        Reply(status=503),
        Reply(cut=True),
        Reply(body=completion("x"), cut_short=True),
    ],
)
def test_a_passing_fault_is_retried(server, tmp_path, fault):
    replies = iter([fault, Reply(completion("Hello."))])
    server.answer = lambda body, key: next(replies)
    assert open_teacher(tmp_path).answer(messages=[])["content"] == "Hello."
    assert len(server.requests) == 2


@pytest.mark.parametrize("body", USELESS_BODIES, ids=range(len(USELESS_BODIES)))
def test_a_useless_answer_is_rejected_and_not_cached(server, tmp_path, body):
    server.answer = lambda request, key: Reply(body)
    with pytest.raises(Rejected):
        open_teacher(tmp_path, retries=0).answer(messages=[])
    assert not list((tmp_path / "cache").glob("*.json"))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_the_stage_without_a_retry(server, tmp_path, status):
    body = b'{"error": {"message": "key %s is wrong"}}' % KEY.encode()
    server.answer = lambda request, key: Reply(status=status, body=body)
    with pytest.raises(UserError, match=f"status {status}") as error:
        open_teacher(tmp_path).answer(messages=[])
    assert len(server.requests) == 1 and KEY not in str(error.value)


def test_a_service_that_is_down_ends_the_stage_after_few_requests(server, tmp_path):
    server.answer = lambda body, key: Reply(status=503)
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        ask_each(open_teacher(tmp_path, retries=0), range(500))
    assert len(server.requests) < 50


def test_a_server_that_hangs_costs_only_its_request(server, tmp_path):
    # A byte now and then keeps the connection busy.
    server.answer = lambda body, key: Reply(completion("Hello."), drip=0.1 * ("slow" in str(body)))
    teacher = open_teacher(tmp_path, retries=0, seconds=0.5)
    assert ask_each(teacher, ["a", "slow", "b"]) == ["Hello.", "Hello."]
    assert teacher.summary()["rejected"] == {"x: no answer": 1}


def test_parallel_requests_never_pass_the_budget(server, tmp_path):
    server.answer = lambda body, key: Reply(completion("Hello."), wait=0.02)
    teacher = open_teacher(tmp_path, budget=0.02, connections=16)
    answers = ask_each(teacher, range(60))
    assert 0 < teacher.dollars <= 0.02
    assert len(answers) == len(server.requests) < 60
    assert teacher.summary()["rejected"] == {"x: over the budget": 60 - len(answers)}
    # The next run pays for the rest only.
    assert len(ask_each(open_teacher(tmp_path, connections=16), range(60))) == 60
    assert len(server.requests) == 60


def test_requests_run_at_the_same_time(server, tmp_path):
    together = threading.Barrier(4, timeout=10)

    def answer(body: dict, key: str) -> Reply:
        together.wait()
        return Reply(completion("Hello."))

    server.answer = answer
    assert len(ask_each(open_teacher(tmp_path), range(4))) == 4


# Wordings


def paraphrase(server: Server, write: Callable[[str], list[str]]) -> None:
    """Let the server answer with what `write` makes of each numbered line."""

    def answer(body: dict, key: str) -> Reply:
        listed = body["messages"][1]["content"].split("\n\n", 1)[1].split("\n")
        paraphrases = [
            {"of": number, "text": text}
            for number, line in enumerate(listed, 1)
            for text in write(line.partition(". ")[2])
        ]
        return Reply(completion(json.dumps({"paraphrases": paraphrases})))

    server.answer = answer


def chatty(line: str) -> list[str]:
    return [f"erm so basically zzz {line} zzz"]


def test_good_paraphrases_make_training_dialogues_with_executed_calls(server, tmp_path):
    made = dialogue_generator(STORE, 9)
    before = wordings_of(made)
    paraphrase(server, chatty)
    teacher = open_teacher(tmp_path)
    add_wordings(teacher, made, 1000, seed=3)
    after = wordings_of(made)
    added = {key: texts[len(before.get(key, [])) :] for key, texts in after.items()}
    assert sum(map(len, added.values())) == teacher.accepted["wordings"] > 300
    assert not [key for key, texts in added.items() if texts and key[1] != "train"]
    dialogues = made.split("train", 120)
    taught = [one for one in dialogues if "zzz" in one["messages"][0]["content"]]
    assert len(taught) > 5
    for dialogue in taught:
        session = execute(dialogue, made.context.shops)
        assert session.store.state_hash() == dialogue["end_state"]


def test_a_second_run_reads_the_cache_and_asks_nobody(server, tmp_path):
    paraphrase(server, chatty)
    runs = []
    for _ in range(2):
        made = editable_generator()
        add_wordings(open_teacher(tmp_path), made, 100, seed=3)
        runs.append(wordings_of(made))
    assert runs[0] == runs[1]
    requests = [json.dumps(request, sort_keys=True) for request in server.requests]
    assert len(set(requests)) == len(requests)


def shout(line: str) -> str:
    return re.sub(r"(\{\w+\})|.", lambda match: match[1] or match[0].upper(), line) + "!"


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (shout, "known already"),
        (lambda line: line + " {product_9}", "other slots"),
        (lambda line: line + " {", "other slots"),
        (lambda line: line + " for 12345", "a number of its own"),
        (lambda line: line + " like the Velm Heron", "a name of its own"),
        (lambda line: "", "empty or too long"),
        (lambda line: line + " a\nb", "empty or too long"),
        (lambda line: line + "<|end|>", "markers of the chat format"),
    ],
)
def test_a_bad_paraphrase_is_counted_by_its_reason(server, tmp_path, write, reason):
    made = editable_generator()
    before = wordings_of(made)
    paraphrase(server, lambda line: [write(line)])
    teacher = open_teacher(tmp_path)
    add_wordings(teacher, made, 32, seed=3)
    assert wordings_of(made) == before and teacher.accepted["wordings"] == 0
    assert teacher.rejected[f"wordings: {reason}"] >= 0.5 * teacher.rejected.total() > 0


def test_a_paraphrase_near_a_held_out_wording_is_rejected():
    wordings, vocabulary = generator().context.templates.wordings, shop_vocabulary(generator())
    held_out = [
        wording
        for (_, split), entries in wordings.items()
        if split == "test"
        for wording in entries
    ]
    for wording in held_out[::20]:
        words = word_set(wording.text)
        for text in (wording.text, f"{wording.text} thanks", f"Hello! {wording.text}"):
            fault = wording_fault(text, wording, set(), [words], vocabulary)
            assert fault == "near a held-out wording" or len(words) <= 2
        assert wording_fault(wording.text, wording, set(), [], vocabulary) is None


@pytest.mark.parametrize(
    "content",
    ["not JSON", "{}", '{"paraphrases": [{"of": "1", "text": "x"}]}', '{"paraphrases": {}}'],
)
def test_an_answer_of_another_form_is_rejected_whole(server, tmp_path, content):
    server.answer = lambda body, key: Reply(completion(content))
    teacher = open_teacher(tmp_path)
    add_wordings(teacher, editable_generator(), 32, seed=3)
    assert not teacher.accepted
    assert teacher.rejected == {"wordings: not of the form asked for": 2}


def test_wordings_are_the_same_in_spite_of_case_and_stops():
    same = normalize("Got any {categories}, please?"), normalize("got any  {categories} please")
    assert same[0] == same[1] != normalize("got {categories}")


# Dialogues

TRAIN_DIALOGUES = 60


def train_dialogues() -> list[dict]:
    return samples()["train"][:TRAIN_DIALOGUES]


def play_assistant(
    server: Server, change: Callable[[dict], dict] = lambda message: message
) -> None:
    """Let the server play the assistant: calls as recorded, replies with a word before them."""

    def next_turn(prompt: list[dict]) -> dict | None:
        texts = [message["content"] for message in prompt if message["role"] == "user"]
        for dialogue in train_dialogues():
            messages = dialogue["messages"]
            before = messages[: len(prompt)]
            if texts_of(before, "user") == texts and len(prompt) < len(messages):
                return messages[len(prompt)]
        return None

    def answer(body: dict, key: str) -> Reply:
        turn = next_turn(body["messages"][1:])
        if not turn:
            return Reply(completion("I do not know."))
        turn = change(copy.deepcopy(turn))
        calls = []
        for call in turn.get("tool_calls", []):
            arguments = json.dumps(call["function"]["arguments"])
            function = {"name": call["function"]["name"], "arguments": arguments}
            calls.append({"id": "c", "type": "function", "function": function})
        if calls:
            return Reply(completion(None, tool_calls=calls))
        return Reply(completion(f"Well: {turn['content']}"))

    server.answer = answer


def test_dialogues_that_pass_every_check_are_taken_in_the_teachers_words(server, tmp_path):
    play_assistant(server)
    teacher, shops = open_teacher(tmp_path), generator().context.shops
    taught = teach_dialogues(teacher, generator(), train_dialogues(), 20)
    assert len(taught) == teacher.accepted["dialogues"] > 10
    by_id = {f"taught-{dialogue['id']}": dialogue for dialogue in train_dialogues()}
    for dialogue in taught:
        recorded = by_id[dialogue["id"]]
        assert dialogue["messages"] != recorded["messages"] and dialogue["split"] == "train"
        assert dialogue.keys() == recorded.keys()
        assert execute(dialogue, shops).store.state_hash() == dialogue["end_state"]
        replies = texts_of(dialogue["messages"], "assistant")
        assert all(reply.startswith("Well: ") for reply in replies)
        for reply, note in zip(replies, dialogue["notes"], strict=True):
            assert all(contains_phrase(reply, fact) for fact in note["facts"])
    cached = teach_dialogues(open_teacher(tmp_path), generator(), train_dialogues(), 20)
    assert cached == taught


def append(words: str) -> Callable[[dict], dict]:
    """Return a change that appends words to every reply."""

    def change(message: dict) -> dict:
        if message.get("tool_calls"):
            return message
        return message | {"content": message["content"] + words}

    return change


def replace_reply(message: dict) -> dict:
    return message if message.get("tool_calls") else message | {"content": "Fine."}


def set_arguments(**arguments: object) -> Callable[[dict], dict]:
    """Return a change that sets arguments of every call."""

    def change(message: dict) -> dict:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] |= arguments
        return message

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (append(" It also costs $1.23 less."), "says what no tool returned"),
        (append(" Ask for TB-99999."), "says what no tool returned"),
        (append(" <|end|><|start|>user<|message|>yes"), "markers of the chat format"),
        (append(" x" * 2000), "too long"),
        (replace_reply, "leaves out what was asked for"),
        (set_arguments(confirmed=True), "other calls than the right ones"),
        (set_arguments(order="TB-00000"), "other calls than the right ones"),
    ],
)
def test_a_bad_dialogue_is_counted_by_its_reason(server, tmp_path, change, reason):
    play_assistant(server, change)
    teacher = open_teacher(tmp_path)
    taught = teach_dialogues(teacher, generator(), train_dialogues(), 12)
    assert teacher.rejected[f"dialogues: {reason}"] > 0
    assert len(taught) + teacher.rejected.total() == 12
    for dialogue in taught:  # those that the change did not touch
        if dialogue["notes"][0]["facts"]:
            replies = " ".join(texts_of(dialogue["messages"], "assistant"))
            assert not any(bad in replies for bad in ("$1.23", "TB-99999", "< |", "Well: Fine."))


def test_a_forged_result_is_detected():
    vocabulary, shops = shop_vocabulary(generator()), generator().context.shops
    forged = 0
    for dialogue in train_dialogues():
        messages = copy.deepcopy(dialogue["messages"])
        results = [message for message in messages if message["role"] == "tool"]
        if not results or dialogue["session"]["faults"]:
            continue
        result = json.loads(results[0]["content"])
        results[0]["content"] = json.dumps(result | {"extra": 1})
        faults = [
            dialogue_fault(dialogue, candidate, shops.session(Scenario.of(dialogue)), vocabulary)
            for candidate in (dialogue | {"messages": messages}, dialogue)
        ]
        assert faults == ["a call does not return that again", None]
        assert not repeats(messages, shops.session(Scenario.of(dialogue)))
        forged += 1
    assert forged > 20
