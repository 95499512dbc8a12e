"""Measure base, SFT and DPO on unseen products and wordings, and the router on unseen queries.

in   models/{base,sft,dpo,router}, metrics/dpo.json (which model is released), data/sft,
     data/queries/test.jsonl, data/store
out  metrics/evaluate.json, metrics/evaluate.tsv (by intent),
     data/transcripts/{turns,plays}.jsonl

Single turns follow the recorded beginning of a dialogue and are compared with the recorded turn;
whole tasks run with a scripted customer; safety cases run from the critical turn on. Intervals are
95 %: Wilson 1927 for shares, bootstrap for means and win rates.
"""

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from openai import OpenAIError

from crawl2cart.agent.agent import open_writer
from crawl2cart.agent.endpoint import Writer, is_url
from crawl2cart.agent.episodes import EpisodeResult
from crawl2cart.agent.local_writer import answer_turns, open_folder
from crawl2cart.core.device import Device, open_device
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, read_json, read_jsonl, write_jsonl
from crawl2cart.core.metrics import write_curve, write_metrics
from crawl2cart.core.stage import Stage, run
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.evaluation.baselines import BASELINES
from crawl2cart.evaluation.rollouts import measure_episodes
from crawl2cart.evaluation.routing import routed_metrics
from crawl2cart.evaluation.transcripts import episode_transcripts, turn_transcripts
from crawl2cart.evaluation.turn_metrics import intent_table, sample_turns, summarize_turns
from crawl2cart.evaluation.win_rate import compare_replies
from crawl2cart.lm.training.distributed import ProcessGroup, open_process_group
from crawl2cart.preferences.style_classifier import ToneScorer
from crawl2cart.router.local import LocalRouter
from crawl2cart.shop.env import ShopSessions
from crawl2cart.shop.graders import grade_turn

AGENTS = ("base", "sft", "dpo")
BASELINE_METRICS = tuple(
    f"{name}{end}"
    for name in ("tool_accuracy", "argument_exact_match")
    for end in ("", "_low", "_high", "_n")
)
# What `dvc metrics` shows.
HEADLINES = (
    "*.tool_accuracy",
    "*.argument_exact_match",
    "*.pass_1",
    "*.policy_violation_rate",
    "*.hallucination_rate",
    "dpo_vs_sft.length_controlled_win_rate",
    "routed.end_to_end_accuracy",
)


@dataclass(frozen=True)
class EvaluationSet:
    """What every agent is measured on. lines: line numbers of test.jsonl by dialogue id."""

    dialogues: list[dict]
    turns: list[dict]
    tasks: list[dict]
    safety_cases: list[dict]
    lines: dict[str, int]


@dataclass(frozen=True)
class AgentResult:
    """What one agent did. texts: its single turns by id. episodes: in the order of the tasks."""

    metrics: dict[str, float | int]
    texts: dict[str, str]
    episodes: list[EpisodeResult]


def read_evaluation_set(turn_count: int, task_count: int, seed: int) -> EvaluationSet:
    """Read the test split. A task is a planned dialogue with facts to give: otherwise an agent
    that does nothing would succeed."""
    dialogues = read_jsonl("data/sft/test.jsonl")
    tasks = [
        dialogue
        for dialogue in dialogues
        if dialogue["plan"] and any(note["facts"] for note in dialogue["notes"])
    ]
    return EvaluationSet(
        dialogues,
        sample_turns(dialogues, turn_count, seed),
        tasks[:task_count],
        read_jsonl("data/sft/safety.jsonl"),
        {dialogue["id"]: number for number, dialogue in enumerate(dialogues, 1)},
    )


def agent_places(models: str) -> dict[str, str]:
    """Return folder or address by name: AGENTS, and those that evaluate.models lists."""
    places = {name: f"models/{name}" for name in AGENTS}
    for place in filter(None, re.split(r"[\s,]+", models)):
        places[re.sub(r"\W+", "_", place.partition("://")[2] or place)] = place
    return places


def open_agent(
    place: str, device: Device, max_new_tokens: int, temperature: float, seed: int
) -> tuple[Writer, Callable[[int], Writer] | None]:
    """Open the greedy writer of a folder or server, and a function that opens sampling ones.

    The function takes the number of a run. Servers have none: they promise nothing about seeds.
    """
    if is_url(place):
        return open_writer(place), None
    return (
        open_folder(place, device, max_new_tokens),
        lambda number: open_folder(place, device, max_new_tokens, temperature, seed + number),
    )


def measure_agent(
    stage: Stage,
    name: str,
    place: str,
    data: EvaluationSet,
    shops: ShopSessions,
    device: Device,
    group: ProcessGroup,
) -> AgentResult:
    """Measure one agent. Raises UserError if its server does not answer."""
    params, batch = stage.params.evaluate, stage.params.profile.evaluate.batch_size
    started = time.monotonic()
    try:
        writer, sampler = open_agent(
            place, device, params.max_new_tokens, params.temperature, stage.params.seed
        )
        texts = group.all_gather(answer_turns(writer, group.shard(data.turns), batch, name))
        seconds_per_turn = (time.monotonic() - started) / len(data.turns)
        metrics, episodes = measure_episodes(
            data.tasks, data.safety_cases, shops, writer, sampler, batch, group=group
        )
    except OpenAIError as error:
        raise UserError(
            f"{place} does not answer: {error}. Start the server, or take it out of "
            "evaluate.models."
        ) from error
    print(
        f"{name}: {time.monotonic() - started:.0f} s, {len(data.turns)} turns "
        f"({seconds_per_turn:.3f} s each, batches of {batch} in {group.size} processes), "
        f"{len(data.tasks)} tasks, {len(data.safety_cases)} safety cases",
        flush=True,
    )
    by_turn = {turn["id"]: text for turn, text in zip(data.turns, texts, strict=True)}
    return AgentResult(summarize_turns(data.turns, texts) | metrics, by_turn, episodes)


def measure_baselines(turns: list[dict]) -> dict[str, dict[str, float | int]]:
    """Return BASELINE_METRICS of each baseline."""
    train = [
        turn for dialogue in read_jsonl("data/sft/train.jsonl") for turn in to_examples(dialogue)
    ]
    summaries = {
        name: summarize_turns(turns, baseline(turns, train)) for name, baseline in BASELINES.items()
    }
    return {
        name: {metric: summary[metric] for metric in BASELINE_METRICS}
        for name, summary in summaries.items()
    }


def measure_released(
    data: EvaluationSet, results: dict[str, AgentResult], seed: int
) -> dict[str, dict[str, float | int]]:
    """Return what compares the agents: the released one, DPO against SFT, and the routed whole."""
    released = results[read_json("metrics/dpo.json")["released"]["model"]]
    situations = read_jsonl("data/store/tone.jsonl")
    # The pairs were made with a scorer of the training situations; this one never saw them.
    tone = ToneScorer.fit([row for row in situations if row["split"] == "test"])
    tone_accuracy = tone.accuracy([row for row in situations if row["split"] == "train"])
    replies = [turn for turn in data.turns if turn["completion"][0].get("content")]
    right = {turn["id"]: grade_turn(turn, released.texts[turn["id"]]).right for turn in data.turns}
    router = LocalRouter.load("models/router")
    return {
        "released": released.metrics,
        "dpo_vs_sft": compare_replies(
            replies, results["dpo"].texts, results["sft"].texts, tone, seed
        ),
        "judge": {"tone_accuracy": tone_accuracy},
        "routed": routed_metrics(
            lambda text: router(text).label,
            read_jsonl("data/queries/test.jsonl"),
            data.dialogues,
            data.turns,
            right,
        ),
    }


def main(stage: Stage) -> None:
    params, profile, seed = stage.params.evaluate, stage.params.profile, stage.params.seed
    threads = profile.threads // profile.num_processes
    device = open_device(profile.device, profile.dtype, threads, seed)
    data = read_evaluation_set(profile.evaluate.turns, profile.evaluate.plans, seed)
    shops = ShopSessions("data/store")
    with open_process_group(device.kind, profile.num_processes, stage.program) as group:
        results = {
            name: measure_agent(stage, name, place, data, shops, device, group)
            for name, place in agent_places(params.models).items()
        }
    if not group.is_main:
        return

    texts = {name: result.texts for name, result in results.items()}
    episodes = {name: result.episodes for name, result in results.items()}
    comparison = measure_released(data, results, seed)
    baselines = measure_baselines(data.turns)
    with atomic_directory("data/transcripts") as folder:
        write_jsonl(folder / "turns.jsonl", turn_transcripts(data.turns, texts, data.lines))
        write_jsonl(folder / "plays.jsonl", episode_transcripts(data.tasks, episodes, data.lines))
    write_curve("metrics/evaluate.tsv", intent_table(data.turns, texts))
    metrics = {name: result.metrics for name, result in results.items()}
    write_metrics(
        "metrics/evaluate.json", metrics | comparison | {"baselines": baselines}, HEADLINES
    )
    print(f"turns by intent: {dict(Counter(turn['intent'] for turn in data.turns))}")


if __name__ == "__main__":
    run(main)
