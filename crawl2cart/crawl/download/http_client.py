"""One request to a web server, and what the answer means.

An answer is either what was asked for, or a Fault (ask again), or a UserError (asking again would be rude or useless).
Ranges and validators: RFC 9110 sections 8.8, 13.1.5 and 14.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import requests
import urllib3

from crawl2cart.core.errors import UserError
from crawl2cart.core.retry_after import retry_after
from crawl2cart.crawl.download.retry import Fault

PIECE = 1 << 16
LEAST_RATE = (
    1024  # bytes a second; below it over `read_timeout` a connection is given up and resumed
)
LONGEST_TEXT = 64 << 20  # of an answer that is read into memory
REASON_LETTERS = 160
NOT_NOW = {408, 425, 429, 500, 502, 503, 504, 509}


@dataclass(frozen=True)
class Version:
    """What a server says about a file. mark: strong ETag, else Last-Modified, else "" (then nothing can be resumed)."""

    bytes: int
    mark: str


@dataclass(frozen=True)
class Body:
    """An open answer: pieces of the file from byte `start` on."""

    version: Version
    start: int
    pieces: Iterator[bytes]


class Changed(Fault):
    """The part that lies here belongs to another version of the file than the one the server has now."""


class Web:
    """Files below an http(s) address. read_timeout: how long silence, or less than LEAST_RATE, is borne."""

    def __init__(self, base: str, contact: str, read_timeout: float, connections: int):
        self.base, self.read_timeout = base.rstrip("/") + "/", read_timeout
        self.answers: set[requests.Response] = set()
        self.session = requests.Session()
        self.session.headers = {
            "User-Agent": f"crawl2cart ({contact or 'no contact given'})",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=connections))

    def version(self, name: str) -> Version:
        with self._ask("HEAD", name) as answer:
            return Version(stated_length(answer), mark(answer.headers))

    @contextlib.contextmanager
    def open(self, name: str, start: int, version: Version | None) -> Iterator[Body]:
        """The file from `start` on if it is still `version`; from its first byte on if it is not, or if it must be."""
        wanted = {"Range": f"bytes={start}-", "If-Range": version.mark} if start else {}
        with self._ask("GET", name, wanted) as answer:
            if answer.status_code == 206:
                first, _, total = content_range(answer)
                now = Version(total, mark(answer.headers) or version.mark)
                if first != start or now != version:
                    raise Changed(
                        "changed", "the range that came is not of the file that was begun"
                    )
                if "html" in answer.headers.get("Content-Type", ""):
                    raise Fault("html", "an HTML page came instead of a part of the file")
                yield Body(now, start, self._pieces(answer))
            else:
                yield Body(
                    Version(stated_length(answer), mark(answer.headers)), 0, self._pieces(answer)
                )

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes of the file from `start` on."""
        with self._ask("GET", name, {"Range": f"bytes={start}-{start + length - 1}"}) as answer:
            if answer.status_code != 206:
                raise Fault(
                    "no range", "the server ignored the range and began to send the whole file"
                )
            first, last, _ = content_range(answer)
            if (first, last) != (start, start + length - 1):
                raise Fault(
                    "other range",
                    f"bytes {first}-{last} came instead of {start}-{start + length - 1}",
                )
            content = b"".join(self._pieces(answer))
        if len(content) != length:
            raise Fault("cut", f"{len(content):,} bytes came instead of {length:,}")
        return content

    def text(self, name: str, **query: object) -> bytes | None:
        """A small answer as a whole; None where there is none (404)."""
        with self._ask("GET", name, query=query, absent=True) as answer:
            if answer.status_code == 404:
                return None
            if "Content-Length" not in answer.headers and "chunked" not in answer.headers.get(
                "Transfer-Encoding", ""
            ):
                raise Fault("no length", "the answer does not say where it ends")
            content = bytearray()
            for piece in self._pieces(answer):
                content += piece
                if len(content) > LONGEST_TEXT:
                    raise UserError(
                        f"{answer.url}: the answer is longer than {LONGEST_TEXT >> 20} MiB."
                    )
            if "Content-Length" in answer.headers and len(content) != stated_length(answer):
                raise Fault(
                    "cut", f"{len(content):,} bytes came instead of {stated_length(answer):,}"
                )
            return bytes(content)

    @contextlib.contextmanager
    def _ask(
        self,
        method: str,
        name: str,
        headers: dict | None = None,
        query: dict | None = None,
        absent: bool = False,
    ) -> Iterator[requests.Response]:
        url = self.base + name
        try:
            answer = self.session.request(
                method,
                url,
                headers=headers,
                params=query,
                stream=True,
                allow_redirects=True,
                timeout=self.read_timeout,
            )
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
        ) as error:
            raise UserError(
                f"{url} is no address that can be asked ({error}). Mend download.base or download.index."
            ) from error
        except requests.RequestException as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise UserError(
                    f"{url}: the certificate of the server is not trusted here ({error}). Behind a proxy, name its "
                    "certificate in REQUESTS_CA_BUNDLE."
                ) from error
            raise Fault("no answer", f"no answer ({error.__class__.__name__})") from error
        with answer:
            raise_for_status(answer, absent)
            self.answers.add(answer)
            try:
                yield answer
            finally:
                self.answers.discard(answer)

    def close(self) -> None:
        """Ends the answers that other threads are reading."""
        for answer in list(self.answers):
            with contextlib.suppress(
                RuntimeError, ValueError, OSError
            ):  # it has just ended by itself
                answer.raw.shutdown()

    def _pieces(self, answer: requests.Response) -> Iterator[bytes]:
        """The body as it comes. Raises Fault when the connection breaks, falls silent or only drips."""
        started, size = time.monotonic(), 0
        while True:
            try:
                piece = answer.raw.read1(PIECE, decode_content=False)
            except urllib3.exceptions.ReadTimeoutError as error:
                raise Fault("silent", f"nothing came for {self.read_timeout:g} s") from error
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise Fault("cut", f"the connection broke ({error.__class__.__name__})") from error
            if not piece:
                return
            yield piece
            size += len(piece)
            seconds = time.monotonic() - started
            if seconds >= self.read_timeout:
                if size < LEAST_RATE * seconds:
                    raise Fault("slow", f"only {size / seconds:,.0f} bytes a second came")
                started, size = time.monotonic(), 0


def raise_for_status(answer: requests.Response, absent: bool) -> None:
    """Raises Fault or UserError unless the answer is a success (or a 404, where `absent` allows it)."""
    status = answer.status_code
    if status in (200, 206) or (status == 404 and absent):
        return
    said = f"{answer.url} answered {status} {answer.reason}"
    match status:
        case 403:
            raise UserError(
                f"{said}: {reason(answer)}. That means stop: the address is blocked for a while after too many requests, or "
                "nobody may read this. Nothing more was asked. What has come is kept; wait some hours, then run again "
                "with a larger download.seconds_between_requests, or use another mirror (download.base)."
            )
        case 404 | 410:
            raise UserError(
                f"{said}: there is no such file. Is download.crawl the name of a crawl, and download.base right? "
                "`python -m stages.download --latest` names the newest crawl."
            )
        case 416:
            raise Changed("changed", "the file is shorter than what had come of it")
        case _ if status in NOT_NOW:
            raise Fault(
                str(status),
                f"{status} {answer.reason}",
                after=retry_after(answer.headers.get("Retry-After")),
            )
        case _:
            raise UserError(f"{said}: {reason(answer)}. Asking again would not help.")


def reason(answer: requests.Response) -> str:
    """What the body of a refusal says, without its tags."""
    try:
        body = answer.raw.read(4096, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError):
        body = b""
    words = re.sub(r"<[^>]*>", " ", body.decode("utf-8", "replace")).split()
    return " ".join(words)[:REASON_LETTERS].rstrip(". ") or "it gave no reason"


def stated_length(answer: requests.Response) -> int:
    length = answer.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise Fault("no length", "the server does not say how long the file is")
    return int(length)


def content_range(answer: requests.Response) -> tuple[int, int, int]:
    """First byte, last byte and size of the whole file, from Content-Range."""
    found = re.fullmatch(
        r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", "").strip()
    )
    if not found:
        raise Fault(
            "other range",
            f"the range that came is not named ({answer.headers.get('Content-Range')!r})",
        )
    first, last, total = map(int, found.groups())
    return first, last, total


def mark(headers: dict[str, str]) -> str:
    """The strong validator that If-Range needs."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")
