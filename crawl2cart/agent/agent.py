"""Answer a customer: the model writes, its calls run on the shop, until it writes a reply.

  python -m crawl2cart.agent.agent models/released "do you have a tent under 90 dollars?"
  python -m crawl2cart.agent.agent http://127.0.0.1:8000/v1#models/released "do you have a tent?"

The model is a model folder, or a model of a server of the OpenAI API. Behind `#` stands the model's
name on that server; without it the first model that the server lists is taken. `transformers serve
models/released --device cpu` lists none.
"""

import contextlib
import json
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

from openai import APITimeoutError, OpenAIError

from crawl2cart.agent.endpoint import (
    OnText,
    Writer,
    describe_error,
    is_url,
    open_endpoint,
)
from crawl2cart.core.deadline import with_deadline
from crawl2cart.core.errors import UserError
from crawl2cart.core.model_folder import check_model
from crawl2cart.lm.formats import harmony
from crawl2cart.shop.db import open_store
from crawl2cart.shop.tool_schemas import TOOLS, WRITES, compact
from crawl2cart.shop.tools import Session

MAX_CALLS = 6  # per turn of the customer
# Of the messages before each model turn: with the tools and the answer they fit a context of 4,096.
MAX_TOKENS = 3_000
MAX_SECONDS = 60.0  # for one reply, its calls included
COULD_NOT = (
    "I'm sorry, I could not do that just now. Please put it another way, or ask me for a person."
)
TOO_LONG = (
    "This conversation has become too long for me. Please start a new one, or ask me for a person."
)
CHANGED = (
    "The change is made, but I could not say more about it just now. "
    "Please ask me for the order, or for a person."
)


@dataclass
class Agent:
    """One conversation: `agent(text)` takes the customer's turn and returns the reply.

    session: the shop as this customer may see and change it. seconds: the deadline of a reply.
    timeout_error: why the last turn ended early; None if it did not.
    """

    session: Session
    writer: Writer | None = None
    messages: list[dict] = field(default_factory=list)
    seconds: float = MAX_SECONDS
    timeout_error: TimeoutError | APITimeoutError | None = None

    def __call__(self, text: str, on_text: OnText | None = None) -> str:
        """Return the reply to the customer's turn.

        on_text gets the reply so far. It may start over, when the text turns out to be no reply.
        After `seconds` no call runs any more, and the reply says so. Raises what the writer raises,
        except timeouts.
        """
        turn, deadline = self.turn(text), time.monotonic() + self.seconds
        self.timeout_error = None
        try:
            prompt = next(turn)
            while True:
                try:
                    completion = self._complete(prompt, deadline, on_text)
                except (TimeoutError, APITimeoutError) as error:
                    self.timeout_error = error
                    turn.throw(TimeoutError())
                else:
                    prompt = turn.send(completion)
        except StopIteration as end:
            return end.value

    def _complete(self, prompt: list[dict], deadline: float, on_text: OnText | None) -> str:
        """Return one turn of the writer; abandon it at the deadline, since a server may hang."""
        over = False

        def relay(text: str) -> None:
            if over:
                raise TimeoutError  # stops a writer that still runs in its thread
            on_text(harmony.visible_reply(text))

        arguments = ([prompt], TOOLS, relay) if on_text else ([prompt], TOOLS)
        try:
            seconds_left = max(0.0, deadline - time.monotonic())
            return with_deadline(seconds_left, lambda: self.writer(*arguments)[0])
        finally:
            over = True

    def turn(self, text: str) -> Generator[list[dict], str, str]:
        """Run one turn: yield the messages, be sent the model's completion; return the reply.

        A malformed completion is reported to the model once. A second one, more than MAX_CALLS
        calls, or a TimeoutError thrown in give COULD_NOT; more than MAX_TOKENS give TOO_LONG.
        Where the turn changed an order, CHANGED replaces both.
        """
        self.session.observe_user(text)
        self.messages.append({"role": "user", "content": text})
        first_call = len(self.session.calls)
        reply = yield from self._reply()
        changed = any(
            call.name in WRITES and "error" not in call.result
            for call in self.session.calls[first_call:]
        )
        if changed and reply in (COULD_NOT, TOO_LONG):
            reply = CHANGED
        self.messages.append({"role": "assistant", "content": reply})
        self.session.observe_assistant(reply)
        return reply

    def _reply(self) -> Generator[list[dict], str, str]:
        """Alternate between model and tools until there is a reply or a limit is reached."""
        malformed, calls = False, 0
        while estimate_tokens(compact(self.messages)) <= MAX_TOKENS:
            try:
                completion = yield list(self.messages)
            except TimeoutError:
                return COULD_NOT
            parsed = harmony.parse_completion(completion)
            if isinstance(parsed, harmony.Malformed):
                result = self.session.record_malformed(parsed.name, parsed.reason)
                self._append_call(parsed.name or "unknown", {}, result)
                if malformed:
                    return COULD_NOT
                malformed = True
            elif "content" in parsed:
                return parsed["content"]
            else:
                for function in (call["function"] for call in parsed["tool_calls"]):
                    calls += 1
                    if calls > MAX_CALLS:
                        return COULD_NOT
                    name, arguments = function["name"], function["arguments"]
                    self._append_call(name, arguments, self.session.call(name, arguments))
        return TOO_LONG

    def _append_call(self, name: str, arguments: dict, result: dict) -> None:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        self.messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": name, "content": compact(result)},
        ]


def estimate_tokens(text: str) -> float:
    """Estimate, rather too high, the tokens of a text in the vocabulary of 4,096.

    A digit counts as one token, other ASCII as half of one, every byte beyond ASCII as one.
    """
    halves = sum(letter.isascii() and not letter.isdigit() for letter in text)
    return len(text.encode(errors="replace")) - halves / 2


def open_writer(place: str) -> Writer:
    """Open a writer for a model folder or for a model of a server (see the module's docstring).

    Raises UserError if there is no such folder, model or server.
    """
    if is_url(place):
        return open_endpoint(place, MAX_SECONDS)
    _check_folder(Path(place))
    # Imported here: torch and transformers take seconds, and an endpoint needs neither.
    from crawl2cart.agent.local_writer import LocalWriter, open_folder
    from crawl2cart.core.device import open_device
    from crawl2cart.core.params import read_params
    from crawl2cart.lm.inference.hf_engine import HfEngine
    from crawl2cart.lm.training.trl_utils import open_model

    params = read_params(Path("params.yaml"))
    profile = params.active_profile
    device = open_device(profile.device, profile.dtype, profile.threads, params.seed)
    if params.demo.constrained:  # needs the logits processors of transformers' `generate`
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
            f"{place} has no chat_template.jinja, so it was never trained to talk. "
            "Take models/base or a later model."
        )
    return writer


def _check_folder(folder: Path) -> None:
    """Raise UserError unless the folder holds a GPT-OSS or a pointer to one."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is neither a model folder nor an address such as http://127.0.0.1:8000/v1. "
            "`dvc repro` makes models/sft and models/released; `dvc checkout` restores them from "
            "the cache."
        )
    if not (folder / "pointer.json").is_file() and check_model(folder).get("model_type") is None:
        raise UserError(
            f"{folder} holds a baseline that cannot call tools. "
            "Take a GPT-OSS, such as models/released."
        )


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        sys.exit(__doc__)
    place, query = arguments
    try:
        with contextlib.redirect_stdout(sys.stderr):
            agent = Agent(Session(open_store("data/store")), open_writer(place))
        reply = agent(query)
    except UserError as error:
        sys.exit(f"agent: {error}")
    except OpenAIError as error:
        sys.exit(
            f"agent: {place} did not answer ({describe_error(error)}). "
            "Check that the server runs and has this model."
        )
    for call in agent.session.calls:
        call_arguments = json.dumps(call.arguments, ensure_ascii=False)
        print(f"{call.name}({call_arguments}) -> {compact(call.result)}", file=sys.stderr)
    if agent.timeout_error:
        print(f"agent: {place} did not answer in {agent.seconds:g} s.", file=sys.stderr)
    print(reply)


if __name__ == "__main__":
    main(sys.argv[1:])
