"""A GPT-4 judge for pairs of which both turns are right: it is asked in both orders, and only agreement counts.

The rubric is rubric.md. A judge that leans to a place gives itself away: what it says changes with the order. Such an answer is a
tie, and their rate is reported. Zheng et al. 2023, https://arxiv.org/abs/2306.05685, section 3.4.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from openai import APIStatusError
from pydantic import BaseModel, ConfigDict, ValidationError

from crawl2cart.core.errors import UserError
from crawl2cart.core.llm_client import OverBudget, PaidChat
from crawl2cart.lm.formats import harmony
from crawl2cart.preferences.pairs import plain
from crawl2cart.preferences.reward import RIGHT
from crawl2cart.shop.tool_schemas import compact

RUBRIC = Path(__file__).with_name("rubric.md")
ATTEMPTS = 3  # at an answer of the right form
MOST_TOKENS = 200  # of an answer
LEANS = 0.5  # a judge that contradicts itself more often is none
LEAST_ASKED = 8  # pairs before that can be said


class Answer(BaseModel):
    """What the judge has to write."""

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
    """judge(pair) is "chosen", "rejected" or "tie"."""

    verdicts: list[str] = field(default_factory=list)
    inconsistent: int = 0

    def __call__(self, pair: dict) -> str:
        """Raises UserError if the service fails, answers in no form that can be read, or would cost more than the budget."""
        chosen, rejected = (plain(pair[side]) for side in ("chosen", "rejected"))
        one, other = (
            self.better(pair["prompt"], chosen, rejected),
            self.better(pair["prompt"], rejected, chosen),
        )
        if {one.better, other.better} == {"first", "second"}:  # the same reply in both places
            verdict = "chosen" if one.better == "first" else "rejected"
        else:
            verdict = "tie"
            self.inconsistent += one.better != other.better or one.better != "tie"
        self.verdicts.append(verdict)
        return verdict

    def summary(self) -> dict[str, float]:
        """Counts, shares and the price of what was asked. Raises UserError if the judge contradicts itself too often."""
        asked = len(self.verdicts)
        rate = self.inconsistent / max(1, asked)
        if asked >= LEAST_ASKED and rate > LEANS:
            raise UserError(
                f"The judge {self.model} contradicts itself in {rate:.0%} of {asked} pairs when their order is swapped: it "
                "goes by the place, not by the reply. Name another build_prefs.judge_model, or set build_prefs.judge to none."
            )
        return {
            "asked": asked,
            "inconsistent": rate,
            "ties": self.verdicts.count("tie") / max(1, asked),
            "disagrees": self.verdicts.count("rejected") / max(1, asked),
        }

    def better(self, prompt: list[dict], first: str, second: str) -> Answer:
        messages = [
            {"role": "system", "content": RUBRIC.read_text()},
            {
                "role": "user",
                "content": compact(
                    {"conversation": conversation(prompt), "first": first, "second": second}
                ),
            },
        ]
        for _ in range(ATTEMPTS):
            try:
                answer = self.ask(
                    lambda said: Answer.model_validate_json(said["content"]),
                    MOST_TOKENS,
                    temperature=0,
                    response_format=FORM,
                    messages=messages,
                )
            except ValidationError:
                continue
            except OverBudget as error:
                raise UserError(
                    f"The judge has cost ${self.dollars:.2f} and the next question could pass build_prefs.judge_budget "
                    f"(${self.budget:.2f}). What it answered is kept in {self.cache}; raise the budget and run again."
                ) from error
            except Exception as error:  # a server may send anything, or nothing
                status = (
                    f"status {error.status_code}"
                    if isinstance(error, APIStatusError)
                    else f"no answer ({type(error).__name__})"
                )
                raise UserError(
                    f"The judge {self.model} could not be asked: {status}, after {self.retries} retries. What it answered is "
                    f"kept in {self.cache}; run again."
                ) from error
            return Answer.model_validate_json(answer["content"])
        raise UserError(
            f"The judge {self.model} answered {ATTEMPTS} times in another form than the JSON schema it was given. Name a model "
            "that supports structured outputs in build_prefs.judge_model."
        )


def conversation(prompt: list[dict]) -> list[dict]:
    """The messages as a judge reads them: calls as text, markers of the chat format parted."""
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


def judged(pairs: list[dict], judge: PairJudge) -> list[dict]:
    """The pairs as the judge sees them: swapped where it prefers the other turn, left out where it sees a tie.

    Only sampled pairs of two right turns are its matter: where one is wrong, the checks have decided.
    """
    kept = []
    for pair in pairs:
        verdict = (
            judge(pair) if pair["origin"] == "sampled" and pair["scores"][1] >= RIGHT else "chosen"
        )
        if verdict == "rejected":
            pair = pair | {
                "chosen": pair["rejected"],
                "rejected": pair["chosen"],
                "scores": pair["scores"][::-1],
                "reasons": ["the judge prefers the other"],
            }
        if verdict != "tie":
            kept.append(pair)
    return kept
