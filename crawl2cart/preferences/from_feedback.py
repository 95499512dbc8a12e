"""Make pairs from customers' thumbs, as the demo page records them.

One JSON object a line in the folder's *.jsonl:
{"messages": [...], "reply": {"content": "..."}, "liked": true}
holds the conversation before the reply, the reply, and the thumb.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_jsonl
from crawl2cart.lm.formats import harmony
from crawl2cart.preferences.pairs import make_pair
from crawl2cart.preferences.reward import Score, score
from crawl2cart.preferences.style_classifier import ToneScorer
from crawl2cart.shop.grounding import ShopVocabulary
from crawl2cart.shop.tool_schemas import TOOLS

KEYS = {"messages": list, "reply": dict, "liked": bool}
DISLIKED = "a customer disliked it"


def read_feedback(folder: Path) -> list[dict]:
    """Return one example for each conversation with a thumb.

    An example has the form of `to_examples`, and lists of `liked` and `disliked` replies. Raises
    UserError for a folder without files and for a line of another form.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(
            f"build_prefs.feedback names {folder}, which has no *.jsonl. "
            "Name the folder of the thumbs, or leave it empty."
        )
    examples: dict[str, dict] = {}
    for file in files:
        for number, line in enumerate(read_jsonl(file), 1):
            _check_line(line, f"{file}:{number}")
            conversation = json.dumps(line["messages"], sort_keys=True)
            example = examples.setdefault(conversation, _example(line, f"{file.stem}:{number}"))
            example["liked" if line["liked"] else "disliked"].append(line["reply"]["content"])
    return list(examples.values())


def _check_line(line: dict, place: str) -> None:
    wrong = [key for key, kind in KEYS.items() if not isinstance(line.get(key), kind)]
    if wrong or not line["messages"] or not str(line["reply"].get("content") or "").strip():
        raise UserError(
            f"{place}: {', '.join(wrong) or 'messages or reply'}: missing or ill-formed; expected "
            '{"messages": [...], "reply": {"content": "..."}, "liked": true or false}'
        )


def _example(line: dict, example_id: str) -> dict:
    return {
        "prompt": line["messages"],
        "completion": [{"role": "assistant", "content": line["reply"]["content"]}],
        "tools": TOOLS,
        "acts": [],
        "facts": [],
        "intent": "feedback",
        "id": example_id,
        "liked": [],
        "disliked": [],
    }


def feedback_slots(
    example: dict,
    samples: Sequence[Score],
    tone: ToneScorer,
    min_score_margin: float,
    vocabulary: ShopVocabulary | None = None,
) -> list[list[dict]]:
    """Return at most two slots of pairs (see pairs.py) for an example of `read_feedback`.

    The best liked reply stands against disliked replies and wrong samples. Without a liked reply
    the best right sample stands against disliked replies that score lower by min_score_margin.
    A liked reply with an unsupported fact is never chosen, and replies with both thumbs are left
    out. vocabulary: the shop's; by default that of data/sft.
    """
    scores = {
        text: score(
            example, harmony.completion({"role": "assistant", "content": text}), tone, vocabulary
        )
        for text in dict.fromkeys(example["liked"] + example["disliked"])
    }
    disputed = set(example["liked"]) & set(example["disliked"])
    liked = [
        scores[text] for text in example["liked"] if text not in disputed and scores[text].right
    ]
    disliked = [scores[text] for text in example["disliked"] if text not in disputed]
    if liked:
        best = max(liked, key=lambda one: one.total)
        worse = [(one, DISLIKED) for one in disliked]
        worse += [(one, ", ".join(one.reasons)) for one in samples if one.message and not one.right]
        pairs = [_pair(example, best, one, reason) for one, reason in worse]
    else:
        right = [one for one in samples if one.right and one.message.get("content")]
        best = max(right, key=lambda one: one.total, default=None)
        pairs = [
            _pair(example, best, one, DISLIKED)
            for one in disliked
            if best and best.total - one.total >= min_score_margin
        ]
    return [slot for slot in (pairs[::2], pairs[1::2]) if slot]


def _pair(example: dict, chosen: Score, rejected: Score, reason: str) -> dict:
    return make_pair(
        example,
        (chosen.message, chosen.total),
        (rejected.message, rejected.total),
        [reason],
        "feedback",
    )
