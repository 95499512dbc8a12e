"""Measure base, SFT and DPO on dialogues with unseen products and wordings, and the router on unseen queries.

in   models/{base,sft,dpo,router}, data/sft/test.jsonl, data/queries/test.jsonl, data/store/tone.jsonl
out  metrics/evaluate.json, data/transcripts/turns.jsonl

Each model writes the assistant's turn behind the same right beginning of each dialogue; its call is compared with the right one
argument by argument. Intervals: Wilson 1927 for shares.
"""

import random

from demo.local_router import LocalRouter
from stages.common.device import Device, open_device
from stages.common.files import atomic_directory, read_jsonl, write_jsonl
from stages.common.metrics import share_interval, write_metrics
from stages.common.stage import Stage, run
from stages.shop import harmony
from stages.shop.answer import Answerer, answer_turns
from stages.shop.dialogues import turn_rows
from stages.shop.tone import ToneScorer
from stages.shop.tuning import open_model
from stages.shop.verify import judge, summarise

AGENTS = ("base", "sft", "dpo")


def answers_of(name: str, rows: list[dict], device: Device, max_new_tokens: int, batch: int) -> list[str]:
    model, tokenizer = open_model(f"models/{name}", device)
    return answer_turns(Answerer(model, tokenizer, device, max_new_tokens), rows, batch, name)


def quality(row: dict, text: str, tone: ToneScorer) -> float:
    """0 for a wrong reply; a right one between 1 and 3 by what it answers and how it sounds."""
    verdict = judge(row, text)
    return 1 + verdict.helpful + float(tone([verdict.message["content"]])[0]) if verdict.right else 0.0


def win_rate(rows: list[dict], ours: list[str], theirs: list[str], tone: ToneScorer) -> dict[str, float]:
    """Share of replies in which `ours` is better, ties left out, judged by a tone scorer the pairs never saw."""
    wins = losses = 0
    for row, a, b in zip(rows, ours, theirs, strict=True):
        gap = quality(row, a, tone) - quality(row, b, tone)
        wins, losses = wins + (gap > 1e-6), losses + (gap < -1e-6)
    low, high = share_interval(wins, wins + losses)
    return {"win_rate": wins / max(1, wins + losses), "win_rate_low": low, "win_rate_high": high, "wins": wins, "losses": losses,
            "n": len(rows)}


def routed(router: LocalRouter, queries: list[dict], dialogues: list[dict]) -> dict[str, float]:
    """Share of queries, and of dialogues' first turns, that the local router sends to the right place."""
    asked = [(row["text"], row["label"]) for row in queries]
    asked += [(dialogue["messages"][0]["content"], "shopping") for dialogue in dialogues if dialogue["intent"] != "out_of_scope"]
    right = sum(router(text).label == label for text, label in asked)
    low, high = share_interval(right, len(asked))
    return {"right_place": right / len(asked), "right_place_low": low, "right_place_high": high, "n": len(asked)}


def transcripts(rows: list[dict], answers: dict[str, list[str]]) -> list[dict]:
    """What each model said to each turn, beside the right answer, for people to read."""
    turns = []
    for number, row in enumerate(rows):
        before = [(message["role"], message.get("content") or harmony.completion(message)) for message in row["prompt"]]
        said = {model: {"text": texts[number], "right": judge(row, texts[number]).right}
                for model, texts in answers.items()}
        turns.append({"id": row["id"], "intent": row["intent"], "before": before,
                      "gold": harmony.completion(row["completion"][0]), "answers": said})
    return turns


def main(stage: Stage) -> None:
    params, profile, seed = stage.params.evaluate, stage.params.profile, stage.params.seed
    device = open_device(profile.device, profile.dtype, profile.threads, seed)
    dialogues = read_jsonl("data/sft/test.jsonl")
    rows = [row for dialogue in dialogues for row in turn_rows(dialogue)]
    random.Random(seed).shuffle(rows)
    rows = rows[:profile.evaluate.turns]
    answers = {name: answers_of(name, rows, device, params.max_new_tokens, profile.evaluate.batch) for name in AGENTS}

    situations = [row for row in read_jsonl("data/store/tone.jsonl") if row["split"] == "test"]
    tone = ToneScorer.fit(situations)
    replies = [number for number, row in enumerate(rows) if row["completion"][0].get("content")]
    dpo, sft = ([answers[name][i] for i in replies] for name in ("dpo", "sft"))
    compared = win_rate([rows[i] for i in replies], dpo, sft, tone)
    with atomic_directory("data/transcripts") as folder:
        write_jsonl(folder / "turns.jsonl", transcripts(rows, answers))
    write_metrics("metrics/evaluate.json", {
        **{name: summarise(rows, answers[name]) for name in AGENTS}, "dpo_vs_sft": compared,
        "routed": routed(LocalRouter.load("models/router"), read_jsonl("data/queries/test.jsonl"), dialogues)})


if __name__ == "__main__":
    run(main)
