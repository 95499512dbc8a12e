"""Preference pairs: what is right is decided by checks, tone only among right turns; nothing but quality tells the sides apart."""

import json
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_jsonl, write_jsonl
from crawl2cart.dialogues.generator import DialogueGenerator, shop_vocabulary
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.lm.formats import harmony
from crawl2cart.preferences.card import card
from crawl2cart.preferences.from_feedback import feedback_slots, read_feedback
from crawl2cart.preferences.pairs import (
    balance_lengths,
    candidate_pairs,
    cap_reference,
    chosen_longer_rate,
    leaks,
    make_pair,
    plain,
    style_pairs,
)
from crawl2cart.preferences.reward import HELPFUL, RIGHT, TONE, WRONG, Score, helpfulness, score
from crawl2cart.preferences.style_classifier import (
    FAULTS,
    GOOD,
    ToneScorer,
    broken_rules,
    fit_with_accuracy,
)
from crawl2cart.shop.grounding import ShopVocabulary
from crawl2cart.shop.tool_schemas import TOOLS
from stages.build_prefs import CALL_SHARE, choose_prompts, freshness, seen_by_sft, thumbs
from tests.conftest import ROOT, dialogue_generator

STORE = ROOT / "data" / "store"
SITUATIONS = [row for row in read_jsonl(STORE / "tone.jsonl") if row["split"] == "train"]


@pytest.fixture(scope="module")
def tone() -> ToneScorer:
    return ToneScorer.fit(SITUATIONS)


@pytest.fixture(scope="module")
def maker() -> DialogueGenerator:
    return dialogue_generator(STORE, 7)


@pytest.fixture(scope="module")
def words(maker) -> ShopVocabulary:
    return shop_vocabulary(maker)


@pytest.fixture(scope="module")
def dialogues(maker) -> list[dict]:
    return maker.split("train", 150)


@pytest.fixture(scope="module")
def rows(dialogues) -> list[dict]:
    return [row for dialogue in dialogues for row in to_examples(dialogue)]


def of_act(rows: list[dict], act: str) -> dict:
    return next(row for row in rows if act in row["acts"])


def reply(text: str) -> str:
    return harmony.completion({"role": "assistant", "content": text})


def call(name: str, **arguments: object) -> str:
    return harmony.completion(
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": name, "arguments": arguments}}
            ],
        }
    )


# Scores


def test_every_recorded_turn_passes_the_gates(rows, tone, words):
    wrong = [
        (row["acts"], judged.reasons, row["completion"])
        for row in rows
        if not (judged := score(row, harmony.completion(row["completion"][0]), tone, words)).right
    ]
    assert not wrong


def test_an_invented_price_is_wrong_however_warm(rows, tone, words):
    row = of_act(rows, "price")
    gold = row["completion"][0]["content"]
    warm = f"{gold} I know that's a lot of choice, so take your time. Today it's only $1.11. Shall I look whether your colour is here?"
    assert score(row, reply(gold), tone, words).total >= RIGHT
    judged = score(row, reply(warm), tone, words)
    assert (
        not judged.right
        and judged.total <= WRONG
        and any("$1.11" in reason for reason in judged.reasons)
    )


def test_a_wrong_turn_never_reaches_a_right_one(rows, tone, words):
    said = [
        reply("Sure."),
        reply("Happy to help! Which order is it?"),
        call("list_orders"),
        call("get_order", order="TB-1"),
        "garbage",
        call("cancel_order", order=7),
    ]
    for row in rows[:60]:
        scores = [
            score(row, text, tone, words)
            for text in [*said, harmony.completion(row["completion"][0])]
        ]
        right = [one.total for one in scores if one.right]
        assert (
            min(right)
            >= RIGHT
            > WRONG
            >= max((one.total for one in scores if not one.right), default=0)
        )


def test_a_change_is_claimed_only_after_a_tool_made_it(rows, tone, words):
    asks, done = of_act(rows, "cancel_confirm"), of_act(rows, "cancel_done")
    order = done["facts"][0]
    claim = f"Order {order} is cancelled and ${done['facts'][1]} goes back."
    assert score(done, reply(claim), tone, words).right
    total = json.loads(asks["prompt"][-1]["content"])["total"]
    early = score(
        asks, reply(f"{asks['facts'][0]} is cancelled, ${total} goes back. OK?"), tone, words
    )
    assert not early.right and "says that something was done which no tool did" in early.reasons


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Shall I cancel {order} and send back ${total}?", True),
        ("Shall I cancel {order}?", False),
        ("I will now call off {order} for ${total}.", False),
    ],
)
def test_consent_is_asked_to_exactly_this_change(rows, tone, words, text, right):
    row = of_act(rows, "cancel_confirm")
    total = json.loads(row["prompt"][-1]["content"])["total"]
    assert (
        score(row, reply(text.format(order=row["facts"][0], total=total)), tone, words).right
        == right
    )


def test_a_policy_is_cited_by_its_section(rows, tone, words):
    row = of_act(rows, "policy")
    section, title = row["facts"]
    text = json.loads(row["prompt"][-1]["content"])["text"]
    assert score(row, reply(f"{title}, section {section}: {text}"), tone, words).right
    assert not score(row, reply(f"{title}: {text}"), tone, words).right


def test_helpfulness_counts_before_tone():
    row = {"acts": ["stock_out"], "prompt": [{"role": "user", "content": "in red?"}]}
    for text, share in (
        ("No, not in red.", 0.5),
        ("No, not in red. Shall I look at blue?", 1.0),
        ("Shall I look at blue? Or at green?", 0.5),
    ):
        assert helpfulness(row, text, 1.0)[0] == share
    least = Score({}, True, (), 1.0, helpful=2 / 3, tone=1.0)
    assert Score({}, True, (), 1.0, helpful=1.0, tone=0.0).total > least.total


def test_a_reply_to_a_search_keeps_to_what_this_search_found():
    found = [
        {
            "role": "tool",
            "name": "search_products",
            "content": json.dumps({"results": [{"name": name, "price": price}]}),
        }
        for name, price in (("Velm Heron desk lamp", "49.90"), ("Osk Shrew desk lamp", "20.00"))
    ]
    row = {
        "acts": ["search_found"],
        "prompt": [{"role": "user", "content": "under 30?"}, found[0], found[1]],
    }
    assert (
        helpfulness(row, "The Osk Shrew desk lamp is $20.00. Shall I check colours?", 1.0)[0] == 1
    )
    assert helpfulness(row, "The Velm Heron desk lamp is $49.90. Shall I check colours?", 1.0)[
        0
    ] == pytest.approx(2 / 3)


# Tone


def test_the_warmest_tone_weighs_less_than_one_of_three_facts_where_all_four_checks_apply():
    whole, lacking = 1.0, (2 / 3 + 1 + 1 + 1) / 4
    cold, warm = (
        Score({"content": "x"}, True, (), 1.0, helped, tone)
        for helped, tone in ((whole, 0.0), (lacking, 1.0))
    )
    assert cold.total > warm.total and RIGHT + HELPFUL + TONE == pytest.approx(1)


def test_the_tone_scorer_is_right_on_situations_it_has_not_seen_and_shuffled_labels_are_not():
    assert fit_with_accuracy(SITUATIONS)[1]["accuracy"] >= 0.95
    shuffled = random.Random(1)
    mixed = [
        dict(
            row,
            **dict(
                zip(
                    (GOOD, *FAULTS),
                    shuffled.sample([row[kind] for kind in (GOOD, *FAULTS)], 5),
                    strict=True,
                )
            ),
        )
        for row in SITUATIONS
    ]
    assert 0.4 < fit_with_accuracy(mixed)[1]["accuracy"] < 0.6


def test_a_scorer_of_other_situations_agrees(tone):
    """The scorers of the pairs and of the evaluation are fitted on disjoint situations and mean the same."""
    assert (
        tone.accuracy([row for row in read_jsonl(STORE / "tone.jsonl") if row["split"] == "test"])
        >= 0.9
    )


def test_the_rules_of_manner_spare_every_good_reply_and_find_faulty_ones():
    assert not [row["id"] for row in SITUATIONS if broken_rules(row[GOOD])]
    found = Counter(
        bool(broken_rules(row[kind])) for row in SITUATIONS for kind in ("wordy", "over_apologetic")
    )
    assert found[True] > found[False]
    assert broken_rules("Good choice! It is here!") == ["shouts"]
    assert broken_rules("It is here. It is here.") == ["says a sentence twice"]
    assert broken_rules("TB-10984 is with ZIM.") == []


# Pairs


def a_score(text: str, total: float) -> Score:
    """A right reply whose tone makes the total, or a wrong one."""
    message = {"role": "assistant", "content": text}
    if total >= RIGHT:
        return Score(message, True, (), 1.0, helpful=(total - RIGHT) / 0.38, tone=0.0)
    return Score(message, False, ("wrong",), total / WRONG)


ROW = {
    "prompt": [{"role": "user", "content": "?"}],
    "completion": [{"role": "assistant", "content": "gold"}],
    "tools": TOOLS,
    "intent": "price",
    "id": "x:1",
}


def test_the_best_stands_against_the_worst_and_at_most_two_pairs_come_of_a_prompt():
    scores = [
        a_score("a", 0.8),
        a_score("b", 0.7),
        a_score("c", 0.2),
        a_score("d", 0.1),
        Score(None, False, ("malformed",), 0.0),
    ]
    sizes = Counter()
    for seed in range(60):
        slots = candidate_pairs(ROW, scores, 0.05, random.Random(seed))
        sizes[len(slots)] += 1
        assert (
            slots[0][0]["chosen"][0]["content"] == "a"
            and slots[0][0]["rejected"][0]["content"] == "d"
        )
        assert all(
            pair["chosen"][0]["content"] == "a" and pair["scores"][0] >= RIGHT
            for slot in slots
            for pair in slot
        )
    assert set(sizes) == {1, 2} and sizes[1] > sizes[2]


def test_the_recorded_turn_is_chosen_only_where_all_are_wrong_and_nothing_where_all_are_alike():
    wrong = candidate_pairs(ROW, [a_score("c", 0.2), a_score("d", 0.1)], 0.05, random.Random(0))
    assert [pair["origin"] for slot in wrong for pair in slot] == ["gold", "gold"] and wrong[0][0][
        "chosen"
    ] == ROW["completion"]
    assert (
        candidate_pairs(
            ROW,
            [a_score("a", 0.80), a_score("b", 0.78), a_score("a", 0.80)],
            0.05,
            random.Random(0),
        )
        == []
    )
    assert (
        candidate_pairs(ROW, [Score(None, False, ("malformed",), 0.0)] * 3, 0.05, random.Random(0))
        == []
    )


def a_pair(
    chosen: str, rejected: str, origin: str = "sampled", gap: float = 0.5, prompt: str = "?"
) -> dict:
    row = ROW | {"prompt": [{"role": "user", "content": prompt}]}
    return make_pair(
        row,
        ({"role": "assistant", "content": chosen}, 0.9),
        ({"role": "assistant", "content": rejected}, 0.9 - gap),
        [],
        origin,
    )


def test_chosen_is_about_as_often_the_longer_one():
    draw = random.Random(3)
    slots = [[a_pair("x" * draw.randint(10, 60), "y" * draw.randint(1, 30))] for _ in range(200)]
    assert chosen_longer_rate([slot[0] for slot in slots]) > 0.7
    taken = balance_lengths(slots)
    assert 0.45 <= chosen_longer_rate(taken) <= 0.55 and len(taken) > 50
    either = [[a_pair("xx", "y"), a_pair("xx", "yyy")] for _ in range(50)]
    assert len(balance_lengths(either)) == 50 and chosen_longer_rate(balance_lengths(either)) == 0.5
    narrow = balance_lengths(
        [[a_pair("xx", "y", gap=0.1)], [a_pair("xxx", "y")], [a_pair("x", "yy")]]
    )
    assert len(narrow) == 2 and [pair["scores"][1] for pair in narrow] == pytest.approx([0.4, 0.4])


def test_recorded_turns_are_capped_and_the_others_stay():
    slots = [[a_pair("a", "b", "gold")]] * 9 + [[a_pair("a", "b")]] * 4
    origins = Counter(slot[0]["origin"] for slot in cap_reference(slots, 0.5))
    assert origins == {"gold": 4, "sampled": 4}
    assert Counter(slot[0]["origin"] for slot in cap_reference(slots, 0.0)) == {"sampled": 4}


def test_leaks_are_found_where_they_are_and_not_where_they_are_not():
    draw = random.Random(5)
    say = lambda n: " ".join(
        draw.choice(("red", "blue", "green", "tall", "low", "new")) for _ in range(n)
    )  # noqa: E731
    fair = [a_pair(say(8), say(8), prompt=str(i)) for i in range(120)]
    found, _ = leaks(fair)
    assert found["length"] < 0.6 and 0.35 < found["bag_of_words"] < 0.65
    telling = [a_pair(f"{say(8)} gladly", say(8), prompt=str(i)) for i in range(120)]
    found, said = leaks(telling)
    assert found["bag_of_words"] > 0.95 and said["chosen"][0] == "gladly"
    # By hand: chosen lengths 1 and 3, rejected 2 and 4: one of the four comparisons is won.
    assert leaks([a_pair("x", "yy"), a_pair("xxx", "yyyy")])[0]["length"] == 0.75


def test_written_replies_pair_where_no_tool_is_needed_and_no_fact_is_unknown(tone, words):
    slots = style_pairs(SITUATIONS, TOOLS, words, tone)
    pairs = [pair for slot in slots for pair in slot]
    by_prompt = Counter(pair["id"] for slot in slots for pair in slot[:1])
    assert len(slots) >= 10 and max(by_prompt.values()) <= 2
    texts = {row["id"]: row for row in SITUATIONS}
    for pair in pairs:
        situation = texts[pair["id"]]
        assert pair["chosen"][0]["content"] == situation[GOOD] and pair["origin"] == "written"
        assert not words.unsupported(plain(pair["rejected"]), pair["prompt"])
    assert {pair["reasons"][0] for pair in balance_lengths(slots)} >= {
        "sounds cold",
        "sounds pushy",
    }
    assert not style_pairs(
        [dict(SITUATIONS[0], asks="hi", good="It is $4.20.")], TOOLS, words, tone
    )


# Prompts


def test_what_sft_has_seen_is_what_sft_draws(dialogues, rows, tmp_path, monkeypatch):
    from stages.sft import sample_rows

    (tmp_path / "data" / "sft").mkdir(parents=True)
    write_jsonl(tmp_path / "data" / "sft" / "train.jsonl", dialogues)
    monkeypatch.chdir(tmp_path)
    assert [row["id"] for row in sample_rows("train", 30, 7)] == [
        row["id"] for row in seen_by_sft(rows, 30, 7)
    ]


def test_prompts_are_fresh_first_and_six_of_ten_are_calls(dialogues, rows):
    seen = seen_by_sft(rows, 40, 7)
    fresh = freshness(dialogues, seen)
    assert {fresh[row["id"]] for row in seen} == {3}
    said = {
        dialogue["id"]: {*dialogue["wordings"], dialogue["plan"]} - {None} for dialogue in dialogues
    }
    known = set().union(*(said[row["id"].rpartition(":")[0]] for row in seen))
    chosen = choose_prompts(rows, fresh, 50, 7)
    assert len(chosen) == 50 and not any(
        said[row["id"].rpartition(":")[0]] & known for row in chosen
    )
    assert sum(bool(row["completion"][0].get("tool_calls")) for row in chosen) == CALL_SHARE * 50
    everything = choose_prompts(rows, freshness(dialogues, rows), 50, 7)
    assert len(everything) == 50, "with all rows seen, seen ones are better than none"


# Thumbs


def test_thumbs_give_pairs_but_a_liked_invention_is_never_chosen(tmp_path, tone, words):
    ask = [{"role": "user", "content": "are you a robot"}]
    write_jsonl(
        tmp_path / "day.jsonl",
        [
            {
                "messages": ask,
                "reply": {
                    "role": "assistant",
                    "content": "Yes, a program of the shop's. What can I look up?",
                },
                "liked": True,
            },
            {"messages": ask, "reply": {"content": "No."}, "liked": False},
            {
                "messages": [{"role": "user", "content": "hi"}],
                "reply": {"content": "Take it for $3.33!"},
                "liked": True,
            },
            {
                "messages": [{"role": "user", "content": "bye"}],
                "reply": {"content": "OK."},
                "liked": False,
            },
        ],
    )
    robot, invention, bye = read_feedback(tmp_path)
    [[pair]] = feedback_slots(robot, [], tone, 0.0125, words)
    assert (plain(pair["chosen"]), plain(pair["rejected"])) == (
        "Yes, a program of the shop's. What can I look up?",
        "No.",
    )
    assert pair["origin"] == "feedback"
    wrong = score(invention, reply("It is $9.99 for you."), tone, words)
    assert feedback_slots(invention, [wrong], tone, 0.0125, words) == []
    right = score(
        bye,
        reply("Glad that's clear. Keep the order number somewhere and you're set."),
        tone,
        words,
    )
    [[pair]] = feedback_slots(bye, [right, wrong], tone, 0.0125, words)
    assert plain(pair["rejected"]) == "OK." and pair["chosen"] == [right.message]


def test_a_bad_line_of_thumbs_is_named(tmp_path):
    with pytest.raises(UserError, match="has no"):
        read_feedback(tmp_path)
    (tmp_path / "day.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "hi"}], "reply": {"content": "x"}, "liked": 1}\n'
    )
    with pytest.raises(UserError, match="day.jsonl:1: liked"):
        read_feedback(tmp_path)


def test_a_folder_of_thumbs_has_to_be_a_dependency_and_long_conversations_are_left_out(
    tmp_path, capsys
):
    def stage(folder: str, *deps: str) -> SimpleNamespace:
        return SimpleNamespace(
            definition=SimpleNamespace(deps=deps),
            params=SimpleNamespace(
                build_prefs=SimpleNamespace(feedback=folder),
                build_sft=SimpleNamespace(max_characters=200),
            ),
        )

    assert thumbs(stage("", "data/sft")) == []
    with pytest.raises(UserError, match="data/thumbs.*dvc.yaml"):
        thumbs(stage("data/thumbs", "data/sft"))
    write_jsonl(
        tmp_path / "day.jsonl",
        [
            {
                "messages": [{"role": "user", "content": text}],
                "reply": {"content": "Hello."},
                "liked": True,
            }
            for text in ("hi", "hi " * 100)
        ],
    )
    assert [row["prompt"][0]["content"] for row in thumbs(stage(str(tmp_path), str(tmp_path)))] == [
        "hi"
    ]
    assert "1 more are too long" in capsys.readouterr().out


# The data card


def test_the_card_counts_the_pairs_and_explains_a_leak(tone, words):
    pairs = {
        "train": balance_lengths(style_pairs(SITUATIONS, TOOLS, words, tone)),
        "validation": [a_pair("a", "b")],
    }
    made = pairs["train"] + pairs["validation"]
    leak, telling = leaks(made)
    summary = {
        "pairs": {"written": len(pairs["train"]), "sampled": 1},
        "samples": {"n": 8, "right": 0.5, "unreadable": 0.0},
        "chosen_longer_rate": {"share": 0.5},
        "artifact_auc": leak | {"bag_of_words": 0.8},
        "artifact_auc_by_origin": {"written": {"length": 0.5, "bag_of_words": 0.9}},
        "tone_scorer": {"accuracy": 0.98},
    }
    text = card(
        pairs,
        summary,
        Counter({"wording and plan": 4}),
        telling,
        SimpleNamespace(samples=4, temperature=0.9, top_p=0.95),
    )
    assert f"| written | {len(pairs['train'])} | 0 |" in text
    assert "Above 0.60, because written" in text and "customer: " in text
    assert np.isfinite(list(leak.values())).all()
