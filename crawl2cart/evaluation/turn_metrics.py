"""Shares and means over many graded turns, with their intervals."""

import re
from collections.abc import Sequence

from crawl2cart.core.metrics import mean_interval, share_interval
from crawl2cart.shop.graders import judge
from crawl2cart.shop.grounding import Lexicon

# How one says that this is not one's business: a reply that declines holds one of these.
DECLINES = re.compile(
    r"\b(?:can't|cannot|can not|can only|unable|not able|not my|not something|not this|no good|sorry|afraid|regret|forgive|declin\w+"
    r"|outside|beyond|only (?:do|look after|handle|help)|shop matters|just shopping|stick to|pass on|leave that|ends at|confined to)\b",
    re.IGNORECASE)


def summarise(turns: Sequence[dict], texts: Sequence[str], words: Lexicon | None = None) -> dict[str, float | int]:
    """Shares over many turns with their 95 % intervals (`_low`, `_high`; Wilson's) and the number that each is of (`_n`); means with
    bootstrap intervals; `n` turns in all.

    right_tool, exact_arguments: of turns where a call is right. valid_calls: of calls made. decisions: of all turns.
    unsupported_facts: replies with at least one, of replies made. policy_cited, declines: of replies that should cite a policy, or
    should decline: those that name the section, or say that they can not help (DECLINES) and state no fact. helpful: mean, of turns
    where a reply is right. mean_length: words in a reply.
    """
    verdicts = [judge(row, text, words) for row, text in zip(turns, texts, strict=True)]
    judged = list(zip(turns, verdicts, strict=True))
    replies = [v for v in verdicts if v.message and v.message.get("content")]
    shares = {
        "right_tool": [v.tool for v in verdicts if v.tool is not None],
        "exact_arguments": [v.arguments for v in verdicts if v.tool is not None],
        "valid_calls": [v.valid for v in verdicts if v.called],
        "decisions": [v.decision for v in verdicts],
        "unsupported_facts": [bool(v.unsupported) for v in replies],
        "policy_cited": [v.decision and v.helpful == 1 for row, v in judged if row["acts"] == ["policy"]],
        "declines": [v.valid and v.decision and not v.unsupported and bool(DECLINES.search(v.message["content"]))
                     for row, v in judged if row["acts"] == ["out_of_scope"]]}
    found: dict[str, float | int] = {"n": len(turns)}
    for name, hits in shares.items():
        low, high = share_interval(sum(hits), len(hits))
        found |= {name: sum(hits) / max(1, len(hits)), f"{name}_low": low, f"{name}_high": high, f"{name}_n": len(hits)}
    means = {"helpful": [v.helpful for v in verdicts if v.tool is None],
             "mean_length": [len(v.message["content"].split()) for v in replies]}
    for name, values in means.items():
        low, high = mean_interval(values)
        found |= {name: sum(values) / max(1, len(values)), f"{name}_low": low, f"{name}_high": high}
    return found


def without_intervals(summary: dict[str, float | int]) -> dict[str, float | int]:
    """A summary's shares and means alone, for stages that look at a few validation turns."""
    return {name: value for name, value in summary.items() if not name.endswith(("_low", "_high", "_n"))}
