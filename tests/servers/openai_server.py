"""A server of the OpenAI API on this machine that behaves, or misbehaves on purpose."""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler

from tests.servers.local_server import listening

KEY = "sk-never-shown-4711"
MODELS = {
    "object": "list",
    "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "us"}],
}


def completion(content: str | None, **message: object) -> bytes:
    """The body of a chat completion, billed at 1,000 tokens read and 50 written."""
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": content, "refusal": None} | message,
    }
    body = {
        "id": "c-1",
        "object": "chat.completion",
        "created": 0,
        "model": "gpt-test",
        "usage": {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050},
        "choices": [choice],
    }
    return json.dumps(body).encode()


def verdict(label: str = "shopping", confidence: float = 0.9) -> str:
    """The JSON with which GPT-4 routes a query."""
    return json.dumps(
        {
            "label": label,
            "intent": "order_status",
            "confidence": confidence,
            "reason": "because of a parcel",
        }
    )


def streamed(body: bytes) -> bytes:
    """A chat completion as server-sent events: a word, or a quarter of a call's arguments, each."""
    whole = json.loads(body)
    message = whole["choices"][0]["message"]
    deltas = [{"role": "assistant", "refusal": message.get("refusal")}]
    deltas += [
        {"content": word} for word in re.findall(r"\S*\s*", message["content"] or "") if word
    ]
    for index, call in enumerate(message.get("tool_calls") or []):
        deltas += [{"tool_calls": [part]} for part in call_parts(call, index)]
    chunks = [
        *({"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": whole["usage"]},
    ]
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 0, "model": whole["model"]}
    events = [f"data: {json.dumps(head | chunk)}\n\n" for chunk in chunks]
    return "".join([*events, "data: [DONE]\n\n"]).encode()


def call_parts(call: dict, index: int) -> Iterator[dict]:
    """A call without arguments, then its arguments in quarters."""
    arguments = call["function"]["arguments"]
    quarter = -(-len(arguments) // 4) or 1
    yield call | {"index": index, "function": call["function"] | {"arguments": ""}}
    for start in range(0, len(arguments), quarter):
        yield {"index": index, "function": {"arguments": arguments[start : start + quarter]}}


@dataclass
class Reply:
    """What the server sends after `wait` seconds.

    drip: seconds between single bytes. pause: seconds between the events of a stream; a completion
    is streamed if the request asks for it. cut: it hangs up instead. cut_short: it promises more
    than the body, then hangs up.
    """

    body: bytes = b""
    status: int = 200
    type: str = "application/json"
    wait: float = 0.0
    drip: float = 0.0
    pause: float = 0.0
    retry_after: str | None = None
    cut: bool = False
    cut_short: bool = False

    def parts(self) -> list[bytes]:
        """The pieces that are sent with a pause behind each."""
        if self.drip:
            return [self.body[i : i + 1] for i in range(len(self.body))]
        if self.pause:
            return [event + b"\n\n" for event in self.body.split(b"\n\n") if event]
        return [self.body]


@dataclass
class Server:
    """url: for OPENAI_BASE_URL. requests: the bodies so far. answer(body, key) makes the reply."""

    url: str
    requests: list[dict] = field(default_factory=list)
    answer: Callable[[dict, str], Reply] = lambda body, key: Reply(completion(verdict()))


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Run a server until the block ends."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append(body)
            reply = server.answer(body, self.headers["Authorization"])
            if body.get("stream") and reply.body.startswith(b'{"id"') and reply.status == 200:
                reply = replace(reply, body=streamed(reply.body), type="text/event-stream")
            closing.wait(reply.wait)
            if reply.cut:
                return self.connection.close()
            with contextlib.suppress(OSError):  # the client may have given up
                self.send(reply)

        def do_GET(self) -> None:
            if self.path != "/v1/models":
                return self.send_error(404)
            self.send(Reply(json.dumps(MODELS).encode()))

        def send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.type)
            self.send_header("Content-Length", str(len(reply.body) + 100 * reply.cut_short))
            if reply.retry_after is not None:
                self.send_header("Retry-After", reply.retry_after)
            self.end_headers()
            for part in reply.parts():
                self.wfile.write(part)
                if closing.wait(reply.drip or reply.pause):
                    return

        def log_message(self, *_arguments: object) -> None:
            pass

    with listening(Handler) as address:
        server = Server(f"{address}/v1")
        try:
            yield server
        finally:
            closing.set()
