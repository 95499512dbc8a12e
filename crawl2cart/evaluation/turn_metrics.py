"""Shares and means over many graded turns, with their intervals."""

import re
from collections.abc import Sequence

from crawl2cart.core.metrics import mean_interval, share_interval
from crawl2cart.shop.graders import grade_turn
from crawl2cart.shop.grounding import ShopVocabulary

# How one says that this is not one's business: a reply that declines holds one of these.
DECLINES = re.compile(
    r"\b(?:can't|cannot|can not|can only|unable|not able|not my|not something|not this|no good|sorry|afraid|regret|forgive|declin\w+"
    r"|outside|beyond|only (?:do|look after|handle|help)|shop matters|just shopping|stick to|pass on|leave that|ends at|confined to)\b",
    re.IGNORECASE,
)


def summarize_turns(
    turns: Sequence[dict], texts: Sequence[str], words: ShopVocabulary | None = None
) -> dict[str, float | int]:
    """Shares over many turns with their 95 % intervals (`_low`, `_high`; Wilson's) and the number that each is of (`_n`); means with
    bootstrap intervals; `n` turns in all.

    tool_accuracy, argument_exact_match: of turns where a call is right. schema_valid_rate: of calls made. decisions: of all turns.
    hallucination_rate: replies with at least one, of replies made. citation_accuracy, declines: of replies that should cite a policy, or
    should decline: those that name the section, or say that they can not help (DECLINES) and state no fact. helpful: mean, of turns
    where a reply is right. mean_reply_words: words in a reply.
    """
    verdicts = [grade_turn(row, text, words) for row, text in zip(turns, texts, strict=True)]
    judged = list(zip(turns, verdicts, strict=True))
    replies = [v for v in verdicts if v.message and v.message.get("content")]
    shares = {
        "tool_accuracy": [v.tool for v in verdicts if v.tool is not None],
        "argument_exact_match": [v.arguments for v in verdicts if v.tool is not None],
        "schema_valid_rate": [v.valid for v in verdicts if v.called],
        "call_or_reply_accuracy": [v.decision for v in verdicts],
        "hallucination_rate": [bool(v.unsupported) for v in replies],
        "citation_accuracy": [
            v.decision and v.fact_recall == 1 for row, v in judged if row["acts"] == ["policy"]
        ],
        "out_of_scope_refusal_rate": [
            v.valid
            and v.decision
            and not v.unsupported
            and bool(DECLINES.search(v.message["content"]))
            for row, v in judged
            if row["acts"] == ["out_of_scope"]
        ],
    }
    found: dict[str, float | int] = {"n": len(turns)}
    for name, hits in shares.items():
        low, high = share_interval(sum(hits), len(hits))
        found |= {
            name: sum(hits) / max(1, len(hits)),
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_n": len(hits),
        }
    means = {
        "fact_recall": [v.fact_recall for v in verdicts if v.tool is None],
        "mean_reply_words": [len(v.message["content"].split()) for v in replies],
    }
    for name, values in means.items():
        low, high = mean_interval(values)
        found |= {name: sum(values) / max(1, len(values)), f"{name}_low": low, f"{name}_high": high}
    return found


def without_intervals(summary: dict[str, float | int]) -> dict[str, float | int]:
    """A summary's shares and means alone, for stages that look at a few validation turns."""
    return {
        name: value for name, value in summary.items() if not name.endswith(("_low", "_high", "_n"))
    }
