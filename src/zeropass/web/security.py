"""Security of the server: who may ask what and how soon, and the headers of every answer (ASGI)."""

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
    """Who may ask: ``hosts`` are the names that a request may be for, besides those of loopback and plain addresses.

    A page elsewhere can make a browser ask us under a name of its own (DNS rebinding), which is why names are checked;
    ``token`` must be known to whoever asks, if there is one.
    """

    hosts: frozenset[str] = frozenset()
    token: str | None = None
    addresses: bool = False

    def knows(self, host: str) -> bool:
        """Whether a Host header names us."""
        name = _host_name(host)
        if name in self.hosts or name == "localhost" or is_loopback(name):
            return True
        return self.addresses and _address(name) is not None

    def admits(self, offered: list[str]) -> bool:
        """Whether one of the tokens that were offered is ours."""
        return self.token is None or any(hmac.compare_digest(one.encode(), self.token.encode()) for one in offered)


def _host_name(host: str) -> str:
    name = host.rsplit("]", 1)[0].lstrip("[") if host.startswith("[") else host.rsplit(":", 1)[0]
    return name.rstrip(".").lower()


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback(name: str) -> bool:
    """Whether a host is this machine alone: ``localhost`` or an address of loopback."""
    found = _address(name)
    return name == "localhost" or (found is not None and found.is_loopback)


class Guard:
    """Refuses what may not be asked, and puts the headers on every answer."""

    def __init__(self, app: App, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets here

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                extra = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in own]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, guarded)
        else:
            await _say(guarded, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        """Status, message and headers for a request that goes no further."""
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
        """Ask for the token: in the address once, then in a cookie; programs send it as a bearer."""
        if self.rules.token is None:
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if self.rules.admits(query.pop("token", [])):
            rest = urlencode(query, doseq=True)
            where = scope.get("raw_path", b"/").decode("latin-1") + (f"?{rest}" if rest else "")
            cookie = f"{COOKIE}={self.rules.token}; HttpOnly; SameSite=Strict; Path=/"
            # One slash: two would lead to another host.
            place = "/" + where.lstrip("/")
            return 303, "Welcome.", [(b"location", place.encode("latin-1")), (b"set-cookie", cookie.encode())]
        if self.rules.admits([_cookie(headers.get(b"cookie", "")), _bearer(headers.get(b"authorization", ""))]):
            return None
        return 401, "This server asks for its token: open the address that it printed when it was started.", []


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _bearer(header: str) -> str:
    kind, _, value = header.partition(" ")
    return value.strip() if kind.lower() == "bearer" else ""


async def _say(send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]]) -> None:
    body = f"{text}\n".encode()
    plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*plain, *headers]})
    await send({"type": "http.response.body", "body": body})


HEAD_SECONDS = 10.0
"""Seconds in which a question must have come whole, from when its connection was made or its first byte came."""


class DeadlineProtocol(H11Protocol):
    """uvicorn's protocol with a deadline for the head of every request, which neither uvicorn nor h11 has."""

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection: its first question is awaited."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """A part of a question, or a whole one."""
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        """An answer is out: a next question that had begun behind the last one is awaited like any other."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of a connection: nothing is awaited any more."""
        self._cancel()
        super().connection_lost(exc)

    def _expect(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # a whole head has come
            self._cancel()
        elif self._due is None:
            self._due = self.loop.call_later(HEAD_SECONDS, self._close)

    def _cancel(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _close(self) -> None:
        self._due = None
        if not self.transport.is_closing():
            self.transport.close()
