"""Common Crawl on this machine: the same paths, ranges, validators and URL index, and on request every misbehaviour.

A test gives `Server.misbehave`: it sees each request and returns what is to go wrong with the answer, or None.
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
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.servers.local_server import listening

CRAWL = "CC-MAIN-2024-51"
HTML = b"<!DOCTYPE html><html><head><title>503 Slow Down</title></head><body>Please reduce your request rate.</body></html>"
ENTRIES_A_PAGE = 5


@dataclass(frozen=True)
class Request:
    """One request as it came in. number: how many there were for this path before, with this method. headers: lower-case names."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    number: int


@dataclass(frozen=True)
class Wrong:
    """What goes wrong with one answer.

    status: this one, with `headers` and `body`. body: this instead of the file. cut: the connection breaks behind so many
    bytes of the body. length: is added to the true Content-Length. drip: seconds between single bytes. silent: no body ever comes.
    ignore_range: the whole file with 200. range_off: other bytes than asked for. without: headers that are left out.
    chunked: so sent. unsaid: the connection's end is the body's end.
    """

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    cut: int | None = None
    length: int = 0
    drip: float = 0.0
    silent: bool = False
    ignore_range: bool = False
    range_off: int = 0
    without: tuple[str, ...] = ()
    chunked: bool = False
    unsaid: bool = False


def later(status: int = 503, seconds: str = "") -> Wrong:
    return Wrong(status=status, body=HTML, headers=(("Retry-After", seconds),) if seconds else ())


@dataclass
class Server:
    """url: its address. files: what lies there by path. index: entries by crawl. wrongs: what has gone wrong how often.

    broken_lines: by page of the index, a line that is put into it. needs_key: whether S3 answers only who signs.
    agents: the User-Agents seen. most_at_once: requests that were open together at most.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    index: dict[str, list[dict]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    misbehave: Callable[[Request], Wrong | None] = lambda request: None
    wrongs: Counter = field(default_factory=Counter)
    broken_lines: dict[int, bytes] = field(default_factory=dict)
    needs_key: bool = False
    agents: set[str] = field(default_factory=set)
    at_once: int = 0
    most_at_once: int = 0

    def asked(self, path: str, method: str = "GET") -> list[Request]:
        return [
            request
            for request in self.requests
            if request.path.endswith(path) and request.method == method
        ]

    def add_crawl(self, warcs: list[bytes], wets: list[bytes], crawl: str = CRAWL) -> None:
        """Puts files in place under Common Crawl's names, with their paths files and their index."""
        for kind, contents in (("warc", warcs), ("wet", wets)):
            names = [
                f"crawl-data/{crawl}/segments/1733066035857.0/{kind}/CC-MAIN-20241201162023-20241201192023-{number:05}.warc"
                f"{'.wet' if kind == 'wet' else ''}.gz"
                for number in range(len(contents))
            ]
            self.files |= dict(zip(names, contents, strict=True))
            self.files[f"crawl-data/{crawl}/{kind}.paths.gz"] = gzip.compress(
                "".join(f"{name}\n" for name in names).encode(), mtime=0
            )
            if kind == "warc":
                self.index[crawl] = sorted(
                    (
                        entry
                        for name, content in zip(names, contents, strict=True)
                        for entry in entries(name, content)
                    ),
                    key=lambda entry: (entry["urlkey"], entry["timestamp"]),
                )


def entries(name: str, content: bytes) -> Iterator[dict]:
    """The index entries of a file: where the gzip member of each response starts and how long it is."""
    offset = 0
    while offset < len(content):
        member = zlib.decompressobj(31)
        record = member.decompress(content[offset:])
        length = len(content) - offset - len(member.unused_data)
        head = record.partition(b"\r\n\r\n")[0].decode()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        if fields["WARC-Type"] == "response":
            url = fields["WARC-Target-URI"]
            parts = urlsplit(url)
            yield {
                "urlkey": ",".join(reversed(parts.hostname.split("."))) + ")" + parts.path,
                "timestamp": "20241201162023",
                "url": url,
                "mime": "text/html",
                "mime-detected": "text/html",
                "status": "200",
                "digest": hashlib.sha1(record).hexdigest().upper(),
                "length": str(length),
                "offset": str(offset),
                "filename": name,
            }
        offset += length


def matches(pattern: str, url: str) -> bool:
    """pywb's patterns: *.host for a domain, a trailing * for a prefix, anything else for one page."""
    parts = urlsplit(url)
    if pattern.startswith("*."):
        return f".{parts.hostname}".endswith(pattern[1:])
    return fnmatch.fnmatchcase(f"{parts.hostname}{parts.path}".rstrip("/"), pattern.rstrip("/"))


def passes(entry: dict, rule: str) -> bool:
    """One `filter` of pywb: [!][=|~]field:expression."""
    negative, kind, name, wanted = re.fullmatch(r"(!?)([=~]?)([\w-]+):(.*)", rule).groups()
    value = entry.get(name, "")
    found = {
        "=": value == wanted,
        "~": re.fullmatch(wanted, value) is not None,
        "": wanted in value,
    }[kind]
    return found != bool(negative)


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    closing, lock = threading.Event(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            address = urlsplit(self.path)
            path = address.path.lstrip("/").removeprefix("commoncrawl/")
            with lock:
                request = Request(
                    self.command,
                    path,
                    parse_qs(address.query),
                    {key.lower(): value for key, value in self.headers.items()},
                    len(server.asked(path, self.command)),
                )
                server.requests.append(request)
                server.agents.add(self.headers["User-Agent"])
                wrong = server.misbehave(request) or Wrong()
                if wrong != Wrong():
                    server.wrongs[f"{self.command} {name_of(wrong)}"] += 1
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                with contextlib.suppress(OSError):  # the client may have given up
                    if (
                        address.path.startswith("/commoncrawl/")
                        and server.needs_key
                        and "authorization" not in request.headers
                    ):
                        wrong = Wrong(status=403, body=b"<Error><Code>AccessDenied</Code></Error>")
                    self.respond(request, wrong)
            finally:
                with lock:
                    server.at_once -= 1

        def respond(self, request: Request, wrong: Wrong) -> None:
            status, content, headers = self.content(request, wrong)
            if wrong.status:
                status, content, headers = wrong.status, wrong.body or b"", dict(wrong.headers)
            elif wrong.body is not None:
                content, headers = wrong.body, {"Content-Type": "text/html"} | headers
            self.send_response(status)
            if wrong.chunked:
                headers["Transfer-Encoding"] = "chunked"
            elif not wrong.unsaid:
                headers.setdefault("Content-Length", str(len(content) + wrong.length))
            for name, value in headers.items():
                if name not in wrong.without:
                    self.send_header(name, value)
            self.end_headers()
            if wrong.chunked:
                content = b"".join(
                    b"%x\r\n%b\r\n" % (len(content[i : i + 100]), content[i : i + 100])
                    for i in range(0, len(content), 100)
                )
                content += b"0\r\n\r\n"
            self.close_connection = wrong != Wrong()
            if request.method == "HEAD":
                return
            if wrong.silent:
                closing.wait(30)
            elif wrong.drip:
                for i in range(len(content)):
                    self.wfile.write(content[i : i + 1])
                    if closing.wait(wrong.drip):
                        return
            else:
                self.wfile.write(content[: wrong.cut])

        def content(self, request: Request, wrong: Wrong) -> tuple[int, bytes, dict[str, str]]:
            if request.path.endswith("-index"):
                return self.index(request)
            if request.path == "collinfo.json":
                return (
                    200,
                    json.dumps(
                        [
                            {"id": crawl, "name": crawl, "cdx-api": f"{server.url}{crawl}-index"}
                            for crawl in sorted(server.index, reverse=True)
                        ]
                    ).encode(),
                    {},
                )
            whole = server.files.get(request.path)
            if whole is None:
                return 404, b"<Error><Code>NoSuchKey</Code></Error>", {}
            tag = f'"{hashlib.md5(whole).hexdigest()}-1"'
            headers = {
                "ETag": tag,
                "Last-Modified": "Tue, 03 Dec 2024 10:00:00 GMT",
                "Accept-Ranges": "bytes",
                "Content-Type": "application/octet-stream",
            }
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
            if (
                not asked
                or wrong.ignore_range
                or request.headers.get("if-range", tag) not in (tag, headers["Last-Modified"])
            ):
                return 200, whole, headers
            first, last = int(asked[1]), min(int(asked[2] or len(whole)), len(whole) - 1)
            if first >= len(whole):
                return 416, b"", {"Content-Range": f"bytes */{len(whole)}"}
            first += wrong.range_off
            return (
                206,
                whole[first : last + 1],
                headers | {"Content-Range": f"bytes {first}-{last}/{len(whole)}"},
            )

        def index(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
            crawl = request.path.removesuffix("-index")
            if crawl not in server.index:
                return 404, b"Not found", {}
            found = [
                entry
                for entry in server.index[crawl]
                if matches(request.query["url"][0], entry["url"])
                and all(passes(entry, rule) for rule in request.query.get("filter", []))
            ]
            if "showNumPages" in request.query:
                pages = max(1, -(-len(found) // ENTRIES_A_PAGE))
                return (
                    200,
                    json.dumps({"pages": pages, "pageSize": 1, "blocks": pages}).encode(),
                    {},
                )
            page = int(request.query["page"][0])
            lines = [
                json.dumps(entry).encode()
                for entry in found[page * ENTRIES_A_PAGE : (page + 1) * ENTRIES_A_PAGE]
            ]
            if not lines:
                return (
                    404,
                    json.dumps(
                        {"message": f"No Captures found for: {request.query['url'][0]}"}
                    ).encode(),
                    {},
                )
            if page in server.broken_lines:
                lines.insert(1, server.broken_lines[page])
            return 200, b"".join(line + b"\n" for line in lines), {}

        def log_message(self, *_words: object) -> None:
            pass

    class Listener(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client: object) -> None:
            if not isinstance(sys.exception(), ConnectionError):  # a client that hangs up is none
                super().handle_error(request, client)

    with listening(Handler, Listener) as address:
        server = Server(f"{address}/")
        try:
            yield server
        finally:
            closing.set()


def name_of(wrong: Wrong) -> str:
    """One word for what goes wrong."""
    if wrong.status:
        return (
            f"{wrong.status}{' with Retry-After' if dict(wrong.headers).get('Retry-After') else ''}"
        )
    names = {
        "body": "wrong body",
        "cut": "cut",
        "length": "wrong length",
        "drip": "drip",
        "silent": "silence",
        "ignore_range": "range ignored",
        "range_off": "other range",
        "without": "header missing",
        "unsaid": "no length",
    }
    return (
        ", ".join(
            name
            for key, name in names.items()
            if getattr(wrong, key) not in (None, 0, 0.0, False, ())
        )
        or "chunked"
    )


def storm(seed: int, share: float, contents: dict[str, bytes]) -> Callable[[Request], Wrong | None]:
    """Trouble of every kind on `share` of the requests, drawn from the seed, path and number of each request: the same every time.

    After five troubled requests in a row for one path the sixth is left alone: a storm ends.
    """

    def misbehave(request: Request) -> Wrong | None:
        draw = random.Random(f"{seed} {request.method} {request.path} {request.number}")
        if request.number % 6 == 5 or draw.random() >= share:
            return None
        size = len(contents.get(request.path, b""))
        half = contents.get(request.path, HTML)[: draw.randrange(size or len(HTML))]
        return draw.choice(
            [
                later(503),
                later(503, "0"),
                later(429, "0"),
                later(500),
                later(502),
                later(504),
                Wrong(cut=draw.randrange(size or 1)),
                Wrong(cut=0),
                Wrong(body=HTML),
                Wrong(body=half),
                Wrong(body=half, chunked=True),
                Wrong(length=draw.randint(1, 500)),
                Wrong(length=-draw.randint(1, max(1, min(size - 1, 500)))),
                Wrong(ignore_range=True),
                Wrong(range_off=1),
                Wrong(without=("ETag", "Last-Modified")),
                Wrong(body=flipped(contents.get(request.path, HTML), draw)),
                Wrong(unsaid=True),
            ]
        )

    return misbehave


def flipped(content: bytes, draw: random.Random) -> bytes:
    """The content with one bit changed."""
    rotten = bytearray(content)
    rotten[draw.randrange(len(rotten))] ^= 1 << draw.randrange(8)
    return bytes(rotten)
