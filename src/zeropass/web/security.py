"""The security of the server: who may request what and how soon, and the headers of every response (ASGI)."""

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["COOKIE", "HEAD_SECONDS", "DeadlineProtocol", "Guard", "Rules", "is_loopback"]

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "zeropass-token"
LONGEST_PATH, LONGEST_QUERY = 300, 2000
CSP = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class Rules:
    """The rules for who may send requests.

    Host names are checked because a page elsewhere can make a browser send requests under a name of its own (DNS
    rebinding).

    Attributes:
        hosts: The host names that a request may be for, besides those of loopback.
        token: The token that every request must have; None if anybody may ask.
        addresses: True if a request may be for any plain IP address.
    """

    hosts: frozenset[str] = frozenset()
    token: str | None = None
    addresses: bool = False

    def knows(self, host: str) -> bool:
        """Tell whether a Host header names this server."""
        name = _host_name(host)
        if name in self.hosts or name == "localhost" or is_loopback(name):
            return True
        return self.addresses and _address(name) is not None

    def admits(self, offered: list[str]) -> bool:
        """Tell whether one of the offered tokens is the right one, or none is needed."""
        return self.token is None or any(hmac.compare_digest(token.encode(), self.token.encode()) for token in offered)


def _host_name(host: str) -> str:
    name = host.rsplit("]", 1)[0].lstrip("[") if host.startswith("[") else host.rsplit(":", 1)[0]
    return name.rstrip(".").lower()


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback(name: str) -> bool:
    """Tell whether a host is this machine alone: ``localhost`` or a loopback address."""
    address = _address(name)
    return name == "localhost" or (address is not None and address.is_loopback)


class Guard:
    """Middleware that refuses forbidden requests and puts the headers on every response."""

    def __init__(self, app: App, rules: Rules) -> None:
        self.app: App = app
        self.rules: Rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets here

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                extra = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in present]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, guarded)
        else:
            await _send_text(guarded, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        """Return the status, message and headers for a request that is refused; None for one that is not."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if not self.rules.knows(headers.get(b"host", "")):
            return 421, "This server does not go by that name.", []
        if scope["method"] not in ("GET", "HEAD"):
            return 405, "Only GET and HEAD: nothing here changes anything.", [(b"allow", b"GET, HEAD")]
        if headers.get(b"content-length", "0") != "0" or b"transfer-encoding" in headers:
            return 413, "A question here has no body.", []
        if len(scope.get("raw_path") or b"") > LONGEST_PATH or len(scope["query_string"]) > LONGEST_QUERY:
            return 414, "That address is too long.", []
        return self._entry(scope, headers)

    def _entry(self, scope: Scope, headers: Mapping[bytes, str]) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        """Check the token: in the address once, then in a cookie; programs send it as a bearer token."""
        if self.rules.token is None:
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if self.rules.admits(query.pop("token", [])):
            rest = urlencode(query, doseq=True)
            target = scope.get("raw_path", b"/").decode("latin-1") + (f"?{rest}" if rest else "")
            cookie = f"{COOKIE}={self.rules.token}; HttpOnly; SameSite=Strict; Path=/"
            # One slash only: two would lead to another host.
            location = "/" + target.lstrip("/")
            return 303, "Welcome.", [(b"location", location.encode("latin-1")), (b"set-cookie", cookie.encode())]
        if self.rules.admits([_cookie(headers.get(b"cookie", "")), _bearer(headers.get(b"authorization", ""))]):
            return None
        return 401, "This server asks for its token: open the address that it printed when it was started.", []


def _cookie(header: str) -> str:
    try:
        cookie = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return cookie.value if cookie else ""


def _bearer(header: str) -> str:
    scheme, _, value = header.partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


async def _send_text(send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]]) -> None:
    body = f"{text}\n".encode()
    basic = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*basic, *headers]})
    await send({"type": "http.response.body", "body": body})


HEAD_SECONDS = 10.0
"""Seconds within which the head of a request must arrive, from the start of the connection or its first byte."""


class DeadlineProtocol(H11Protocol):
    """uvicorn's protocol with a deadline for the head of every request, which neither uvicorn nor h11 has."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the deadline of the first request of a connection."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Handle some data, and start or cancel the deadline."""
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        """Start the deadline of the next request if a part of it has arrived behind the last one."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline: the connection has ended."""
        self._cancel()
        super().connection_lost(exc)

    def _expect(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # the head is complete
            self._cancel()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._close)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()
