"""Turns of a model, as text in the harmony format."""

from crawl2cart.lm.formats import harmony


def reply(text: str) -> str:
    return harmony.completion({"role": "assistant", "content": text})


def call(name: str, **arguments: object) -> str:
    calls = [{"function": {"name": name, "arguments": arguments}}]
    return harmony.completion({"role": "assistant", "content": "", "tool_calls": calls})
