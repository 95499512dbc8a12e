"""The conversations of many customers at once: each has a key and a store of its own, and a few workers write the answers.

An answer is written to its end whether or not the page that asked for it is still open, so that a page which comes back
finds it. What a customer may ask for is limited (`Limits`); what goes beyond is refused in words.
"""

import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from crawl2cart.demo.conversation import Answer, Conversation, unanswered
from crawl2cart.router.policy import Route
from crawl2cart.shop.tools import Call

SECONDS_OF_RATE = 60.0


class Refused(Exception):
    """A query that is not taken; the text is for the customer."""


@dataclass(frozen=True)
class Limits:
    """max_query_chars: of a query. rate_limit_per_minute: of a conversation. max_concurrency: answers that are written at the same
    time; of others max_queue wait their turn. max_sessions: kept in memory; beyond, the one that was idle longest is forgotten.
    """

    max_query_chars: int
    rate_limit_per_minute: int
    max_concurrency: int
    max_queue: int
    max_sessions: int


class Response:
    """One conversation's answer to a turn, while it is written and after.

    prompt: the messages that an agent's reply was written on, which is what a thumb judges. liked: that thumb.
    """

    def __init__(self, name: str, conversation: Conversation):
        self.name, self.conversation = name, conversation
        self.text, self.seconds = "", 0.0
        self.answer: Answer | None = None  # set last: with it the part is complete
        self.prompt: list[dict] = []
        self.liked: bool | None = None
        self._route_before = conversation.route
        self._calls_before = len(conversation.agent.session.calls) if conversation.agent else 0

    @property
    def route(self) -> Route | None:
        """Where the query went; None while that is being decided."""
        if self.answer:
            return self.answer.route
        return None if self.conversation.route is self._route_before else self.conversation.route

    @property
    def calls(self) -> tuple[Call, ...]:
        agent = self.conversation.agent
        return (
            self.answer.calls
            if self.answer
            else tuple(agent.session.calls[self._calls_before :])
            if agent
            else ()
        )

    def write(self, query: str) -> None:
        """Has the conversation answer. Whatever goes wrong, there is an answer afterwards."""
        started = time.monotonic()
        try:
            answer = self.conversation(query, self._hear)
            if answer.by == "agent":
                self.prompt = list(self.conversation.agent.messages[:-1])
        except Exception as error:  # a fault of ours must not leave the customer waiting
            answer = Answer(
                unanswered(self.calls),
                "shop",
                self.conversation.route,
                self.calls,
                failed=True,
                problem=f"The demonstration failed ({type(error).__name__}).",
            )
        self.text, self.seconds = answer.text, time.monotonic() - started
        self.answer = answer

    def _hear(self, text: str) -> None:
        self.text = text


@dataclass
class Turn:
    query: str
    parts: list[Response]

    @property
    def done(self) -> bool:
        return all(part.answer for part in self.parts)


class Chat:
    """One customer's turns. conversations: who answers each of them; two of them to compare, by their names."""

    def __init__(self, key: str, conversations: dict[str, Conversation]):
        self.key, self.conversations = key, conversations
        self.turns: list[Turn] = []
        self.asked: deque[float] = deque()

    @property
    def busy(self) -> bool:
        return bool(self.turns) and not self.turns[-1].done


class Sessions:
    """open_conversations makes a new customer's conversations. clock: seconds that only grow. Safe to share between threads."""

    def __init__(
        self,
        open_conversations: Callable[[], dict[str, Conversation]],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.open_conversations, self.limits, self.clock = open_conversations, limits, clock
        self._chats: OrderedDict[str, Chat] = (
            OrderedDict()
        )  # in the order in which they became idle
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(limits.max_concurrency, thread_name_prefix="answer")
        self._writing: list[
            str
        ] = []  # the key of its conversation for each answer that waits or is written

    def find(self, key: str | None) -> Chat | None:
        with self._lock:
            return self._chats.get(key or "")

    def open(self, key: str | None = None) -> Chat:
        """The conversation with this key, or a new one with a key that nobody can guess. Raises Refused if there are too many."""
        with self._lock:
            if key in self._chats:
                self._chats.move_to_end(key)
                return self._chats[key]
            if len(self._chats) >= self.limits.max_sessions:
                idle = next((key for key in self._chats if key not in self._writing), None)
                if idle is None:
                    raise Refused(
                        "Too many customers are being served just now. Please try again in a minute."
                    )
                del self._chats[idle]
            chat = Chat(secrets.token_urlsafe(18), self.open_conversations())
            self._chats[chat.key] = chat
            return chat

    def forget(self, key: str | None) -> None:
        with self._lock:
            self._chats.pop(key or "", None)

    def ask(self, chat: Chat, query: str) -> Turn:
        """Takes the customer's next turn and has it answered by the workers. Raises Refused."""
        query = query.strip()
        if not query:
            raise Refused("Please write a question first.")
        if len(query) > self.limits.max_query_chars:
            raise Refused(
                f"That is {len(query):,} characters; please keep to {self.limits.max_query_chars:,}."
            )
        with self._lock:
            if chat.busy:
                raise Refused(
                    "One question at a time, please: the last answer is still being written."
                )
            now = self.clock()
            while chat.asked and now - chat.asked[0] >= SECONDS_OF_RATE:
                chat.asked.popleft()
            if len(chat.asked) >= self.limits.rate_limit_per_minute:
                raise Refused("That was quick! Please wait a minute before the next question.")
            if len(self._writing) >= self.limits.max_concurrency + self.limits.max_queue:
                raise Refused(
                    "Too many customers are being served just now. Please try again in a minute."
                )
            chat.asked.append(now)
            turn = Turn(
                query,
                [Response(name, conversation) for name, conversation in chat.conversations.items()],
            )
            chat.turns.append(turn)
            self._writing += [chat.key] * len(turn.parts)
        for part in turn.parts:
            self._workers.submit(self._write, chat, part, query)
        return turn

    def _write(self, chat: Chat, part: Response, query: str) -> None:
        try:
            part.write(query)
        finally:
            with self._lock:
                self._writing.remove(chat.key)
                if chat.key in self._chats:  # not forgotten meanwhile
                    self._chats.move_to_end(chat.key)

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)
