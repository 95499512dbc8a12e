"""What a request must be to reach the page: small, meant for this host, and with the token where other machines can come in."""

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

MOST_BYTES = 64 * 1024  # of a request's body: the longest question, as JSON, and room
COOKIE = "crawl2cart_token"
LOCAL = ("127.0.0.1", "localhost", "::1")
UPLOAD = "/upload"  # Gradio takes files there; this page has none


class Guard:
    """token: what `?token=` in the first address, a cookie afterwards or a bearer header must hold. None: the page is bound to this
    machine alone, and the host that a browser asks for must be it, so that no web site reaches the page by a name of its own.
    """

    def __init__(self, app: ASGIApp, token: str | None):
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await (
                self.app(scope, receive, send)
                if scope["type"] == "lifespan"
                else send({"type": "websocket.close"})
            )
        await (self._answer(scope) or self.app)(scope, receive, send)

    def _answer(self, scope: Scope) -> Response | None:
        """What a request that goes no further is answered."""
        headers = Headers(scope=scope)
        if scope["path"].rstrip("/").endswith(UPLOAD):
            return refusal(404)
        if "transfer-encoding" in headers:  # browsers say how long a question is
            return refusal(411)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MOST_BYTES:
            return refusal(413)
        if self.token is None:
            host = (
                headers.get("host", "").rpartition(":")[0]
                if headers.get("host", "").count(":") == 1
                else headers.get("host", "")
            )
            return None if host.strip("[]") in LOCAL or host.startswith("[::1]") else refusal(421)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if self._is_token(given):
            answer = RedirectResponse("/")  # without the token, which would stay in the history
            answer.set_cookie(COOKIE, given, httponly=True, samesite="strict")
            return answer
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        return (
            None
            if self._is_token(cookie(headers.get("cookie", ""))) or self._is_token(bearer)
            else refusal(401)
        )

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


def cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def refusal(status: int) -> Response:
    return PlainTextResponse(
        {
            401: "Open the address with ?token= that the demonstration printed when it started.",
            404: "There is nothing here.",
            411: "The request does not say how long it is.",
            413: "The request is too large.",
            421: "This page answers at 127.0.0.1 and localhost.",
        }[status],
        status,
    )
