"""An OpenAI-compatible server on this machine that behaves, or misbehaves on purpose."""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler

from tests.servers.local_server import listening

KEY = "sk-never-shown-4711"


def completion(content: str | None, **message: object) -> bytes:
    """The body of a chat completion whose assistant says `content`, and which says it read 1,000 tokens and wrote 50."""
    return json.dumps(
        {
            "id": "c-1",
            "object": "chat.completion",
            "created": 0,
            "model": "gpt-test",
            "usage": {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050},
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": content, "refusal": None} | message,
                }
            ],
        }
    ).encode()


def verdict(label: str = "shopping", confidence: float = 0.9) -> str:
    return json.dumps(
        {
            "label": label,
            "intent": "order_status",
            "confidence": confidence,
            "reason": "because of a parcel",
        }
    )


def streamed(body: bytes) -> bytes:
    """A chat completion as the events of a stream: a word or a quarter of a call's arguments at a time."""
    whole = json.loads(body)
    message = whole["choices"][0]["message"]
    deltas = [
        {"content": piece} for piece in re.findall(r"\S*\s*", message["content"] or "") if piece
    ]
    for index, call in enumerate(message.get("tool_calls") or []):
        function, quarter = call["function"], -(-len(call["function"]["arguments"]) // 4) or 1
        deltas.append(
            {"tool_calls": [call | {"index": index, "function": function | {"arguments": ""}}]}
        )
        deltas += [
            {
                "tool_calls": [
                    {
                        "index": index,
                        "function": {"arguments": function["arguments"][i : i + quarter]},
                    }
                ]
            }
            for i in range(0, len(function["arguments"]), quarter)
        ]
    chunks = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in [{"role": "assistant", "refusal": message.get("refusal")}, *deltas]
    ]
    chunks += [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": whole["usage"]},
    ]
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 0, "model": whole["model"]}
    return (
        b"".join(b"data: %s\n\n" % json.dumps(head | chunk).encode() for chunk in chunks)
        + b"data: [DONE]\n\n"
    )


@dataclass
class Reply:
    """What the server sends: body after `wait` seconds, or one byte every `drip` seconds. cut: it hangs up instead. cut_short: it
    promises more than the body and hangs up. A completion goes out as a stream where one is asked for, with `pause` seconds between
    its events.
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


@dataclass
class Server:
    """url: what OPENAI_BASE_URL should be. requests: the bodies that came in. answer: makes the reply to a request."""

    url: str
    requests: list[dict] = field(default_factory=list)
    answer: Callable[[dict, str], Reply] = lambda body, key: Reply(completion(verdict()))


@contextlib.contextmanager
def serve() -> Iterator[Server]:
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
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.type)
                self.send_header("Content-Length", str(len(reply.body) + 100 * reply.cut_short))
                if reply.retry_after is not None:
                    self.send_header("Retry-After", reply.retry_after)
                self.end_headers()
                for i in range(len(reply.body)) if reply.drip else ():
                    self.wfile.write(reply.body[i : i + 1])
                    if closing.wait(reply.drip):
                        return
                for event in reply.body.split(b"\n\n") if reply.pause else ():
                    self.wfile.write(event + b"\n\n" if event else b"")
                    if closing.wait(reply.pause):
                        return
                if not (reply.drip or reply.pause):
                    self.wfile.write(reply.body)

        def do_GET(self) -> None:
            """The one model that there is."""
            if self.path != "/v1/models":
                return self.send_error(404)
            body = json.dumps(
                {
                    "object": "list",
                    "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "us"}],
                }
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words: object) -> None:
            pass

    with listening(Handler) as address:
        server = Server(f"{address}/v1")
        try:
            yield server
        finally:
            closing.set()
