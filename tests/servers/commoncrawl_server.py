"""A Common Crawl on this machine: paths, ranges, validators, the URL index, and faults on demand.

A test sets `Server.fault_for`: it gets each request and returns the Fault to inject, or None.
"""

import contextlib
import fnmatch
import gzip
import hashlib
import json
import random
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.servers.local_server import listening

CRAWL = "CC-MAIN-2024-51"
SEGMENT = "segments/1733066035857.0"
HTML = (
    b"<!DOCTYPE html><html><head><title>503 Slow Down</title></head><body>Slow down.</body></html>"
)
CAPTURES_PER_PAGE = 5


@dataclass(frozen=True)
class Request:
    """A request as it arrived. number: how many came before for this path with this method.

    headers: with lower-case names. arrived: time.monotonic().
    """

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    number: int
    arrived: float


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer.

    delay: seconds before the answer.
    status: this status, with `headers` and `body`.  body: this body instead of the file's.
    cut: the connection breaks after so many bytes of the body.
    length: this is added to the true Content-Length.  no_length: the body ends with the connection.
    drip: seconds between single bytes.  silent: the body never comes.
    ignore_range: the whole file with 200.  ignore_if_range: the range of whatever version there is.
    range_off: a range that starts so much later.  short_range: one that ends so much earlier.
    without: headers that are left out.  chunked: send the body in chunks.
    """

    delay: float = 0.0
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    cut: int | None = None
    length: int = 0
    no_length: bool = False
    drip: float = 0.0
    silent: bool = False
    ignore_range: bool = False
    ignore_if_range: bool = False
    range_off: int = 0
    short_range: int = 0
    without: tuple[str, ...] = ()
    chunked: bool = False

    def __str__(self) -> str:
        """The fields that are set, for the names of tests."""
        changed = [item.name for item in fields(self) if getattr(self, item.name) != item.default]
        return " ".join([str(self.status), *changed] if self.status else changed)


def busy(status: int = 503, retry_after: str = "") -> Fault:
    """The answer of a server that has no time."""
    headers = (("Retry-After", retry_after),) if retry_after else ()
    return Fault(status=status, headers=headers, body=HTML)


@dataclass
class Server:
    """url: its address. files: contents by path. index: entries by crawl. faults: those injected.

    broken_lines: a line to insert, by page of the index. needs_key: S3 wants signed requests.
    most_at_once: the largest number of requests that were open together.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    index: dict[str, list[dict]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    fault_for: Callable[[Request], Fault | None] = lambda request: None
    faults: list[Fault] = field(default_factory=list)
    broken_lines: dict[int, bytes] = field(default_factory=dict)
    needs_key: bool = False
    at_once: int = 0
    most_at_once: int = 0

    def requests_for(self, path: str, method: str = "GET") -> list[Request]:
        """The requests for paths that end like this."""
        return [r for r in self.requests if r.path.endswith(path) and r.method == method]

    def add_crawl(self, warcs: list[bytes], wets: list[bytes], crawl: str = CRAWL) -> None:
        """Put files in place under Common Crawl's names, with their paths files and their index."""
        for kind, ending, contents in (("warc", "warc", warcs), ("wet", "warc.wet", wets)):
            folder = f"crawl-data/{crawl}/{SEGMENT}/{kind}"
            names = [f"{folder}/CC-MAIN-{i:05}.{ending}.gz" for i in range(len(contents))]
            self.files |= dict(zip(names, contents, strict=True))
            self.set_paths(kind, names, crawl)
            if kind == "warc":
                files = zip(names, contents, strict=True)
                captures = [capture for file in files for capture in captures_of(*file)]
                self.index[crawl] = sorted(captures, key=lambda capture: capture["urlkey"])

    def set_paths(self, kind: str, names: list[str], crawl: str = CRAWL) -> None:
        paths = "".join(f"{name}\n" for name in names).encode()
        self.files[f"crawl-data/{crawl}/{kind}.paths.gz"] = gzip.compress(paths, mtime=0)


def captures_of(name: str, content: bytes) -> Iterator[dict]:
    """The index entries of a file: where each response's gzip member starts, and its length."""
    rest = content
    while rest:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        record = member.decompress(rest)
        length = len(rest) - len(member.unused_data)
        head = record.partition(b"\r\n\r\n")[0].decode()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        if headers["WARC-Type"] == "response":
            url = urlsplit(headers["WARC-Target-URI"])
            yield {
                "urlkey": ",".join(reversed(url.hostname.split("."))) + ")" + url.path,
                "url": url.geturl(),
                "offset": str(len(content) - len(rest)),
                "length": str(length),
                "filename": name,
            }
        rest = member.unused_data


def matches(pattern: str, url: str) -> bool:
    """pywb's patterns: *.host for a domain, a trailing * for a prefix, else a single page."""
    parts = urlsplit(url)
    if pattern.startswith("*."):
        return f".{parts.hostname}".endswith(pattern[1:])
    return fnmatch.fnmatchcase(f"{parts.hostname}{parts.path}".rstrip("/"), pattern.rstrip("/"))


class Handler(BaseHTTPRequestHandler):
    """Answers for `server`, which `serve` sets in a subclass."""

    protocol_version = "HTTP/1.1"
    server_state: Server
    lock: threading.Lock
    closing: threading.Event

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        state, address = self.server_state, urlsplit(self.path)
        is_s3 = address.path.startswith("/commoncrawl/")
        path = address.path.removeprefix("/commoncrawl/").lstrip("/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.lock:
            number = len([r for r in state.requests if (r.method, r.path) == (self.command, path)])
            query, now = parse_qs(address.query), time.monotonic()
            request = Request(self.command, path, query, headers, number, now)
            state.requests.append(request)
            fault = state.fault_for(request) or Fault()
            if fault != Fault():
                state.faults.append(fault)
            state.at_once += 1
            state.most_at_once = max(state.most_at_once, state.at_once)
        if is_s3 and state.needs_key and "authorization" not in headers:
            fault = Fault(status=403, body=b"<Error><Code>AccessDenied</Code></Error>")
        try:
            with contextlib.suppress(OSError):  # the client may have given up
                self.respond(request, fault)
        finally:
            with self.lock:
                state.at_once -= 1

    def respond(self, request: Request, fault: Fault) -> None:
        self.closing.wait(fault.delay)
        status, body, headers = self.answer(request, fault)
        if fault.status:
            status, body, headers = fault.status, fault.body or b"", dict(fault.headers)
        elif fault.body is not None:
            body = fault.body
        if fault.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif not fault.no_length:
            headers.setdefault("Content-Length", str(len(body) + fault.length))
        self.send_response(status)
        for name in headers.keys() - fault.without:
            self.send_header(name, headers[name])
        self.end_headers()
        self.close_connection = fault != Fault()
        if request.method == "HEAD":
            return
        if fault.silent:
            self.closing.wait(30)
        elif fault.drip:
            for byte in body:
                self.wfile.write(bytes([byte]))
                if self.closing.wait(fault.drip):
                    return
        elif fault.chunked:
            for i in range(0, len(body), 100):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(body[i : i + 100]), body[i : i + 100]))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(body[: fault.cut])

    def answer(self, request: Request, fault: Fault) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers as a server without faults sends them."""
        if request.path.endswith("-index"):
            return self.index(request)
        if request.path == "collinfo.json":
            crawls = [{"id": crawl} for crawl in self.server_state.index]
            return 200, json.dumps(crawls).encode(), {}
        whole = self.server_state.files.get(request.path)
        if whole is None:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>", {}
        headers = {
            "ETag": f'"{hashlib.md5(whole).hexdigest()}-1"',
            "Last-Modified": "Tue, 03 Dec 2024 10:00:00 GMT",
            "Content-Type": "application/octet-stream",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        condition = request.headers.get("if-range", headers["ETag"])
        is_current = condition in headers.values() or fault.ignore_if_range
        if not wanted or fault.ignore_range or not is_current:
            return 200, whole, headers
        first, last = int(wanted[1]), min(int(wanted[2] or len(whole)), len(whole) - 1)
        if first >= len(whole):
            return 416, b"", {"Content-Range": f"bytes */{len(whole)}"}
        first, last = first + fault.range_off, last - fault.short_range
        headers["Content-Range"] = f"bytes {first}-{last}/{len(whole)}"
        return 206, whole[first : last + 1], headers

    def index(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        crawl = request.path.removesuffix("-index")
        if crawl not in self.server_state.index:
            return 404, b"Not found", {}
        pattern = request.query["url"][0]
        captures = [c for c in self.server_state.index[crawl] if matches(pattern, c["url"])]
        if "showNumPages" in request.query:
            pages = max(1, -(-len(captures) // CAPTURES_PER_PAGE))
            return 200, json.dumps({"pages": pages}).encode(), {}
        page = int(request.query["page"][0])
        start = page * CAPTURES_PER_PAGE
        lines = [json.dumps(c).encode() for c in captures[start : start + CAPTURES_PER_PAGE]]
        if not lines:
            return 404, b'{"message": "No Captures found"}', {}
        if page in self.server_state.broken_lines:
            lines.insert(1, self.server_state.broken_lines[page])
        return 200, b"".join(line + b"\n" for line in lines), {}

    def log_message(self, *_words: object) -> None:
        pass


class Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may hang up
            super().handle_error(request, client)


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Run a server until the block ends."""
    closing, server = threading.Event(), Server(url="")
    state = {"server_state": server, "lock": threading.Lock(), "closing": closing}
    with listening(type("BoundHandler", (Handler,), state), Listener) as address:
        server.url = f"{address}/"
        try:
            yield server
        finally:
            closing.set()


def storm(seed: int, share: float, contents: dict[str, bytes]) -> Callable[[Request], Fault | None]:
    """Faults of every kind on a share of the requests.

    The draw depends on the seed and the request's path and number only. Of six requests for a path
    one is always left alone, so the storm ends.
    """

    def fault_for(request: Request) -> Fault | None:
        draw = random.Random(f"{seed} {request.method} {request.path} {request.number}")
        if request.number % 6 == 5 or draw.random() >= share:
            return None
        content = contents.get(request.path, HTML)
        size = len(content)
        half = content[: draw.randrange(size)]
        return draw.choice(
            [
                busy(503),
                busy(503, "0"),
                busy(429, "0"),
                busy(500),
                busy(502),
                busy(504),
                Fault(cut=draw.randrange(size)),
                Fault(cut=0),
                Fault(body=HTML),
                Fault(body=half),
                Fault(body=half, chunked=True),
                Fault(length=draw.randint(1, 500)),
                Fault(length=-draw.randint(1, min(size - 1, 500))),
                Fault(ignore_range=True),
                Fault(range_off=1),
                Fault(without=("ETag", "Last-Modified")),
                Fault(body=flip_bit(content, draw)),
                Fault(no_length=True),
            ]
        )

    return fault_for


def flip_bit(content: bytes, draw: random.Random) -> bytes:
    """The content with one bit changed."""
    damaged = bytearray(content)
    damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)
