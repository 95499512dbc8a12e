"""What helps a small model to copy: induction heads, supervised attention, new names."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crawl2cart.core.errors import UserError
from crawl2cart.dialogues.entity_randomization import EntityRandomizer
from crawl2cart.dialogues.generator import shop_vocabulary
from crawl2cart.dialogues.tokenized import (
    ARGUMENTS,
    CONTEXT,
    OPENING,
    REPLY,
    TOOL_CHOICE,
    Example,
    encode,
)
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.models.attention import rope, rope_table
from crawl2cart.lm.models.embedding_init import spelling_embeddings, token_classes
from crawl2cart.lm.models.gpt_oss import GptOss, rms_norm
from crawl2cart.lm.models.induction_head_init import add_induction_heads
from crawl2cart.lm.models.init import initialise
from crawl2cart.lm.training.attention_supervision import GuidedHeads, Places
from crawl2cart.lm.training.losses import IGNORE
from crawl2cart.shop.tool_schemas import TOOLS
from stages.midtrain import beginning, collate, plan_batches, rows_of, stack_rows
from tests.conftest import ROOT, dialogue_generator

SIZES = {
    "num_layers": 4,
    "hidden_size": 128,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
    "intermediate_size": 32,
    "num_experts": 4,
    "experts_per_token": 2,
    "sliding_window": 32,
    "max_position_embeddings": 512,
    "rope_factor": 1.0,
    "router_aux_loss_coef": 0.0,
    "router_z_loss_coef": 0.0,
}


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.encoding(tokenizers.read_ranks(ROOT / "data/ranks/o200k_4096.tiktoken"))


@pytest.fixture(scope="module")
def dialogues():
    maker = dialogue_generator(ROOT / "data/store", 3)
    return shop_vocabulary(maker), maker.split("train", 60)


def twice(model: GptOss, vocabulary: int, seed: int) -> tuple[float, float]:
    """Mean nats of random tokens, the first and the second time they stand in a row."""
    once = torch.randint(0, vocabulary, (8, 60), generator=torch.Generator().manual_seed(seed))
    tokens = torch.cat([once, once], 1)
    with torch.no_grad():
        nats = (
            -model.logits(model(tokens[:, :-1])[0])
            .log_softmax(-1)
            .gather(-1, tokens[:, 1:, None])[..., 0]
        )
    return nats[:, :59].mean().item(), nats[:, 62:].mean().item()


@pytest.mark.parametrize(
    "sizes", [SIZES, SIZES | {"num_layers": 2, "num_heads": 2, "num_kv_heads": 1}]
)
def test_induction_heads_foretell_what_stood_there_before(sizes):
    vocabulary = 200
    model = initialise(GptOss(sizes, vocabulary), 1)
    before = twice(model, vocabulary, 5)
    text = torch.randint(0, vocabulary, (32, 100), generator=torch.Generator().manual_seed(2))
    add_induction_heads(model, text, torch.arange(len(model.embedding)), 3)
    first, second = twice(model, vocabulary, 5)
    assert before[1] > before[0] - 0.05 and second < first - 1.0


def test_tokens_that_differ_by_a_space_begin_alike(tokenizer):
    rows = 4160
    embedding, family = spelling_embeddings(tokenizer, rows, 256, 1), token_classes(tokenizer, rows)
    token = {
        word: tokenizer.encode_single_token(word)
        for word in (b"F", b" F", b"f", b"7", b" the", b"the")
    }

    def alike(a: bytes, b: bytes) -> float:
        return torch.cosine_similarity(embedding[token[a]], embedding[token[b]], 0).item()

    assert embedding.shape == (rows, 256) and embedding.std().item() == pytest.approx(1)
    assert family[token[b"F"]] == family[token[b" F"]] != family[token[b"f"]]
    assert (
        len(set(family[tokenizer.n_vocab :].tolist()) | {int(family[0])})
        == rows - tokenizer.n_vocab + 1
    )
    assert (
        alike(b"F", b" F") > alike(b"F", b"f") > alike(b"F", b"7") + 0.2
        and alike(b"the", b" the") > 0.5
    )


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("readers", [[3], [3, 5]])
def test_guidance_is_minus_log_of_what_attention_gives(readers, prefixed):
    model = initialise(GptOss(SIZES | {"num_layers": readers[-1] + 1}, 50), 1)
    with torch.no_grad():
        for block in model.blocks:
            block.output.normal_(0, 0.1)
    guided = GuidedHeads(model)
    tokens = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    before = torch.randint(0, 50, (1, 5), generator=torch.Generator().manual_seed(2))
    model.loss(tokens, tokens, model.prefill(before) if prefixed else None)
    copied, decided, idle = {0: {7: [2, 3]}, 1: {}}, {0: {}, 1: {4: [0]}}, {0: [5], 1: [1, 2]}
    known = {row: copied[row] | decided[row] for row in copied}
    value = guided.loss(
        [Places(copied[row], decided[row], idle[row]) for row in (0, 1)], idle_weight=0.5
    )

    read, shift = {}, 5 if prefixed else 0
    for number in readers:
        model.blocks[number].register_forward_pre_hook(
            lambda block, given: read.update({block: rms_norm(given[0], block.attention_norm)})
        )
    model(torch.cat([before.expand(2, -1), tokens], 1) if prefixed else tokens)
    turn = rope_table(torch.arange(9 + shift)[None], 64, 1.0, 512.0)
    wanted = 0.0
    for block in (model.blocks[number] for number in readers):
        q = rope((read[block] @ block.query.T + block.query_bias).unflatten(-1, (-1, 64)), *turn)
        k = rope((read[block] @ block.key.T + block.key_bias).unflatten(-1, (-1, 64)), *turn)

        def weight(row: int, head: int, at: int, seen: list[int], q=q, k=k, block=block) -> float:
            scores = torch.cat(
                [
                    k[row, : at + shift + 1, 1] @ q[row, at + shift, head] / 8,
                    block.sinks[head : head + 1],
                ]
            )
            return (
                scores.softmax(0)[[place + shift for place in seen] if seen else [-1]].sum().item()
            )

        for head in (2, 3):
            wanted -= (
                sum(
                    math.log(weight(row, head, at, seen))
                    for row in known
                    for at, seen in known[row].items()
                )
                / 2
                / 2
            )
            wanted -= (
                0.5
                * sum(math.log(weight(row, head, at, [])) for row in idle for at in idle[row])
                / 3
                / 2
            )
    wanted /= len(readers)
    assert value.item() == pytest.approx(wanted, rel=1e-4)


def test_a_few_steps_of_guidance_turn_the_heads_there():
    model = initialise(GptOss(SIZES, 50), 1)
    guided, random = GuidedHeads(model), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    values = []
    for _ in range(30):
        tokens = torch.randint(2, 50, (8, 12), generator=random)
        tokens[:, 3], tokens[:, 10] = 0, 1  # behind a 1, look at what the 0 is
        model.loss(tokens, tokens)
        values.append(guided.loss([Places({10: [3]}, {}, list(range(10)))] * 8, idle_weight=0.2))
        values[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert values[-1] < 0.2 * values[0]


def test_renamed_dialogues_say_one_thing_by_one_name(dialogues):
    lexicon, rows = dialogues
    renamer = EntityRandomizer(lexicon, ["ka", "ro", "lin", "est", ".", "_"])
    for number, dialogue in enumerate(rows):
        new = renamer.randomize(dialogue["messages"], Random(number), kinds=True)
        assert new == renamer.randomize(dialogue["messages"], Random(number), kinds=True)
        said = json.dumps(new).casefold()
        assert not [name for name in lexicon.products if name in said]
        heard = ""
        for message, old in zip(new, dialogue["messages"], strict=True):
            for call, old_call in zip(
                message.get("tool_calls", []), old.get("tool_calls", []), strict=True
            ):
                for key, value in call["function"]["arguments"].items():
                    if key in ("order", "email") and old_call["function"]["arguments"][key] in str(
                        dialogue["messages"][0]["content"]
                    ):
                        assert value in heard
                assert call["function"]["name"] == old_call["function"]["name"]
            if message["role"] == "tool":
                assert isinstance(json.loads(message["content"]), dict)
            heard += message["content"]


def test_a_renamed_name_keeps_its_form():
    class Names:
        products, brands, kinds = ["osk piper"], ["Osk"], ["kettle"]

    renamer = EntityRandomizer(Names, ["la", "mi", "."])
    said = [
        {
            "role": "user",
            "content": "osk piper, OSK Piper; two kettles, KET-1973, ada.l@quay.example. "
            "Not an oskar.",
        }
    ]
    new = renamer.randomize(said, Random(1), kinds=True)[0]["content"]
    assert re.fullmatch(
        r"([a-z]+) ([a-z]+), ([A-Z]+) ([A-Z][a-z]+); two [a-z]+s, [A-Z]{3}-\d{4}, "
        r"[\w.-]+@[\w.]+\. Not an oskar\.",
        new,
    )
    first, second, loud, capital = re.findall(r"[A-Za-z]+", new)[:4]
    assert (loud, capital) == (first.upper(), second.capitalize()) and "osk" not in new.replace(
        "oskar", ""
    )


def test_new_names_are_made_of_what_was_copied_least(tokenizer, dialogues):
    """The caller counts: with it no piece is far behind, without it chance leaves some out."""
    pieces = [tokenizer.decode([token]) for token in range(tokenizer.n_vocab)]
    least = {}
    for counted in (True, False):
        renamer, random, drawn = EntityRandomizer(dialogues[0], pieces), Random(1), Counter()
        for _ in range(5 * len(renamer.inner)):
            piece = renamer.rare(renamer.inner, random)
            drawn[piece] += 1
            renamer.copy_counts.update([piece] if counted else [])
        least[counted] = min(drawn[piece] for piece in renamer.inner)
    assert least[True] >= 4 and least[False] <= 1


def test_beside_each_whole_dialogue_are_beginnings_of_others(
    tokenizer, dialogues, tmp_path, monkeypatch
):
    lexicon, made = dialogues
    (tmp_path / "data/sft").mkdir(parents=True)
    (tmp_path / "data/sft/tools.json").write_text(json.dumps(TOOLS))
    (tmp_path / "data/sft/lexicon.json").write_text(json.dumps(lexicon.to_dict()))
    (tmp_path / "data/sft/train.jsonl").write_text(
        "".join(json.dumps(dialogue) + "\n" for dialogue in made)
    )
    monkeypatch.chdir(tmp_path)
    family = token_classes(tokenizer, tokenizer.n_vocab).tolist()
    before = len(harmony.prefix(TOOLS))

    def texts(truncated_per_full: int) -> list[str]:
        midtrain = SimpleNamespace(
            randomize_entities=0.0,
            randomize_categories=0.0,
            truncated_per_full=truncated_per_full,
            curriculum_ratio=0.1,
        )
        profile = SimpleNamespace(midtrain=SimpleNamespace(max_steps=20, batch_tokens=1536))
        stage = SimpleNamespace(params=SimpleNamespace(midtrain=midtrain, profile=profile, seed=1))
        _, decisions, parts = rows_of(stage, tokenizer, family)
        assert sum(len(row.ids) for row in decisions) >= 2 * 1536
        assert all(
            text.count("<|start|>assistant") == 1 and text.endswith("<|channel|>")
            for text in (tokenizer.decode(row.ids) for row in decisions)
        )
        return [tokenizer.decode(row.ids) for row in parts]

    whole = [
        harmony.render(dialogue["messages"], TOOLS)[before:] + tokenizers.END_OF_TEXT
        for dialogue in made
    ]
    start = [
        harmony.render(beginning(dialogue["messages"]), TOOLS)[before:] + tokenizers.END_OF_TEXT
        for dialogue in made
    ]
    assert all(text.count("<|start|>assistant") == 1 for text in start)
    assert texts(0) == [whole[number % 60] for number in range(len(texts(0)))]
    found = texts(1)
    assert len(found) > 70
    assert found[:60] == [(start if number % 2 else whole)[number] for number in range(60)]
    assert found[60:70] == [
        (whole if number % 2 else start)[number] for number in range(10)
    ]  # the other way round


def test_heads_are_fitted_on_dialogues_one_behind_the_other():
    rows = [Example(list(range(start, start + 7)), [], Places({}, {}, [])) for start in (0, 7, 14)]
    assert stack_rows(rows, 2, 5).tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert stack_rows(rows, 9, 5).shape == (4, 5)  # there is no more


def test_what_a_turn_repeats_is_found_where_it_was_said(tokenizer, dialogues):
    family = token_classes(tokenizer, tokenizer.n_vocab).tolist()
    before, found = harmony.prefix(TOOLS), 0
    for dialogue in dialogues[1]:
        row = encode(tokenizer, family, harmony.render(dialogue["messages"], TOOLS)[len(before) :])
        assert len(row.ids) == len(row.parts)
        written = tokenizer.decode(
            [token for token, part in zip(row.ids, row.parts, strict=True) if part != CONTEXT]
        )
        assert written.count("<|call|>") == sum(
            len(message.get("tool_calls", [])) for message in dialogue["messages"]
        )
        for place, seen in row.places.copied.items():
            found += 1
            assert row.parts[place + 1] in (ARGUMENTS, REPLY)
            assert all(
                at < place and family[row.ids[at]] == family[row.ids[place + 1]] for at in seen
            )
        for place in row.places.idle:
            assert row.parts[place + 1] != CONTEXT and place not in row.places.seen
    orders = [
        message
        for dialogue in dialogues[1]
        for message in dialogue["messages"]
        if "tool_calls" in message
    ]
    assert found > 5 * len(orders)


def test_a_turn_decides_with_whom_it_speaks_to(tokenizer, dialogues):
    family = token_classes(tokenizer, tokenizer.n_vocab).tolist()
    for dialogue in dialogues[1]:
        row = encode(
            tokenizer,
            family,
            harmony.render(dialogue["messages"], TOOLS)[len(harmony.prefix(TOOLS)) :],
        )
        decided = tokenizer.decode(
            [token for token, part in zip(row.ids, row.parts, strict=True) if part == TOOL_CHOICE]
        )
        turns = [message for message in dialogue["messages"] if message["role"] == "assistant"]
        called = [
            [call["function"]["name"] for call in turn.get("tool_calls", ())] for turn in turns
        ]
        assert decided == "".join(
            "".join(f" to=functions.{name}" for name in names) + "<|channel|>" for names in called
        )


def said_before_turns(messages: list[dict]) -> Iterator[list[dict]]:
    """Yield the messages between each rendered turn of the assistant and the one before."""
    between = []
    for message in messages:
        if message["role"] != "assistant":
            between.append(message)
            continue
        for _ in range(bool(message["content"]) + len(message.get("tool_calls", ()))):
            yield between
            between = []


def runs(row: Example) -> list[list[int]]:
    """Where the tokens of each of the assistant's turns stand."""
    return [
        list(places)
        for read, places in groupby(range(len(row.ids)), lambda place: row.parts[place] == CONTEXT)
        if not read
    ]


def test_decisions_look_at_the_customer_s_words_and_openings_at_all_that_was_said(
    tokenizer, dialogues
):
    family, looks = token_classes(tokenizer, tokenizer.n_vocab).tolist(), Counter()
    for dialogue in dialogues[1]:
        row = encode(
            tokenizer,
            family,
            harmony.render(dialogue["messages"], TOOLS)[len(harmony.prefix(TOOLS)) :],
        )
        for turn, before in zip(runs(row), said_before_turns(dialogue["messages"]), strict=True):
            content = (
                next(
                    place for place in turn if tokenizer.decode([row.ids[place]]) == harmony.MESSAGE
                )
                + 1
            )
            anyone, customer = (
                "".join(message["content"] for message in before if message["role"] in roles)
                for roles in (("user", "tool"), ("user",))
            )
            for place in turn:
                kind = row.parts[place]
                if place - 1 in row.places.copied:
                    wanted = ""
                elif kind == TOOL_CHOICE:
                    wanted = customer
                else:
                    wanted = (
                        anyone if kind == REPLY and content <= place < content + OPENING else ""
                    )
                assert (
                    tokenizer.decode([row.ids[at] for at in row.places.decided.get(place - 1, [])])
                    == wanted
                )
                looks[kind] += bool(wanted)
    assert min(looks[TOOL_CHOICE], looks[REPLY]) > 200 and not looks[ARGUMENTS], looks


def test_a_row_s_first_decision_ends_with_it(tokenizer, dialogues):
    family = token_classes(tokenizer, tokenizer.n_vocab).tolist()
    for dialogue in dialogues[1]:
        row = encode(
            tokenizer,
            family,
            harmony.render(dialogue["messages"], TOOLS)[len(harmony.prefix(TOOLS)) :],
            dialogue["id"],
        )
        first, asked = row.until_tool_choice(), dialogue["messages"][0]["content"]
        assert tokenizer.decode(first.ids).startswith(
            f"<|start|>user<|message|>{asked}<|end|><|start|>assistant"
        )
        assert (
            len(first.ids) == len(first.parts)
            and first.parts[-1] == TOOL_CHOICE
            and first.dialogue == dialogue["id"]
        )
        assert {*first.places.decided} == {
            number - 1 for number, part in enumerate(first.parts) if part == TOOL_CHOICE
        }


def test_what_is_read_written_and_decided_counts_as_told():
    rows = [
        Example([5, 6, 7, 8], [CONTEXT, CONTEXT, TOOL_CHOICE, ARGUMENTS], Places({}, {}, [])),
        Example([1, 2], [CONTEXT, REPLY], Places({}, {}, [])),
    ]
    inputs, targets, importance = collate(rows, (1.0, 4.0, 8.0, 40.0))
    assert inputs.tolist() == [[5, 6, 7], [1, 2, 0]] and targets.tolist() == [
        [6, 7, 8],
        [2, IGNORE, IGNORE],
    ]
    assert importance.tolist() == [[1.0, 40.0, 8.0], [4.0, 1.0, 1.0]]


def test_of_a_reply_what_others_said_is_found_and_the_rest_is_not(tokenizer):
    family = token_classes(tokenizer, tokenizer.n_vocab).tolist()
    result = '{"results":[{"name":"Dunlark Snug tent","price":"84.50"}]}'
    text = harmony.render(
        [
            {"role": "user", "content": "a tent?"},
            call("search_products", {"category": "tent"}),
            {"role": "tool", "name": "search_products", "content": result},
            {"role": "assistant", "content": "Yes: the Dunlark Snug tent, at $84.50 today."},
        ],
        TOOLS,
    )
    row = encode(tokenizer, family, text[len(harmony.prefix(TOOLS)) :])
    reply = max(
        number
        for number, token in enumerate(row.ids)
        if tokenizer.decode([token]) == harmony.MESSAGE
    )
    repeated = "".join(
        tokenizer.decode([row.ids[place + 1]])
        for place in sorted(row.places.copied)
        if place >= reply
    )
    assert (
        "Dunlark Snug tent" in repeated
        and "84.50" in repeated
        and "Yes" not in repeated
        and "today" not in repeated
    )


def call(name: str, arguments: dict) -> dict:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_step_s_batches_are_within_bounds_and_about_as_large(processes):
    random = np.random.default_rng(4)
    lengths = random.integers(60, 1400, 500).tolist()
    planned = plan_batches(range(500), lengths, 120, 1536, processes, 0.1, random)
    assert [len(step) for step in planned] == [processes] * 120
    web = [step for step in planned if not any(step)]
    assert len(web) == 12
    sizes = np.array(
        [
            [len(rows) * max(lengths[number] for number in rows) for rows in step]
            for step in planned
            if step not in web
        ]
    )
    assert sizes.max() <= 1536 and np.mean(sizes.max(1) - sizes.min(1)) < 20
    used = Counter(number for step in planned for rows in step for number in rows)
    assert (
        max(used.values()) - min(used.values()) <= 3
    )  # of the rounds' steps some became web text or were not needed
    with pytest.raises(
        UserError,
        match=r"dialogue has 1\d{3} tokens.*midtrain.batch_tokens leaves each process 1000",
    ):
        plan_batches(range(500), lengths, 120, 1000, processes, 0.1, random)
