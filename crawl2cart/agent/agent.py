"""The agent: model, call, tool, model, until there is a reply for the customer.

  python -m crawl2cart.agent.agent models/released "do you have a tent under 90 dollars?"
  python -m crawl2cart.agent.agent http://127.0.0.1:8000/v1#models/released "do you have a tent under 90 dollars?"

The first speaks to a model folder, the second to any server of the OpenAI API: behind `#` stands the model's name there, which may be
left out where the server lists its models; `transformers serve models/released --device cpu` does not. Whoever writes the turns is
a `Writer`: the same loop runs with each of them, and plays recorded dialogues with a scripted customer for the evaluation. A reply can
be heard while it is written.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAI, OpenAIError
from openai.types.chat import ChatCompletionChunk

from crawl2cart.core.deadline import with_deadline
from crawl2cart.core.errors import UserError
from crawl2cart.core.model_folder import check_model
from crawl2cart.lm.formats import harmony
from crawl2cart.shop.confirmation import contains_phrase
from crawl2cart.shop.db import open_store
from crawl2cart.shop.env import Scenario, ShopSessions
from crawl2cart.shop.tool_schemas import TOOLS, WRITES, compact
from crawl2cart.shop.tools import Session, policy_violations

# For each list of messages, the harmony text of the assistant's next turn. One that is given a `Hear` beside a single list
# tells it what is written so far, whenever there is more.
Writer = Callable[..., list[str]]
Hear = Callable[[str], None]
MAX_CALLS = 6  # in one turn of the customer's
MAX_TOKENS = 3_000  # of a conversation, before each turn of the model's: with the tools and its answer below 4,096, its context
MAX_SECONDS = 60.0  # of a reply, all calls included
SECONDS_TO_OPEN = 10.0
COULD_NOT = (
    "I'm sorry, I could not do that just now. Please put it another way, or ask me for a person."
)
TOO_LONG = (
    "This conversation has become too long for me. Please start a new one, or ask me for a person."
)
CHANGED = "The change is made, but I could not say more about it just now. Please ask me for the order, or for a person."


@dataclass
class Agent:
    """One conversation: `agent(text)` takes the customer's turn and returns the reply. session: what it may see and do.

    late: what the writer's time ended with in the last turn, for whoever runs the shop; None if there was time enough.
    """

    session: Session
    writer: Writer | None = None
    messages: list[dict] = field(default_factory=list)
    seconds: float = MAX_SECONDS
    late: TimeoutError | APITimeoutError | None = None

    def __call__(self, text: str, hear: Hear | None = None) -> str:
        """hear: told the reply as far as it is written; it may begin anew when what was written turns out to be no reply.

        After `seconds` nothing is called any more, and the reply is one that says so. Raises what else the writer raises.
        """
        turn, ends, self.late = self.turn(text), time.monotonic() + self.seconds, None
        try:
            prompt = next(turn)
            while True:
                try:
                    written = self._written(prompt, ends, hear)
                except (TimeoutError, APITimeoutError) as error:
                    self.late = error
                    turn.throw(TimeoutError())
                else:
                    prompt = turn.send(written)
        except StopIteration as end:
            return end.value

    def _written(self, prompt: list[dict], ends: float, hear: Hear | None) -> str:
        """One turn of the writer's, which is left alone when the time is over: it may be a server that never ends its answer."""
        over = False

        def relay(text: str) -> None:
            if over:
                raise TimeoutError  # ends the writing, too
            hear(harmony.visible_reply(text))

        words = ([prompt], TOOLS, relay) if hear else ([prompt], TOOLS)
        try:
            return with_deadline(max(0.0, ends - time.monotonic()), lambda: self.writer(*words)[0])
        finally:
            over = True

    def turn(self, text: str) -> Generator[list[dict], str, str]:
        """Takes the customer's turn. Yields the messages to go on from, is sent what the model wrote, and returns the reply.

        A malformed turn is told to the model once; a second one, more than MAX_CALLS calls, or a TimeoutError thrown in ends in an
        honest COULD_NOT, more than MAX_TOKENS in TOO_LONG, and all in CHANGED where something was changed before.
        """
        self.session.observe_user(text)
        self.messages.append({"role": "user", "content": text})
        reply, repaired, calls, before = "", False, 0, len(self.session.calls)
        while not reply:
            if about_tokens(compact(self.messages)) > MAX_TOKENS:
                reply = TOO_LONG
                break
            try:
                parsed = harmony.parse_completion((yield list(self.messages)))
            except TimeoutError:
                reply = COULD_NOT
                break
            if isinstance(parsed, harmony.Malformed):
                reply = COULD_NOT if repaired else ""
                repaired = True
                self._called(
                    parsed.name or "unknown",
                    {},
                    self.session.record_malformed(parsed.name, parsed.reason),
                )
            elif "content" in parsed:
                reply = parsed["content"]
            else:
                for call in (entry["function"] for entry in parsed["tool_calls"]):
                    calls += 1
                    if calls > MAX_CALLS:
                        reply = COULD_NOT
                        break
                    self._called(
                        call["name"],
                        call["arguments"],
                        self.session.call(call["name"], call["arguments"]),
                    )
        changed = any(
            call.name in WRITES and "error" not in call.result
            for call in self.session.calls[before:]
        )
        reply = CHANGED if changed and reply in (COULD_NOT, TOO_LONG) else reply
        self.messages.append({"role": "assistant", "content": reply})
        self.session.observe_assistant(reply)
        return reply

    def _called(self, name: str, arguments: dict, result: dict) -> None:
        self.messages.append(
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"type": "function", "function": {"name": name, "arguments": arguments}}
                ],
            }
        )
        self.messages.append({"role": "tool", "name": name, "content": compact(result)})


def about_tokens(text: str) -> float:
    """Rather more tokens than a text has in the small table: one for a digit, half of one for other ASCII, one for each other byte."""
    halves = sum(letter.isascii() and not letter.isdigit() for letter in text)
    return len(text.encode(errors="replace")) - halves / 2


# Recorded dialogues, played again


@dataclass(frozen=True)
class EpisodeResult:
    """How one dialogue went. state: the store ended as it should. missing: facts that the right agent said and this one did not."""

    messages: list[dict]
    state: bool
    missing: tuple[str, ...]
    policy_violations: int

    @property
    def success(self) -> bool:
        return self.state and not self.missing and not self.policy_violations


def play(dialogue: dict, session: Session) -> Generator[list[dict], str, EpisodeResult]:
    """Plays a dialogue of data/sft with its scripted customer: the recorded turns, but a yes only to a question that restates
    exactly the recorded change. Yields and receives as Agent.turn.
    """
    agent = Agent(session)
    turns = iter(dialogue["turns"])
    for place, message in enumerate(dialogue["messages"]):
        if message["role"] == "user":
            wrong = next(turns) == "confirm" and not session.is_pending(
                *next_write(dialogue["messages"][place:])
            )
            yield from agent.turn(
                "No, that is not what I asked for." if wrong else message["content"]
            )
    said = "\n".join(
        message["content"] for message in agent.messages if message["role"] == "assistant"
    )
    facts = dict.fromkeys(fact for note in dialogue["notes"] for fact in note["facts"])
    return EpisodeResult(
        agent.messages,
        session.store.state_hash() == dialogue["end_state"],
        tuple(fact for fact in facts if not contains_phrase(said, fact)),
        policy_violations(session.calls),
    )


def next_write(messages: list[dict]) -> tuple[str, dict]:
    """Name and arguments of the first write among these messages."""
    calls = (call["function"] for message in messages for call in message.get("tool_calls", []))
    return next((call["name"], call["arguments"]) for call in calls if call["name"] in WRITES)


def play_all(
    dialogues: Sequence[dict],
    shops: ShopSessions,
    writer: Writer,
    batch: int,
    play: Callable[..., Generator] = play,
) -> list:
    """Plays many dialogues, `batch` of them side by side, so that the writer is asked for many turns at once.

    play: how one is played; what it returns is given back in the order of the dialogues.
    """
    results: dict[int, object] = {}
    waiting = list(reversed(range(len(dialogues))))
    playing: dict[int, tuple[Generator, list[dict]]] = {}
    while waiting or playing:
        while waiting and len(playing) < batch:
            number = waiting.pop()
            run = play(dialogues[number], shops.session(Scenario.of(dialogues[number])))
            playing[number] = run, next(run)
        texts = writer([prompt for _, prompt in playing.values()], TOOLS)
        for (number, (run, _)), text in zip(list(playing.items()), texts, strict=True):
            try:
                playing[number] = run, run.send(text)
            except StopIteration as end:
                results[number] = end.value
                del playing[number]
    return [results[number] for number in range(len(dialogues))]


# Writers


@dataclass(frozen=True)
class Endpoint:
    """Any server of the OpenAI API as a writer. What it answers is put into harmony text, so that the loop has one form to read."""

    client: OpenAI
    model: str
    max_tokens: int = 400

    def __call__(
        self, prompts: Sequence[list[dict]], tools: list[dict], hear: Hear | None = None
    ) -> list[str]:
        return [self._one(prompt, tools, hear) for prompt in prompts]

    def _one(self, prompt: list[dict], tools: list[dict], hear: Hear | None) -> str:
        chunks = self.client.chat.completions.create(
            model=self.model,
            messages=api_messages(prompt),
            tools=tools,
            max_tokens=self.max_tokens,
            temperature=0,
            stream=True,
        )
        content, calls = gathered(
            chunks, lambda text: hear(f"{harmony.REPLY}{harmony.plain(text)}") if hear else None
        )
        return harmony.completion(
            {"role": "assistant", "content": "" if calls else content, "tool_calls": calls}
        )


def gathered(chunks: Iterable[ChatCompletionChunk], hear: Hear) -> tuple[str, list[dict]]:
    """Content and calls of a streamed answer. hear: told the content so far."""
    content, calls = "", {}
    for chunk in chunks:
        delta = (
            chunk.choices[0].delta if chunk.choices else None
        )  # a last chunk may bring nothing but the usage
        if delta and delta.content:
            content += delta.content
            hear(content)
        for part in delta.tool_calls or [] if delta else []:
            function = calls.setdefault(part.index, {"name": "", "arguments": ""})
            function["name"] += part.function.name or ""
            function["arguments"] += part.function.arguments or ""
    return content, [{"type": "function", "function": calls[index]} for index in sorted(calls)]


def api_messages(messages: list[dict]) -> list[dict]:
    """Messages as the OpenAI API wants them: arguments as JSON text, each call with an id that its result names.

    Texts hold no markers of the chat format: not every server keeps data and markers apart.
    """
    found, ids = [], iter(range(len(messages)))
    for message in messages:
        if message.get("tool_calls"):
            calls = [
                {
                    "id": f"call_{next(ids)}",
                    "type": "function",
                    "function": {
                        "name": call["function"]["name"],
                        "arguments": harmony.plain(compact(call["function"]["arguments"])),
                    },
                }
                for call in message["tool_calls"]
            ]
            unanswered = [call["id"] for call in calls]
            found.append({"role": "assistant", "content": None, "tool_calls": calls})
        elif message["role"] == "tool":
            found.append(
                {
                    "role": "tool",
                    "tool_call_id": unanswered.pop(0),
                    "content": harmony.plain(message["content"]),
                }
            )
        else:
            found.append({"role": message["role"], "content": harmony.plain(message["content"])})
    return found


def is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def open_writer(place: str) -> Writer:
    """A writer for a model folder, or for a model of a server: the one behind `#`, or the first that it lists.

    The key comes from OPENAI_API_KEY, if the server wants one. Raises UserError in words if there is no such folder, model or server.
    """
    if is_url(place):
        address, _, model = place.partition("#")
        client = OpenAI(
            base_url=address,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            timeout=MAX_SECONDS,
            max_retries=0,
        )
        return Endpoint(client, model or first_model(client, address))
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(
            f"{place} is neither a folder with a model nor an address like http://127.0.0.1:8000/v1. "
            "`dvc repro` makes models/sft and models/released; `dvc checkout` fetches them from the cache."
        )
    if not (folder / "pointer.json").is_file() and check_model(folder).get("model_type") is None:
        raise UserError(
            f"{place} holds one of the baselines, which write no calls. Take a GPT-OSS, such as models/released."
        )
    # Here, because torch and transformers take seconds to import, and an endpoint needs neither.
    from crawl2cart.agent.local_writer import LocalWriter, open_folder
    from crawl2cart.core.device import open_device
    from crawl2cart.core.params import read_params
    from crawl2cart.lm.inference.hf_engine import HfEngine
    from crawl2cart.lm.training.trl_utils import open_model

    params = read_params(Path("params.yaml"))
    profile = getattr(params.profiles, params.profile)
    device = open_device(profile.device, profile.dtype, profile.threads, params.seed)
    if params.demo.constrained:  # by what transformers' `generate` asks before each token
        from crawl2cart.agent.constrained import Guide

        model, tokenizer = open_model(place, device)
        writer = LocalWriter(
            HfEngine(model, tokenizer.pad_token_id),
            tokenizer,
            device,
            params.evaluate.max_new_tokens,
            guide=Guide(tokenizer, model.config.vocab_size),
        )
    else:
        writer = open_folder(place, device, params.evaluate.max_new_tokens)
    if not writer.tokenizer.chat_template:
        raise UserError(
            f"{place} has no chat_template.jinja: it was never taught to talk. Take models/base or a later one."
        )
    return writer


def first_model(client: OpenAI, address: str) -> str:
    """The name of the first model that a server lists."""
    try:
        models = with_deadline(SECONDS_TO_OPEN, lambda: client.models.list().data)
    except (OpenAIError, TimeoutError, ValueError) as error:  # ValueError: what came is not JSON
        raise UserError(
            f"{address} does not list its models ({in_words(error)}). Is it an address of the OpenAI API that ends in /v1, "
            "and does its server run? Some do not list what they serve: name the model, as in "
            f"{address}#models/released."
        ) from error
    if not models:
        raise UserError(
            f"{address} serves no model that it lists. Name one, as in {address}#models/released."
        )
    return models[0].id


def in_words(error: Exception) -> str:
    """What went wrong, without the server's own words: they may repeat a key or a customer's text."""
    if isinstance(error, APIStatusError):
        return f"status {error.status_code}"
    return "no connection" if isinstance(error, APIConnectionError) else type(error).__name__


def main(words: list[str]) -> None:
    if len(words) != 2:
        sys.exit(__doc__)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            agent = Agent(Session(open_store("data/store")), open_writer(words[0]))
        reply = agent(words[1])
    except UserError as problem:
        sys.exit(f"agent: {problem}")
    except OpenAIError as error:
        sys.exit(
            f"agent: {words[0]} did not answer ({in_words(error)}). Does the server run, and does it have this model?"
        )
    for call in agent.session.calls:
        print(
            f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)}) -> {compact(call.result)}",
            file=sys.stderr,
        )
    if agent.late:
        print(f"agent: {words[0]} did not answer in {agent.seconds:g} s.", file=sys.stderr)
    print(reply)


if __name__ == "__main__":
    main(sys.argv[1:])
