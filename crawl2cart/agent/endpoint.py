"""Let any server of the OpenAI API write the assistant's turns, beside what every writer is.

A writer takes lists of messages and the tools, and returns for each list the harmony text of the
assistant's next turn. With a single list it also takes `on_text`, which it calls with the text so
far whenever there is more.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from openai import APIConnectionError, APIStatusError, OpenAI, OpenAIError
from openai.types.chat import ChatCompletionChunk

from crawl2cart.core.deadline import with_deadline
from crawl2cart.core.errors import UserError
from crawl2cart.lm.formats import harmony
from crawl2cart.shop.tool_schemas import compact

OnText = Callable[[str], None]
Writer = Callable[..., list[str]]  # (prompts, tools) or ([prompt], tools, on_text)

SECONDS_TO_CONNECT = 10.0


@dataclass(frozen=True)
class Endpoint:
    """A writer that asks a server. It returns harmony text, so that the agent parses one format."""

    client: OpenAI
    model: str
    max_tokens: int = 400

    def __call__(
        self, prompts: Sequence[list[dict]], tools: list[dict], on_text: OnText | None = None
    ) -> list[str]:
        """Return one turn for each prompt, requested one after the other.

        on_text gets the reply so far as harmony text. Raises openai.OpenAIError.
        """
        return [self._write(prompt, tools, on_text) for prompt in prompts]

    def _write(self, prompt: list[dict], tools: list[dict], on_text: OnText | None) -> str:
        def relay(content: str) -> None:
            if on_text:
                on_text(f"{harmony.REPLY}{harmony.escape_markers(content)}")

        chunks = self.client.chat.completions.create(
            model=self.model,
            messages=api_messages(prompt),
            tools=tools,
            max_tokens=self.max_tokens,
            temperature=0,
            stream=True,
        )
        content, calls = _read_stream(chunks, relay)
        return harmony.completion(
            {"role": "assistant", "content": "" if calls else content, "tool_calls": calls}
        )


def _read_stream(chunks: Iterable[ChatCompletionChunk], on_text: OnText) -> tuple[str, list[dict]]:
    """Return the content and the calls of a streamed answer; on_text gets the content so far."""
    content, functions = "", {}
    for chunk in chunks:
        if not chunk.choices or not (delta := chunk.choices[0].delta):
            continue  # the last chunk may hold nothing but the usage
        if delta.content:
            content += delta.content
            on_text(content)
        for part in delta.tool_calls or []:
            function = functions.setdefault(part.index, {"name": "", "arguments": ""})
            function["name"] += part.function.name or ""
            function["arguments"] += part.function.arguments or ""
    return content, [{"type": "function", "function": functions[i]} for i in sorted(functions)]


def api_messages(messages: list[dict]) -> list[dict]:
    """Convert messages to the OpenAI API's form.

    Arguments become JSON text, and each call gets an id that its result names. Markers of the chat
    format are broken in every text, because not every server keeps data and markers apart.
    """
    converted, ids, open_ids = [], iter(range(len(messages))), []
    for message in messages:
        if message.get("tool_calls"):
            calls = [
                _api_call(f"call_{next(ids)}", call["function"]) for call in message["tool_calls"]
            ]
            open_ids = [call["id"] for call in calls]
            converted.append({"role": "assistant", "content": None, "tool_calls": calls})
            continue
        api_message = {"role": message["role"]}
        if message["role"] == "tool":
            api_message["tool_call_id"] = open_ids.pop(0)
        converted.append(api_message | {"content": harmony.escape_markers(message["content"])})
    return converted


def _api_call(call_id: str, function: dict) -> dict:
    arguments = harmony.escape_markers(compact(function["arguments"]))
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def is_url(place: str) -> bool:
    """Tell an address of a server from a model folder."""
    return place.startswith(("http://", "https://"))


def open_endpoint(url: str, timeout: float) -> Endpoint:
    """Open the model behind `#` in the address, or else the first that the server lists.

    The API key comes from OPENAI_API_KEY. timeout: seconds for one read. Raises UserError if the
    server does not list a model.
    """
    address, _, model = url.partition("#")
    key = os.environ.get("OPENAI_API_KEY") or "none"
    client = OpenAI(base_url=address, api_key=key, timeout=timeout, max_retries=0)
    return Endpoint(client, model or _first_model(client, address))


def _first_model(client: OpenAI, address: str) -> str:
    """Return the name of the first model that a server lists."""
    try:
        models = with_deadline(SECONDS_TO_CONNECT, lambda: client.models.list().data)
    except (OpenAIError, TimeoutError, ValueError) as error:  # ValueError: the answer is not JSON
        raise UserError(
            f"{address} does not list its models ({describe_error(error)}). Check that its server "
            "runs and that the address ends in /v1. If the server lists no models, name one: "
            f"{address}#models/released."
        ) from error
    if not models:
        raise UserError(f"{address} lists no model. Name one: {address}#models/released.")
    return models[0].id


def describe_error(error: Exception) -> str:
    """Describe an error without the server's words, which may repeat a key or a customer's text."""
    if isinstance(error, APIStatusError):
        return f"status {error.status_code}"
    return "no connection" if isinstance(error, APIConnectionError) else type(error).__name__
