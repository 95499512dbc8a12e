"""Hold one conversation: route each query, then answer it by the agent, GPT-4 or a fixed sentence.

Shopping queries go to the released model and its tools. Other queries go to GPT-4, or get a polite
sentence where there is no key. An unclear query stays where the conversation is; if it is the
first one, the customer is asked once.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from crawl2cart.agent.agent import CHANGED, COULD_NOT, TOO_LONG, Agent
from crawl2cart.core.errors import UserError
from crawl2cart.router.gpt4 import OnText
from crawl2cart.router.policy import Route, Router
from crawl2cart.shop.tool_schemas import WRITES
from crawl2cart.shop.tools import Call

OUT_OF_SCOPE = (
    "I can only help with things of this shop: products, orders, returns and how we do things. "
    "What do you need?"
)
UNAVAILABLE = (
    "Our shopping assistant is not available just now, so I can't look up products or orders. "
    "Please try again in a few minutes."
)
CLARIFY = "Is this about something in our shop: a product, an order, a return or how we do things?"
# Confidence at which the local classifier may move a conversation away from shopping. It sees one
# query at a time, and `yes` or `the second one` does not look like shopping. The opposite error
# costs less, because the agent declines.
LEAVE_CONFIDENCE = 0.8


@dataclass(frozen=True)
class Answer:
    """The answer to one query.

    by: `agent`, `gpt`, or `shop` for a fixed sentence. calls: the agent's tool calls, in order.
    failed: whoever should have answered could not; the text says so. problem: what went wrong, for
    whoever runs the shop.
    """

    text: str
    by: str
    route: Route
    calls: tuple[Call, ...] = ()
    failed: bool = False
    problem: str | None = None


def sanitize(text: str) -> str:
    """Return the text without terminal control characters and without harmony markers."""
    controls = ("Cc", "Cs")  # Unicode categories: control characters and lone surrogates
    printable = (c for c in text if c in "\n\t" or unicodedata.category(c) not in controls)
    return "".join(printable).replace("<|", "< |")


def fallback_text(calls: tuple[Call, ...]) -> str:
    """Return what the customer reads if the agent failed, which must not deny a change it made."""
    changed = any(call.name in WRITES and "error" not in call.result for call in calls)
    return CHANGED if changed else UNAVAILABLE


def describe_failure(error: Exception) -> str:
    """Name a failure of the model without quoting its message, which may repeat private text."""
    return f"The shopping model failed ({type(error).__name__})."


class Conversation:
    """One customer's conversation; `conversation(query)` returns an Answer.

    open_agent: called at the first shopping query. log: called with every decision: query, earlier
    queries, route, and destination (None if the customer was asked to clarify).
    """

    def __init__(
        self,
        router: Router,
        open_agent: Callable[[], Agent],
        log: Callable[[str, tuple[str, ...], Route, str | None], None] | None = None,
    ):
        self.router, self.open_agent, self.log = router, open_agent, log
        self.route: Route | None = None  # of the last query, set before it is answered
        self.agent: Agent | None = None
        self.queries: list[str] = []
        self.destination: str | None = None  # of the last answered query: shopping or other
        self.clarified = False  # whether the customer was asked what the conversation is about
        # What GPT-4 answers from. It holds no shopping turns: those contain orders and addresses.
        self.other_turns: list[dict] = []

    def open(self) -> None:
        """Open the agent now. Raise UserError if that fails."""
        self.agent = self.agent or self.open_agent()

    def __call__(self, query: str, on_text: OnText | None = None) -> Answer:
        """Answer the customer's next query. on_text: receives the text so far while it grows."""
        query, before = sanitize(query), tuple(self.queries)
        self.route = route = self.router(query, before)
        self.queries.append(query)
        destination = self.choose_destination(query, route)
        if self.log:
            self.log(query, before, route, destination)
        if destination is None:
            self.clarified = True
            return Answer(CLARIFY, "shop", route)
        self.destination = destination
        answer = self._answer_shopping if destination == "shopping" else self._answer_other
        return answer(query, route, on_text)

    def choose_destination(self, query: str, route: Route) -> str | None:
        """Return `shopping` or `other`, or None to ask the customer, which happens once."""
        if route.label == "unclear":
            return self.destination or ("shopping" if self.clarified else None)
        if self.destination == "shopping" and route.source == "local" and self.agent:
            replies_to_question = "?" in self.agent.messages[-1]["content"] and "?" not in query
            if replies_to_question or route.confidence < LEAVE_CONFIDENCE:
                return "shopping"
        return route.label

    def _answer_shopping(self, query: str, route: Route, on_text: OnText | None) -> Answer:
        """Return the agent's answer or an apology. GPT-4 never steps in: it cannot see the shop."""
        try:
            self.open()
        except UserError as problem:
            return Answer(UNAVAILABLE, "shop", route, failed=True, problem=str(problem))
        agent, before = self.agent, len(self.agent.session.calls)
        try:
            text = agent(query, on_text)
        except Exception as error:  # an endpoint may send anything; torch may run out of memory
            calls = tuple(agent.session.calls[before:])
            text = fallback_text(calls)
            agent.messages.append({"role": "assistant", "content": text})
            agent.session.observe_assistant(text)
            return Answer(text, "shop", route, calls, failed=True, problem=describe_failure(error))
        calls = tuple(agent.session.calls[before:])
        failed = text in (COULD_NOT, TOO_LONG, CHANGED)
        problem = describe_failure(agent.timeout_error) if agent.timeout_error else None
        return Answer(text, "agent", route, calls, failed, problem)

    def _answer_other(self, query: str, route: Route, on_text: OnText | None) -> Answer:
        turn = {"role": "user", "content": query}
        text = self.router.answer_other([*self.other_turns, turn], on_text)
        if text is None:
            return Answer(OUT_OF_SCOPE, "shop", route, failed=self.router.has_key)
        self.other_turns += [turn, {"role": "assistant", "content": text}]
        return Answer(text, "gpt", route)
