"""Recorded dialogues, one a line of data/sft, and the rows that training and evaluation take from them.

{"id", "intent", "plan", "case", "split", "wordings", "turns", "session", "messages", "notes", "end_state"}: `turns` are the
intents of the customer's turns and `wordings` their words with slots; `session` opens the same shop again (scene.py); `messages`
are those of the OpenAI API; `notes` holds for each reply which acts it is made of and which facts it has to give; `end_state` is
the hash of the store after the last turn; `case` is the safety case, if it is one.
"""

import random
from collections.abc import Sequence

from crawl2cart.shop.tool_schemas import TOOLS


def to_examples(dialogue: dict) -> list[dict]:
    """One row for each assistant turn: `prompt` is what stood before it, `completion` the turn itself, and `tools`; the others
    are for checks: `id` (dialogue and place in it), `intent`, `case`, and of a reply its `acts` and `facts` (a call: "call", none).
    """
    found, notes = [], iter(dialogue["notes"])
    for place, message in enumerate(dialogue["messages"]):
        if message["role"] == "assistant":
            note = {"acts": ["call"], "facts": []} if message.get("tool_calls") else next(notes)
            found.append(
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
    return found


def sample_examples(examples: Sequence[dict], count: int, seed: int) -> list[dict]:
    """Draw `count` examples without replacement; all of them if there are fewer."""
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:count]
