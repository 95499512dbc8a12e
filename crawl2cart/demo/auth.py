"""Check every request before it reaches the page: its size, its host, and its token."""

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

MAX_BODY_BYTES = 64 * 1024  # the longest question as JSON, with room to spare
COOKIE = "crawl2cart_token"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
UPLOAD = "/upload"  # Gradio's route for files, which this page does not need
REFUSALS = {
    401: "Open the address with ?token= that the demonstration printed when it started.",
    404: "There is nothing here.",
    411: "The request lacks a Content-Length header.",
    413: "The request is too large.",
    421: "This page answers at 127.0.0.1 and localhost only.",
}


class AccessControl:
    """ASGI middleware that refuses requests that are too large, misdirected or without the token.

    token: required as `?token=` in the first address, as a cookie afterwards, or as a bearer
    header. If it is None the page serves this machine alone. Then the Host header must be a
    loopback name, so that no web site can reach the page by DNS rebinding.
    """

    def __init__(self, app: ASGIApp, token: str | None):
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close"})
        else:
            await (self._response(scope) or self.app)(scope, receive, send)

    def _response(self, scope: Scope) -> Response | None:
        """Return the response to a request that must not reach the page, None for the others."""
        headers = Headers(scope=scope)
        if scope["path"].rstrip("/").endswith(UPLOAD):
            return refusal(404)
        if "transfer-encoding" in headers:  # browsers send a length with every question
            return refusal(411)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return refusal(413)
        if self.token is None:
            return None if is_loopback(headers.get("host", "")) else refusal(421)
        token = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if self._is_token(token):
            response = RedirectResponse("/")  # an address without the token, for the history
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return response
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_token(cookie_token(headers.get("cookie", ""))) or self._is_token(bearer):
            return None
        return refusal(401)

    def _is_token(self, candidate: str) -> bool:
        return hmac.compare_digest(candidate.encode(), self.token.encode())


def is_loopback(host: str) -> bool:
    """Return whether a Host header, with or without a port, names this machine itself."""
    name = host.rpartition(":")[0] if host.count(":") == 1 else host
    return name.strip("[]") in LOOPBACK or host.startswith("[::1]")


def cookie_token(header: str) -> str:
    """Return the token in a Cookie header, empty if there is none."""
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def refusal(status: int) -> Response:
    """Return a plain-text response with this error status."""
    return PlainTextResponse(REFUSALS[status], status)
