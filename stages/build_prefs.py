"""Sample turns of the SFT model, score them, and pair better with worse ones.

in   models/sft, data/sft/{train,validation}.jsonl, lexicon.json, data/store/tone.jsonl;
     the folder of thumbs that `feedback` names, if any
out  data/prefs/{train,validation}.jsonl, data/prefs/README.md (the data card), metrics/prefs.json

Executable checks decide what is right; helpfulness and tone count only among right turns, so a warm
wrong turn is never chosen. Samples come from the model itself: Tajwar et al. 2024,
https://arxiv.org/abs/2404.14367
"""

import random
from collections import Counter
from pathlib import Path

from crawl2cart.agent.local_writer import LocalWriter, answer_turns, open_folder
from crawl2cart.core.device import Device, open_device
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, read_jsonl, write_jsonl
from crawl2cart.core.metrics import write_metrics
from crawl2cart.core.stage import Stage, run
from crawl2cart.dialogues.sft_examples import sample_examples, to_examples
from crawl2cart.lm.training.distributed import ProcessGroup, open_process_group
from crawl2cart.preferences.card import card
from crawl2cart.preferences.from_feedback import feedback_slots, read_feedback
from crawl2cart.preferences.llm_judge import PairJudge, apply_judge
from crawl2cart.preferences.pairs import (
    balance_lengths,
    candidate_pairs,
    cap_reference,
    style_pairs,
)
from crawl2cart.preferences.prompts import FRESHNESS, choose_prompts, freshness
from crawl2cart.preferences.reward import Score, score
from crawl2cart.preferences.style_classifier import ToneScorer, fit_with_accuracy
from crawl2cart.preferences.summary import summarize_pairs
from crawl2cart.shop.grounding import read_vocabulary
from crawl2cart.shop.tool_schemas import TOOLS, compact

SPLITS = ("train", "validation")
TRAIN_PER_VALIDATION = 4  # prompts and situations
# What `dvc metrics` shows.
HEADLINES = (
    "pairs.train",
    "chosen_longer_rate.train",
    "artifact_auc.length",
    "artifact_auc.bag_of_words",
    "tone_scorer.accuracy",
)


def open_judge(stage: Stage) -> PairJudge | None:
    """Open the judge that the parameters name, if any. Raises UserError without an API key."""
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


def load_feedback(stage: Stage) -> list[dict]:
    """Return the examples with thumbs, if `feedback` names a folder.

    Conversations longer than any that SFT learns from are left out, since dpo could not read them
    whole. Raises UserError if DVC does not track the folder.
    """
    folder = stage.params.build_prefs.feedback
    if not folder:
        return []
    if folder not in stage.definition.deps:
        raise UserError(
            f"build_prefs.feedback is {folder}, which is not among the deps of build_prefs in "
            "dvc.yaml, so DVC would not notice changes there. Add it."
        )
    examples = read_feedback(Path(folder))
    limit = stage.params.build_sft.max_characters
    short = [example for example in examples if len(compact(example["prompt"])) <= limit]
    print(
        f"{len(short)} conversations with a thumb in {folder}; "
        f"{len(examples) - len(short)} more are too long"
    )
    return short


def select_prompts(stage: Stage, split: str) -> tuple[list[dict], Counter]:
    """Return the turns of a split to sample for, and how many there are by freshness."""
    profile, seed = stage.params.profile, stage.params.seed
    dialogues = read_jsonl(f"data/sft/{split}.jsonl")
    turns = [turn for dialogue in dialogues for turn in to_examples(dialogue)]
    count, seen_by_sft = profile.build_prefs.prompts, []
    if split == "train":
        seen_by_sft = sample_examples(turns, profile.sft.max_steps * profile.sft.batch_size, seed)
    else:
        count = max(2, count // TRAIN_PER_VALIDATION)
    levels = freshness(dialogues, seen_by_sft)
    prompts = choose_prompts(turns, levels, count, seed)
    return prompts, Counter(FRESHNESS[levels[turn["id"]]] for turn in prompts)


def open_sampler(stage: Stage, device: Device, group: ProcessGroup) -> LocalWriter:
    """Open a writer that samples; each process draws for itself."""
    params = stage.params.build_prefs
    return open_folder(
        "models/sft",
        device,
        params.max_new_tokens,
        params.temperature,
        stage.params.seed + group.rank,
        params.top_p,
    )


def sample_scores(
    examples: list[dict],
    writer: LocalWriter,
    tone: ToneScorer,
    samples: int,
    batch: int,
    group: ProcessGroup,
) -> list[list[Score]]:
    """Return `samples` scored turns for each example, in every process of the group."""
    repeated = [example for example in examples for _ in range(samples)]
    texts = group.all_gather(answer_turns(writer, group.shard(repeated), batch, "samples"))
    scores = [score(example, text, tone) for example, text in zip(repeated, texts, strict=True)]
    return [scores[start : start + samples] for start in range(0, len(scores), samples)]


def sampled_slots(
    examples: list[dict],
    scores: list[list[Score]],
    tone: ToneScorer,
    min_score_margin: float,
    draw: random.Random,
) -> list[list[dict]]:
    """Return the slots of pairs from each example's samples and thumbs."""
    slots = []
    for example, samples in zip(examples, scores, strict=True):
        if example["intent"] == "feedback":
            slots += feedback_slots(example, samples, tone, min_score_margin)
        else:
            slots += candidate_pairs(example, samples, min_score_margin, draw)
    return slots


def select_pairs(
    slots: list[list[dict]], max_reference_ratio: float, judge: PairJudge | None
) -> list[dict]:
    """Return the pairs of a split, balanced; the judge, if any, decides between right turns."""
    pairs = balance_lengths(cap_reference(slots, max_reference_ratio))
    if judge:
        slots = [[pair] for pair in apply_judge(pairs, judge)]
        pairs = balance_lengths(cap_reference(slots, max_reference_ratio))
    return pairs


def split_situations(situations: list[dict]) -> dict[str, list[dict]]:
    """Return the situations that need no tool, by split of the pairs."""
    toolless = [situation for situation in situations if situation.get("asks")]
    return {
        "train": [row for number, row in enumerate(toolless) if number % TRAIN_PER_VALIDATION],
        "validation": toolless[::TRAIN_PER_VALIDATION],
    }


def main(stage: Stage) -> None:
    params, profile, seed = stage.params.build_prefs, stage.params.profile, stage.params.seed
    judge, feedback = open_judge(stage), load_feedback(stage)
    threads = profile.threads // profile.num_processes
    device = open_device(profile.device, profile.dtype, threads, seed)
    situations = [row for row in read_jsonl("data/store/tone.jsonl") if row["split"] == "train"]
    tone, tone_accuracy = fit_with_accuracy(situations)
    examples, scores, prompts = {}, {}, {}
    with open_process_group(device.kind, profile.num_processes, stage.program) as group:
        for split in SPLITS:
            examples[split], prompts[split] = select_prompts(stage, split)
            if split == "train":
                examples[split] += feedback
            # Opened anew, so that a split's samples depend on this split alone.
            writer = open_sampler(stage, device, group)
            batch = profile.build_prefs.batch_size
            scores[split] = sample_scores(
                examples[split], writer, tone, params.samples, batch, group
            )
    if not group.is_main:
        return

    written, pairs = split_situations(situations), {}
    for split in SPLITS:
        draw = random.Random(f"{seed} {split}")
        slots = sampled_slots(examples[split], scores[split], tone, params.min_score_margin, draw)
        slots += style_pairs(written[split], TOOLS, read_vocabulary(), tone)
        pairs[split] = select_pairs(slots, params.max_reference_ratio, judge)
        if not pairs[split]:
            raise UserError(
                f"There is no {split} pair: a prompt's samples all score within "
                f"build_prefs.min_score_margin ({params.min_score_margin}), or all are wrong and "
                f"build_prefs.max_reference_ratio ({params.max_reference_ratio}) caps them. Raise "
                "build_prefs.temperature, samples or max_reference_ratio."
            )

    samples = [sample for split in SPLITS for turn in scores[split] for sample in turn]
    summary, telling = summarize_pairs(pairs, samples, tone_accuracy)
    if judge:
        summary["judge"] = judge.summary()
    with atomic_directory("data/prefs") as folder:
        for split in SPLITS:
            write_jsonl(folder / f"{split}.jsonl", pairs[split])
        text = card(pairs, summary, prompts["train"], telling, params)
        (folder / "README.md").write_text(text)
    write_metrics("metrics/prefs.json", summary, HEADLINES)
    print(
        f"{len(pairs['train'])} train and {len(pairs['validation'])} validation pairs; "
        f"{summary['samples']['right']:.0%} of the samples are right"
        + (f"; the judge has cost ${judge.dollars:.2f}" if judge else "")
    )


if __name__ == "__main__":
    run(main)
