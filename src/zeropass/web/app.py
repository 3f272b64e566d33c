"""The application and its server, with limits on how many pages are made at once and how long (FastAPI, uvicorn)."""

import gc
import json
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from urllib.parse import urlencode

from zeropass.atlas.parquet_rows import rows_of
from zeropass.errors import BadAddress, BadOption, MissingExtra, UnknownWord, ZeropassError
from zeropass.records.parameters import Token
from zeropass.web.context import Context
from zeropass.web.pages import model_pages, word_pages
from zeropass.web.workers import Work, forked

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import RedirectResponse, Response
    from fastapi.staticfiles import StaticFiles
    from starlette.exceptions import HTTPException
    from threadpoolctl import threadpool_limits

    from zeropass.web.formats import STATIC
    from zeropass.web.responder import Cache, Responder, WorkQueue, asset, make_page, respond, site_of, wanted
    from zeropass.web.routes import Suffixes, router
    from zeropass.web.security import App, DeadlineProtocol, Guard, Rules, is_loopback
except ImportError as error:
    raise MissingExtra("The explorer needs an extra: pip install 'zeropass[web]'.") from error

__all__ = ["application", "serve"]

CONNECTIONS = 128
"""Connections at once; more are answered 503."""

KEEP_ALIVE = 10
"""Seconds that a connection is kept on which nothing more is asked."""

STATUS: tuple[tuple[type[ZeropassError], int], ...] = ((BadAddress, 404), (UnknownWord, 404), (BadOption, 400))
"""What the reader's mistakes are answered with; any other error of zeropass is 500, a damaged atlas for instance."""

KEPT = 64_000_000
"""Bytes of answers that are kept."""

Makers = tuple[tuple[Work, int], tuple[Work, int]]
"""What makes the pages that are stored, and how many at once; and the same of those that are computed."""

TITLES = {400: "That cannot be asked", 404: "Not found", 405: "Only GET", 503: "Too busy", 500: "That went wrong"}


def application(contexts: Sequence[Context], rules: Rules = Rules(), makers: Makers | None = None) -> App:  # noqa: B008 - frozen
    """The whole as an ASGI application. Without ``makers`` the pages are made in threads of this process."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    cores = os.cpu_count() or 2
    work = partial(make_page, contexts)
    stored, computed = makers or ((work, 2 * cores), (work, cores))
    lines = WorkQueue(*stored), WorkQueue(*computed)
    cache = Cache(KEPT)

    @app.get("/favicon.ico")
    async def icon() -> Response:  # what browsers ask for beside a picture by itself
        return RedirectResponse(asset("icon.svg"), 308)

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    by_prefix = sorted(enumerate(contexts), key=lambda numbered: -len(numbered[1].prefix))
    for number, context in by_prefix:  # the one without a prefix last: its routes would take the others' addresses
        root = f"/{context.prefix}".rstrip("/")
        app.include_router(router(Responder(number, root, *lines, cache)), prefix=root)
    _handle_errors(app, contexts)
    return Guard(Suffixes(app), rules)  # type: ignore[arg-type]


def _meant(request: Request, unknown: UnknownWord) -> dict[str, str]:
    """What a question may have meant where a word of it is no token: in words, and the address that asks it."""
    found = {}
    for one in unknown.suggestions:
        asked = {name: one if value == unknown.text else value for name, value in request.query_params.items()}
        if "q" in asked:
            asked["q"] = word_pages.replaced(request.query_params["q"], unknown.text, one)
        found[asked.get("q", one)] = f"{request.url.path}?{urlencode(asked)}"
    return found


def _handle_errors(app: FastAPI, contexts: Sequence[Context]) -> None:
    def fail(
        request: Request,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        unknown: UnknownWord | None = None,
    ) -> Response:
        context = next((b for b in contexts if b.prefix and request.url.path.startswith(f"/{b.prefix}")), contexts[0])
        title, query = TITLES.get(status, "That did not work"), request.query_params.get("q", "")
        meant = _meant(request, unknown) if unknown else {}
        pieces = [Token(i, context.atlas.vocab.label(i)) for i in (unknown.pieces if unknown else ())]
        if wanted(request) == "html":
            site = site_of(request.url.path, request.url.query, contexts)
            text = site.error(status, title, message, context, meant, pieces, query if query.isprintable() else "")
            answer = respond(text.encode("utf-8", "backslashreplace"), "html", status)
        else:
            told = {"status": status, "error": message}
            told |= {"meant": list(meant), "pieces": [asdict(one) for one in pieces]} if unknown else {}
            answer = respond(json.dumps(told).encode(), "json", status)
        answer.headers.update(headers or {})
        return answer

    @app.exception_handler(ZeropassError)
    async def ours(request: Request, error: ZeropassError) -> Response:
        status = next((code for kind, code in STATUS if isinstance(error, kind)), 500)
        return fail(request, status, str(error), unknown=error if isinstance(error, UnknownWord) else None)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        what = "; ".join(f"{'.'.join(str(p) for p in e['loc'][1:])}: {e['msg']}" for e in error.errors())
        return fail(request, 400, f"{what}.")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        message = "There is no such page." if error.status_code == 404 else str(error.detail)
        return fail(request, error.status_code, message, error.headers)

    async def busy(request: Request, error: Exception) -> Response:  # noqa: ARG001
        return fail(request, 503, "Too much is being computed just now; try again in a moment.", {"retry-after": "5"})

    app.add_exception_handler(TimeoutError, busy)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:  # noqa: ARG001
        # Whatever a damaged file can do: the reader gets a page, and uvicorn prints the traceback for the owner.
        return fail(request, 500, "This page could not be made; the server's terminal says why.")


def serve(
    contexts: Sequence[Context],
    host: str = "127.0.0.1",
    port: int = 8765,
    names: Sequence[str] = (),
    say: Callable[[str], None] = print,
    processes: int = 1,
) -> None:
    """Serve until Ctrl-C. This process answers; so many others make the pages (threads, where the system cannot fork).

    On another host than loopback whoever asks needs a token, which is part of what is said.
    names: further names that the server goes by. Raises BadOption for a host or port that cannot be used.
    """
    open_to_all = not is_loopback(host)
    token = secrets.token_urlsafe(24) if open_to_all else None
    rules = Rules(frozenset(name.lower() for name in (host, *names)), token, addresses=open_to_all)
    with bound_socket(host, port) as bound:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{bound.getsockname()[1]}/"
        say(address + (f"?token={token}" if token else ""))
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # for torch, which is not loaded yet: pages share the cores
        with _makers(contexts, processes, bound) as makers, suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
            uvicorn.Server(_config(application(contexts, rules, makers))).run(sockets=[bound])


@contextmanager
def _makers(contexts: Sequence[Context], processes: int, bound: socket.socket) -> Iterator[Makers]:
    work = partial(make_page, contexts)
    if not hasattr(os, "fork"):
        threading.Thread(target=warm, args=(contexts,), daemon=True).start()
        yield (work, processes), (work, processes)
        return

    def prepare() -> None:
        bound.close()  # it is the parent's: nobody listens when that is gone
        for context in contexts:
            context.atlas.reconnect()
        threading.Thread(target=warm, args=(contexts,), daemon=True).start()

    with forked(processes, 2, work, prepare) as (stored, computed):
        yield (stored, processes), (computed, processes)


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=2,
        http=DeadlineProtocol,
        ws="none",
        h11_max_incomplete_event_size=16_384,
    )


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket bound to a host and port; BadOption, with the reason, where that is not possible."""
    bound = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # asyncio sends small packets at once only on sockets that say they are TCP; else an answer may wait 40 ms.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(CONNECTIONS)
    except (OSError, OverflowError, UnicodeError) as error:
        if bound is not None:
            bound.close()
        reason = getattr(error, "strerror", None) or error
        raise BadOption(f"--host {host} --port {port} cannot be used ({reason}); give another.") from error
    return bound


def warm(contexts: Sequence[Context]) -> None:
    """Read what the first pages need while the reader's browser opens; one page takes one core from here on."""
    threadpool_limits(1)
    for context in contexts:
        try:
            context.atlas.keep_index(rows_of)
            model_pages.model(context)
            model_pages.tokens(context)
        except ZeropassError:  # a damaged atlas says so on its pages
            continue
    gc.collect()
    gc.freeze()  # what is kept for good is not looked through again: that took up to 70 ms of a page
