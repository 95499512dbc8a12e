"""Turn recorded dialogues into the examples that training and evaluation read.

A line of data/sft is one dialogue: {"id", "intent", "plan", "case", "split", "wordings", "turns",
"session", "messages", "notes", "end_state"}.

turns      intents of the customer's turns; `wordings` are their templates
session    the scenario that opens the same shop again (crawl2cart/shop/env.py)
messages   those of the OpenAI API
notes      for each reply the acts that it is made of and the facts that it has to state
end_state  hash of the store after the last turn
case       the safety case, or null
"""

import random
from collections.abc import Sequence

from crawl2cart.shop.tool_schemas import TOOLS


def to_examples(dialogue: dict) -> list[dict]:
    """Return one example for each assistant turn.

    `prompt` is what stands before the turn, `completion` the turn, `tools` the schemas. For checks:
    `id` (dialogue and place), `intent`, `case`, `acts` and `facts` (of a call: "call" and none).
    """
    examples, notes = [], iter(dialogue["notes"])
    for place, message in enumerate(dialogue["messages"]):
        if message["role"] == "assistant":
            note = {"acts": ["call"], "facts": []} if message.get("tool_calls") else next(notes)
            examples.append(
                {
                    "prompt": dialogue["messages"][:place],
                    "completion": [message],
                    "tools": TOOLS,
                    "id": f"{dialogue['id']}:{place}",
                    "intent": dialogue["intent"],
                    "case": dialogue["case"],
                    **note,
                }
            )
    return examples


def texts_of(messages: Sequence[dict], role: str) -> list[str]:
    """Return the texts of the customer ("user") or of the assistant, without calls."""
    return [
        message["content"]
        for message in messages
        if message["role"] == role and not message.get("tool_calls")
    ]


def calls_of(messages: Sequence[dict]) -> list[dict]:
    """Return all tool calls, each with its name and arguments."""
    return [call["function"] for message in messages for call in message.get("tool_calls", [])]


def sample_examples(examples: Sequence[dict], count: int, seed: int) -> list[dict]:
    """Draw `count` examples without replacement; all of them if there are fewer."""
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:count]
