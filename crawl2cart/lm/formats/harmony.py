"""Conversations as harmony text and back, through one chat template (harmony.jinja) that every model folder carries.

Messages are those of the OpenAI API: roles user, assistant, tool (and developer, first, for other instructions than the
template's own). `tool_calls[].function.arguments` is a mapping; a tool's content is its JSON text.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Template, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE = Path(__file__).with_name("harmony.jinja").read_text()
START, MESSAGE, CHANNEL = "<|start|>assistant", "<|message|>", "<|channel|>"
REPLY = f"{CHANNEL}final{MESSAGE}"  # what a reply to the customer begins with
# What ends a turn of the model's. <|end|> closes earlier replies of a conversation, and a model may write it for <|return|>.
STOPS = ("<|return|>", "<|call|>", "<|end|>", "<|endoftext|>")


class Generation(Extension):
    """`{% generation %}`, with which Hugging Face marks what a model writes; in plain Jinja it marks nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller) -> str:
        return caller()


@cache
def template() -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation]
    )
    environment.filters["tojson"] = (
        json.dumps
    )  # Jinja's own escapes HTML; Hugging Face replaces it in the same way
    return environment.from_string(TEMPLATE)


def plain(text: str) -> str:
    """The text with its markers parted, as the template writes every text: for servers that bring a template of their own."""
    return text.replace("<|", "< |")


def render(messages: list[dict], tools: list[dict], add_generation_prompt: bool = False) -> str:
    """The conversation as text. With add_generation_prompt it ends where the assistant's next turn begins."""
    return template().render(
        messages=messages, tools=tools, add_generation_prompt=add_generation_prompt
    )


def prefix(tools: list[dict]) -> str:
    """What every conversation with these tools begins with, before the customer's first turn."""
    begin = "<|start|>user"
    return render([{"role": "user", "content": ""}], tools).partition(begin)[0]


def completion(message: dict) -> str:
    """What a model would have written for this assistant message, with its last stop token."""
    return render([{"role": "user", "content": ""}, message], []).partition(START)[2]


@dataclass(frozen=True)
class Malformed:
    """A completion that is neither a reply nor a call. name: the tool it meant, as far as that can be read."""

    reason: str
    name: str | None = None


def parse_completion(text: str) -> dict | Malformed:
    """What the model wrote after `<|start|>assistant`: {"content": …}, {"tool_calls": […]}, or Malformed.

    The recipient may stand on either side of the channel, with or without `<|constrain|>`; analysis is skipped.
    """
    calls = []
    for part in text.split(START):
        header, found, body = part.partition(MESSAGE)
        if not found:
            return Malformed("there is no <|message|> after the header")
        body = re.split("|".join(map(re.escape, STOPS)), body)[0]
        channel = (
            header.partition(CHANNEL)[2].split()[0] if header.partition(CHANNEL)[2].split() else ""
        )
        channel = channel.partition("<|")[0]
        recipient = re.search(r" to=([^\s<]+)", header)
        if recipient:
            name = recipient[1].removeprefix("functions.")
            if name == recipient[1]:
                return Malformed(f"the recipient {recipient[1]} is not in the namespace functions")
            try:
                arguments = json.loads(body)
                json.dumps(
                    arguments, ensure_ascii=False
                ).encode()  # half a character ("\\ud83d") can be read but not sent
            except (ValueError, RecursionError) as error:
                return Malformed(f"the arguments are not valid JSON: {error}", name)
            if not isinstance(arguments, dict):
                return Malformed("the arguments are not a JSON object", name)
            calls.append({"type": "function", "function": {"name": name, "arguments": arguments}})
        elif channel == "final":
            if calls or not body.strip():
                return Malformed("a reply stands beside a call" if calls else "the reply is empty")
            return {"content": body.strip()}
        elif channel not in ("analysis", "commentary"):
            return Malformed(
                f"the channel {channel or '(none)'} is not one of commentary and final"
            )
    return {"tool_calls": calls} if calls else Malformed("there is neither a reply nor a call")


def visible_reply(text: str) -> str:
    """The reply as far as a completion that is still being written holds it: nothing of calls, of analysis or of markers."""
    body = text.rpartition(START)[2].partition(REPLY)[2]
    body = re.split("|".join(map(re.escape, STOPS)), body)[0]
    return body.partition("<|")[0].rstrip("<").strip()  # a stop token may come in pieces
