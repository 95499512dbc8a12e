"""The evaluation: whole dialogues, safety cases, paired comparison, baselines, and a decoder equal to transformers'."""

import itertools
import json
import math
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, GptOssForCausalLM

from crawl2cart.agent.agent import COULD_NOT
from crawl2cart.agent.episodes import run_episodes
from crawl2cart.agent.hf_writer import whole_characters
from crawl2cart.agent.local_writer import OwnWriter, open_folder, writer_of
from crawl2cart.core.device import Device
from crawl2cart.dialogues.generator import shop_lexicon
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.evaluation.baselines import BASELINES, by_keywords
from crawl2cart.evaluation.rollouts import critical, passed_all, safety, trials
from crawl2cart.evaluation.turn_metrics import summarize_turns
from crawl2cart.evaluation.win_rate import compare, length_controlled_win_rate, win_rate
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.formats.save import save_model
from crawl2cart.lm.models.gpt_oss import GptOss
from crawl2cart.lm.models.init import initialise
from crawl2cart.router.local import Decision
from crawl2cart.shop.tool_schemas import TOOLS
from stages.evaluate import choose_turns, routed
from tests.conftest import ROOT, maker_of

SIZES = {
    "num_layers": 3,
    "hidden_size": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 24,
    "num_experts": 4,
    "experts_per_token": 2,
    "sliding_window": 16,
    "max_position_embeddings": 4096,
    "rope_factor": 1.0,
    "router_aux_loss_coef": 0.01,
    "router_z_loss_coef": 0.0,
}
FLOAT32 = Device("cpu", torch.float32)


@pytest.fixture(scope="module")
def recorded() -> dict:
    maker = maker_of(ROOT / "data/store", 5)
    test = maker.split("test", 40)
    return {
        "shops": maker.world.shops,
        "words": shop_lexicon(maker),
        "train": maker.split("train", 40),
        "test": test,
        "plans": [dialogue for dialogue in test if dialogue["plan"]],
        "safety": maker.safety("test", 5),
    }


def replay(dialogues: list[dict], change=lambda message: harmony.completion(message)):
    """A writer of the recorded turns: it finds them by the conversation before them."""
    turns = {
        json.dumps(dialogue["messages"][:place], sort_keys=True): message
        for dialogue in dialogues
        for place, message in enumerate(dialogue["messages"])
        if message["role"] == "assistant"
    }
    return lambda prompts, tools: [
        change(turns[json.dumps(prompt, sort_keys=True)]) for prompt in prompts
    ]


def always(text: str):
    return lambda prompts, tools: [text] * len(prompts)


def reply(text: str) -> str:
    return harmony.completion({"role": "assistant", "content": text})


def call(name: str, **arguments: object) -> str:
    return harmony.completion(
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": name, "arguments": arguments}}],
        }
    )


# Plays and safety


def test_who_does_what_is_recorded_succeeds_safely_in_every_run(recorded):
    dialogues = recorded["plans"] + recorded["safety"]
    found, plays = trials(
        recorded["plans"],
        recorded["safety"],
        recorded["shops"],
        replay(dialogues),
        lambda run: replay(dialogues),
        8,
        recorded["words"],
    )
    assert found["pass_1"] == found["pass_3"] == 1
    assert (
        found["policy_violation_rate"]
        == found["policy_violation_count"]
        == found["attack_success_rate"]
        == 0
    )
    assert found["policy_violation_rate_n"] == len(plays) + 25
    assert found["citation_accuracy"] == found["out_of_scope_refusal_rate"] == 1
    assert {
        found[f"{name}_n"]
        for name in (
            "unauthorized_write_rate",
            "unconfirmed_write_rate",
            "attack_success_rate",
            "citation_accuracy",
            "out_of_scope_refusal_rate",
        )
    } == {5}


def test_who_names_no_section_and_calls_where_nothing_can_be_looked_up_neither_cites_nor_declines(
    recorded,
):
    for text, cites, declines in (
        (reply("I can't help with that."), 0, 1),
        (reply("The kettle is very good."), 0, 0),
        (call("list_orders"), 0, 0),
        (reply("Sorry, it costs $12.34."), 0, 0),
    ):
        found, _ = trials(
            [], recorded["safety"], recorded["shops"], always(text), None, 8, recorded["words"]
        )
        assert (found["citation_accuracy"], found["out_of_scope_refusal_rate"]) == (cites, declines)


def test_who_writes_whatever_the_customer_says_is_found_out(recorded):
    cases = [case for case in recorded["safety"] if case["session"]["orders"]]
    number = {case["id"]: case["session"]["orders"][0]["order"]["order"] for case in cases}
    played = run_episodes(
        cases[:1],
        recorded["shops"],
        always(call("cancel_order", order=number[cases[0]["id"]])),
        1,
        critical,
    )
    assert played[0].play.policy_violations > 0
    kinds = safety(cases[:1], played)
    assert kinds[cases[0]["case"]] == [True]


def test_a_safety_case_begins_where_the_agent_could_err(recorded):
    """Before that the assistant did what is recorded, so that also an agent that could not get so far is tested."""
    seen = []

    def writer(prompts: list[list[dict]], tools: list[dict]) -> list[str]:
        seen.extend(prompts)
        return [reply("I can't tell.")] * len(prompts)

    run_episodes(recorded["safety"], recorded["shops"], writer, 4, critical)
    assert len(seen) == len(recorded["safety"])
    by_case = dict(zip([case["case"] for case in recorded["safety"]], seen, strict=True))
    assert "review" in by_case["injection"][-1]["content"]
    assert "no_match" in by_case["foreign"][-1]["content"]
    assert by_case["unconfirmed"][-1]["role"] == by_case["out_of_scope"][-1]["role"] == "user"
    assert by_case["policy"][-1]["name"] == "get_policy"


def test_three_of_three_needs_all_three_runs(recorded):
    """And a dialogue that failed is not played again."""
    plans, asked = recorded["plans"], []

    def sampler(run: int):
        good = replay(plans)

        def writer(prompts: list[list[dict]], tools: list[dict]) -> list[str]:
            asked.append((run, len(prompts)))
            bad = plans[run]["messages"][0]
            return [
                reply("no") if prompt[0] == bad else good([prompt], tools)[0] for prompt in prompts
            ]

        return writer

    passed = passed_all(plans, recorded["shops"], sampler, len(plans))
    assert passed == [False] * 3 + [True] * (len(plans) - 3)
    assert [max(n for run, n in asked if run == number) for number in range(3)] == [
        len(plans),
        len(plans) - 1,
        len(plans) - 2,
    ]


def test_who_says_nothing_of_use_fails_a_plan_with_facts(recorded):
    plans = [plan for plan in recorded["plans"] if any(note["facts"] for note in plan["notes"])]
    for text in (reply("Thank you."), "no such form"):
        plays = run_episodes(plans, recorded["shops"], always(text), 8)
        assert not any(play.success for play in plays)
    assert COULD_NOT in plays[0].messages[-1]["content"]


# Pairs


def test_win_rates_and_the_sign_test_are_those_of_a_hand_calculation():
    found = compare([2, 2, 2, 1, 1], [1, 1, 1, 1, 2], [5] * 5, [5] * 5, seed=0)
    assert (found["wins"], found["ties"], found["losses"], found["n"]) == (3, 1, 1, 5)
    assert found["win_rate"] == pytest.approx(3.5 / 5)
    assert found["p"] == pytest.approx(
        2 * (1 + 4) / 2**4
    )  # of 4 without the tie: P(at most 1) on either side
    assert found["win_rate_low"] < 0.7 < found["win_rate_high"]


def test_a_win_that_only_length_brought_does_not_count_at_equal_length():
    draw = np.random.default_rng(0)
    longer = draw.normal(3, 4, 2000)
    outcome = (draw.random(2000) < 1 / (1 + np.exp(-longer))).astype(
        float
    )  # who is longer wins, more often ours
    rows = np.stack([outcome, longer], 1)
    assert win_rate(rows) > 0.7
    assert abs(length_controlled_win_rate(rows) - 0.5) < 0.08
    better = np.stack(
        [(draw.random(2000) < 0.8).astype(float), longer], 1
    )  # wins that length does not explain stay
    assert length_controlled_win_rate(better) == pytest.approx(0.8, abs=0.04)
    assert 0.9 < length_controlled_win_rate(np.stack([np.ones(50), np.zeros(50)], 1)) < 1


# Baselines


def test_baselines_give_calls_that_can_be_read(recorded):
    rows, train = (
        [row for dialogue in recorded[split] for row in to_examples(dialogue)]
        for split in ("test", "train")
    )
    for name, baseline in BASELINES.items():
        summary = summarize_turns(rows, baseline(rows, train), recorded["words"])
        assert summary["tool_accuracy"] > 0.1, name
        assert summary["argument_exact_match"] < 0.5, name
        assert math.isfinite(summary["fact_recall"])


def test_the_nearest_training_turn_of_a_training_turn_is_itself(recorded):
    train = [row for dialogue in recorded["train"] for row in to_examples(dialogue)]
    texts = BASELINES["nearest"](train, train)
    same = [
        text == harmony.completion(row["completion"][0])
        for text, row in zip(texts, train, strict=True)
    ]
    assert sum(same) > 0.8 * len(same)  # thanks are answered in many ways


def test_keyword_rules_read_number_and_address():
    assert by_keywords("where is TB-12345? I'm a.b@example.com") == call(
        "get_order", order="TB-12345", email="a.b@example.com"
    )
    assert by_keywords("a tent under 90 dollars") == call(
        "search_products", query="90 dollars", max_price=90.0
    )


# Turns


def test_an_answer_counts_as_right_only_where_the_query_went_to_who_gave_it(recorded):
    def sends_to(label: str):
        return lambda text: Decision(label, float(label == "shopping"))

    rows = [row for dialogue in recorded["test"] for row in to_examples(dialogue)]
    first = [row for row in rows if len(row["prompt"]) == 1 and row["intent"] != "out_of_scope"]
    found = {
        (label, answered): routed(
            sends_to(label), [], recorded["test"], rows, {row["id"]: answered for row in rows}
        )
        for label in ("shopping", "other", "unclear")
        for answered in (True, False)
    }
    assert {row["end_to_end_accuracy_n"] for row in found.values()} == {len(first)} and len(
        first
    ) > 10
    assert {case: row["end_to_end_accuracy"] for case, row in found.items()} == {
        case: float(case == ("shopping", True)) for case in found
    }
    assert {label: row["routing_accuracy"] for (label, _), row in found.items()} == {
        "shopping": 1.0,
        "other": 0.0,
        "unclear": 0.0,
    }


def test_turns_are_of_all_dialogues_before_a_second_of_any(recorded):
    dialogues = recorded["test"]
    rows = choose_turns(dialogues, len(dialogues), 3)
    assert len({row["id"].partition(":")[0] for row in rows}) == len(dialogues)
    everything = choose_turns(dialogues, 10**6, 3)
    assert sorted(row["id"] for row in everything) == sorted(
        row["id"] for dialogue in dialogues for row in to_examples(dialogue)
    )
    assert rows == everything[: len(rows)] == choose_turns(dialogues, len(dialogues), 3)


# The decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random GPT-OSS whose logits differ enough that no two are nearly equal."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tokenizers.encoding(tokenizers.read_ranks(ROOT / "data/ranks/o200k_4096.tiktoken"))
    torch.manual_seed(0)
    model = GptOss(SIZES, tokenizer.n_vocab)
    initialise(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    save_model(model, folder, tokenizer)
    return folder


def prompts_of(recorded: dict, count: int) -> list[list[dict]]:
    rows = [row for dialogue in recorded["test"] for row in to_examples(dialogue)]
    return [row["prompt"] for row in random.Random(1).sample(rows, count)]


def test_our_writer_writes_what_transformers_generates(folder, recorded):
    """Prompts of many lengths, in one batch, in float32: so with padding, kept prefix, and rows that leave the batch."""
    prompts = prompts_of(recorded, 4)
    writer = open_folder(folder, FLOAT32, 12)
    assert isinstance(writer, OwnWriter)
    ours = writer(prompts, TOOLS)
    model, tokenizer = (
        GptOssForCausalLM.from_pretrained(folder, attn_implementation="eager"),
        AutoTokenizer.from_pretrained(folder),
    )
    for prompt, text in zip(prompts, ours, strict=True):
        ids = tokenizer(
            harmony.render(prompt, TOOLS, add_generation_prompt=True),
            add_special_tokens=False,
            return_tensors="pt",
        )
        stops = GenerationConfig(
            max_new_tokens=12, eos_token_id=sorted(writer.stops), pad_token_id=0
        )
        new = model.generate(**ids, generation_config=stops)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(new) == text
    in_memory = writer_of(model, tokenizer, FLOAT32, 12)
    assert isinstance(in_memory, OwnWriter) and in_memory(prompts, TOOLS) == ours


def test_what_a_conversation_gets_does_not_depend_on_those_beside_it(folder, recorded):
    prompts = prompts_of(recorded, 3)
    together = open_folder(folder, FLOAT32, 12)(prompts, TOOLS)
    assert together == [open_folder(folder, FLOAT32, 12)([prompt], TOOLS)[0] for prompt in prompts]


def test_who_listens_hears_the_text_grow(folder, recorded):
    heard: list[str] = []
    (text,) = open_folder(folder, FLOAT32, 12)(prompts_of(recorded, 1), TOOLS, heard.append)
    assert len(heard) > 1 and heard[-1] == whole_characters(text)
    assert all(after.startswith(before) for before, after in itertools.pairwise(heard))


def test_threads_share_a_writer(folder, recorded):
    """As customers of the page do."""
    prompts = prompts_of(recorded, 4)
    alone, shared = open_folder(folder, FLOAT32, 12), open_folder(folder, FLOAT32, 12)
    with ThreadPoolExecutor(4) as threads:
        together = [
            texts[0] for texts in threads.map(lambda prompt: shared([prompt], TOOLS), prompts)
        ]
    assert together == [alone([prompt], TOOLS)[0] for prompt in prompts]


def test_sampling_follows_the_seed(folder, recorded):
    prompts = prompts_of(recorded, 3)
    texts = [
        open_folder(folder, FLOAT32, 12, temperature=1.0, seed=seed)(prompts, TOOLS)
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    likeliest = open_folder(folder, FLOAT32, 12)(prompts, TOOLS)
    assert (
        open_folder(folder, FLOAT32, 12, temperature=1.0, top_p=1e-6)(prompts, TOOLS)
        == likeliest
        != texts[0]
    )
