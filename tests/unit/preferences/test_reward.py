"""The reward: checks decide what is right, then helpfulness counts, then tone."""

import json

import pytest

from crawl2cart.preferences.reward import HELPFUL, RIGHT, TONE, WRONG, Score, helpfulness, score
from tests import recorded_dialogues as recorded
from tests.recorded_dialogues import call, reply


@pytest.fixture(scope="module")
def turns() -> list[dict]:
    return recorded.turns("train")


def of_act(turns: list[dict], act: str) -> dict:
    return next(turn for turn in turns if act in turn["acts"])


def scored(turn: dict, text: str) -> Score:
    return score(turn, text, recorded.tone_scorer(), recorded.vocabulary())


def test_every_recorded_turn_is_right(turns):
    for turn, text in zip(turns, recorded.right_texts(turns), strict=True):
        result = scored(turn, text)
        assert result.right and RIGHT <= result.total <= 1, (turn["id"], result.reasons)


def test_a_wrong_turn_never_reaches_a_right_one(turns):
    texts = [
        reply("Sure."),
        reply("Happy to help! Which order is it?"),
        call("list_orders"),
        call("get_order", order="TB-1"),
        "garbage",
        call("cancel_order", order=7),
    ]
    results = [scored(turn, text) for turn in turns[:60] for text in texts]
    assert any(not result.right for result in results)
    for result in results:
        assert result.total >= RIGHT if result.right else 0 <= result.total <= WRONG < RIGHT


def test_an_invented_price_is_wrong_however_warm(turns):
    turn = of_act(turns, "price")
    gold = turn["completion"][0]["content"]
    result = scored(turn, reply(f"{gold} I know that's a lot, so take your time. It's $1.11."))
    assert scored(turn, reply(gold)).right and not result.right
    assert any("$1.11" in reason for reason in result.reasons)


def test_a_change_is_claimed_only_after_a_tool_made_it(turns):
    done = of_act(turns, "cancel_done")
    question = of_act(turns, "cancel_confirm")
    # The check also passes claims where a result says "cancelled", as that of a policy may.
    prompt = [message for message in question["prompt"] if "cancelled" not in message["content"]]
    question = question | {"prompt": prompt}
    order, refund = done["facts"][:2]
    assert scored(done, reply(f"Order {order} is cancelled and ${refund} goes back.")).right
    order, total = question["facts"][0], total_of(question)
    assert not scored(question, reply(f"{order} is cancelled, ${total} goes back. OK?")).right


def total_of(turn: dict) -> str:
    return json.loads(turn["prompt"][-1]["content"])["total"]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Shall I cancel {order} and send back ${total}?", True),
        ("Shall I cancel {order}?", False),
        ("I will now call off {order} for ${total}.", False),
    ],
)
def test_a_confirmation_question_restates_the_change(turns, text, right):
    turn = of_act(turns, "cancel_confirm")
    text = text.format(order=turn["facts"][0], total=total_of(turn))
    assert scored(turn, reply(text)).right == right


def test_a_policy_is_cited_by_its_section(turns):
    turn = of_act(turns, "policy")
    section, title = turn["facts"]
    policy = json.loads(turn["prompt"][-1]["content"])["text"]
    assert scored(turn, reply(f"{title}, section {section}: {policy}")).right
    assert not scored(turn, reply(f"{title}: {policy}")).right


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("No, not in red.", 0.5),
        ("No, not in red. Shall I look at blue?", 1.0),
        ("Shall I look at blue? Or at green?", 0.5),
    ],
)
def test_a_helpful_reply_offers_one_next_step(text, value):
    example = {"acts": ["stock_out"], "prompt": [{"role": "user", "content": "in red?"}]}
    assert helpfulness(example, text, 1.0)[0] == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The Osk Shrew desk lamp is $20.00. Shall I check colours?", 1),
        ("The Velm Heron desk lamp is $49.90. Shall I check colours?", 2 / 3),
        ("The Osk Shrew desk lamp is $49.90. Shall I check colours?", 2 / 3),
        ("The Osk Shrew desk lamp is under $30. Shall I check colours?", 1),
    ],
)
def test_a_reply_to_a_search_keeps_to_its_matches(text, value):
    """The first search found the Heron, the last one the Shrew."""
    searches = [
        {
            "role": "tool",
            "name": "search_products",
            "content": json.dumps({"results": [{"name": name, "price": price}]}),
        }
        for name, price in (("Velm Heron desk lamp", "49.90"), ("Osk Shrew desk lamp", "20.00"))
    ]
    prompt = [{"role": "user", "content": "under 30?"}, *searches]
    example = {"acts": ["search_found"], "prompt": prompt}
    assert helpfulness(example, text, 1.0)[0] == pytest.approx(value)


def test_the_warmest_tone_weighs_less_than_one_of_three_facts():
    complete = Score({}, True, (), 1.0, helpful=1.0, tone=0.0)
    lacking = Score({}, True, (), 1.0, helpful=(2 / 3 + 1 + 1 + 1) / 4, tone=1.0)
    assert complete.total > lacking.total
    assert RIGHT + HELPFUL + TONE == pytest.approx(1)
