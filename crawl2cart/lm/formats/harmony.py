"""Render conversations as harmony text, and parse the text that a model writes.

Harmony is the chat format of gpt-oss: https://cookbook.openai.com/articles/openai-harmony.
One chat template, harmony.jinja, renders everything; every model folder carries a copy of it.
For conversations with function tools and no analysis channel the text equals openai-harmony's.

A message is a dict of the OpenAI API:

    {"role": "developer", "content": str}            first message only; replaces the instructions
    {"role": "user", "content": str}
    {"role": "assistant", "content": str}            a reply
    {"role": "assistant", "content": str, "tool_calls": [
        {"type": "function", "function": {"name": str, "arguments": dict}}]}
    {"role": "tool", "name": str, "content": str}    content is the result as JSON text

A tool is {"type": "function", "function": {"name", "description", "parameters": JSON schema}}.
No text can open or end a message: the template writes `<|` as `< |` in every text.
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
REPLY = f"{CHANNEL}final{MESSAGE}"  # the header of a reply to the user
# Tokens that end a model's turn. <|end|> closes earlier replies, and some models write it last.
STOPS = ("<|return|>", "<|call|>", "<|end|>", "<|endoftext|>")
_STOP = re.compile("|".join(map(re.escape, STOPS)))


class _Generation(Extension):
    """Accept `{% generation %}`, with which Hugging Face marks what a model writes."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller) -> str:
        return caller()


@cache
def template() -> Template:
    """Compile TEMPLATE in an environment that renders it as Hugging Face's does."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation]
    )
    environment.filters["tojson"] = json.dumps  # Jinja's own escapes HTML; Hugging Face's does not
    return environment.from_string(TEMPLATE)


def escape_markers(text: str) -> str:
    """Return the text with every marker broken (`<|` becomes `< |`), as the template writes it.

    Needed only where another program renders the text, such as a server with its own template.
    """
    return text.replace("<|", "< |")


def render(messages: list[dict], tools: list[dict], add_generation_prompt: bool = False) -> str:
    """Render a conversation as text.

    messages: at least one. With add_generation_prompt the text ends where the assistant's next
    turn begins; otherwise a reply in the last place ends in `<|return|>`.
    """
    return template().render(
        messages=messages, tools=tools, add_generation_prompt=add_generation_prompt
    )


def prefix(tools: list[dict]) -> str:
    """Return what every conversation with these tools begins with: all before the first turn."""
    return render([{"role": "user", "content": ""}], tools).partition("<|start|>user")[0]


def completion(message: dict) -> str:
    """Return the text that a model would write for an assistant message, with its stop token.

    `parse_completion` inverts it.
    """
    return render([{"role": "user", "content": ""}, message], []).partition(START)[2]


@dataclass(frozen=True)
class Malformed:
    """A completion that is neither a reply nor a call.

    reason: what is wrong, for the model to read. name: the tool that it names, if that is legible.
    """

    reason: str
    name: str | None = None


def parse_completion(text: str) -> dict | Malformed:
    """Parse what a model wrote after `<|start|>assistant`; never raises.

    Returns {"content": str} for a reply, {"tool_calls": [...]} for one or more calls, or Malformed.
    The recipient may stand before or after the channel, with or without `<|constrain|>`. Messages
    in the analysis channel are dropped, and so is commentary without a recipient.
    """
    calls = []
    for part in text.split(START):
        header, separator, body = part.partition(MESSAGE)
        if not separator:
            return Malformed("there is no <|message|> after the header")
        body, channel = _STOP.split(body)[0], _channel(header)
        if recipient := re.search(r" to=([^\s<]+)", header):
            call = _parse_call(recipient[1], body)
            if isinstance(call, Malformed):
                return call
            calls.append(call)
        elif channel == "final":
            if calls:
                return Malformed("a reply stands beside a call")
            return {"content": body.strip()} if body.strip() else Malformed("the reply is empty")
        elif channel not in ("analysis", "commentary"):
            return Malformed(
                f"the channel {channel or '(none)'} is not one of commentary and final"
            )
    return {"tool_calls": calls} if calls else Malformed("there is neither a reply nor a call")


def _channel(header: str) -> str:
    """Return the channel that a message's header names, or ""."""
    words = header.partition(CHANNEL)[2].split()
    return words[0].partition("<|")[0] if words else ""


def _parse_call(recipient: str, body: str) -> dict | Malformed:
    """Return the call to a recipient such as `functions.get_order` with this JSON text."""
    name = recipient.removeprefix("functions.")
    if name == recipient:
        return Malformed(f"the recipient {recipient} is not in the namespace functions")
    try:
        arguments = json.loads(body)
        # A lone surrogate ("\ud83d") is legal JSON text and cannot be encoded.
        json.dumps(arguments, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        return Malformed(f"the arguments are not valid JSON: {error}", name)
    if not isinstance(arguments, dict):
        return Malformed("the arguments are not a JSON object", name)
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def visible_reply(text: str) -> str:
    """Return the reply in an unfinished completion, without markers; "" while there is none.

    Calls and analysis stay hidden. Successive prefixes of a completion give a growing reply.
    """
    body = text.rpartition(START)[2].partition(REPLY)[2]
    body = _STOP.split(body)[0]
    return body.partition("<|")[0].rstrip("<").strip()  # a stop token may arrive in pieces
