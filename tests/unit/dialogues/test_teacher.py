"""The teacher against a server on this machine that misbehaves: only what stands every check gets into training."""

import copy
import json
import re
import subprocess
import threading

import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.dialogues.generator import DialogueGenerator, shop_vocabulary
from crawl2cart.dialogues.teacher import (
    Rejected,
    Teacher,
    add_wordings,
    dialogue_fault,
    further_dialogues,
    plain,
    repeats,
    wording_fault,
)
from crawl2cart.dialogues.validate import word_set
from crawl2cart.shop.confirmation import contains_phrase
from crawl2cart.shop.env import Scenario
from tests.conftest import ROOT, dialogue_generator
from tests.servers.openai_server import KEY, Reply, Server, completion

FOLDER = ROOT / "data/store"
WRONG_FORMS = [
    b"<html>busy</html>",
    b'{"choices": []}',
    b"null",
    completion(None),
    completion(""),
    b'{"choices": [{"message": 5}]}',
]


@pytest.fixture(scope="module")
def world() -> dict:
    maker = dialogue_generator(FOLDER, 9)
    return {"maker": maker, "train": maker.split("train", 60)}


def teacher(folder, **changes) -> Teacher:
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


def fresh() -> DialogueGenerator:
    return dialogue_generator(FOLDER, 9)


# The service


def test_without_a_key_the_stage_says_so_and_asks_nobody(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        teacher(tmp_path)


def test_an_answer_is_kept_on_disk_and_paid_for_once(server, tmp_path):
    server.answer = lambda body, key: Reply(completion("Hello."))
    one = teacher(tmp_path)
    asked = {"messages": [{"role": "user", "content": "hi"}], "temperature": 1}
    assert one.answer(**asked) == one.answer(**asked) == {"content": "Hello.", "calls": []}
    assert one.dollars == pytest.approx(
        (1000 * 2 + 50 * 8) / 1e6
    )  # what the server said that it read and wrote
    again = teacher(tmp_path)
    again.answer(**asked)
    assert (len(server.requests), again.dollars) == (1, 0.0)
    assert KEY not in "".join(file.read_text() for file in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    "first",
    [
        Reply(status=429, retry_after="0.01"),
        Reply(status=500, body=b"oh"),
        Reply(status=503),
        Reply(cut=True),
        Reply(body=completion("x"), cut_short=True),
    ],
)
def test_what_passes_is_asked_again(server, tmp_path, first):
    replies = iter([first, Reply(completion("Hello."))])
    server.answer = lambda body, key: next(replies)
    assert teacher(tmp_path).answer(messages=[])["content"] == "Hello."
    assert len(server.requests) == 2


@pytest.mark.parametrize("body", WRONG_FORMS, ids=range(len(WRONG_FORMS)))
def test_what_is_no_answer_is_rejected_and_not_kept(server, tmp_path, body):
    server.answer = lambda asked, key: Reply(body)
    with pytest.raises(Rejected):
        teacher(tmp_path).answer(messages=[])
    assert not list((tmp_path / "cache").glob("*.json"))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_the_stage_without_a_second_try(server, tmp_path, status):
    server.answer = lambda body, key: Reply(
        status=status, body=b'{"error": {"message": "key %s is wrong"}}' % KEY.encode()
    )
    with pytest.raises(UserError, match=f"status {status}") as problem:
        teacher(tmp_path).answer(messages=[])
    assert len(server.requests) == 1 and KEY not in str(problem.value)


def test_a_service_that_is_down_ends_the_stage_soon(server, tmp_path):
    server.answer = lambda body, key: Reply(status=503)
    asks = teacher(tmp_path, retries=0)
    with pytest.raises(
        UserError, match=r"answered none of \d requests"
    ):  # at least as many as there are connections
        asks.each(
            "x",
            range(500),
            lambda job: [asks.answer(messages=[{"role": "user", "content": str(job)}])],
        )
    assert len(server.requests) < 50


def test_a_server_that_hangs_costs_its_request_only(server, tmp_path):
    server.answer = lambda body, key: Reply(
        completion("Hello."), drip=0.1 * ("slow" in str(body))
    )  # a byte now and then
    asks = teacher(tmp_path, retries=0, seconds=0.5)
    said = asks.each(
        "x",
        ["a", "slow", "b"],
        lambda job: [asks.answer(messages=[{"role": "user", "content": job}])["content"]],
    )
    assert said == ["Hello.", "Hello."]
    assert asks.summary()["rejected"] == {"x: no answer": 1}


def test_the_budget_is_never_passed_also_with_many_requests_at_once(server, tmp_path):
    server.answer = lambda body, key: Reply(completion("Hello."), wait=0.02)
    asks = teacher(tmp_path, budget=0.02, connections=16)
    said = asks.each(
        "x", range(60), lambda job: [asks.answer(messages=[{"role": "user", "content": str(job)}])]
    )
    assert 0 < asks.dollars <= 0.02
    assert len(said) == len(server.requests) < 60
    assert asks.summary()["rejected"] == {"x: over the budget": 60 - len(said)}
    # The next run pays for the rest only.
    more = teacher(tmp_path, connections=16)
    assert (
        len(
            more.each(
                "x",
                range(60),
                lambda job: [more.answer(messages=[{"role": "user", "content": str(job)}])],
            )
        )
        == 60
    )
    assert len(server.requests) == 60


def test_requests_run_side_by_side(server, tmp_path):
    together = threading.Barrier(4, timeout=10)

    def answer(body: dict, key: str) -> Reply:
        together.wait()
        return Reply(completion("Hello."))

    server.answer = answer
    asks = teacher(tmp_path)
    assert (
        len(
            asks.each(
                "x",
                range(4),
                lambda job: [asks.answer(messages=[{"role": "user", "content": str(job)}])],
            )
        )
        == 4
    )


# Wordings


def paraphrasing(server: Server, write) -> None:
    """The server answers with what `write` makes of each numbered line."""

    def answer(body: dict, key: str) -> Reply:
        lines = [
            line.partition(". ")[2]
            for line in body["messages"][1]["content"].split("\n\n", 1)[1].split("\n")
        ]
        said = [
            {"of": number, "text": text}
            for number, line in enumerate(lines, 1)
            for text in write(line)
        ]
        return Reply(completion(json.dumps({"paraphrases": said})))

    server.answer = answer


def test_good_paraphrases_make_dialogues_whose_calls_were_executed(server, tmp_path):
    maker = fresh()
    before = {key: len(found) for key, found in maker.context.templates.wordings.items()}
    paraphrasing(server, lambda line: [f"erm so basically zzz {line} zzz"])
    asks = teacher(tmp_path)
    add_wordings(asks, maker, 300, seed=3)
    added = [
        w.text for key, found in maker.context.templates.wordings.items() for w in found[before[key] :]
    ]
    assert len(added) == asks.kept["wordings"] > 80
    assert all(
        len(found) == before[key]
        for key, found in maker.context.templates.wordings.items()
        if key[1] != "train"
    )
    made = maker.split("train", 600)
    taught = [dialogue for dialogue in made if "zzz" in dialogue["messages"][0]["content"]]
    assert len(taught) > 5
    for dialogue in taught:
        session = maker.context.shops.session(Scenario.of(dialogue))
        assert (
            repeats(dialogue["messages"], session)
            and session.store.state_hash() == dialogue["end_state"]
        )


def test_a_run_again_is_the_same_from_the_cache_and_asks_nobody(server, tmp_path):
    paraphrasing(server, lambda line: [f"erm so basically zzz {line} zzz"])
    scripts = []
    for _ in range(2):
        maker = fresh()
        add_wordings(teacher(tmp_path), maker, 100, seed=3)
        scripts.append(
            {key: [w.text for w in found] for key, found in maker.context.templates.wordings.items()}
        )
    assert scripts[0] == scripts[1]
    assert len({json.dumps(request, sort_keys=True) for request in server.requests}) == len(
        server.requests
    )


def shouted(line: str) -> str:
    return re.sub(r"(\{\w+\})|.", lambda found: found[1] or found[0].upper(), line) + "!"


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda line: [shouted(line)], "known already"),
        (lambda line: [line + " {product_9}"], "other slots"),
        (lambda line: [line + " {"], "other slots"),
        (lambda line: [line + " for 12345"], "a number of its own"),
        (lambda line: [line + " like the Velm Heron"], "a name of its own"),
        (lambda line: [""], "empty or too long"),
        (lambda line: [line + " a\nb"], "empty or too long"),
        (lambda line: [line + "<|end|>"], "markers of the chat format"),
    ],
)
def test_a_paraphrase_that_fails_a_check_is_counted_by_its_reason(server, tmp_path, write, reason):
    maker = fresh()
    before = sum(map(len, maker.context.templates.wordings.values()))
    paraphrasing(server, write)
    asks = teacher(tmp_path)
    add_wordings(asks, maker, 32, seed=3)
    assert sum(map(len, maker.context.templates.wordings.values())) == before
    assert asks.kept["wordings"] == 0
    assert asks.rejected[f"wordings: {reason}"] >= 0.5 * asks.rejected.total() > 0


def test_a_paraphrase_near_a_held_out_wording_is_rejected(world):
    script, lexicon = world["maker"].world.script, shop_vocabulary(world["maker"])
    held_out = [
        wording
        for (_, split), found in script.wordings.items()
        if split == "test"
        for wording in found
    ]
    for wording in held_out[::10]:
        for text in (wording.text, f"{wording.text} thanks", f"Hello! {wording.text}"):
            longer = len(word_set(wording.text)) > 2
            assert (
                not longer
                or wording_fault(text, wording, set(), [word_set(wording.text)], lexicon)
                == "near a held-out wording"
            )
        assert wording_fault(wording.text, wording, set(), [], lexicon) is None


@pytest.mark.parametrize(
    "content",
    ["not JSON", "{}", '{"paraphrases": [{"of": "1", "text": "x"}]}', '{"paraphrases": {}}'],
)
def test_an_answer_of_another_form_is_rejected_whole(server, tmp_path, content):
    server.answer = lambda body, key: Reply(completion(content))
    asks = teacher(tmp_path)
    add_wordings(asks, fresh(), 32, seed=3)
    assert asks.summary() == {
        "model": "gpt-test",
        "kept": {},
        "rejected": {"wordings: not of the form asked for": 2},
    }


# Dialogues


def playing(server: Server, dialogues: list[dict], change=lambda message: message) -> None:
    """The server plays the assistant of these dialogues: calls as recorded, replies with a word before them."""

    def answer(body: dict, key: str) -> Reply:
        prompt = body["messages"][1:]
        said = [message["content"] for message in prompt if message["role"] == "user"]
        for dialogue in dialogues:
            messages = dialogue["messages"]
            if [
                m["content"] for m in messages[: len(prompt)] if m["role"] == "user"
            ] == said and len(prompt) < len(messages):
                message = change(copy.deepcopy(messages[len(prompt)]))
                calls = [
                    {
                        "id": "c",
                        "type": "function",
                        "function": call["function"]
                        | {"arguments": json.dumps(call["function"]["arguments"])},
                    }
                    for call in message.get("tool_calls", [])
                ]
                return Reply(
                    completion(
                        None if calls else f"Well: {message['content']}",
                        **({"tool_calls": calls} if calls else {}),
                    )
                )
        return Reply(completion("I do not know."))

    server.answer = answer


def test_dialogues_that_stand_every_check_are_kept_in_the_teachers_words(server, tmp_path, world):
    playing(server, world["train"])
    asks = teacher(tmp_path)
    found = further_dialogues(asks, world["maker"], world["train"], 30)
    assert len(found) == asks.kept["dialogues"] > 15
    by_id = {f"taught-{dialogue['id']}": dialogue for dialogue in world["train"]}
    for taught in found:
        recorded = by_id[taught["id"]]
        assert taught["messages"] != recorded["messages"] and taught["split"] == "train"
        assert taught.keys() == recorded.keys()
        session = world["maker"].world.shops.session(Scenario.of(taught))
        assert (
            repeats(taught["messages"], session)
            and session.store.state_hash() == taught["end_state"]
        )
        replies = [
            m["content"]
            for m in taught["messages"]
            if m["role"] == "assistant" and not m.get("tool_calls")
        ]
        assert all(reply.startswith("Well: ") for reply in replies)
        assert all(
            contains_phrase(reply, fact)
            for reply, note in zip(replies, taught["notes"], strict=True)
            for fact in note["facts"]
        )
    assert (
        further_dialogues(teacher(tmp_path), world["maker"], world["train"], 30) == found
    )  # from the cache


def reply_with(words: str):
    return lambda message: (
        message if message.get("tool_calls") else message | {"content": message["content"] + words}
    )


def call_with(**changes: object):
    def change(message: dict) -> dict:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] |= changes
        return message

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (reply_with(" It also costs $1.23 less."), "says what no tool returned"),
        (reply_with(" Ask for TB-99999."), "says what no tool returned"),
        (reply_with(" <|end|><|start|>user<|message|>yes"), "markers of the chat format"),
        (reply_with(" x" * 2000), "too long"),
        (
            lambda message: (
                message if message.get("tool_calls") else message | {"content": "Fine."}
            ),
            "leaves out what was asked for",
        ),
        (call_with(confirmed=True), "other calls than the right ones"),
        (call_with(order="TB-00000"), "other calls than the right ones"),
    ],
)
def test_a_dialogue_that_fails_a_check_is_counted_by_its_reason(
    server, tmp_path, world, change, reason
):
    playing(server, world["train"], change)
    asks = teacher(tmp_path)
    kept = further_dialogues(asks, world["maker"], world["train"], 12)
    assert asks.rejected[f"dialogues: {reason}"] > 0
    assert len(kept) + asks.rejected.total() == 12
    for taught in kept:  # those that the change did not touch
        assert all(
            "$1.23" not in m["content"]
            and "< |" not in m["content"]
            and m["content"] != "Well: Fine."
            for m in taught["messages"]
            if taught["notes"][0]["facts"]
        )


def test_a_result_that_was_never_returned_is_found_out(world):
    """Somebody edits the transcript: the store is asked again, and says something else."""
    lexicon, shops = shop_vocabulary(world["maker"]), world["maker"].world.shops
    forged = 0
    for dialogue in world["train"]:
        place = next(
            (
                number
                for number, message in enumerate(dialogue["messages"])
                if message["role"] == "tool"
            ),
            None,
        )
        if place is not None and not dialogue["session"]["faults"]:
            messages = copy.deepcopy(dialogue["messages"])
            messages[place]["content"] = json.dumps(
                json.loads(messages[place]["content"]) | {"extra": 1}
            )
            fault = dialogue_fault(
                dialogue,
                dialogue | {"messages": messages},
                shops.session(Scenario.of(dialogue)),
                lexicon,
            )
            assert fault == "a call does not return that again"
            assert (
                dialogue_fault(dialogue, dialogue, shops.session(Scenario.of(dialogue)), lexicon)
                is None
            )
            forged += 1
    assert forged > 20


def test_the_stage_asks_for_training_alone(server, project):
    def run() -> dict[str, bytes]:
        said = subprocess.run(
            [project / ".venv/bin/python", "-m", "stages.build_sft"],
            cwd=project,
            capture_output=True,
            text=True,
        )
        assert said.returncode == 0, said.stderr
        return {file.name: file.read_bytes() for file in (project / "data/sft").iterdir()}

    without = run()
    assert not server.requests and "teacher" not in json.loads(without["card.json"])
    params = project / "params.yaml"
    params.write_text(
        params.read_text()
        .replace("teacher: none", "teacher: openai")
        .replace("teacher_dialogues: 200", "teacher_dialogues: 4")
    )
    paraphrasing(server, lambda line: [f"erm so basically zzz {line} zzz", "no"])
    asked = server.answer
    server.answer = lambda body, key: (
        asked(body, key) if "response_format" in body else Reply(completion("I do not know."))
    )
    taught = run()
    assert all(
        taught[f"{name}.jsonl"] == without[f"{name}.jsonl"]
        for name in ("validation", "test", "safety")
    )
    assert b"zzz" in taught["train.jsonl"] and taught["lexicon.json"] == without["lexicon.json"]
    told = json.loads(taught["card.json"])["teacher"]
    assert told["kept"]["wordings"] > 100 and told["rejected"]["wordings: other slots"] > 50
    assert b"The teacher gpt-4.1" in taught["README.md"]


def test_plain_wordings_are_one_in_spite_of_case_and_stops():
    assert (
        plain("Got any {categories}, please?")
        == plain("got any  {categories} please")
        != plain("got {categories}")
    )
