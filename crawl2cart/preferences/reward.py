"""Score one turn: executable checks first, then helpfulness, then tone.

A warm wrong answer never scores above a cold right one. Every check reads the conversation alone:
the call itself, what its tools returned, and what the customer wrote.
"""

import json
import re
from dataclasses import dataclass

from crawl2cart.preferences.style_classifier import ToneScorer, broken_rules, sentences
from crawl2cart.shop.confirmation import contains_phrase, short_name
from crawl2cart.shop.graders import TurnGrade, grade_turn
from crawl2cart.shop.grounding import SPANS, ShopVocabulary
from crawl2cart.shop.tool_schemas import WRITES

# A right turn scores RIGHT plus its share of HELPFUL and TONE, a wrong one at most WRONG. TONE is
# less than the loss from leaving out one of three facts where all four checks apply (0.47 / 12).
RIGHT, HELPFUL, TONE = 0.5, 0.47, 0.03
WRONG = 0.3

CLAIMS_CHANGE = re.compile(
    r"(?<!nothing )\b(?:is|are|was|has been|have been|i've|i have) (?:now |already |just )?"
    r"(?:been )?(?:cancelled|called off|returned|exchanged|refunded|redirected|amended|registered"
    r"|changed)\b"
    r"|\bwent through\b|(?:^|[.:!] |that's |all )done\b",
    re.IGNORECASE,
)
ASKS_CONFIRMATION = re.compile(r"\?|\b(?:confirm|yes|consent|approval|correct)\b", re.IGNORECASE)
NEXT_STEP = re.compile(
    r"\?|\b(?:tell me|let me know|give me|send me|show me|ask me|just (?:say|name|ask|send|pick)"
    r"|say (?:yes|which|the)|name (?:the|one|it)|pick (?:one|the)"
    r"|please (?:tell|state|give|indicate|name|send|confirm|quote|provide|be so good)"
    r"|(?:if|once) you (?:confirm|say yes|tell|like|want|need|give)"
    r"|i (?:can|could|may) (?:look|check|show|find|order|put))\b",
    re.IGNORECASE,
)
SOURCE = re.compile(
    r"\b(?:list(?:ed|ing|s)|catalogue|entry|data|records?|section|polic(?:y|ies)|page|555-\d{4}"
    r"|help@\S+)\b",
    re.IGNORECASE,
)
# Acts whose reply should name its source, and acts after which the customer has nothing to do.
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
    """The score of one turn.

    message: the turn as a message; None if it is malformed. reasons: what is wrong with a wrong
    turn, or missing from a right one. partial: how near a wrong turn comes, in [0, 1]. helpful,
    tone: of right replies, in [0, 1]; right calls have 1.
    """

    message: dict | None
    right: bool
    reasons: tuple[str, ...]
    partial: float
    helpful: float = 1.0
    tone: float = 1.0

    @property
    def total(self) -> float:
        """The reward in [0, 1]."""
        if not self.right:
            return WRONG * self.partial
        return RIGHT + HELPFUL * self.helpful + TONE * self.tone


def score(
    example: dict, text: str, tone: ToneScorer, vocabulary: ShopVocabulary | None = None
) -> Score:
    """Score what a model wrote (harmony text) after the prompt of an example of `to_examples`.

    vocabulary: the shop's; by default that of data/sft.
    """
    grade = grade_turn(example, text, vocabulary)
    failures = _failed_checks(example, grade)
    if failures or not grade.right:
        return Score(grade.message, False, (*grade.reasons, *failures), grade.partial)
    reply = grade.message.get("content")
    if not reply:
        return Score(grade.message, True, (), grade.partial)
    helpful, lacking = helpfulness(example, reply, grade.fact_recall)
    broken = broken_rules(reply)
    pleasant = float(tone([reply])[0]) * 0.5 ** len(broken)
    style = ("sounds cold or overdone",) if pleasant < 0.5 else ()
    return Score(grade.message, True, (*lacking, *broken, *style), 1.0, helpful, pleasant)


# Checks beyond the comparison with the right turn


def _failed_checks(example: dict, grade: TurnGrade) -> list[str]:
    """Return what a reply claims, asks or leaves out against the shop's rules."""
    reply = (grade.message or {}).get("content")
    if not reply:
        return []
    failures = []
    if CLAIMS_CHANGE.search(reply) and not _changed(example["prompt"]):
        failures.append("says that something was done which no tool did")
    confirmations = {act for act in example["acts"] if act.endswith("_confirm")}
    if confirmations and not (
        ASKS_CONFIRMATION.search(reply)
        and grade.fact_recall == 1
        and _restates_total(example, confirmations, reply)
    ):
        failures.append("asks for no consent to exactly this change")
    if "policy" in example["acts"] and grade.fact_recall < 1:
        failures.append("names no section of the policy")
    return failures


def _tool_results(prompt: list[dict]) -> list[tuple[str, dict]]:
    """Return the name and the result of every tool call in a prompt."""
    return [
        (message["name"], json.loads(message["content"]))
        for message in prompt
        if message["role"] == "tool"
    ]


def _changed(prompt: list[dict]) -> bool:
    """Tell whether a tool changed an order, or showed a cancelled or returned one."""
    return any(
        "error" not in result
        and (
            name in WRITES
            or name == "hand_off"
            or "cancelled" in json.dumps(result)
            or "returned" in json.dumps(result)
        )
        for name, result in _tool_results(prompt)
    )


def _restates_total(example: dict, acts: set[str], reply: str) -> bool:
    """Tell whether a reply that asks to confirm a cancellation names the total."""
    if "cancel_confirm" not in acts:
        return True
    totals = [result.get("total") for _, result in _tool_results(example["prompt"])]
    return any(total and contains_phrase(reply, total) for total in totals)


# Helpfulness


def helpfulness(example: dict, reply: str, fact_recall: float) -> tuple[float, list[str]]:
    """Return the mean of the checks that apply to a right reply, and the ones it fails.

    fact_recall: the share of the facts asked for that the reply gives.
    """
    acts = set(example["acts"])
    checks = {"leaves out what was asked for": fact_recall}
    if matches := _last_search(example["prompt"]):
        keeps_to_search = _keeps_to_search(reply, example["prompt"], matches)
        checks["names what does not meet the condition"] = float(keeps_to_search)
    if acts and not acts & CLOSING:
        steps = sum(bool(NEXT_STEP.search(sentence)) for sentence in sentences(reply))
        checks["does not offer one next step"] = float(steps == 1)
    if acts & SOURCED:
        checks["names no source"] = float(bool(SOURCE.search(reply)))
    failed = [check for check, value in checks.items() if value < 1]
    return sum(checks.values()) / len(checks), failed


def _last_search(prompt: list[dict]) -> list[dict]:
    """Return the matches of the last tool call if it was a search."""
    results = _tool_results(prompt)
    if not results or results[-1][0] != "search_products":
        return []
    return results[-1][1].get("results", [])


def _keeps_to_search(reply: str, prompt: list[dict], matches: list[dict]) -> bool:
    """Tell whether a reply names only products and prices of these matches.

    A price that the customer wrote is allowed.
    """
    shown = {name for _, result in _tool_results(prompt) for name in _product_names(result)}
    others = shown - {short_name(match["name"]) for match in matches}
    if any(contains_phrase(reply, name) for name in others):
        return False
    prices = {float(match["price"]) for match in matches}
    reply_prices = [
        float(re.sub(r"[$, ]", "", span[0]))
        for span in SPANS.finditer(reply)
        if span.lastgroup == "price"
    ]
    user_text = " ".join(message["content"] for message in prompt if message["role"] == "user")
    return all(price in prices or f"{price:g}" in user_text for price in reply_prices)


def _product_names(result: dict) -> list[str]:
    """Return the short names of the products that a tool's result shows."""
    return [
        short_name(entry["name"])
        for key in ("results", "products")
        for entry in result.get(key, [])
        if isinstance(entry, dict)
    ]
