"""Choose the prompts that the SFT model answers for preference pairs.

Prompts that SFT has seen give easy pairs, so the freshest come first.
"""

import random

from crawl2cart.dialogues.sft_examples import to_examples

CALL_SHARE = 0.6  # of the prompts ask for a call, the others for a reply
# What SFT has not seen of a prompt, the freshest first.
FRESHNESS = ("wording and plan", "dialogue", "turn", "nothing")


def freshness(dialogues: list[dict], seen: list[dict]) -> dict[str, int]:
    """Return for each turn id its index in FRESHNESS, given the examples that SFT has seen."""
    phrasings = {
        dialogue["id"]: {*dialogue["wordings"], dialogue["plan"]} - {None} for dialogue in dialogues
    }
    seen_turns = {example["id"] for example in seen}
    seen_dialogues = {turn.rpartition(":")[0] for turn in seen_turns}
    seen_phrasings = set().union(*(phrasings[name] for name in seen_dialogues))
    levels = {}
    for dialogue in dialogues:
        if not phrasings[dialogue["id"]] & seen_phrasings:
            level = 0
        else:
            level = 1 if dialogue["id"] not in seen_dialogues else 2
        for example in to_examples(dialogue):
            levels[example["id"]] = 3 if example["id"] in seen_turns else level
    return levels


def choose_prompts(
    examples: list[dict], levels: dict[str, int], count: int, seed: int
) -> list[dict]:
    """Choose `count` turns, CALL_SHARE of them calls, the freshest first, otherwise at random."""
    examples = list(examples)
    random.Random(f"{seed} prompts").shuffle(examples)
    examples.sort(key=lambda example: levels[example["id"]])
    calls = [example for example in examples if example["completion"][0].get("tool_calls")]
    replies = [example for example in examples if not example["completion"][0].get("tool_calls")]
    call_count = round(CALL_SHARE * count)
    return calls[:call_count] + replies[: count - call_count]
