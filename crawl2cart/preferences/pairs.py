"""Pair a better with a worse turn after the same prompt, and measure what else tells them apart.

A pair is a dict:

    prompt, tools       as in an example of `to_examples`
    chosen, rejected    one assistant message each, in a list
    scores              of chosen and rejected
    reasons             what the rejected turn lacks
    origin              sampled: both turns are the model's own
                        gold: chosen is the recorded turn, because all samples are wrong
                        written: both stand in data/store/tone.jsonl
                        feedback: customers gave thumbs
    kind                best_worst or middle
    intent, id          of the example

A slot is a list of pairs of which at most one is taken.
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
from crawl2cart.preferences.style_classifier import FAULTS, GOOD, ToneScorer
from crawl2cart.shop.grounding import ShopVocabulary

MIDDLE_SHARE = (
    0.33  # of the prompts with three turns or more get a second pair, best against middle
)
MAX_LONGER = 0.55  # the highest share of pairs whose longer turn is on the same side
TELLING_WORDS = 6  # listed for each side


def make_pair(
    example: dict,
    chosen: tuple[dict, float],
    rejected: tuple[dict, float],
    reasons: Sequence[str],
    origin: str,
    kind: str = "best_worst",
) -> dict:
    """Return a pair. chosen, rejected: message and score."""
    return {
        "prompt": example["prompt"],
        "chosen": [chosen[0]],
        "rejected": [rejected[0]],
        "tools": example["tools"],
        "scores": [chosen[1], rejected[1]],
        "reasons": list(reasons),
        "origin": origin,
        "kind": kind,
        "intent": example["intent"],
        "id": example["id"],
    }


def candidate_pairs(
    example: dict, scores: Sequence[Score], min_score_margin: float, draw: random.Random
) -> list[list[dict]]:
    """Return at most two slots for the scored samples of one prompt, the widest margin first.

    Chosen is the best sample, if it is right; if all are wrong, the recorded turn. Samples within
    min_score_margin of the best are in no pair, and malformed ones neither.
    """
    distinct = {json.dumps(one.message, sort_keys=True): one for one in scores if one.message}
    ranked = [
        one for _, one in sorted(distinct.items(), key=lambda item: (-item[1].total, item[0]))
    ]
    if not ranked:
        return []
    best = ranked[0]
    if not best.right:
        gold = (example["completion"][0], 1.0)
        return [[_against(example, gold, one, "gold") for one in reversed(ranked)]]
    worse = [one for one in ranked[1:] if best.total - one.total >= min_score_margin]
    pairs = [
        _against(example, (best.message, best.total), one, "sampled") for one in reversed(worse)
    ]
    if len(pairs) < 2 or draw.random() >= MIDDLE_SHARE:
        return [pairs] if pairs else []
    middle = pairs.pop(len(pairs) // 2)
    return [pairs, [middle | {"kind": "middle"}]]


def _against(example: dict, chosen: tuple[dict, float], rejected: Score, origin: str) -> dict:
    worse = (rejected.message, rejected.total)
    return make_pair(example, chosen, worse, rejected.reasons, origin)


def style_pairs(
    situations: Sequence[dict], tools: list[dict], vocabulary: ShopVocabulary, tone: ToneScorer
) -> list[list[dict]]:
    """Return two slots for each situation of tone.jsonl that needs no tool (it has `asks`).

    Its good reply stands against its faulty ones. A reply with an unsupported fact is in no pair.
    """
    slots = []
    for number, situation in enumerate(situations):
        if situation.get("asks"):
            pairs = _situation_pairs(situation, tools, vocabulary, tone)
            shift = number % len(pairs) if pairs else 0  # another fault comes first each time
            pairs = pairs[shift:] + pairs[:shift]
            slots += [pairs[::2], pairs[1::2]]
    return [slot for slot in slots if slot]


def _situation_pairs(
    situation: dict, tools: list[dict], vocabulary: ShopVocabulary, tone: ToneScorer
) -> list[dict]:
    prompt = [{"role": "user", "content": situation["asks"]}]
    example = {"prompt": prompt, "tools": tools, "intent": "written", "id": situation["id"]}
    kinds = [
        kind for kind in (GOOD, *FAULTS) if not vocabulary.unsupported(situation[kind], prompt)
    ]
    if GOOD not in kinds:
        return []
    tones = map(float, tone([situation[kind] for kind in kinds]))
    turns = {
        kind: ({"role": "assistant", "content": situation[kind]}, value)
        for kind, value in zip(kinds, tones, strict=True)
    }
    return [
        make_pair(
            example, turns[GOOD], turns[kind], [f"sounds {kind.replace('_', ' ')}"], "written"
        )
        for kind in kinds
        if kind != GOOD
    ]


# Choosing among pairs


def cap_reference(slots: Sequence[list[dict]], max_ratio: float) -> list[list[dict]]:
    """Drop slots with a recorded turn beyond this share of all slots; the first ones stay."""
    others = sum(slot[0]["origin"] != "gold" for slot in slots)
    left = int(max_ratio * others / (1 - max_ratio)) if max_ratio < 1 else len(slots)
    capped = []
    for slot in slots:
        if slot[0]["origin"] == "gold":
            left -= 1
        if slot[0]["origin"] != "gold" or left >= 0:
            capped.append(slot)
    return capped


def balance_lengths(slots: Sequence[list[dict]]) -> list[dict]:
    """Take one pair of each slot so that chosen is about as often the longer turn as the shorter.

    Of a slot the first pair that mends the balance is taken. Then pairs of the heavier side are
    removed, recorded turns and narrow margins first, until MAX_LONGER holds.
    """
    taken, balance = [], 0
    for slot in slots:
        pair = next((one for one in slot if _longer(one) * balance < 0), slot[0])
        taken.append(pair)
        balance += _longer(pair)
    while abs(chosen_longer_rate(taken) - 0.5) > MAX_LONGER - 0.5:
        heavier = 1 if chosen_longer_rate(taken) > 0.5 else -1
        heavy = [pair for pair in taken if _longer(pair) == heavier]
        taken.remove(min(heavy, key=lambda pair: (pair["origin"] != "gold", _margin(pair))))
    return taken


def _margin(pair: dict) -> float:
    return pair["scores"][0] - pair["scores"][1]


def _longer(pair: dict) -> int:
    """Return 1 if the chosen turn has more characters, -1 if the rejected has, 0 if equal."""
    chosen, rejected = (len(message_text(pair[side])) for side in ("chosen", "rejected"))
    return (chosen > rejected) - (chosen < rejected)


def chosen_longer_rate(pairs: Sequence[dict]) -> float:
    """Return the share of pairs whose chosen turn is longer; equal lengths count half."""
    return float(np.mean([(1 + _longer(pair)) / 2 for pair in pairs])) if pairs else 0.5


# What else tells the sides apart


def message_text(messages: list[dict]) -> str:
    """Return one side of a pair as text: a reply's content, or a call as JSON."""
    return messages[0].get("content") or json.dumps(
        messages[0]["tool_calls"][0]["function"], sort_keys=True
    )


def artifact_auc(pairs: Sequence[dict]) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Measure how well chosen and rejected are told apart without the prompt.

    Returns areas under the ROC curve, where 0.5 is chance: `length` by characters, `bag_of_words`
    by a classifier on prompts that it was not fitted on. And by side the words that weigh most.
    """
    texts = [message_text(pair[side]) for pair in pairs for side in ("chosen", "rejected")]
    is_chosen = np.array([side == "chosen" for _ in pairs for side in ("chosen", "rejected")])
    prompts = [json.dumps(pair["prompt"], sort_keys=True) for pair in pairs for _ in range(2)]
    by_length = roc_auc_score(is_chosen, list(map(len, texts))) if pairs else 0.5
    by_length = max(by_length, 1 - by_length)
    folds = min(5, len(set(prompts)))
    if folds < 2:
        return {"length": by_length, "bag_of_words": 0.5}, {"chosen": [], "rejected": []}
    classifier = make_pipeline(
        CountVectorizer(token_pattern=r"(?u)\b\w+\b"), LogisticRegression(max_iter=1000)
    )
    probabilities = cross_val_predict(
        classifier,
        texts,
        is_chosen,
        groups=prompts,
        cv=GroupKFold(folds),
        method="predict_proba",
    )[:, 1]
    weights = classifier.fit(texts, is_chosen)[-1].coef_[0]
    names = classifier[0].get_feature_names_out()
    words = [str(names[i]) for i in np.argsort(weights, kind="stable")]
    return (
        {"length": by_length, "bag_of_words": roc_auc_score(is_chosen, probabilities)},
        {"chosen": words[: -TELLING_WORDS - 1 : -1], "rejected": words[:TELLING_WORDS]},
    )
