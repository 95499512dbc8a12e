"""Sample answers of the SFT model, score them, and pair good with bad.

in   models/sft, data/sft/{train,validation}.jsonl, lexicon.json, data/store/tone.jsonl, a folder of thumbs if `feedback` names one
out  data/prefs/{train,validation}.jsonl, data/prefs/README.md (the data card), metrics/prefs.json

Whether an answer is right is decided by executable checks; only among right answers do helpfulness and tone count, so a warm
wrong answer is never chosen. Samples are the model's own: Tajwar et al. 2024, https://arxiv.org/abs/2404.14367
"""

import random
from collections import Counter
from pathlib import Path

from crawl2cart.agent.local_writer import LocalWriter, answer_turns, open_folder
from crawl2cart.core.device import open_device
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, read_jsonl, write_jsonl
from crawl2cart.core.metrics import write_metrics
from crawl2cart.core.stage import Stage, run
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.lm.training.distributed import ProcessGroup, open_process_group
from crawl2cart.preferences.card import ORIGINS, card
from crawl2cart.preferences.from_feedback import feedback_slots, read_feedback
from crawl2cart.preferences.llm_judge import PairJudge, judged
from crawl2cart.preferences.pairs import (
    balance_lengths,
    candidate_pairs,
    cap_reference,
    chosen_longer_rate,
    leaks,
    style_pairs,
)
from crawl2cart.preferences.reward import Score, score
from crawl2cart.preferences.style_classifier import ToneScorer, fit_with_accuracy
from crawl2cart.shop.grounding import read_vocabulary
from crawl2cart.shop.tool_schemas import TOOLS, compact

CALL_SHARE = 0.6  # of the prompts; the rest ask for a reply
VALIDATION_PART = 4  # one prompt for validation on this many for training
FRESHNESS = (
    "wording and plan",
    "dialogue",
    "turn",
    "nothing",
)  # what SFT's rows have not shown of a prompt, the best first
# What `dvc metrics` shows of the metrics.
HEADLINES = (
    "pairs.train",
    "chosen_longer_rate.train",
    "artifact_auc.length",
    "artifact_auc.bag_of_words",
    "tone_scorer.accuracy",
)


def seen_by_sft(rows: list[dict], count: int, seed: int) -> list[dict]:
    """The rows that stages/sft.py draws for its steps."""
    rows = list(rows)
    random.Random(seed).shuffle(rows)
    return rows[:count]


def freshness(dialogues: list[dict], seen: list[dict]) -> dict[str, int]:
    """By the id of each turn: its place in FRESHNESS, by what the rows in `seen` have shown of its dialogue."""
    said = {
        dialogue["id"]: {*dialogue["wordings"], dialogue["plan"]} - {None} for dialogue in dialogues
    }
    turns = {row["id"] for row in seen}
    of = {turn.rpartition(":")[0] for turn in turns}
    known = set().union(*(said[name] for name in of)) if of else set()
    found = {}
    for dialogue in dialogues:
        level = 0 if not said[dialogue["id"]] & known else 1 if dialogue["id"] not in of else 2
        found |= {row["id"]: 3 if row["id"] in turns else level for row in to_examples(dialogue)}
    return found


def choose_prompts(rows: list[dict], fresh: dict[str, int], count: int, seed: int) -> list[dict]:
    """`count` turns, CALL_SHARE of them calls, in random order but the freshest first."""
    rows = list(rows)
    random.Random(f"{seed} prompts").shuffle(rows)
    rows.sort(key=lambda row: fresh[row["id"]])
    calls = [row for row in rows if row["completion"][0].get("tool_calls")]
    replies = [row for row in rows if not row["completion"][0].get("tool_calls")]
    wanted = round(CALL_SHARE * count)
    return calls[:wanted] + replies[: count - wanted]


def sample(
    rows: list[dict],
    writer: LocalWriter,
    tone: ToneScorer,
    samples: int,
    batch: int,
    world: ProcessGroup,
) -> list[list[Score]]:
    """`samples` scored answers to each row, in every process of `world`, which share the writing."""
    repeated = [row for row in rows for _ in range(samples)]
    texts = world.all_gather(answer_turns(writer, world.shard(repeated), batch, "samples"))
    scored = [score(row, text, tone) for row, text in zip(repeated, texts, strict=True)]
    return [scored[start : start + samples] for start in range(0, len(scored), samples)]


def open_judge(stage: Stage) -> PairJudge | None:
    params = stage.params.build_prefs
    if params.judge == "none":
        return None
    return PairJudge(
        "build_prefs.judge",
        params.judge_model,
        params.judge_input_price,
        params.judge_output_price,
        params.judge_budget,
        stage.cache_dir / "judge",
    )


def thumbs(stage: Stage) -> list[dict]:
    """The conversations that customers gave a thumb, if `feedback` names a folder of them; those longer than any that SFT learns from
    are left out, as `dpo` could not read them whole."""
    folder = stage.params.build_prefs.feedback
    if not folder:
        return []
    if folder not in stage.definition.deps:
        raise UserError(
            f"build_prefs.feedback is {folder}, which is not among the deps of build_prefs in dvc.yaml: DVC would not see what "
            "changes there. Add it."
        )
    rows = read_feedback(Path(folder))
    kept = [
        row for row in rows if len(compact(row["prompt"])) <= stage.params.build_sft.max_characters
    ]
    print(
        f"{len(kept)} conversations with a thumb in {folder}; {len(rows) - len(kept)} more are too long"
    )
    return kept


def slots_of(
    rows: list[dict],
    scores: list[list[Score]],
    tone: ToneScorer,
    min_score_margin: float,
    draw: random.Random,
) -> list[list[dict]]:
    """What may be paired of each prompt's samples, and of thumbs."""
    slots = []
    for row, samples in zip(rows, scores, strict=True):
        thumbed = row["intent"] == "feedback"
        slots += (
            feedback_slots(row, samples, tone, min_score_margin)
            if thumbed
            else candidate_pairs(row, samples, min_score_margin, draw)
        )
    return slots


def main(stage: Stage) -> None:
    params, profile, seed = stage.params.build_prefs, stage.params.profile, stage.params.seed
    judge, liked = open_judge(stage), thumbs(stage)
    device = open_device(
        profile.device, profile.dtype, profile.threads // profile.num_processes, seed
    )
    situations = [row for row in read_jsonl("data/store/tone.jsonl") if row["split"] == "train"]
    tone, accuracy = fit_with_accuracy(situations)
    rows, scores, prompts = {}, {}, Counter()
    with open_process_group(device.kind, profile.num_processes, stage.program) as world:
        counts = {
            "train": profile.build_prefs.prompts,
            "validation": max(2, profile.build_prefs.prompts // VALIDATION_PART),
        }
        for split, count in counts.items():
            dialogues = read_jsonl(f"data/sft/{split}.jsonl")
            turns = [row for dialogue in dialogues for row in to_examples(dialogue)]
            fresh = freshness(
                dialogues,
                seen_by_sft(turns, profile.sft.max_steps * profile.sft.batch_size, seed)
                if split == "train"
                else [],
            )
            rows[split] = choose_prompts(turns, fresh, count, seed)
            if split == "train":
                prompts.update(FRESHNESS[fresh[row["id"]]] for row in rows[split])
                rows[split] += liked
            # Opened anew, so that what is drawn depends on these rows alone; each process draws for itself.
            writer = open_folder(
                "models/sft",
                device,
                params.max_new_tokens,
                params.temperature,
                seed + world.rank,
                params.top_p,
            )
            scores[split] = sample(
                rows[split], writer, tone, params.samples, profile.build_prefs.batch_size, world
            )
    if not world.is_main:
        return

    alone = [row for row in situations if row.get("asks")]
    ways = {
        "train": [row for number, row in enumerate(alone) if number % VALIDATION_PART],
        "validation": alone[::VALIDATION_PART],
    }
    pairs = {}
    for split in rows:
        slots = slots_of(
            rows[split],
            scores[split],
            tone,
            params.min_score_margin,
            random.Random(f"{seed} {split}"),
        )
        pairs[split] = balance_lengths(
            cap_reference(
                slots + style_pairs(ways[split], TOOLS, read_vocabulary(), tone),
                params.max_reference_ratio,
            )
        )
        if judge:
            pairs[split] = balance_lengths(
                cap_reference(
                    [[pair] for pair in judged(pairs[split], judge)], params.max_reference_ratio
                )
            )
        if not pairs[split]:
            raise UserError(
                f"No {split} pair: all samples of a prompt score alike (build_prefs.min_score_margin {params.min_score_margin}) or all are wrong "
                f"(build_prefs.max_reference_ratio {params.max_reference_ratio}). Raise build_prefs.temperature, samples or max_reference_ratio."
            )

    samples = [one for of_split in scores.values() for of_row in of_split for one in of_row]
    made = pairs["train"] + pairs["validation"]
    origins = Counter(pair["origin"] for pair in made)
    leak, telling = leaks(made)
    by_origin = {
        origin: leaks([pair for pair in made if pair["origin"] == origin])[0]
        for origin in sorted(origins)
    }
    summary = {
        "pairs": {
            "train": len(pairs["train"]),
            "validation": len(pairs["validation"]),
            "middle": sum(pair["kind"] == "middle" for pair in made),
            **{origin: origins[origin] for origin in ORIGINS},
        },
        "samples": {
            "n": len(samples),
            "right": sum(one.right for one in samples) / len(samples),
            "unreadable": sum(one.message is None for one in samples) / len(samples),
        },
        "chosen_longer_rate": {
            "share": chosen_longer_rate(made),
            "train": chosen_longer_rate(pairs["train"]),
        },
        "artifact_auc": leak,
        "artifact_auc_by_origin": by_origin,
        "tone_scorer": accuracy,
    } | ({"judge": judge.summary()} if judge else {})
    with atomic_directory("data/prefs") as folder:
        for split, rows in pairs.items():
            write_jsonl(folder / f"{split}.jsonl", rows)
        (folder / "README.md").write_text(card(pairs, summary, prompts, telling, params))
    write_metrics("metrics/prefs.json", summary, HEADLINES)
    print(
        f"{len(pairs['train'])} train and {len(pairs['validation'])} validation pairs ({dict(origins)}); "
        f"{summary['samples']['right']:.0%} of the samples are right"
        + (f"; the judge has cost ${judge.dollars:.2f}" if judge else "")
    )


if __name__ == "__main__":
    run(main)
