"""Measure base, SFT and DPO on dialogues with unseen products and wordings, and the router on unseen queries.

in   models/{base,sft,dpo,router}, metrics/dpo.json (which one is released), data/sft, data/queries/test.jsonl, data/store
out  metrics/evaluate.json, metrics/evaluate.tsv (by intent), data/transcripts/{turns,plays}.jsonl

Single turns are written behind the right beginning of a dialogue and compared with the right turn; plans are played to the end
with a scripted customer; safety cases are played from the critical turn on. Intervals are 95 %: Wilson 1927 for shares, bootstrap
for means and win rates.
"""

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest

from openai import OpenAIError

from crawl2cart.agent.agent import open_writer
from crawl2cart.agent.endpoint import Writer
from crawl2cart.agent.episodes import EpisodeResult
from crawl2cart.agent.hf_writer import answer_turns
from crawl2cart.agent.local_writer import open_folder
from crawl2cart.core.device import Device, open_device
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, read_json, read_jsonl, write_jsonl
from crawl2cart.core.metrics import write_curve, write_metrics
from crawl2cart.core.stage import Stage, run
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.evaluation.baselines import BASELINES
from crawl2cart.evaluation.rollouts import share, trials
from crawl2cart.evaluation.turn_metrics import summarize_turns
from crawl2cart.evaluation.win_rate import compare
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.training.distributed import open_world
from crawl2cart.preferences.style_classifier import ToneScorer
from crawl2cart.router.local import LocalRouter
from crawl2cart.shop.env import ShopSessions
from crawl2cart.shop.graders import grade_turn
from crawl2cart.shop.tool_schemas import compact

AGENTS = ("base", "sft", "dpo")
# What `dvc metrics` shows of the metrics.
HEADLINES = (
    "*.tool_accuracy",
    "*.argument_exact_match",
    "*.pass_1",
    "*.policy_violation_rate",
    "*.hallucination_rate",
    "dpo_vs_sft.length_controlled_win_rate",
    "routed.end_to_end_accuracy",
)


def choose_turns(dialogues: Sequence[dict], count: int, seed: int) -> list[dict]:
    """`count` turns, at first one of each dialogue, then a second of each, ..., in random order."""
    draw = random.Random(seed)
    of_each = [
        draw.sample(rows, len(rows))
        for rows in map(to_examples, draw.sample(dialogues, len(dialogues)))
    ]
    rounds = [row for one in zip_longest(*of_each) for row in one if row]
    return rounds[:count]


def open_agent(
    place: str, device: Device, max_new_tokens: int, temperature: float, seed: int
) -> tuple[Writer, Callable | None]:
    """The writer of a folder or server, and what opens one that samples; servers are not asked to (their seeds promise nothing)."""
    if place.startswith(("http://", "https://")):
        return open_writer(place), None
    return (
        open_folder(place, device, max_new_tokens),
        lambda number: open_folder(place, device, max_new_tokens, temperature, seed + number),
    )


def quality(row: dict, text: str, tone: ToneScorer) -> float:
    """0 for a wrong reply; a right one between 1 and 3 by what it answers and how it sounds."""
    verdict = grade_turn(row, text)
    return (
        1 + verdict.helpful + float(tone([verdict.message["content"]])[0]) if verdict.right else 0.0
    )


def word_count(text: str) -> int:
    """Length of a reply; of what is none, 0."""
    parsed = harmony.parse_completion(text)
    return len(parsed.get("content", "").split()) if isinstance(parsed, dict) else 0


def preferred(
    rows: list[dict], ours: dict[str, str], theirs: dict[str, str], tone: ToneScorer, seed: int
) -> dict[str, float | int]:
    """How often our replies are better than theirs, by a scorer that the training pairs never saw."""
    texts = [[answers[row["id"]] for row in rows] for answers in (ours, theirs)]
    scores = [
        [quality(row, text, tone) for row, text in zip(rows, side, strict=True)] for side in texts
    ]
    return compare(*scores, *([word_count(text) for text in side] for side in texts), seed)


def routed(
    router: LocalRouter,
    queries: list[dict],
    dialogues: list[dict],
    rows: list[dict],
    right: dict[str, bool],
) -> dict[str, float]:
    """Share of queries, and of dialogues' first turns, that the local router sends to the right place; and of the first turns
    among `rows` those that go there and are answered right. right: whether the released model's turn is, by the row's id.
    """
    asked = [(row["text"], row["label"]) for row in queries]
    asked += [
        (dialogue["messages"][0]["content"], "shopping")
        for dialogue in dialogues
        if dialogue["intent"] != "out_of_scope"
    ]
    found = share("routing_accuracy", [router(text).label == label for text, label in asked])
    first = [row for row in rows if len(row["prompt"]) == 1 and row["intent"] != "out_of_scope"]
    answered = share(
        "end_to_end_accuracy",
        [
            router(row["prompt"][0]["content"]).label == "shopping" and right[row["id"]]
            for row in first
        ],
    )
    return {"n": found.pop("routing_accuracy_n"), **found, **answered}


def by_intent(rows: list[dict], answers: dict[str, dict[str, str]]) -> list[dict]:
    """Rows model, intent, metric, value, low, high, n: whole turns that are right, and by themselves calls, replies and which of them."""
    table = []
    for model, texts in answers.items():
        verdicts = [(row["intent"], grade_turn(row, texts[row["id"]])) for row in rows]
        for intent in sorted({intent for intent, _ in verdicts}):
            here = [verdict for name, verdict in verdicts if name == intent]
            calls = [verdict for verdict in here if verdict.tool is not None]
            replies = [
                verdict for verdict in here if verdict.message and verdict.message.get("content")
            ]
            for metric, hits in (
                ("right", [one.right for one in here]),
                ("tool_accuracy", [one.tool for one in calls]),
                ("argument_exact_match", [one.arguments for one in calls]),
                ("call_or_reply_accuracy", [one.decision for one in here]),
                ("schema_valid_rate", [one.valid for one in here if one.called]),
                ("hallucination_rate", [bool(one.unsupported) for one in replies]),
            ):
                found = share(metric, hits)
                table.append(
                    {
                        "model": model,
                        "intent": intent,
                        "metric": metric,
                        "value": found[metric],
                        "low": found[f"{metric}_low"],
                        "high": found[f"{metric}_high"],
                        "n": found[f"{metric}_n"],
                    }
                )
    return table


def tool_of(text: str) -> str:
    """The tool that a turn calls, `reply`, or `malformed`."""
    parsed = harmony.parse_completion(text)
    if isinstance(parsed, harmony.Malformed):
        return "malformed"
    return parsed["tool_calls"][0]["function"]["name"] if "tool_calls" in parsed else "reply"


def format_transcript(messages: list[dict]) -> list[tuple[str, str]]:
    """(who, what) of a conversation for people to read: customer, assistant, call, tool."""
    lines = []
    for message in messages:
        calls = [call["function"] for call in message.get("tool_calls") or []]
        lines += [("call", f"{call['name']} {compact(call['arguments'])}") for call in calls] or [
            ("customer" if message["role"] == "user" else message["role"], message["content"])
        ]
    return lines


def turn_transcripts(
    rows: list[dict], answers: dict[str, dict[str, str]], lines: dict[str, int]
) -> list[dict]:
    """What each model said to each turn, beside the right answer, for people to read. lines: of data/sft/test.jsonl, by dialogue."""
    turns = []
    for row in rows:
        gold, said = harmony.completion(row["completion"][0]), {}
        for model, texts in answers.items():
            verdict = grade_turn(row, texts[row["id"]])
            said[model] = {
                "text": texts[row["id"]],
                "right": verdict.right,
                "reasons": [] if verdict.right else verdict.reasons,
                "partial": round(verdict.partial, 3),
                "tool": tool_of(texts[row["id"]]),
            }
        turns.append(
            {
                "id": row["id"],
                "line": lines[row["id"].partition(":")[0]],
                "intent": row["intent"],
                "before": format_transcript(row["prompt"]),
                "gold": gold,
                "gold_tool": tool_of(gold),
                "answers": said,
            }
        )
    return turns


def play_transcripts(
    plans: list[dict], plays: dict[str, list[EpisodeResult]], lines: dict[str, int]
) -> list[dict]:
    """How each plan went with each model."""
    return [
        {
            "id": plan["id"],
            "line": lines[plan["id"]],
            "plan": plan["plan"],
            "intent": plan["intent"],
            "right": format_transcript(plan["messages"]),
            "played": {
                model: {
                    "messages": format_transcript(of[number].messages),
                    "success": of[number].success,
                    "state": of[number].state,
                    "missing": list(of[number].missing),
                    "policy_violations": of[number].policy_violations,
                }
                for model, of in plays.items()
            },
        }
        for number, plan in enumerate(plans)
    ]


def main(stage: Stage) -> None:
    params, profile, seed = stage.params.evaluate, stage.params.profile, stage.params.seed
    batch = profile.evaluate.batch_size
    device = open_device(
        profile.device, profile.dtype, profile.threads // profile.num_processes, seed
    )
    dialogues, cases = read_jsonl("data/sft/test.jsonl"), read_jsonl("data/sft/safety.jsonl")
    lines = {dialogue["id"]: number for number, dialogue in enumerate(dialogues, 1)}
    rows = choose_turns(dialogues, profile.evaluate.turns, seed)
    plans = [
        dialogue
        for dialogue in dialogues
        if dialogue["plan"] and any(note["facts"] for note in dialogue["notes"])
    ]
    plans = plans[
        : profile.evaluate.plans
    ]  # without facts to tell, an agent that does nothing would succeed
    shops = ShopSessions("data/store")

    places = {name: f"models/{name}" for name in AGENTS}
    places |= {
        re.sub(r"\W+", "_", place.partition("://")[2] or place): place
        for place in re.split(r"[\s,]+", params.models)
        if place
    }
    found, answers, plays = {}, {}, {}
    with open_world(device.kind, profile.num_processes, stage.program) as world:
        for name, place in places.items():
            started = time.monotonic()
            try:
                writer, sampler = open_agent(
                    place, device, params.max_new_tokens, params.temperature, seed
                )
                texts = world.all_gather(answer_turns(writer, world.shard(rows), batch, name))
                a_turn = (time.monotonic() - started) / len(rows)
                tried, plays[name] = trials(
                    plans, cases, shops, writer, sampler, batch, world=world
                )
            except OpenAIError as error:
                raise UserError(
                    f"{place} does not answer: {error}. Start the server, or take it out of evaluate.models."
                ) from error
            answers[name] = {row["id"]: text for row, text in zip(rows, texts, strict=True)}
            found[name] = summarize_turns(rows, texts) | tried
            seconds = time.monotonic() - started
            print(
                f"{name}: {seconds:.0f} s, {len(rows)} turns ({a_turn:.3f} s each, {batch} at a time in each of {world.size} processes), "
                f"{len(plans)} plans, {len(cases)} safety cases",
                flush=True,
            )
    if not world.is_main:
        return

    released = read_json("metrics/dpo.json")["released"]["model"]
    train = [
        row for dialogue in read_jsonl("data/sft/train.jsonl") for row in to_examples(dialogue)
    ]
    keys = [
        f"{name}{end}"
        for name in ("tool_accuracy", "argument_exact_match")
        for end in ("", "_low", "_high", "_n")
    ]
    baselines = {
        name: summarize_turns(rows, baseline(rows, train)) for name, baseline in BASELINES.items()
    }
    situations = {
        split: [row for row in read_jsonl("data/store/tone.jsonl") if row["split"] == split]
        for split in ("train", "test")
    }
    tone = ToneScorer.fit(situations["test"])
    replies = [row for row in rows if row["completion"][0].get("content")]
    with atomic_directory("data/transcripts") as folder:
        write_jsonl(folder / "turns.jsonl", turn_transcripts(rows, answers, lines))
        write_jsonl(folder / "plays.jsonl", play_transcripts(plans, plays, lines))
    write_curve("metrics/evaluate.tsv", by_intent(rows, answers))
    write_metrics(
        "metrics/evaluate.json",
        {
            **found,
            "released": found[released],
            "dpo_vs_sft": preferred(replies, answers["dpo"], answers["sft"], tone, seed),
            "judge": {"tone_accuracy": tone.accuracy(situations["train"])},
            "baselines": {
                name: {key: values[key] for key in keys} for name, values in baselines.items()
            },
            "routed": routed(
                LocalRouter.load("models/router"),
                read_jsonl("data/queries/test.jsonl"),
                dialogues,
                rows,
                {row["id"]: grade_turn(row, answers[released][row["id"]]).right for row in rows},
            ),
        },
        HEADLINES,
    )
    print(f"intents of the {len(rows)} turns: {dict(Counter(row['intent'] for row in rows))}")


if __name__ == "__main__":
    run(main)
