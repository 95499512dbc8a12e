"""Grade single turns against the right ones, and sum the grades up as shares and means.

A turn is an example of `to_examples`; a text is what a model wrote after its prompt.
"""

import random
import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from crawl2cart.core.metrics import mean_interval, share_interval
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.shop.graders import TurnGrade, grade_turn
from crawl2cart.shop.grounding import ShopVocabulary

# A reply that declines says one of these.
DECLINES = re.compile(
    r"\b(?:can't|cannot|can not|can only|unable|not able|not my|not something|not this|no good"
    r"|sorry|afraid|regret|forgive|declin\w+|outside|beyond|only (?:do|look after|handle|help)"
    r"|shop matters|just shopping|stick to|pass on|leave that|ends at|confined to)\b",
    re.IGNORECASE,
)


def share(name: str, hits: Sequence[bool]) -> dict[str, float | int]:
    """Return a share as metrics: its value, `_low` and `_high` (95 %, Wilson), and `_n`.

    Of no cases the share is 0, the interval 0 to 1.
    """
    low, high = share_interval(sum(hits), len(hits))
    return {
        name: sum(hits) / max(1, len(hits)),
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_n": len(hits),
    }


def sample_turns(dialogues: Sequence[dict], count: int, seed: int) -> list[dict]:
    """Draw `count` turns: first one of each dialogue, then a second of each, and so on."""
    draw = random.Random(seed)
    shuffled = [
        draw.sample(turns, len(turns))
        for turns in map(to_examples, draw.sample(dialogues, len(dialogues)))
    ]
    rounds = [turn for one_round in zip_longest(*shuffled) for turn in one_round if turn]
    return rounds[:count]


def summarize_turns(
    turns: Sequence[dict], texts: Sequence[str], vocabulary: ShopVocabulary | None = None
) -> dict[str, float | int]:
    """Return the metrics of one model's texts for these turns.

    Shares, each with `_low` and `_high` (95 %, Wilson) and its denominator `_n`:

    metric                     numerator                           denominator
    tool_accuracy              calls the right tool                turns whose right turn is a call
    argument_exact_match       and with the right arguments        turns whose right turn is a call
    schema_valid_rate          calls that fit the tool's schema    turns with a call
    call_or_reply_accuracy     call where a call is right,         all turns
                               reply where a reply is right
    hallucination_rate         with an unsupported fact            turns with a reply
    citation_accuracy          replies that name section, title    turns whose right reply cites
    out_of_scope_refusal_rate  replies that decline (DECLINES)     turns whose right reply declines
                               without an unsupported fact

    Means, with bootstrap intervals: fact_recall, the share of the right reply's facts that the
    reply gives, over turns whose right turn is a reply; mean_reply_words, over turns with a reply.
    `n` counts all turns. vocabulary: the shop's; by default that of data/sft.
    """
    grades = [grade_turn(turn, text, vocabulary) for turn, text in zip(turns, texts, strict=True)]
    replies = [grade for grade in grades if is_reply(grade)]
    call_turns = [grade for grade in grades if grade.tool is not None]
    shares = {
        "tool_accuracy": [grade.tool for grade in call_turns],
        "argument_exact_match": [grade.arguments for grade in call_turns],
        "schema_valid_rate": [grade.valid for grade in grades if grade.called],
        "call_or_reply_accuracy": [grade.decision for grade in grades],
        "hallucination_rate": [bool(grade.unsupported) for grade in replies],
        "citation_accuracy": [
            grade.decision and grade.fact_recall == 1 for grade in _of_act("policy", turns, grades)
        ],
        "out_of_scope_refusal_rate": [
            _declines(grade) for grade in _of_act("out_of_scope", turns, grades)
        ],
    }
    means = {
        "fact_recall": [grade.fact_recall for grade in grades if grade.tool is None],
        "mean_reply_words": [len(grade.message["content"].split()) for grade in replies],
    }
    summary: dict[str, float | int] = {"n": len(turns)}
    for name, hits in shares.items():
        summary |= share(name, hits)
    for name, values in means.items():
        low, high = mean_interval(values)
        mean = sum(values) / max(1, len(values))
        summary |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return summary


def is_reply(grade: TurnGrade) -> bool:
    """Tell whether the graded text is a reply, not a call and not malformed."""
    return bool(grade.message and grade.message.get("content"))


def _of_act(act: str, turns: Iterable[dict], grades: Iterable[TurnGrade]) -> list[TurnGrade]:
    """Return the grades of the turns whose right reply does this and nothing else."""
    return [grade for turn, grade in zip(turns, grades, strict=True) if turn["acts"] == [act]]


def _declines(grade: TurnGrade) -> bool:
    return (
        grade.valid
        and grade.decision
        and not grade.unsupported
        and bool(DECLINES.search(grade.message["content"]))
    )


def without_intervals(summary: dict[str, float | int]) -> dict[str, float | int]:
    """Return a summary without `_low`, `_high` and `_n`, for metrics over a few turns."""
    return {
        name: value for name, value in summary.items() if not name.endswith(("_low", "_high", "_n"))
    }


def intent_table(turns: Sequence[dict], texts: dict[str, dict[str, str]]) -> list[dict]:
    """Return metrics/evaluate.tsv: rows of model, intent, metric, value, low, high, n.

    texts: by model and turn id. `right` is the share of the intent's turns that are right as a
    whole; the other metrics are those of `summarize_turns`, within the intent.
    """
    table = []
    for model, by_turn in texts.items():
        graded = [(turn["intent"], grade_turn(turn, by_turn[turn["id"]])) for turn in turns]
        for intent in sorted({intent for intent, _ in graded}):
            grades = [grade for name, grade in graded if name == intent]
            for metric, hits in _intent_shares(grades).items():
                values = share(metric, hits)
                table.append(
                    {
                        "model": model,
                        "intent": intent,
                        "metric": metric,
                        "value": values[metric],
                        "low": values[f"{metric}_low"],
                        "high": values[f"{metric}_high"],
                        "n": values[f"{metric}_n"],
                    }
                )
    return table


def _intent_shares(grades: Sequence[TurnGrade]) -> dict[str, list[bool]]:
    call_turns = [grade for grade in grades if grade.tool is not None]
    return {
        "right": [grade.right for grade in grades],
        "tool_accuracy": [grade.tool for grade in call_turns],
        "argument_exact_match": [grade.arguments for grade in call_turns],
        "call_or_reply_accuracy": [grade.decision for grade in grades],
        "schema_valid_rate": [grade.valid for grade in grades if grade.called],
        "hallucination_rate": [bool(grade.unsupported) for grade in grades if is_reply(grade)],
    }
