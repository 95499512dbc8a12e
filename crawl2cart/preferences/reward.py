"""How good one written turn is: executable checks first, among right turns helpfulness, and tone only where both are equal.

A warm wrong answer therefore never stands above a cold right one. All that is checked can be read from the conversation: the call
itself, what its tools returned, and what the customer has said.
"""

import json
import re
from dataclasses import dataclass

from crawl2cart.preferences.style_classifier import ToneScorer, broken_rules, sentences
from crawl2cart.shop.confirmation import contains_phrase, short_name
from crawl2cart.shop.graders import TurnGrade, grade_turn
from crawl2cart.shop.grounding import SPANS, ShopVocabulary
from crawl2cart.shop.tool_schemas import WRITES

# Weights of a score in [0, 1]. A wrong turn reaches at most WRONG. Tone weighs less than what helpfulness loses when one of three facts is
# left out and all four of its checks apply (0.47 / 12).
RIGHT, HELPFUL, TONE = 0.5, 0.47, 0.03
WRONG = 0.3

DONE = re.compile(
    r"(?<!nothing )\b(?:is|are|was|has been|have been|i've|i have) (?:now |already |just )?(?:been )?"
    r"(?:cancelled|called off|returned|exchanged|refunded|redirected|amended|registered|changed)\b"
    r"|\bwent through\b|(?:^|[.:!] |that's |all )done\b",
    re.IGNORECASE,
)
ASKS = re.compile(r"\?|\b(?:confirm|yes|consent|approval|correct)\b", re.IGNORECASE)
STEP = re.compile(
    r"\?|\b(?:tell me|let me know|give me|send me|show me|ask me|just (?:say|name|ask|send|pick)|say (?:yes|which|the)|name (?:the|one|it)"
    r"|pick (?:one|the)|please (?:tell|state|give|indicate|name|send|confirm|quote|provide|be so good)"
    r"|(?:if|once) you (?:confirm|say yes|tell|like|want|need|give)|i (?:can|could|may) (?:look|check|show|find|order|put))\b",
    re.IGNORECASE,
)
SOURCE = re.compile(
    r"\b(?:list(?:ed|ing|s)|catalogue|entry|data|records?|section|polic(?:y|ies)|page|555-\d{4}|help@\S+)\b",
    re.IGNORECASE,
)
# Acts whose reply should say where the fact comes from or who would know it, and acts after which the customer has to do nothing.
SOURCED = {"facts", "facts_missing", "policy", "unanswerable"}
CLOSING = {
    "thanks",
    "kept",
    "cancel_done",
    "return_done",
    "exchange_done",
    "address_done",
    "handed_off",
}


@dataclass(frozen=True)
class Score:
    """One turn with what was found out about it. message: as it stands in a conversation, None if the text can not be read.

    reasons: what is wrong with it, or what a right one lacks. helpful, tone: of right replies, in [0, 1]; 1 for right calls.
    """

    message: dict | None
    right: bool
    reasons: tuple[str, ...]
    partial: float
    helpful: float = 1.0
    tone: float = 1.0

    @property
    def total(self) -> float:
        return (
            RIGHT + HELPFUL * self.helpful + TONE * self.tone
            if self.right
            else WRONG * self.partial
        )


def score(row: dict, text: str, tone: ToneScorer, words: ShopVocabulary | None = None) -> Score:
    """What a model wrote (harmony text) after the prompt of a row of `to_examples`. words: the shop's lexicon, data/sft's by default."""
    verdict = grade_turn(row, text, words)
    reasons = (*verdict.reasons, *unkept(row, verdict))
    right = verdict.right and not unkept(row, verdict)
    if not right or not (reply := verdict.message.get("content")):
        return Score(verdict.message, right, reasons if not right else (), verdict.partial)
    helped, lacking = helpfulness(row, reply, verdict.fact_recall)
    broken = broken_rules(reply)
    sounds = float(tone([reply])[0]) * 0.5 ** len(broken)
    return Score(
        verdict.message,
        True,
        (*lacking, *broken, *(["sounds cold or overdone"] if sounds < 0.5 else [])),
        1.0,
        helped,
        sounds,
    )


# Gates beyond the comparison with the right turn


def unkept(row: dict, verdict: TurnGrade) -> list[str]:
    """What a reply promises, asks or leaves out against the rules of the shop, in words."""
    reply = (verdict.message or {}).get("content")
    if not reply:
        return []
    found = []
    if DONE.search(reply) and not changed(row["prompt"]):
        found.append("says that something was done which no tool did")
    asked_for = {act for act in row["acts"] if act.endswith("_confirm")}
    if asked_for and not (
        ASKS.search(reply) and verdict.fact_recall == 1 and restates_total(row, asked_for, reply)
    ):
        found.append("asks for no consent to exactly this change")
    if "policy" in row["acts"] and verdict.fact_recall < 1:
        found.append("names no section of the policy")
    return found


def changed(prompt: list[dict]) -> bool:
    """Whether a tool has changed an order in this conversation, or shown one that is cancelled or returned."""
    results = [
        (message["name"], json.loads(message["content"]))
        for message in prompt
        if message["role"] == "tool"
    ]
    return any(
        "error" not in result
        and (
            name in WRITES
            or name == "hand_off"
            or "cancelled" in json.dumps(result)
            or "returned" in json.dumps(result)
        )
        for name, result in results
    )


def restates_total(row: dict, acts: set[str], reply: str) -> bool:
    """A cancellation is consented to when its total was named (consent.py); other changes need none."""
    if "cancel_confirm" not in acts:
        return True
    totals = [
        json.loads(message["content"]).get("total")
        for message in row["prompt"]
        if message["role"] == "tool"
    ]
    return any(total and contains_phrase(reply, total) for total in totals)


# Helpfulness


def helpfulness(row: dict, reply: str, asked_for: float) -> tuple[float, list[str]]:
    """Mean of the checks that apply to a right reply, and what it lacks. asked_for: share of the asked-for facts that it gives."""
    acts = set(row["acts"])
    checks = {"leaves out what was asked for": asked_for}
    if found := last_search(row["prompt"]):
        checks["names what does not meet the condition"] = float(meets(reply, row["prompt"], found))
    if acts and not acts & CLOSING:
        checks["does not offer one next step"] = float(
            sum(bool(STEP.search(part)) for part in sentences(reply)) == 1
        )
    if acts & SOURCED:
        checks["names no source"] = float(bool(SOURCE.search(reply)))
    return sum(checks.values()) / len(checks), [lack for lack, kept in checks.items() if kept < 1]


def last_search(prompt: list[dict]) -> list[dict]:
    """The results of the last tool's call, if that was a search."""
    results = [message for message in prompt if message["role"] == "tool"]
    return (
        json.loads(results[-1]["content"]).get("results", [])
        if results and results[-1]["name"] == "search_products"
        else []
    )


def meets(reply: str, prompt: list[dict], found: list[dict]) -> bool:
    """Whether a reply to a search names only products that this search found, at the prices it found."""
    earlier = {
        name
        for message in prompt
        if message["role"] == "tool"
        for name in names(json.loads(message["content"]))
    }
    others = earlier - {short_name(entry["name"]) for entry in found}
    prices = {float(entry["price"]) for entry in found}
    said = [
        float(re.sub(r"[$, ]", "", match[0]))
        for match in SPANS.finditer(reply)
        if match.lastgroup == "price"
    ]
    asked = " ".join(message["content"] for message in prompt if message["role"] == "user")
    return not any(contains_phrase(reply, name) for name in others) and all(
        price in prices or f"{price:g}" in asked for price in said
    )


def names(result: dict) -> list[str]:
    """Short names of the products that a tool's result shows."""
    return [
        short_name(entry["name"])
        for key in ("results", "products")
        for entry in result.get(key, [])
        if isinstance(entry, dict)
    ]
