"""Takes a question, has its page made by whoever makes pages, and gives the answer: as HTML, JSON, CSV or SVG."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from zeropass.web.context import Context
from zeropass.web.formats import FORMATS, STATIC, Site, as_csv, as_json, picture_style
from zeropass.web.pages.page import Page
from zeropass.web.security import CSP

__all__ = [
    "PAGE_SECONDS",
    "Cache",
    "PageRequest",
    "Responder",
    "WorkQueue",
    "asset",
    "make_page",
    "respond",
    "site_of",
    "wanted",
]

PAGE_SECONDS = 30.0
"""Seconds that a page may take, waiting included; then the answer is 503."""


@dataclass(frozen=True)
class PageRequest:
    """A page that is asked for: ``make`` is called with the ``context``-th context and the rest.

    Without a format (``kind``) the answer is what ``make`` returns, else its page, rendered for the address.
    """

    context: int
    make: Callable[..., Any]
    rest: tuple[Any, ...]
    path: str = "/"
    query: str = ""
    kind: str = ""


def make_page(contexts: Sequence[Context], request: PageRequest) -> Any:
    """Return what a request asks of these contexts. Both can be sent to another process."""
    context = contexts[request.context]
    page = request.make(context, *request.rest)
    if not request.kind:
        return page
    return _rendered(page, context, site_of(request.path, request.query, contexts), request.kind)


def _rendered(page: Page, context: Context, site: Site, kind: str) -> bytes:
    ways: dict[str, Callable[[], str]] = {
        "json": partial(as_json, page),
        "csv": partial(as_csv, page),
        "svg": partial(site.svg, page, context),
        "html": partial(site.html, page, context),
    }
    return ways[kind]().encode("utf-8", "backslashreplace")


class Cache:
    """Keeps the answers that were given last, up to so many bytes of them."""

    def __init__(self, size: int) -> None:
        self.size, self._held = size, 0
        self._kept = OrderedDict[Hashable, bytes]()

    def get(self, key: Hashable) -> bytes | None:
        """The answer to a question, if it is there."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Hashable, answer: bytes) -> None:
        """Keep an answer; the oldest give way."""
        self._held += len(answer) - len(self._kept.pop(key, b""))
        self._kept[key] = answer
        while self._held > self.size:
            self._held -= len(self._kept.popitem(last=False)[1])


class WorkQueue:
    """A queue of page requests, first come first: ``work`` answers so many (``many``) at once."""

    def __init__(self, work: Callable[[PageRequest], Any], many: int) -> None:
        self._work, self._threads = work, ThreadPoolExecutor(many)

    async def ask(self, request: PageRequest) -> Any:
        """Return the answer; TimeoutError if that takes too long. A request that nobody waits for is not begun."""
        async with asyncio.timeout(PAGE_SECONDS):
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._work, request)


@dataclass(frozen=True)
class Responder:
    """Answers questions about one context, the ``number``-th of those that are served, whose pages are below ``root``.

    ``stored`` is the queue for pages that are read, ``computed`` for those that are computed, which take longer.
    """

    number: int
    root: str
    stored: WorkQueue
    computed: WorkQueue
    cache: Cache

    async def answer(self, request: Request, make: Callable[..., Page], *rest: Any, computed: bool = False) -> Response:
        """The page that ``make`` makes of the context and the rest, in the format that is asked for."""
        kind, url = wanted(request), request.url
        key = url.path, url.query, kind
        body = self.cache.get(key)
        if body is None:
            page_request = PageRequest(self.number, make, rest, url.path, url.query, kind)
            body = bytes(await (self.computed if computed else self.stored).ask(page_request))
            self.cache.put(key, body)
        return respond(body, kind)

    async def look_up(self, function: Callable[..., Any], *rest: Any) -> Any:
        """What a function says of the context."""
        return await self.stored.ask(PageRequest(self.number, function, rest))


def respond(body: bytes, kind: str, status: int = 200) -> Response:
    """An answer in its format; a picture brings the one style sheet that it may have."""
    headers = {"vary": "accept"}
    if kind == "svg":
        headers["content-security-policy"] = CSP.replace("style-src 'self'", f"style-src 'sha256-{picture_style()[1]}'")
    return Response(body, status, headers, media_type=FORMATS[kind])


def wanted(request: Request) -> str:
    """The format of an answer: what the address ends in, or else what is accepted first."""
    if kind := request.scope.get("zeropass.format"):
        return str(kind)
    accepted = request.headers.get("accept", "").split(",")
    types = {value.partition(";")[0]: kind for kind, value in FORMATS.items()}
    return next((types[one] for part in accepted if (one := part.partition(";")[0].strip()) in types), "html")


def site_of(path: str, query: str, contexts: Sequence[Context]) -> Site:
    """How a page of the server links others; its own address is ``path?query``."""
    behind = f"?{query}" if query else ""

    def raw(kind: str) -> str:
        return f"{path}index.{kind}{behind}" if path.endswith("/") else f"{path}.{kind}{behind}"

    return Site(lambda to, context: f"/{context.prefix}{to}", raw, asset, live=True, contexts=contexts)


def asset(name: str) -> str:
    """The address of a file of `STATIC`, another one whenever the file is another."""
    return f"/static/{name}?v={_VERSIONS.get(name, '')}"


_VERSIONS = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:10] for path in STATIC.iterdir()}
