"""HTTP requests to a crawl's server, and what each answer means.

A request returns what was asked for, or raises a TransientError (worth a retry) or a UserError
(a retry would be useless or rude).
Ranges and validators: RFC 9110, sections 8.8, 13.1.5 and 14.
"""

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from crawl2cart.core.errors import UserError
from crawl2cart.core.retry_after import retry_after
from crawl2cart.crawl.download.retry import TransientError

MIN_BYTES_PER_SECOND = 1024  # a connection that is slower for `read_timeout` seconds is given up
MAX_TEXT_BYTES = 64 << 20  # of an answer that is read into memory
MAX_REASON_CHARS = 160
RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504, 509}


@dataclass(frozen=True)
class Version:
    """A file's size in bytes and its validator, by which we notice that the file changed.

    validator: the strong ETag, else Last-Modified, else "" (then a download cannot be resumed).
    """

    bytes: int
    validator: str


@dataclass(frozen=True)
class Body:
    """The open answer to a download: pieces of the file from byte `start` on."""

    version: Version
    start: int
    pieces: Iterator[bytes]


class FileChanged(TransientError):
    """The part on disk belongs to another version of the file than the server's."""


class HttpClient:
    """Reads files below the address `base`; safe to share between threads.

    contact: goes into the User-Agent. read_timeout: seconds of silence, or of less than
    MIN_BYTES_PER_SECOND, after which a connection is given up. connections: most at a time.
    """

    def __init__(self, base: str, contact: str, read_timeout: float, connections: int):
        self.base, self.read_timeout = base.rstrip("/") + "/", read_timeout
        self._responses: set[httpx.Response] = set()
        self._client = httpx.Client(
            headers={
                "User-Agent": f"crawl2cart ({contact or 'no contact given'})",
                "Accept-Encoding": "identity",
            },
            timeout=read_timeout,
            limits=httpx.Limits(max_connections=connections),
            follow_redirects=True,
        )

    def version(self, name: str) -> Version:
        """Ask for a file's size and validator without downloading it."""
        with self._request("HEAD", name) as response:
            return version_of(response)

    @contextlib.contextmanager
    def open(self, name: str, start: int, version: Version | None) -> Iterator[Body]:
        """Download a file from byte `start` on, or from byte 0 if it is no longer `version`."""
        headers = {"Range": f"bytes={start}-", "If-Range": version.validator} if start else {}
        with self._request("GET", name, headers) as response:
            current, first = version_of(response), 0
            if start and response.status_code == 206:
                first, last, total = content_range(response)
                if current.bytes != last - first + 1:
                    raise TransientError("length", "Content-Length and Content-Range disagree")
                current = Version(total, current.validator or version.validator)
                if first != start or current != version:
                    raise FileChanged("changed", "the server sent a range of another version")
            yield Body(current, first, self._pieces(response))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Download `length` bytes of a file from byte `start` on; the caller checks the content."""
        end = start + length - 1
        with self._request("GET", name, {"Range": f"bytes={start}-{end}"}) as response:
            if response.status_code != 206:
                raise TransientError("no range", "the server sent the whole file, not the range")
            content = b"".join(self._pieces(response))
        if len(content) != length:
            raise TransientError("cut", f"{len(content):,} bytes came instead of {length:,}")
        return content

    def text(self, name: str, **query: object) -> bytes | None:
        """Return a small answer as a whole, or None if the server has none (404)."""
        with self._request("GET", name, query=query, allow_404=True) as response:
            if response.status_code == 404:
                return None
            if not {"content-length", "transfer-encoding"} & response.headers.keys():
                raise TransientError("no length", "the answer does not say where it ends")
            content = bytearray()
            for piece in self._pieces(response):
                content += piece
                if len(content) > MAX_TEXT_BYTES:
                    raise UserError(
                        f"{response.url}: the answer is longer than {MAX_TEXT_BYTES >> 20} MiB. "
                        "Check download.index, or choose fewer pages (download.urls)."
                    )
            return bytes(content)

    def close(self) -> None:
        """Break off the transfers that other threads are waiting for."""
        for response in list(self._responses):
            stream = response.extensions["network_stream"]
            with contextlib.suppress(OSError):  # the transfer has just ended by itself
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _request(
        self,
        method: str,
        name: str,
        headers: dict[str, str] | None = None,
        query: dict[str, object] | None = None,
        allow_404: bool = False,
    ) -> Iterator[httpx.Response]:
        """Send a request and check the status; what breaks in the block becomes our errors."""
        url = self.base + name
        try:
            with self._client.stream(method, url, headers=headers, params=query) as response:
                raise_for_status(response, allow_404)
                self._responses.add(response)
                try:
                    yield response
                finally:
                    self._responses.discard(response)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise UserError(
                f"{url} is not a valid address ({error}). Correct download.base or download.index."
            ) from error
        except httpx.RequestError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise UserError(
                    f"{url}: the server's certificate is not trusted ({error}). "
                    "Behind a proxy, set SSL_CERT_FILE to the file of its certificate."
                ) from error
            kind = type(error).__name__
            raise TransientError(kind, f"the connection failed ({kind}: {error})") from error

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        """Yield the body as it arrives. Raises TransientError if it arrives too slowly."""
        started, size = time.monotonic(), 0
        for piece in response.iter_raw():
            yield piece
            size += len(piece)
            seconds = time.monotonic() - started
            if seconds >= self.read_timeout:
                if size < MIN_BYTES_PER_SECOND * seconds:
                    raise TransientError("slow", f"only {size / seconds:,.0f} bytes/s came")
                started, size = time.monotonic(), 0


def raise_for_status(response: httpx.Response, allow_404: bool) -> None:
    """Raise TransientError or UserError unless the request succeeded."""
    status = response.status_code
    if status in (200, 206) or (status == 404 and allow_404):
        return
    answer = f"{status} {response.reason_phrase}"
    match status:
        case 403:
            raise UserError(
                f"{response.url} answered {answer}: {reason(response)}. The server wants us to "
                "stop: after too many requests it blocks an address for a while, or nobody may "
                "read this file. We sent nothing more and keep what was downloaded. Wait some "
                "hours, then run again with a larger download.seconds_between_requests, or use "
                "another mirror (download.base)."
            )
        case 404 | 410:
            raise UserError(
                f"{response.url} answered {answer}: there is no such file. Check download.crawl "
                "and download.base. `python -m stages.download --latest` names the newest crawl."
            )
        case 416:
            raise FileChanged("changed", "the server's file is shorter than the part on disk")
        case _ if status in RETRY_STATUS:
            seconds = retry_after(response.headers.get("Retry-After"))
            raise TransientError(str(status), answer, retry_after=seconds)
        case _:
            raise UserError(
                f"{response.url} answered {answer}: {reason(response)}. A retry would not help. "
                "Check download.base and download.index."
            )


def reason(response: httpx.Response) -> str:
    """Return the start of an error page as plain words."""
    body = b""
    with contextlib.suppress(httpx.RequestError):
        body = next(response.iter_raw(), b"")
    words = re.sub(r"<[^>]*>", " ", body.decode("utf-8", "replace")).split()
    return " ".join(words)[:MAX_REASON_CHARS].rstrip(". ") or "no reason given"


def version_of(response: httpx.Response) -> Version:
    """Read size and validator from the headers. Raises TransientError without a size."""
    if "Content-Length" not in response.headers:
        raise TransientError("no length", "the server does not say how long the file is")
    return Version(int(response.headers["Content-Length"]), validator(response.headers))


def content_range(response: httpx.Response) -> tuple[int, int, int]:
    """Return first byte, last byte and size of the whole file, from Content-Range."""
    header = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", header.strip())
    if not match:
        raise TransientError("other range", f"Content-Range is unreadable: {header!r}")
    first, last, total = map(int, match.groups())
    return first, last, total


def validator(headers: httpx.Headers | dict[str, str]) -> str:
    """Return the strong validator that If-Range needs, or "" if there is none."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")
