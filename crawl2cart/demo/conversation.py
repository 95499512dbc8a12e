"""One conversation of the demonstration: every query is classified first, then answered by whom it is for.

Shopping goes to the released model and its tools, anything else to GPT-4 (a polite sentence without a key). An unclear
query stays where the conversation is; at its beginning the customer is asked once.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from crawl2cart.agent.agent import CHANGED, COULD_NOT, TOO_LONG, Agent
from crawl2cart.agent.endpoint import OnText
from crawl2cart.core.errors import UserError
from crawl2cart.router.policy import Route, Router
from crawl2cart.shop.tool_schemas import WRITES
from crawl2cart.shop.tools import Call

POLITE = "I can only help with things of this shop: products, orders, returns and how we do things. What do you need?"
DOWN = "Our shopping assistant is not available just now, so I can't look up products or orders. Please try again in a few minutes."
CLARIFY = "Is this about something in our shop: a product, an order, a return or how we do things?"
# The local classifier sees one query at a time, and `yes` or `the second one` does not look like shopping. Within a shopping
# conversation it must be this sure to leave it: at 0.5 it would lose two of ten later turns of data/store/plans.jsonl, at
# 0.8 one. The opposite error costs less: the agent declines.
SURE_TO_LEAVE = 0.8


@dataclass(frozen=True)
class Answer:
    """by: `agent`, `gpt` or, for a fixed sentence, `shop`. calls: the tools that the agent used for it, in order.

    failed: the one whom the query is for could not answer it, and the text says so. problem: what was wrong with the agent, for
    whoever runs the shop.
    """

    text: str
    by: str
    route: Route
    calls: tuple[Call, ...] = ()
    failed: bool = False
    problem: str | None = None


def plain(text: str) -> str:
    """The text without what steers a terminal (control characters) or a model (the markers of the harmony format)."""
    kept = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
    return kept.replace("<|", "< |")


def unanswered(calls: tuple[Call, ...]) -> str:
    """What the customer is told where the agent ended without a reply: not that nothing is to be had once something is changed."""
    return (
        CHANGED
        if any(call.name in WRITES and "error" not in call.result for call in calls)
        else DOWN
    )


def failure(error: Exception) -> str:
    return f"The shopping model failed ({type(error).__name__})."


class Conversation:
    """open_agent is called at the first shopping query: other ones are answered without the model.

    log: told of every decision: query, earlier queries, route, and where the query went (None: the customer was asked).
    """

    def __init__(
        self,
        router: Router,
        open_agent: Callable[[], Agent],
        log: Callable[[str, tuple[str, ...], Route, str | None], None] | None = None,
    ):
        self.router, self.open_agent, self.log = router, open_agent, log
        self.route: Route | None = None  # of the last query: known before its answer is
        self.agent: Agent | None = None
        self.queries: list[str] = []
        self.place: str | None = None  # where the conversation is: shopping or other
        self.asked = False  # whether the customer was asked what it is about
        self.other: list[
            dict
        ] = []  # what GPT-4 answers from: no shopping turns, which hold orders and addresses

    def open(self) -> None:
        """Opens the agent now. Raises UserError if it cannot be."""
        self.agent = self.agent or self.open_agent()

    def __call__(self, query: str, hear: OnText | None = None) -> Answer:
        """The answer to the customer's next turn. There is always one. hear: told its text as far as it is written."""
        query, before = plain(query), tuple(self.queries)
        self.route = route = self.router(query, before)
        self.queries.append(query)
        place = self.goes_to(query, route)
        if self.log:
            self.log(query, before, route, place)
        if place is None:
            self.asked = True
            return Answer(CLARIFY, "shop", route)
        self.place = place
        return (
            self._shopping(query, route, hear)
            if place == "shopping"
            else self._other(query, route, hear)
        )

    def goes_to(self, query: str, route: Route) -> str | None:
        """`shopping` or `other`; None if the customer must be asked, which happens once."""
        if route.label == "unclear":
            return self.place or ("shopping" if self.asked else None)
        if self.place == "shopping" and route.source == "local" and self.agent:
            answers = "?" in self.agent.messages[-1]["content"] and "?" not in query
            if answers or route.confidence < SURE_TO_LEAVE:
                return "shopping"
        return route.label

    def _shopping(self, query: str, route: Route, hear: OnText | None) -> Answer:
        """The agent's answer, or that there is none: nobody else can see stock and orders, so nobody else may answer."""
        try:
            self.open()
        except UserError as problem:
            return Answer(DOWN, "shop", route, failed=True, problem=str(problem))
        before = len(self.agent.session.calls)
        try:
            text = self.agent(query, hear)
        except (
            Exception
        ) as error:  # an endpoint may be gone or answer anything, torch be out of memory
            calls = tuple(self.agent.session.calls[before:])
            text = unanswered(calls)
            self.agent.messages.append({"role": "assistant", "content": text})
            self.agent.session.observe_assistant(text)
            return Answer(text, "shop", route, calls, failed=True, problem=failure(error))
        return Answer(
            text,
            "agent",
            route,
            tuple(self.agent.session.calls[before:]),
            text in (COULD_NOT, TOO_LONG, CHANGED),
            failure(self.agent.timeout_error) if self.agent.timeout_error else None,
        )

    def _other(self, query: str, route: Route, hear: OnText | None) -> Answer:
        turn = {"role": "user", "content": query}
        text = self.router.answer_other([*self.other, turn], hear)
        if text is None:
            return Answer(POLITE, "shop", route, failed=self.router.has_key)
        self.other += [turn, {"role": "assistant", "content": text}]
        return Answer(text, "gpt", route)
