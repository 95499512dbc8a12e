"""Keep the conversations of many customers at once; a few workers write the answers.

Each conversation has a key and its own copy of the store. An answer is written to its end even if
the page that asked is closed, so that a page that comes back finds it. `Limits` bounds what
customers may ask for; anything beyond is refused with a reason.
"""

import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from crawl2cart.demo.conversation import Answer, Conversation, fallback_text
from crawl2cart.router.policy import Route
from crawl2cart.shop.tools import Call

RATE_SECONDS = 60.0
EMPTY = "Please write a question first."
BUSY = "One question at a time, please: the last answer is still being written."
TOO_FAST = "That was quick! Please wait a minute before the next question."
OVERLOADED = "Too many customers are being served just now. Please try again in a minute."


class Refused(Exception):
    """A query that is not accepted; the text tells the customer why."""


@dataclass(frozen=True)
class Limits:
    """What customers may ask for.

    max_query_chars: characters of a query. rate_limit_per_minute: queries of one conversation.
    max_concurrency: answers written at the same time. max_queue: answers that wait.
    max_sessions: conversations in memory; beyond it the one that was idle longest is forgotten.
    """

    max_query_chars: int
    rate_limit_per_minute: int
    max_concurrency: int
    max_queue: int
    max_sessions: int


class Response:
    """One conversation's answer to a turn, while it is written and after.

    prompt: the messages before an agent's reply, empty for other answers. liked: the customer's
    rating of it, None without one.
    """

    def __init__(self, name: str, conversation: Conversation):
        self.name, self.conversation = name, conversation
        self.text, self.seconds = "", 0.0
        self.answer: Answer | None = None  # set last: the response is complete once it is there
        self.prompt: list[dict] = []
        self.liked: bool | None = None
        self._route_before = conversation.route
        self._calls_before = len(conversation.agent.session.calls) if conversation.agent else 0

    @property
    def route(self) -> Route | None:
        """Where the query went, None until that is decided."""
        if self.answer:
            return self.answer.route
        return None if self.conversation.route is self._route_before else self.conversation.route

    @property
    def calls(self) -> tuple[Call, ...]:
        """The agent's tool calls so far."""
        if self.answer:
            return self.answer.calls
        agent = self.conversation.agent
        return tuple(agent.session.calls[self._calls_before :]) if agent else ()

    def write(self, query: str) -> None:
        """Have the conversation answer. There is an answer afterwards even if it raises."""
        started = time.monotonic()
        try:
            answer = self.conversation(query, self._on_text)
            if answer.by == "agent":
                self.prompt = list(self.conversation.agent.messages[:-1])
        except Exception as error:  # a bug of ours must not leave the customer waiting
            answer = Answer(
                fallback_text(self.calls),
                "shop",
                self.conversation.route,
                self.calls,
                failed=True,
                problem=f"The demonstration failed ({type(error).__name__}).",
            )
        self.text, self.seconds = answer.text, time.monotonic() - started
        self.answer = answer

    def _on_text(self, text: str) -> None:
        self.text = text


@dataclass
class Turn:
    """A customer's query and the responses to it, one for each conversation of the chat."""

    query: str
    responses: list[Response]

    @property
    def done(self) -> bool:
        """Whether all responses are complete."""
        return all(response.answer for response in self.responses)


class Chat:
    """One customer's turns.

    conversations: who answers each turn, by name; two of them for a comparison.
    """

    def __init__(self, key: str, conversations: dict[str, Conversation]):
        self.key, self.conversations = key, conversations
        self.turns: list[Turn] = []
        self.query_times: deque[float] = deque()  # of the last minute

    @property
    def busy(self) -> bool:
        """Whether an answer is still being written."""
        return bool(self.turns) and not self.turns[-1].done


class Sessions:
    """All chats by their keys. Safe to share between threads.

    open_conversations: makes a new customer's conversations. clock: monotonic, in seconds.
    """

    def __init__(
        self,
        open_conversations: Callable[[], dict[str, Conversation]],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.open_conversations, self.limits, self.clock = open_conversations, limits, clock
        self._chats: OrderedDict[str, Chat] = OrderedDict()  # the longest idle first
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(limits.max_concurrency, thread_name_prefix="answer")
        self._pending: list[str] = []  # a chat's key for each response that is not complete

    def find(self, key: str | None) -> Chat | None:
        """Return the chat with this key, or None."""
        with self._lock:
            return self._chats.get(key or "")

    def open(self, key: str | None = None) -> Chat:
        """Return the chat with this key, or a new one with a key that nobody can guess.

        Raise Refused if there are too many chats and none of them is idle.
        """
        with self._lock:
            if key in self._chats:
                self._chats.move_to_end(key)
                return self._chats[key]
            if len(self._chats) >= self.limits.max_sessions:
                idle = next((key for key in self._chats if key not in self._pending), None)
                if idle is None:
                    raise Refused(OVERLOADED)
                del self._chats[idle]
            chat = Chat(secrets.token_urlsafe(18), self.open_conversations())
            self._chats[chat.key] = chat
            return chat

    def forget(self, key: str | None) -> None:
        """Drop the chat with this key, if there is one."""
        with self._lock:
            self._chats.pop(key or "", None)

    def ask(self, chat: Chat, query: str) -> Turn:
        """Accept the customer's next query and have the workers answer it. Raise Refused."""
        query, limits = query.strip(), self.limits
        if not query:
            raise Refused(EMPTY)
        if len(query) > limits.max_query_chars:
            raise Refused(
                f"That is {len(query):,} characters; please keep to {limits.max_query_chars:,}."
            )
        with self._lock:
            if chat.busy:
                raise Refused(BUSY)
            now = self.clock()
            while chat.query_times and now - chat.query_times[0] >= RATE_SECONDS:
                chat.query_times.popleft()
            if len(chat.query_times) >= limits.rate_limit_per_minute:
                raise Refused(TOO_FAST)
            if len(self._pending) >= limits.max_concurrency + limits.max_queue:
                raise Refused(OVERLOADED)
            chat.query_times.append(now)
            turn = Turn(query, [Response(*named) for named in chat.conversations.items()])
            chat.turns.append(turn)
            self._pending += [chat.key] * len(turn.responses)
        for response in turn.responses:
            self._workers.submit(self._write, chat, response, query)
        return turn

    def _write(self, chat: Chat, response: Response, query: str) -> None:
        try:
            response.write(query)
        finally:
            with self._lock:
                self._pending.remove(chat.key)
                if chat.key in self._chats:  # it may have been forgotten meanwhile
                    self._chats.move_to_end(chat.key)

    def close(self) -> None:
        """End the workers without waiting for their answers."""
        self._workers.shutdown(wait=False, cancel_futures=True)
