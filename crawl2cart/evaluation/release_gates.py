"""Decide whether a preference-tuned model may replace the SFT model: what must not get worse.

Both models are measured on texts for the same turns.
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from crawl2cart.evaluation.turn_metrics import is_reply, summarize_turns, without_intervals
from crawl2cart.lm.formats.harmony import Malformed, parse_completion
from crawl2cart.preferences.reward import score
from crawl2cart.preferences.style_classifier import ToneScorer
from crawl2cart.shop.env import Scenario, ShopSessions
from crawl2cart.shop.graders import grade_turn
from crawl2cart.shop.tool_schemas import WRITES
from crawl2cart.shop.tools import policy_violations

NGRAM = 4  # words
MAX_LOG_PROBABILITY_DROP = 0.05  # relative, of held-out chosen turns
MAX_LENGTH_CHANGE = 0.15  # relative, of the mean reply
MIN_REWARD_ACCURACY = 0.5  # below, the model prefers the rejected turns
ROUNDING = 1e-9


@dataclass(frozen=True)
class Gate:
    """One condition. before, after: the two models' values. least, most: bounds of `after`."""

    name: str
    before: float
    after: float
    least: float = -math.inf
    most: float = math.inf

    @property
    def passed(self) -> bool:
        return self.least - ROUNDING <= self.after <= self.most + ROUNDING

    @property
    def reason(self) -> str:
        bounds = []
        if self.least > -math.inf:
            bounds.append(f"at least {self.least:.4g}")
        if self.most < math.inf:
            bounds.append(f"at most {self.most:.4g}")
        return (
            f"{self.name.replace('_', ' ')} is {self.after:.4g}, was {self.before:.4g} "
            f"and has to be {' and '.join(bounds)}"
        )


def measure(
    turns: Sequence[dict],
    texts: Sequence[str],
    dialogues: dict[str, dict],
    shops: ShopSessions,
    tone: ToneScorer,
) -> dict:
    """Measure one model's texts for turns of `dialogues` (by id).

    Returns the metrics of `summarize_turns` without intervals, and: calls, turns whose right turn
    is a call; repetition and runs, share of repeated n-grams and its denominator;
    policy_violations, attempts; qualities, the reward of each turn in order; quality, their mean.
    """
    grades = [grade_turn(turn, text) for turn, text in zip(turns, texts, strict=True)]
    replies = [grade.message["content"] for grade in grades if is_reply(grade)]
    repeated_share, ngrams = repetition(replies)
    qualities = [score(turn, text, tone).total for turn, text in zip(turns, texts, strict=True)]
    violations = [
        turn_violations(turn, text, dialogues[turn["id"].rpartition(":")[0]], shops)
        for turn, text in zip(turns, texts, strict=True)
    ]
    return without_intervals(summarize_turns(turns, texts)) | {
        "calls": sum(grade.tool is not None for grade in grades),
        "repetition": repeated_share,
        "runs": ngrams,
        "policy_violations": sum(violations),
        "quality": sum(qualities) / len(qualities),
        "qualities": qualities,
    }


def turn_violations(turn: dict, text: str, dialogue: dict, shops: ShopSessions) -> int:
    """Count a text's writes that the shop's rules forbid at this turn of the dialogue."""
    parsed = parse_completion(text)
    if isinstance(parsed, Malformed):
        return int(parsed.name in WRITES)
    calls = [call["function"] for call in parsed.get("tool_calls", [])]
    if not any(call["name"] in WRITES for call in calls):
        return 0
    session = shops.session(Scenario.of(dialogue))
    for message in turn["prompt"]:
        if message["role"] == "user":
            session.observe_user(message["content"])
        for call in message.get("tool_calls", []):
            session.call(call["function"]["name"], call["function"]["arguments"])
        if message["role"] == "assistant" and not message.get("tool_calls"):
            session.observe_assistant(message["content"])
    first_call = len(session.calls)
    for call in calls:
        session.call(call["name"], call["arguments"])
    return policy_violations(session.calls[first_call:])


def repetition(replies: Sequence[str]) -> tuple[float, int]:
    """Return the share of n-grams (NGRAM words) repeated within a reply, and the number of all."""
    repeated = total = 0
    for reply in replies:
        words = reply.casefold().split()
        ngrams = Counter(
            tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)
        )
        total += ngrams.total()
        repeated += ngrams.total() - len(ngrams)
    return repeated / max(1, total), total


def release_gates(
    before: dict, after: dict, start: dict[str, float], end: dict[str, float]
) -> list[Gate]:
    """Return the gates of a release.

    before, after: `measure` of the SFT and of the tuned model. start, end: `accuracy` of implicit
    rewards and `chosen_log_probability` on held-out pairs, before and after training.

    Unsupported facts and repetition may not rise at all, and no forbidden write is allowed. Shares
    of calls and the mean quality may fall by one standard error of their difference, because two
    equal models differ by more in one comparison of six.
    """

    def not_below(name: str, tolerance: float) -> Gate:
        return Gate(name, before[name], after[name], least=before[name] - tolerance)

    def not_above(name: str) -> Gate:
        return Gate(name, before[name], after[name], most=before[name])

    def share_error(name: str) -> float:
        variances = (one[name] * (1 - one[name]) / max(1, one["calls"]) for one in (before, after))
        return math.sqrt(sum(variances))

    length, log_p = before["mean_reply_words"], start["chosen_log_probability"]
    return [
        not_below("tool_accuracy", share_error("tool_accuracy")),
        not_below("argument_exact_match", share_error("argument_exact_match")),
        Gate("policy_violations", before["policy_violations"], after["policy_violations"], most=0),
        not_above("hallucination_rate"),
        not_above("repetition"),
        Gate(
            "chosen_log_probability",
            log_p,
            end["chosen_log_probability"],
            least=(1 + MAX_LOG_PROBABILITY_DROP) * log_p,
        ),
        Gate(
            "mean_reply_words",
            length,
            after["mean_reply_words"],
            least=(1 - MAX_LENGTH_CHANGE) * length,
            most=(1 + MAX_LENGTH_CHANGE) * length,
        ),
        not_below("quality", _quality_error(before["qualities"], after["qualities"])),
        Gate("reward_accuracy", start["accuracy"], end["accuracy"], least=MIN_REWARD_ACCURACY),
    ]


def _quality_error(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the standard error of the mean difference of paired qualities."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    deviation = statistics.stdev(differences) if len(differences) > 1 else 0.0
    return deviation / math.sqrt(len(differences))
