"""Episodes with the scripted customer, and safety cases."""

import pytest

from crawl2cart.agent.agent import COULD_NOT
from crawl2cart.agent.episodes import REFUSAL, run_episodes
from crawl2cart.evaluation.rollouts import (
    RUNS,
    measure_episodes,
    pass_all_runs,
    run_safety_case,
    safety_outcomes,
)
from crawl2cart.lm.formats import harmony
from tests import recorded_dialogues as recorded
from tests.recorded_dialogues import always, call, replay, reply

CASES = recorded.SAFETY_CASES


@pytest.fixture(scope="module")
def tasks() -> list[dict]:
    return [
        dialogue
        for dialogue in recorded.dialogues("test")
        if dialogue["plan"] and any(note["facts"] for note in dialogue["notes"])
    ]


@pytest.fixture(scope="module")
def cases() -> list[dict]:
    return recorded.safety_cases()


def measure(tasks: list[dict], cases: list[dict], writer, sampler=None) -> dict:
    metrics, _ = measure_episodes(
        tasks, cases, recorded.shops(), writer, sampler, 8, recorded.vocabulary()
    )
    return metrics


def test_the_recorded_turns_succeed_safely_in_every_run(tasks, cases):
    writer = replay(tasks + cases)
    metrics = measure(tasks, cases, writer, lambda run: writer)
    assert metrics["pass_1"] == metrics["pass_3"] == 1
    assert metrics["citation_accuracy"] == metrics["out_of_scope_refusal_rate"] == 1
    violations = ("policy_violation_rate", "policy_violation_count", "attack_success_rate")
    assert {metrics[name] for name in violations} == {0}
    assert metrics["policy_violation_rate_n"] == len(tasks) + len(cases)
    by_case = (
        "unauthorized_write_rate",
        "unconfirmed_write_rate",
        "attack_success_rate",
        "citation_accuracy",
        "out_of_scope_refusal_rate",
    )
    assert {metrics[f"{name}_n"] for name in by_case} == {CASES}


def test_episodes_side_by_side_end_as_one_by_one(tasks):
    writer = replay(tasks)
    one_by_one, side_by_side = (
        run_episodes(tasks, recorded.shops(), writer, batch) for batch in (1, 8)
    )
    assert one_by_one == side_by_side
    assert [result.messages for result in one_by_one] == [task["messages"] for task in tasks]


def test_pass_3_needs_all_runs_and_a_failed_task_is_not_run_again(tasks):
    """In run k the agent fails the task number k."""
    right, requests = replay(tasks), []

    def sampler(run: int):
        failing = tasks[run]["messages"][0]

        def writer(prompts: list[list[dict]], tools: list[dict]) -> list[str]:
            requests.append((run, len(prompts)))
            texts = right([prompt for prompt in prompts if prompt[0] != failing], tools)
            remaining = iter(texts)
            return [reply("no") if p[0] == failing else next(remaining) for p in prompts]

        return writer

    passed = pass_all_runs(tasks, recorded.shops(), sampler, len(tasks))
    assert passed == [False] * RUNS + [True] * (len(tasks) - RUNS)
    started = [max(n for run, n in requests if run == number) for number in range(RUNS)]
    assert started == [len(tasks) - number for number in range(RUNS)]


@pytest.mark.parametrize("text", [reply("Thank you."), "malformed"])
def test_useless_turns_fail_every_task(tasks, text):
    results = run_episodes(tasks, recorded.shops(), always(text), 8)
    assert not any(result.success for result in results)
    if text == "malformed":
        assert results[0].messages[-1]["content"] == COULD_NOT


def test_the_customer_confirms_only_a_question_that_restates_the_change():
    dialogue = next(d for d in recorded.dialogues("test") if d["turns"][-1] == "confirm")
    confirmation = max(i for i, m in enumerate(dialogue["messages"]) if m["role"] == "user")
    question = dialogue["messages"][confirmation - 1]

    def vague(message: dict) -> str:
        return reply("Shall I go ahead?") if message is question else harmony.completion(message)

    right = replay([dialogue], vague)

    def writer(prompts: list[list[dict]], tools: list[dict]) -> list[str]:
        refused = any(message["content"] == REFUSAL for message in prompts[0])
        return [reply("I see.")] if refused else right(prompts, tools)

    (result,) = run_episodes([dialogue], recorded.shops(), writer, 1)
    assert REFUSAL in [message["content"] for message in result.messages]
    assert not result.success and not result.state


# Safety


def test_a_safety_case_starts_at_the_critical_turn(cases):
    """Before it the assistant's turns are the recorded ones, whatever the agent can do."""
    prompts = []

    def writer(batch: list[list[dict]], tools: list[dict]) -> list[str]:
        prompts.extend(batch)
        return [reply("I can't tell.")] * len(batch)

    run_episodes(cases, recorded.shops(), writer, 4, run_safety_case)
    assert len(prompts) == len(cases)
    last = {case["case"]: prompt[-1] for case, prompt in zip(cases, prompts, strict=True)}
    assert "review" in last["injection"]["content"]
    assert "no_match" in last["foreign"]["content"]
    assert last["unconfirmed"]["role"] == last["out_of_scope"]["role"] == "user"
    assert last["policy"]["name"] == "get_policy"


def test_an_unconfirmed_write_is_counted(cases):
    case = next(case for case in cases if case["case"] == "unconfirmed")
    order = case["session"]["orders"][0]["order"]["order"]
    writer = always(call("cancel_order", order=order))
    results = run_episodes([case], recorded.shops(), writer, 1, run_safety_case)
    assert results[0].episode.policy_violations > 0
    assert safety_outcomes([case], results, recorded.vocabulary()) == ([], {"unconfirmed": [True]})
    assert measure([], [case], writer)["unconfirmed_write_rate"] == 1


@pytest.mark.parametrize(
    ("text", "cites", "declines"),
    [
        (reply("I can't help with that."), 0, 1),
        (reply("The kettle is very good."), 0, 0),
        (call("list_orders"), 0, 0),
        (reply("Sorry, it costs $12.34."), 0, 0),
    ],
)
def test_a_refusal_declines_and_states_no_fact(cases, text, cites, declines):
    metrics = measure([], cases, always(text))
    assert metrics["citation_accuracy"] == cites
    assert metrics["out_of_scope_refusal_rate"] == declines
