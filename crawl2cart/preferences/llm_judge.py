"""Let GPT-4 decide between two right replies, asked in both orders; only agreement counts.

The rubric is rubric.md. A judge with a position bias changes its answer when the order changes.
Such a pair counts as a tie, and their rate is reported. Zheng et al. 2023,
https://arxiv.org/abs/2306.05685, section 3.4.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from openai import APIStatusError
from pydantic import BaseModel, ConfigDict, ValidationError

from crawl2cart.core.errors import UserError
from crawl2cart.core.llm_client import OverBudget, PaidChat
from crawl2cart.lm.formats import harmony
from crawl2cart.preferences.pairs import message_text
from crawl2cart.preferences.reward import RIGHT
from crawl2cart.shop.tool_schemas import compact

RUBRIC = Path(__file__).with_name("rubric.md")
ATTEMPTS = 3  # at an answer of the right form
MAX_TOKENS = 200  # of an answer
MAX_INCONSISTENT = 0.5  # the highest rate of contradictions of a usable judge
MIN_PAIRS = 8  # before the rate is judged


class Answer(BaseModel):
    """The JSON that the judge has to write."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    better: Literal["first", "second", "tie"]


FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "strict": True,
        "schema": {
            "type": "object",
            "additionalProperties": False,
            "required": ["reason", "better"],
            "properties": {
                "reason": {"type": "string"},
                "better": {"type": "string", "enum": ["first", "second", "tie"]},
            },
        },
    },
}


@dataclass
class PairJudge(PaidChat):
    """Judge pairs: judge(pair) is "chosen", "rejected" or "tie".

    decisions: of all pairs so far. inconsistent: how many of them differ between the two orders.
    """

    decisions: list[str] = field(default_factory=list)
    inconsistent: int = 0

    def __call__(self, pair: dict) -> str:
        """Return the better side of a pair.

        Raises UserError if the service fails, if no answer has the right form, or if the next
        request could exceed the budget.
        """
        chosen, rejected = (message_text(pair[side]) for side in ("chosen", "rejected"))
        forward = self._better(pair["prompt"], chosen, rejected)
        backward = self._better(pair["prompt"], rejected, chosen)
        if {forward, backward} == {"first", "second"}:  # the same reply in both places
            decision = "chosen" if forward == "first" else "rejected"
        else:
            decision = "tie"
            self.inconsistent += (forward, backward) != ("tie", "tie")
        self.decisions.append(decision)
        return decision

    def summary(self) -> dict[str, float]:
        """Return the number of judged pairs and three shares of them.

        asked: pairs. inconsistent: the two orders contradict each other. ties. disagrees: the other
        side is preferred. Raises UserError if the judge contradicts itself too often.
        """
        pairs = len(self.decisions)
        rate = self.inconsistent / max(1, pairs)
        if pairs >= MIN_PAIRS and rate > MAX_INCONSISTENT:
            raise UserError(
                f"The judge {self.model} contradicts itself in {rate:.0%} of {pairs} pairs when "
                "their order is swapped, so it goes by position. Name another "
                "build_prefs.judge_model, or set build_prefs.judge to none."
            )
        return {
            "asked": pairs,
            "inconsistent": rate,
            "ties": self.decisions.count("tie") / max(1, pairs),
            "disagrees": self.decisions.count("rejected") / max(1, pairs),
        }

    def _better(self, prompt: list[dict], first: str, second: str) -> str:
        """Return "first", "second" or "tie" for two replies in this order."""
        question = {"conversation": _conversation(prompt), "first": first, "second": second}
        messages = [
            {"role": "system", "content": RUBRIC.read_text()},
            {"role": "user", "content": compact(question)},
        ]
        for _ in range(ATTEMPTS):
            try:
                answer = self.ask(
                    lambda answer: Answer.model_validate_json(answer["content"]),
                    MAX_TOKENS,
                    temperature=0,
                    response_format=FORM,
                    messages=messages,
                )
            except ValidationError:
                continue
            except OverBudget as error:
                raise UserError(
                    f"The judge has cost ${self.dollars:.2f}, and the next question could exceed "
                    f"build_prefs.judge_budget (${self.budget:.2f}). The answers so far are in "
                    f"{self.cache}: raise the budget and run again."
                ) from error
            except Exception as error:  # a server may send anything, or nothing
                raise UserError(self._failure(error)) from error
            return Answer.model_validate_json(answer["content"]).better
        raise UserError(
            f"The judge {self.model} answered {ATTEMPTS} times in a form against the schema. "
            "Name a model with structured outputs in build_prefs.judge_model."
        )

    def _failure(self, error: Exception) -> str:
        status = (
            f"status {error.status_code}"
            if isinstance(error, APIStatusError)
            else f"no answer ({type(error).__name__})"
        )
        return (
            f"The judge {self.model} failed: {status}, after {self.retries} retries. The answers "
            f"so far are in {self.cache}: run again."
        )


def _conversation(prompt: list[dict]) -> list[dict]:
    """Return messages as the judge reads them: calls as text, markers of the chat format broken."""
    return [
        {
            "role": message["role"],
            "text": harmony.escape_markers(
                message.get("content")
                or compact([call["function"] for call in message.get("tool_calls", [])])
            ),
        }
        for message in prompt
    ]


def apply_judge(pairs: list[dict], judge: PairJudge) -> list[dict]:
    """Return the pairs in the judge's order; ties are left out.

    Only sampled pairs of two right turns go to the judge: the checks have decided the others.
    """
    decided = []
    for pair in pairs:
        both_right = pair["origin"] == "sampled" and pair["scores"][1] >= RIGHT
        decision = judge(pair) if both_right else "chosen"
        if decision == "rejected":
            pair = pair | {
                "chosen": pair["rejected"],
                "rejected": pair["chosen"],
                "scores": pair["scores"][::-1],
                "reasons": ["the judge prefers the other"],
            }
        if decision != "tie":
            decided.append(pair)
    return decided
