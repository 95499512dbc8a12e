"""The agent: model, call, tool, model, until there is a reply for the customer.

  python -m stages.shop.agent models/released "do you have a tent under 90 dollars?"
  python -m stages.shop.agent http://127.0.0.1:8000/v1 "do you have a tent under 90 dollars?"

The first speaks to a model folder, the second to any server of the OpenAI API. Whoever writes the turns is a `Writer`: the same loop
runs with each of them, and plays recorded dialogues with a scripted customer for the evaluation.
"""

import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from openai import OpenAI

from stages.common.problem import Problem
from stages.shop import harmony
from stages.shop.consent import holds
from stages.shop.scene import Scene, Shops
from stages.shop.schema import TOOLS, WRITES, compact
from stages.shop.store import open_store
from stages.shop.tools import Session, unsafe_writes

# For each list of messages, the harmony text of the assistant's next turn.
Writer = Callable[[Sequence[list[dict]], list[dict]], list[str]]
MAX_CALLS = 6  # in one turn of the customer's
MAX_CHARACTERS = 12_000  # of a conversation: about 4,000 tokens, what the exported models allow
COULD_NOT = "I'm sorry, I could not do that just now. Please put it another way, or ask me for a person."
TOO_LONG = "This conversation has become too long for me. Please start a new one, or ask me for a person."


@dataclass
class Agent:
    """One conversation: `agent(text)` takes the customer's turn and returns the reply. session: what it may see and do."""

    session: Session
    writer: Writer | None = None
    messages: list[dict] = field(default_factory=list)

    def __call__(self, text: str) -> str:
        turn = self.turn(text)
        try:
            prompt = next(turn)
            while True:
                prompt = turn.send(self.writer([prompt], TOOLS)[0])
        except StopIteration as end:
            return end.value

    def turn(self, text: str) -> Generator[list[dict], str, str]:
        """Takes the customer's turn. Yields the messages to go on from, is sent what the model wrote, and returns the reply.

        A malformed turn is told to the model once; a second one, or more than MAX_CALLS calls, ends in an honest COULD_NOT.
        """
        self.session.hear(text)
        self.messages.append({"role": "user", "content": text})
        reply, repaired = TOO_LONG if len(compact(self.messages)) > MAX_CHARACTERS else "", False
        calls = 0
        while not reply:
            parsed = harmony.parse_completion((yield list(self.messages)))
            if isinstance(parsed, harmony.Malformed):
                reply = COULD_NOT if repaired else ""
                repaired = True
                self._called(parsed.name or "unknown", {}, {"error": "malformed_call", "message": parsed.reason})
            elif "content" in parsed:
                reply = parsed["content"]
            else:
                for call in (entry["function"] for entry in parsed["tool_calls"]):
                    calls += 1
                    if calls > MAX_CALLS:
                        reply = COULD_NOT
                        break
                    self._called(call["name"], call["arguments"], self.session.call(call["name"], call["arguments"]))
        self.messages.append({"role": "assistant", "content": reply})
        self.session.say(reply)
        return reply

    def _called(self, name: str, arguments: dict, result: dict) -> None:
        self.messages.append({"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": name, "arguments": arguments}}]})
        self.messages.append({"role": "tool", "name": name, "content": compact(result)})


# Recorded dialogues, played again

@dataclass(frozen=True)
class Play:
    """How one dialogue went. state: the store ended as it should. missing: facts that the right agent said and this one did not."""

    messages: list[dict]
    state: bool
    missing: tuple[str, ...]
    unsafe_writes: int

    @property
    def success(self) -> bool:
        return self.state and not self.missing and not self.unsafe_writes


def play(dialogue: dict, session: Session) -> Generator[list[dict], str, Play]:
    """Plays a dialogue of data/sft with its scripted customer: the recorded turns, but a yes only to a question that restates
    exactly the recorded change. Yields and receives as Agent.turn.
    """
    agent = Agent(session)
    turns = iter(dialogue["turns"])
    for place, message in enumerate(dialogue["messages"]):
        if message["role"] == "user":
            wrong = next(turns) == "confirm" and not session.offers(*next_write(dialogue["messages"][place:]))
            yield from agent.turn("No, that is not what I asked for." if wrong else message["content"])
    said = "\n".join(message["content"] for message in agent.messages if message["role"] == "assistant")
    facts = dict.fromkeys(fact for note in dialogue["notes"] for fact in note["facts"])
    return Play(agent.messages, session.store.state_hash() == dialogue["end_state"],
                tuple(fact for fact in facts if not holds(said, fact)), unsafe_writes(session.calls))


def next_write(messages: list[dict]) -> tuple[str, dict]:
    """Name and arguments of the first write among these messages."""
    calls = (call["function"] for message in messages for call in message.get("tool_calls", []))
    return next((call["name"], call["arguments"]) for call in calls if call["name"] in WRITES)


def play_all(dialogues: Sequence[dict], shops: Shops, writer: Writer, batch: int, play: Callable[..., Generator] = play) -> list:
    """Plays many dialogues, `batch` of them side by side, so that the writer is asked for many turns at once.

    play: how one is played; what it returns is given back in the order of the dialogues.
    """
    results: dict[int, object] = {}
    waiting = list(reversed(range(len(dialogues))))
    playing: dict[int, tuple[Generator, list[dict]]] = {}
    while waiting or playing:
        while waiting and len(playing) < batch:
            number = waiting.pop()
            run = play(dialogues[number], shops.session(Scene.of(dialogues[number])))
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

    def __call__(self, prompts: Sequence[list[dict]], tools: list[dict]) -> list[str]:
        return [self._one(prompt, tools) for prompt in prompts]

    def _one(self, prompt: list[dict], tools: list[dict]) -> str:
        said = self.client.chat.completions.create(
            model=self.model, messages=api_messages(prompt), tools=tools, max_tokens=self.max_tokens, temperature=0)
        message = said.choices[0].message
        calls = [{"type": "function", "function": {"name": call.function.name, "arguments": call.function.arguments}}
                 for call in message.tool_calls or []]
        return harmony.completion({"role": "assistant", "content": "" if calls else message.content or "", "tool_calls": calls})


def api_messages(messages: list[dict]) -> list[dict]:
    """Messages as the OpenAI API wants them: arguments as JSON text, each call with an id that its result names.

    Texts hold no markers of the chat format: not every server keeps data and markers apart.
    """
    found, ids = [], iter(range(len(messages)))
    for message in messages:
        if message.get("tool_calls"):
            calls = [{"id": f"call_{next(ids)}", "type": "function", "function": {
                "name": call["function"]["name"], "arguments": harmony.plain(compact(call["function"]["arguments"]))}}
                for call in message["tool_calls"]]
            unanswered = [call["id"] for call in calls]
            found.append({"role": "assistant", "content": None, "tool_calls": calls})
        elif message["role"] == "tool":
            found.append({"role": "tool", "tool_call_id": unanswered.pop(0), "content": harmony.plain(message["content"])})
        else:
            found.append({"role": message["role"], "content": harmony.plain(message["content"])})
    return found


def open_writer(place: str) -> Writer:
    """A writer for a model folder or for the first model of a server. The key comes from OPENAI_API_KEY, if the server wants one."""
    if place.startswith(("http://", "https://")):
        client = OpenAI(base_url=place, api_key=os.environ.get("OPENAI_API_KEY") or "none", timeout=120, max_retries=1)
        models = client.models.list().data
        if not models:
            raise Problem(f"{place} serves no model.")
        return Endpoint(client, models[0].id)
    # Here, because torch and transformers take seconds to import, and an endpoint needs neither.
    from pathlib import Path

    from stages.common.device import open_device
    from stages.common.params import read_params
    from stages.shop.answer import Answerer
    from stages.shop.tuning import open_model

    params = read_params(Path("params.yaml"))
    profile = getattr(params.profiles, params.profile)
    device = open_device(profile.device, profile.dtype, profile.threads, params.seed)
    return Answerer(*open_model(place, device), device, params.evaluate.max_new_tokens)


def main(words: list[str]) -> None:
    if len(words) != 2:
        sys.exit(__doc__)
    try:
        agent = Agent(Session(open_store("data/store")), open_writer(words[0]))
        reply = agent(words[1])
    except Problem as problem:
        sys.exit(f"agent: {problem}")
    for call in agent.session.calls:
        print(f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)}) -> {compact(call.result)}", file=sys.stderr)
    print(reply)


if __name__ == "__main__":
    main(sys.argv[1:])
