"""Sample answers of the SFT model, score them, and pair good with bad.

in   models/sft, data/sft/{train,validation}.jsonl, data/store/tone.jsonl
out  data/prefs/{train,validation}.jsonl, data/prefs/card.json, metrics/prefs.json

Whether an answer is right is decided by executable checks; only among right answers do helpfulness and tone count, so a warm
wrong answer is never chosen. Samples are the model's own: Tajwar et al. 2024, https://arxiv.org/abs/2404.14367
"""

import random
import re

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline

from stages.common.device import open_device
from stages.common.files import atomic_directory, read_jsonl, write_json, write_jsonl
from stages.common.metrics import write_metrics
from stages.common.problem import Problem
from stages.common.stage import Stage, run
from stages.shop.answer import Answerer, answer_turns
from stages.shop.dialogues import turn_rows
from stages.shop.tone import ToneScorer, fit_with_accuracy
from stages.shop.tuning import open_model
from stages.shop.verify import judge

CALL_SHARE = 0.6  # of the prompts; the rest ask for a reply
VALIDATION_PART = 4  # one prompt for validation on this many for training
RIGHT, HELPFUL, TONE = 0.6, 0.25, 0.15  # weights of a score; wrong answers reach at most WRONG
WRONG = 0.3
MARKER = re.compile(r"<\|[a-z]+\|>")


def choose_prompts(split: str, count: int, seed: int) -> list[dict]:
    """`count` turns of a split, CALL_SHARE of them calls, in random order."""
    rows = [row for dialogue in read_jsonl(f"data/sft/{split}.jsonl") for row in turn_rows(dialogue)]
    random.Random(seed).shuffle(rows)
    calls = [row for row in rows if row["completion"][0].get("tool_calls")]
    replies = [row for row in rows if not row["completion"][0].get("tool_calls")]
    wanted = round(CALL_SHARE * count)
    return calls[:wanted] + replies[:count - wanted]


def score(row: dict, text: str, tone: ToneScorer) -> dict:
    """One sample with its score in [0, 1], the message it says and what is wrong with it.

    What can not be read as a call or a reply stands as a reply of its bare words: TRL's pairs are messages. None if it has none.
    """
    verdict = judge(row, text)
    bare = " ".join(MARKER.sub(" ", text).split())
    message = verdict.message or ({"role": "assistant", "content": bare} if bare else None)
    if verdict.right:
        reply = verdict.message.get("content")
        total = RIGHT + HELPFUL * verdict.helpful + TONE * (float(tone([reply])[0]) if reply else 1.0)
    else:
        total = WRONG * verdict.partial
    return {"message": message, "score": total, "right": verdict.right, "reasons": verdict.reasons}


def pair(row: dict, samples: list[dict], min_gap: float) -> dict | None:
    """The best sample against the worst, or the gold answer against the worst where all are wrong. None without a gap."""
    said = [sample for sample in samples if sample["message"]]
    if not said:
        return None
    best, worst = max(said, key=lambda sample: sample["score"]), min(said, key=lambda sample: sample["score"])
    origin = "sampled"
    if not best["right"]:
        best, origin = {"message": row["completion"][0], "score": 1.0}, "gold"
    if best["score"] - worst["score"] < min_gap or best["message"] == worst["message"]:
        return None
    return {"prompt": row["prompt"], "chosen": [best["message"]], "rejected": [worst["message"]], "tools": row["tools"],
            "scores": [best["score"], worst["score"]], "reasons": worst["reasons"], "origin": origin, "intent": row["intent"]}


def make_pairs(rows: list[dict], answerer: Answerer, tone: ToneScorer, samples: int, batch: int, min_gap: float) -> list[dict]:
    """At most one pair for each row from `samples` answers to it."""
    repeated = [row for row in rows for _ in range(samples)]
    texts = answer_turns(answerer, repeated, batch, "samples")
    pairs = []
    for number, row in enumerate(rows):
        scored = [score(row, text, tone) for text in texts[number * samples:(number + 1) * samples]]
        pairs.append(pair(row, scored, min_gap))
    return [made for made in pairs if made]


def plain(messages: list[dict]) -> str:
    """What a message says, as text for the leak checks."""
    return messages[0].get("content") or str(messages[0]["tool_calls"][0]["function"])


def leak_auc(pairs: list[dict]) -> dict[str, float]:
    """How well chosen and rejected are told apart by length alone, and by their words alone (5-fold). 0.5 is not at all."""
    texts = [plain(made[side]) for made in pairs for side in ("chosen", "rejected")]
    truth = np.array([side == "chosen" for _ in pairs for side in ("chosen", "rejected")])
    lengths = [len(text) for text in texts]
    folds = min(5, len(pairs))
    if folds < 2:
        return {"length": 0.5, "bag_of_words": 0.5}
    words = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    guessed = cross_val_predict(words, texts, truth, cv=folds, method="predict_proba")[:, 1]
    return {"length": max(roc_auc_score(truth, lengths), 1 - roc_auc_score(truth, lengths)),
            "bag_of_words": roc_auc_score(truth, guessed)}


def main(stage: Stage) -> None:
    params, profile, seed = stage.params.build_prefs, stage.params.profile, stage.params.seed
    scale = profile.build_prefs
    device = open_device(profile.device, profile.dtype, profile.threads, seed)
    model, tokenizer = open_model("models/sft", device)
    answerer = Answerer(model, tokenizer, device, params.max_new_tokens, params.temperature, params.top_p)
    situations = [row for row in read_jsonl("data/store/tone.jsonl") if row["split"] == "train"]
    tone, accuracy = fit_with_accuracy(situations)

    pairs = {}
    for split, count in (("train", scale.prompts), ("validation", max(2, scale.prompts // VALIDATION_PART))):
        rows = choose_prompts(split, count, seed + 1)  # another order than the one SFT drew its rows in
        pairs[split] = make_pairs(rows, answerer, tone, params.samples, scale.batch, params.min_gap)
        if not pairs[split]:
            raise Problem(f"No {split} pair has a gap of {params.min_gap}: all samples of a prompt score alike. Raise "
                          "build_prefs.temperature or build_prefs.samples, or lower build_prefs.min_gap.")
    made = pairs["train"] + pairs["validation"]
    longer = [len(plain(row["chosen"])) > len(plain(row["rejected"])) for row in made]
    summary = {
        "pairs": {"train": len(pairs["train"]), "validation": len(pairs["validation"]),
                  "gold": sum(row["origin"] == "gold" for row in made)},
        "chosen_longer": {"share": float(np.mean(longer))}, "leak_auc": leak_auc(made), "tone_scorer": {"accuracy": accuracy}}
    with atomic_directory("data/prefs") as folder:
        for split, rows in pairs.items():
            write_jsonl(folder / f"{split}.jsonl", rows)
        write_json(folder / "card.json", {"samples_per_prompt": params.samples, "temperature": params.temperature,
                                          "top_p": params.top_p, "min_gap": params.min_gap} | summary["pairs"])
    write_metrics("metrics/prefs.json", summary)


if __name__ == "__main__":
    run(main)
