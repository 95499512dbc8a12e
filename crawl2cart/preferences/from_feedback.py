"""Thumbs of customers, as the demonstration's page notes them, and the pairs that they give.

{"messages": [...], "reply": {"content": "..."}, "liked": true}, one a line of the folder's *.jsonl: the conversation before the reply,
the reply, and the thumb.
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


def read_feedback(folder: Path) -> list[dict]:
    """One row for each conversation that got a thumb, of the form of `to_examples`, with `liked` and `disliked` replies.

    Raises UserError for a folder without files and for a line that is not of the form above.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(
            f"build_prefs.feedback names {folder}, which has no *.jsonl. Name the folder of the thumbs, or leave it empty."
        )
    rows: dict[str, dict] = {}
    for file in files:
        for number, line in enumerate(read_jsonl(file), 1):
            wrong = [key for key, kind in KEYS.items() if not isinstance(line.get(key), kind)]
            if wrong or not line["messages"] or not str(line["reply"].get("content") or "").strip():
                raise UserError(
                    f"{file}:{number}: {', '.join(wrong) or 'messages or reply'}: missing or ill-formed; expected "
                    '{"messages": [...], "reply": {"content": "..."}, "liked": true or false}'
                )
            row = rows.setdefault(
                json.dumps(line["messages"], sort_keys=True),
                {
                    "prompt": line["messages"],
                    "completion": [{"role": "assistant", "content": line["reply"]["content"]}],
                    "tools": TOOLS,
                    "acts": [],
                    "facts": [],
                    "intent": "feedback",
                    "id": f"{file.stem}:{number}",
                    "liked": [],
                    "disliked": [],
                },
            )
            row["liked" if line["liked"] else "disliked"].append(line["reply"]["content"])
    return list(rows.values())


def feedback_slots(
    row: dict,
    samples: Sequence[Score],
    tone: ToneScorer,
    min_score_margin: float,
    words: ShopVocabulary | None = None,
) -> list[list[dict]]:
    """At most two slots of pairs: a liked reply against disliked ones, or against samples that are wrong; without a liked
    one, the best right sample against a disliked reply that scores lower.

    A thumb says more about a reply than its score, but a liked reply that states what no tool returned is never chosen. words: the
    shop's lexicon, data/sft's by default.
    """
    judged = {
        text: score(row, harmony.completion({"role": "assistant", "content": text}), tone, words)
        for text in dict.fromkeys(row["liked"] + row["disliked"])
    }
    both = set(row["liked"]) & set(row["disliked"])  # opinions differ
    liked = [judged[text] for text in row["liked"] if text not in both and judged[text].right]
    disliked = [judged[text] for text in row["disliked"] if text not in both]
    if liked:
        worse = [(one, "a customer disliked it") for one in disliked]
        worse += [(one, ", ".join(one.reasons)) for one in samples if one.message and not one.right]
        pairs = [
            pair_of(row, max(liked, key=lambda one: one.total), one, reason)
            for one, reason in worse
        ]
    else:
        right = [one for one in samples if one.right and one.message.get("content")]
        best = max(right, key=lambda one: one.total, default=None)
        pairs = [
            pair_of(row, best, one, "a customer disliked it")
            for one in disliked
            if best and best.total - one.total >= min_score_margin
        ]
    return [slot for slot in (pairs[::2], pairs[1::2]) if slot]


def pair_of(row: dict, chosen: Score, rejected: Score, reason: str) -> dict:
    return make_pair(
        row,
        (chosen.message, chosen.total),
        (rejected.message, rejected.total),
        [reason],
        "feedback",
    )
