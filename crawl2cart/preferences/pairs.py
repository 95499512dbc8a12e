"""Pairs of a better and a worse turn after the same prompt, and what a learner could see in them beside the quality.

A pair is {"prompt", "chosen", "rejected", "tools", "scores", "reasons", "origin", "kind", "intent", "id"}: `chosen` and `rejected`
hold one message each, `scores` are theirs, `reasons` say what the rejected one lacks, `origin` where the chosen one comes from:
`sampled` (both are the model's own), `gold` (the recorded turn, where all samples are wrong), `written` (a situation of
data/store/tone.jsonl), `feedback` (thumbs of customers). `kind` is `best_worst` or `middle`.
"""

import json
import random
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from crawl2cart.preferences.reward import Score
from crawl2cart.preferences.style_classifier import FAULTS, GOOD
from crawl2cart.shop.grounding import ShopVocabulary

MIDDLE_SHARE = (
    0.33  # of the prompts that have one: a second pair, of the best turn and one from the middle
)
MOST_LONGER = 0.55  # of the pairs may have the longer turn on the same side
TELLING_WORDS = 6


def make_pair(
    row: dict,
    chosen: tuple[dict, float],
    rejected: tuple[dict, float],
    reasons: Sequence[str],
    origin: str,
    kind: str = "best_worst",
) -> dict:
    """One pair. chosen, rejected: message and score."""
    return {
        "prompt": row["prompt"],
        "chosen": [chosen[0]],
        "rejected": [rejected[0]],
        "tools": row["tools"],
        "scores": [chosen[1], rejected[1]],
        "reasons": list(reasons),
        "origin": origin,
        "kind": kind,
        "intent": row["intent"],
        "id": row["id"],
    }


def candidate_pairs(
    row: dict, scores: Sequence[Score], min_score_margin: float, draw: random.Random
) -> list[list[dict]]:
    """What may be paired for one prompt: at most two lists of equally meant pairs, the widest gap first; one of each may be taken.

    Only a right turn is ever chosen. Where all samples are wrong the recorded turn is, and where no two differ by min_score_margin nothing is.
    A sample that can not be read is no message, and so in no pair.
    """
    said = {json.dumps(one.message, sort_keys=True): one for one in scores if one.message}
    ranked = sorted(
        said.values(), key=lambda one: (-one.total, json.dumps(one.message, sort_keys=True))
    )
    if not ranked:
        return []
    best = ranked[0]
    if not best.right:
        return [
            [
                make_pair(
                    row, (row["completion"][0], 1.0), (one.message, one.total), one.reasons, "gold"
                )
                for one in reversed(ranked)
            ]
        ]
    worse = [one for one in ranked[1:] if best.total - one.total >= min_score_margin]
    made = [
        make_pair(row, (best.message, best.total), (one.message, one.total), one.reasons, "sampled")
        for one in reversed(worse)
    ]
    if len(made) < 2 or draw.random() >= MIDDLE_SHARE:
        return [made] if made else []
    middle = made.pop(len(made) // 2)
    return [made, [middle | {"kind": "middle"}]]


def longer(pair: dict) -> int:
    """1 where the chosen turn has more characters, -1 where the rejected one has, 0 where they are equal."""
    chosen, rejected = (len(plain(pair[side])) for side in ("chosen", "rejected"))
    return (chosen > rejected) - (chosen < rejected)


def chosen_longer_rate(pairs: Sequence[dict]) -> float:
    """Share of the pairs whose chosen turn is the longer one; equally long ones count half."""
    return float(np.mean([(1 + longer(pair)) / 2 for pair in pairs])) if pairs else 0.5


def balance_lengths(slots: Sequence[list[dict]]) -> list[dict]:
    """One pair of each slot, so that chosen is about as often the longer turn as the shorter one.

    Of pairs that mean the same the first is taken that keeps the balance; then pairs of the heavier side go, the recorded turns and
    the narrowest gaps first.
    """
    taken, balance = [], 0
    for slot in slots:
        pair = next((one for one in slot if longer(one) * balance < 0), slot[0])
        taken.append(pair)
        balance += longer(pair)
    while abs(chosen_longer_rate(taken) - 0.5) > MOST_LONGER - 0.5:
        heavier = 1 if chosen_longer_rate(taken) > 0.5 else -1
        heavy = [pair for pair in taken if longer(pair) == heavier]
        taken.remove(
            min(
                heavy,
                key=lambda pair: (pair["origin"] != "gold", pair["scores"][0] - pair["scores"][1]),
            )
        )
    return taken


def cap_reference(slots: Sequence[list[dict]], share: float) -> list[list[dict]]:
    """The slots with at most this share of recorded turns, the first of them."""
    others = sum(slot[0]["origin"] != "gold" for slot in slots)
    left, kept = int(share * others / (1 - share)) if share < 1 else len(slots), []
    for slot in slots:
        if slot[0]["origin"] == "gold":
            left -= 1
        if slot[0]["origin"] != "gold" or left >= 0:
            kept.append(slot)
    return kept


def style_pairs(
    situations: Sequence[dict], tools: list[dict], words: ShopVocabulary, tone
) -> list[list[dict]]:
    """Two slots for each situation of tone.jsonl whose customer can be answered without a tool (`asks`): the good reply against
    the faulty ones. A reply with a fact that the customer did not say and the shop does not always state is in no pair.
    """
    found = []
    for number, situation in enumerate(situations):
        if not situation.get("asks"):
            continue
        row = {
            "prompt": [{"role": "user", "content": situation["asks"]}],
            "tools": tools,
            "intent": "written",
            "id": situation["id"],
        }
        kinds = [
            kind
            for kind in (GOOD, *FAULTS)
            if not words.unsupported(situation[kind], row["prompt"])
        ]
        if GOOD not in kinds:
            continue
        scores = dict(
            zip(kinds, map(float, tone([situation[kind] for kind in kinds])), strict=True)
        )
        message = {kind: {"role": "assistant", "content": situation[kind]} for kind in kinds}
        good = message[GOOD], scores[GOOD]
        pairs = [
            make_pair(
                row,
                good,
                (message[kind], scores[kind]),
                [f"sounds {kind.replace('_', ' ')}"],
                "written",
            )
            for kind in kinds
            if kind != GOOD
        ]
        turned = (
            pairs[number % len(pairs) :] + pairs[: number % len(pairs)]
        )  # not the same fault first each time
        found += [turned[::2], turned[1::2]]
    return [slot for slot in found if slot]


# Leaks


def plain(messages: list[dict]) -> str:
    """What a message says, as text for the leak checks."""
    return messages[0].get("content") or json.dumps(
        messages[0]["tool_calls"][0]["function"], sort_keys=True
    )


def leaks(pairs: Sequence[dict]) -> tuple[dict[str, float], dict[str, list[str]]]:
    """How well chosen and rejected turns are told apart by length alone, and by their words alone on prompts that the
    classifier has not seen: areas under the ROC curve, 0.5 is not at all. And the words that weigh most on either side.
    """
    texts = [plain(pair[side]) for pair in pairs for side in ("chosen", "rejected")]
    truth = np.array([side == "chosen" for _ in pairs for side in ("chosen", "rejected")])
    prompts = [json.dumps(pair["prompt"], sort_keys=True) for pair in pairs for _ in range(2)]
    by_length = roc_auc_score(truth, list(map(len, texts))) if pairs else 0.5
    folds = min(5, len(set(prompts)))
    if folds < 2:
        return {"length": max(by_length, 1 - by_length), "bag_of_words": 0.5}, {
            "chosen": [],
            "rejected": [],
        }
    words = make_pipeline(
        CountVectorizer(token_pattern=r"(?u)\b\w+\b"), LogisticRegression(max_iter=1000)
    )
    guessed = cross_val_predict(
        words, texts, truth, groups=prompts, cv=GroupKFold(folds), method="predict_proba"
    )[:, 1]
    weights = words.fit(texts, truth)[-1].coef_[0]
    names = words[0].get_feature_names_out()
    order = [str(names[i]) for i in np.argsort(weights, kind="stable")]
    return (
        {"length": max(by_length, 1 - by_length), "bag_of_words": roc_auc_score(truth, guessed)},
        {"chosen": order[: -TELLING_WORDS - 1 : -1], "rejected": order[:TELLING_WORDS]},
    )
