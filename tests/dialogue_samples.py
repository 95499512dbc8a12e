"""Dialogues that several test modules read: a shop is opened and its dialogues made once."""

import json
from functools import cache
from pathlib import Path

from crawl2cart.dialogues.generator import DialogueGenerator
from crawl2cart.shop.env import Scenario, ShopSessions
from crawl2cart.shop.tools import Session
from tests.conftest import ROOT, dialogue_generator

STORE = ROOT / "data/store"
SECOND_SHOP = ROOT / "tests/second_shop"
SIZES = {
    STORE: {"train": 500, "validation": 30, "test": 80, "safety": 12},
    SECOND_SHOP: {"train": 160, "validation": 20, "test": 60, "safety": 8},
}

RATES = {"store_faults": 0.1, "unlisted_attribute": 0.6}  # so that few dialogues show rare events


@cache
def _samples(shop: Path) -> tuple[DialogueGenerator, dict[str, list[dict]]]:
    generator, sizes = dialogue_generator(shop, seed=7, **RATES), SIZES[shop]
    splits = {
        split: generator.split(split, sizes[split]) for split in ("train", "validation", "test")
    }
    return generator, splits | {"safety": generator.safety("test", sizes["safety"])}


def generator(shop: Path = STORE) -> DialogueGenerator:
    """Return the generator of the sampled dialogues. Do not change what it holds."""
    return _samples(shop)[0]


def samples(shop: Path = STORE) -> dict[str, list[dict]]:
    """Return dialogues of each split, and of each safety case. Do not change them."""
    return _samples(shop)[1]


def all_samples(shop: Path = STORE) -> list[dict]:
    return [dialogue for dialogues in samples(shop).values() for dialogue in dialogues]


def execute(dialogue: dict, shops: ShopSessions) -> Session:
    """Run the calls of a dialogue on a new store; assert that they return the same again."""
    session = shops.session(Scenario.of(dialogue))
    results = iter([turn["content"] for turn in dialogue["messages"] if turn["role"] == "tool"])
    for message in dialogue["messages"]:
        if message["role"] == "user":
            session.observe_user(message["content"])
        elif message.get("tool_calls"):
            call = message["tool_calls"][0]["function"]
            assert session.call(call["name"], call["arguments"]) == json.loads(next(results))
        elif message["role"] == "assistant":
            session.observe_assistant(message["content"])
    return session
