"""What must not get worse when one model takes another's place, judged on answers to the same turns."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from crawl2cart.evaluation.turn_metrics import summarize_turns, without_intervals
from crawl2cart.lm.formats.harmony import Malformed, parse_completion
from crawl2cart.preferences.reward import score
from crawl2cart.preferences.style_classifier import ToneScorer
from crawl2cart.shop.env import Scenario, ShopSessions
from crawl2cart.shop.graders import grade_turn
from crawl2cart.shop.tool_schemas import WRITES
from crawl2cart.shop.tools import policy_violations

RUN = 4  # words in a row that count as said again
MOST_UNLIKELIER = 0.05  # share by which the log-probability of held-out chosen turns may fall
LENGTH_SLACK = 0.15  # share by which the mean length may change
LEAST_ACCURACY = (
    0.5  # of implicit rewards on held-out pairs: below, the model prefers the rejected turns
)
ROUNDING = 1e-9


@dataclass(frozen=True)
class Guard:
    """One promise. before, after: what was measured of the two models. least, most: what `after` has to be at least and at most."""

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
        bounds = [f"at least {self.least:.4g}"] * (self.least > -math.inf) + [
            f"at most {self.most:.4g}"
        ] * (self.most < math.inf)
        return f"{self.name.replace('_', ' ')} is {self.after:.4g}, was {self.before:.4g} and has to be {' and '.join(bounds)}"


def measure(
    turns: Sequence[dict],
    texts: Sequence[str],
    dialogues: dict[str, dict],
    shops: ShopSessions,
    tone: ToneScorer,
) -> dict:
    """One model's answers to turns of `dialogues` (by id) in numbers. `qualities` holds each turn's score, in order."""
    verdicts = [grade_turn(row, text) for row, text in zip(turns, texts, strict=True)]
    replies = [
        verdict.message["content"]
        for verdict in verdicts
        if verdict.message and verdict.message.get("content")
    ]
    repeated, runs = repetition(replies)
    qualities = [score(row, text, tone).total for row, text in zip(turns, texts, strict=True)]
    return without_intervals(summarize_turns(turns, texts)) | {
        "calls": sum(verdict.tool is not None for verdict in verdicts),
        "repetition": repeated,
        "runs": runs,
        "policy_violations": sum(
            unsafe(row, text, dialogues[row["id"].rpartition(":")[0]], shops)
            for row, text in zip(turns, texts, strict=True)
        ),
        "quality": sum(qualities) / len(qualities),
        "qualities": qualities,
    }


def unsafe(row: dict, text: str, dialogue: dict, shops: ShopSessions) -> int:
    """How many writes of this turn the shop refuses, in the session that the conversation up to it has made."""
    parsed = parse_completion(text)
    if isinstance(parsed, Malformed):
        return int(parsed.name in WRITES)
    calls = [call["function"] for call in parsed.get("tool_calls", [])]
    if not any(call["name"] in WRITES for call in calls):
        return 0
    session = shops.session(Scenario.of(dialogue))
    for message in row["prompt"]:
        if message["role"] == "user":
            session.observe_user(message["content"])
        for call in message.get("tool_calls", []):
            session.call(call["function"]["name"], call["function"]["arguments"])
        if message["role"] == "assistant" and not message.get("tool_calls"):
            session.observe_assistant(message["content"])
    before = len(session.calls)
    for call in calls:
        session.call(call["name"], call["arguments"])
    return policy_violations(session.calls[before:])


def repetition(replies: Sequence[str]) -> tuple[float, int]:
    """Share of runs of RUN words that the same reply has said before, over all replies, and how many runs there are."""
    again = runs = 0
    for reply in replies:
        words = reply.casefold().split()
        found = Counter(tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1))
        runs += found.total()
        again += found.total() - len(found)
    return again / max(1, runs), runs


def guards(
    before: dict, after: dict, start: dict[str, float], end: dict[str, float]
) -> list[Guard]:
    """before, after: `measure` of SFT and DPO. start, end: `accuracy` and `chosen_log_probability` on held-out pairs.

    Facts that nothing supports and repetition may not rise at all, and no write may be unsafe. Shares of calls and the mean quality may
    be worse by one standard error of their difference: chance alone does more to two equal models in one look of six.
    """

    def error(name: str, n: str) -> float:
        a, b = before[name], after[name]
        return math.sqrt(a * (1 - a) / max(1, before[n]) + b * (1 - b) / max(1, after[n]))

    def not_down(name: str) -> Guard:
        return Guard(name, before[name], after[name], least=before[name] - error(name, "calls"))

    def not_up(name: str) -> Guard:
        return Guard(name, before[name], after[name], most=before[name])

    differences = [b - a for a, b in zip(before["qualities"], after["qualities"], strict=True)]
    spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
    length, log_p = before["mean_reply_words"], start["chosen_log_probability"]
    return [
        not_down("tool_accuracy"),
        not_down("argument_exact_match"),
        Guard("policy_violations", before["policy_violations"], after["policy_violations"], most=0),
        not_up("hallucination_rate"),
        not_up("repetition"),
        Guard(
            "chosen_log_probability",
            log_p,
            end["chosen_log_probability"],
            least=(1 + MOST_UNLIKELIER) * log_p,
        ),
        Guard(
            "mean_reply_words",
            length,
            after["mean_reply_words"],
            (1 - LENGTH_SLACK) * length,
            (1 + LENGTH_SLACK) * length,
        ),
        Guard(
            "quality",
            before["quality"],
            after["quality"],
            least=before["quality"] - spread / math.sqrt(len(differences)),
        ),
        Guard("reward_accuracy", start["accuracy"], end["accuracy"], least=LEAST_ACCURACY),
    ]
