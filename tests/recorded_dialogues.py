"""Dialogues of data/store, generated once for each test process, and writers that replay them."""

import json
from collections.abc import Callable
from functools import cache

from crawl2cart.core.files import read_jsonl
from crawl2cart.dialogues.generator import shop_vocabulary
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.lm.formats import harmony
from crawl2cart.preferences.style_classifier import ToneScorer
from crawl2cart.shop.env import ShopSessions
from crawl2cart.shop.grounding import ShopVocabulary
from tests.conftest import ROOT, dialogue_generator

STORE = ROOT / "data" / "store"
COUNTS = {"train": 120, "validation": 60, "test": 60}
SAFETY_CASES = 5  # of each kind


def generate(split: str, count: int) -> list[dict]:
    return dialogue_generator(STORE, 7).split(split, count)


@cache
def dialogues(split: str) -> list[dict]:
    return generate(split, COUNTS[split])


@cache
def safety_cases() -> list[dict]:
    return dialogue_generator(STORE, 7).safety("test", SAFETY_CASES)


@cache
def vocabulary() -> ShopVocabulary:
    return shop_vocabulary(dialogue_generator(STORE, 7))


@cache
def shops() -> ShopSessions:
    return ShopSessions(STORE)


@cache
def situations(split: str = "train") -> list[dict]:
    """Situations of tone.jsonl: replies in a good and in four faulty manners."""
    return [row for row in read_jsonl(STORE / "tone.jsonl") if row["split"] == split]


@cache
def tone_scorer() -> ToneScorer:
    return ToneScorer.fit(situations())


def turns(split: str) -> list[dict]:
    return [turn for dialogue in dialogues(split) for turn in to_examples(dialogue)]


def right_texts(examples: list[dict]) -> list[str]:
    return [harmony.completion(example["completion"][0]) for example in examples]


def replay(recorded: list[dict], change: Callable[[dict], str] = harmony.completion):
    """A writer of the recorded turns, which it finds by the conversation before them."""
    right = {
        json.dumps(dialogue["messages"][:place], sort_keys=True): message
        for dialogue in recorded
        for place, message in enumerate(dialogue["messages"])
        if message["role"] == "assistant"
    }
    return lambda prompts, tools: [
        change(right[json.dumps(prompt, sort_keys=True)]) for prompt in prompts
    ]


def always(text: str):
    """A writer that writes the same text everywhere."""
    return lambda prompts, tools: [text] * len(prompts)


def reply(text: str) -> str:
    return harmony.completion({"role": "assistant", "content": text})


def call(name: str, **arguments: object) -> str:
    return harmony.completion(call_message(name, **arguments))


def call_message(name: str, **arguments: object) -> dict:
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }
