"""Respond to requests: a worker makes the page, which is sent as HTML, JSON, CSV or SVG."""

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
"""Seconds that a page may take, including the wait for a worker; after that the response is 503."""


@dataclass(frozen=True)
class PageRequest:
    """A request for a page, which can be sent to another process.

    Attributes:
        context: The index of the context.
        make: Called with the context and ``rest``; returns the page.
        rest: The other arguments of ``make``.
        path: The path of the address.
        query: The query of the address.
        kind: The format of the response. Without it, the result of ``make`` is returned as it is.
    """

    context: int
    make: Callable[..., Any]
    rest: tuple[Any, ...]
    path: str = "/"
    query: str = ""
    kind: str = ""


def make_page(contexts: Sequence[Context], request: PageRequest) -> Any:
    """Return the response to a page request. Both can be sent to another process."""
    context = contexts[request.context]
    page = request.make(context, *request.rest)
    if not request.kind:
        return page
    return _rendered(page, context, site_of(request.path, request.query, contexts), request.kind)


def _rendered(page: Page, context: Context, site: Site, suffix: str) -> bytes:
    renderers: dict[str, Callable[[], str]] = {
        "json": partial(as_json, page),
        "csv": partial(as_csv, page),
        "svg": partial(site.svg, page, context),
        "html": partial(site.html, page, context),
    }
    return renderers[suffix]().encode("utf-8", "backslashreplace")


class Cache:
    """A cache of the latest responses, up to ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self.size: int = size
        self._bytes = 0
        self._answers = OrderedDict[Hashable, bytes]()

    def get(self, key: Hashable) -> bytes | None:
        """Return the response to a request, or None if it is not in the cache."""
        if key in self._answers:
            self._answers.move_to_end(key)
        return self._answers.get(key)

    def put(self, key: Hashable, answer: bytes) -> None:
        """Add a response; the oldest ones make room."""
        self._bytes += len(answer) - len(self._answers.pop(key, b""))
        self._answers[key] = answer
        while self._bytes > self.size:
            self._bytes -= len(self._answers.popitem(last=False)[1])


class WorkQueue:
    """A first-in, first-out queue of page requests. ``work`` answers up to ``many`` of them at once."""

    def __init__(self, work: Callable[[PageRequest], Any], many: int) -> None:
        self._work, self._threads = work, ThreadPoolExecutor(many)

    async def ask(self, request: PageRequest) -> Any:
        """Return the response. Raise TimeoutError if that takes too long; a request that timed out is not begun."""
        async with asyncio.timeout(PAGE_SECONDS):
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._work, request)


@dataclass(frozen=True)
class Responder:
    """An object that responds to requests for the pages of one context.

    Attributes:
        number: The index of the context among those that are served.
        root: The address below which its pages are.
        stored: The queue for pages that are read.
        computed: The queue for pages that are computed, which take longer.
        cache: The responses so far, shared by all contexts.
    """

    number: int
    root: str
    stored: WorkQueue
    computed: WorkQueue
    cache: Cache

    async def answer(self, request: Request, make: Callable[..., Page], *rest: Any, computed: bool = False) -> Response:
        """Return the page that ``make`` makes of the context and the rest, in the requested format."""
        suffix, url = wanted(request), request.url
        key = url.path, url.query, suffix
        body = self.cache.get(key)
        if body is None:
            page_request = PageRequest(
                context=self.number, make=make, rest=rest, path=url.path, query=url.query, kind=suffix
            )
            body = bytes(await (self.computed if computed else self.stored).ask(page_request))
            self.cache.put(key, body)
        return respond(body, suffix)

    async def look_up(self, function: Callable[..., Any], *rest: Any) -> Any:
        """Return the value of a function of the context."""
        return await self.stored.ask(PageRequest(self.number, function, rest))


def respond(body: bytes, kind: str, status: int = 200) -> Response:
    """Return a response in its format. A picture brings a policy that allows only its own style sheet."""
    headers = {"vary": "accept"}
    if kind == "svg":
        headers["content-security-policy"] = CSP.replace("style-src 'self'", f"style-src 'sha256-{picture_style()[1]}'")
    return Response(body, status, headers, media_type=FORMATS[kind])


def wanted(request: Request) -> str:
    """Return the format of a response: the suffix of the address, or else the first known type in ``Accept``."""
    if suffix := request.scope.get("zeropass.format"):
        return str(suffix)
    accepted = request.headers.get("accept", "").split(",")
    suffixes = {media_type.partition(";")[0]: suffix for suffix, media_type in FORMATS.items()}
    return next((suffixes[name] for part in accepted if (name := part.partition(";")[0].strip()) in suffixes), "html")


def site_of(path: str, query: str, contexts: Sequence[Context]) -> Site:
    """Return how a page of the server links others. Its own address is ``path?query``."""
    query_text = f"?{query}" if query else ""

    def raw(suffix: str) -> str:
        return f"{path}index.{suffix}{query_text}" if path.endswith("/") else f"{path}.{suffix}{query_text}"

    return Site(lambda to, context: f"/{context.prefix}{to}", raw, asset, live=True, contexts=contexts)


def asset(name: str) -> str:
    """Return the address of a file of `STATIC`, which changes whenever the file changes."""
    return f"/static/{name}?v={_VERSIONS.get(name, '')}"


_VERSIONS = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:10] for path in STATIC.iterdir()}
