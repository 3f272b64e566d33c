"""The application and its server (FastAPI, uvicorn), with limits on the number of simultaneous pages and their time."""

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
except ImportError as _error:
    raise MissingExtra("The explorer needs an extra: pip install 'zeropass[web]'.") from _error

__all__ = ["application", "serve"]

CONNECTIONS = 128
"""The number of simultaneous connections; further ones are answered 503."""

KEEP_ALIVE = 10
"""Seconds for which an idle connection is kept."""

STATUS: tuple[tuple[type[ZeropassError], int], ...] = ((BadAddress, 404), (UnknownWord, 404), (BadOption, 400))
"""The status codes for mistakes of the reader; any other error of zeropass, such as a damaged atlas, is 500."""

CACHE_BYTES = 64_000_000
"""The size of the cache of answers."""

Makers = tuple[tuple[Work, int], tuple[Work, int]]
"""The functions that make stored and computed pages, each with the number of pages that it makes at once."""

TITLES = {400: "That cannot be asked", 404: "Not found", 405: "Only GET", 503: "Too busy", 500: "That went wrong"}


def application(contexts: Sequence[Context], rules: Rules = Rules(), makers: Makers | None = None) -> App:  # noqa: B008 - frozen
    """Return the ASGI application that serves some contexts.

    Args:
        contexts: The contexts to serve. Each has its own prefix.
        rules: Who may send requests.
        makers: The functions that make the pages. Without them, threads of this process do.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    cores = os.cpu_count() or 2
    work = partial(make_page, contexts)
    stored, computed = makers or ((work, 2 * cores), (work, cores))
    stored_queue, computed_queue, cache = WorkQueue(*stored), WorkQueue(*computed), Cache(CACHE_BYTES)

    @app.get("/favicon.ico")
    async def icon() -> Response:  # browsers request it for a picture that is opened alone
        return RedirectResponse(asset("icon.svg"), 308)

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    by_prefix = sorted(enumerate(contexts), key=lambda entry: -len(entry[1].prefix))
    for number, context in by_prefix:  # the empty prefix last: its routes would match all addresses
        root = f"/{context.prefix}".rstrip("/")
        responder = Responder(number=number, root=root, stored=stored_queue, computed=computed_queue, cache=cache)
        app.include_router(router(responder), prefix=root)
    _handle_errors(app, contexts)
    return Guard(Suffixes(app), rules)  # type: ignore[arg-type]


def _meant(request: Request, unknown: UnknownWord) -> dict[str, str]:
    """Return the queries that a reader may have meant by one with an unknown word, each with its address."""
    queries = {}
    for suggestion in unknown.suggestions:
        parameters = {
            name: suggestion if value == unknown.text else value for name, value in request.query_params.items()
        }
        if "q" in parameters:
            parameters["q"] = word_pages.replaced(request.query_params["q"], unknown.text, suggestion)
        queries[parameters.get("q", suggestion)] = f"{request.url.path}?{urlencode(parameters)}"
    return queries


def _handle_errors(app: FastAPI, contexts: Sequence[Context]) -> None:
    def fail(
        request: Request,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        unknown: UnknownWord | None = None,
    ) -> Response:
        context = next((c for c in contexts if c.prefix and request.url.path.startswith(f"/{c.prefix}")), contexts[0])
        title, query = TITLES.get(status, "That did not work"), request.query_params.get("q", "")
        meant = _meant(request, unknown) if unknown else {}
        pieces = [Token(i, context.atlas.vocab.label(i)) for i in (unknown.pieces if unknown else ())]
        if wanted(request) == "html":
            site = site_of(request.url.path, request.url.query, contexts)
            text = site.error(status, title, message, context, meant, pieces, query if query.isprintable() else "")
            answer = respond(text.encode("utf-8", "backslashreplace"), "html", status)
        else:
            body = {"status": status, "error": message}
            body |= {"meant": list(meant), "pieces": [asdict(piece) for piece in pieces]} if unknown else {}
            answer = respond(json.dumps(body).encode(), "json", status)
        answer.headers.update(headers or {})
        return answer

    @app.exception_handler(ZeropassError)
    async def known(request: Request, error: ZeropassError) -> Response:
        status = next((code for error_class, code in STATUS if isinstance(error, error_class)), 500)
        return fail(request, status, str(error), unknown=error if isinstance(error, UnknownWord) else None)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = "; ".join(f"{'.'.join(str(p) for p in e['loc'][1:])}: {e['msg']}" for e in error.errors())
        return fail(request, 400, f"{faults}.")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        message = "There is no such page." if error.status_code == 404 else str(error.detail)
        return fail(request, error.status_code, message, error.headers)

    async def busy(request: Request, error: Exception) -> Response:  # noqa: ARG001
        return fail(request, 503, "Too much is being computed just now; try again in a moment.", {"retry-after": "5"})

    app.add_exception_handler(TimeoutError, busy)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:  # noqa: ARG001
        # A damaged file can cause any exception: the reader gets a page, and uvicorn prints the traceback.
        return fail(request, 500, "This page could not be made; the server's terminal says why.")


def serve(
    contexts: Sequence[Context],
    host: str = "127.0.0.1",
    port: int = 8765,
    names: Sequence[str] = (),
    say: Callable[[str], None] = print,
    processes: int = 1,
) -> None:
    """Serve some contexts until Ctrl-C. This process answers requests; other processes make the pages.

    Where the system cannot fork, threads make the pages. On a host other than loopback, clients need a token, which is
    part of the address that is printed.

    Args:
        contexts: The contexts to serve.
        host: The host name or address to bind to.
        port: The port to bind to; 0 for any that is free.
        names: Further host names of the server.
        say: Called with the address of the server.
        processes: The number of processes that make pages.

    Raises:
        BadOption: If the host or port cannot be used.
    """
    open_to_all = not is_loopback(host)
    token = secrets.token_urlsafe(24) if open_to_all else None
    rules = Rules(frozenset(name.lower() for name in (host, *names)), token, addresses=open_to_all)
    with bound_socket(host, port) as server_socket:
        host_text = f"[{host}]" if ":" in host else host
        address = f"http://{host_text}:{server_socket.getsockname()[1]}/"
        say(address + (f"?token={token}" if token else ""))
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is loaded: pages share the cores
        with _makers(contexts, processes, server_socket) as makers, suppress(KeyboardInterrupt):  # Ctrl-C ends it
            uvicorn.Server(_config(application(contexts, rules, makers))).run(sockets=[server_socket])


@contextmanager
def _makers(contexts: Sequence[Context], processes: int, server_socket: socket.socket) -> Iterator[Makers]:
    work = partial(make_page, contexts)
    if not hasattr(os, "fork"):
        threading.Thread(target=warm, args=(contexts,), daemon=True).start()
        yield (work, processes), (work, processes)
        return

    def prepare() -> None:
        server_socket.close()  # only the parent may hold it, or the port would stay open when the parent is gone
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
    """Return a socket bound to a host and port. Raise BadOption, with the reason, if that is impossible."""
    server_socket = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # asyncio sends small packets at once only on sockets declared as TCP; otherwise an answer may wait 40 ms.
        server_socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server_socket.bind(address)
        server_socket.listen(CONNECTIONS)
    except (OSError, OverflowError, UnicodeError) as error:
        if server_socket is not None:
            server_socket.close()
        reason = getattr(error, "strerror", None) or error
        raise BadOption(f"--host {host} --port {port} cannot be used ({reason}); give another.") from error
    return server_socket


def warm(contexts: Sequence[Context]) -> None:
    """Load what the first pages need while the reader's browser opens, and limit each page to one core from then on."""
    threadpool_limits(1)
    for context in contexts:
        try:
            context.atlas.keep_index(rows_of)
            model_pages.model(context)
            model_pages.tokens(context)
        except ZeropassError:  # a damaged atlas says so on its pages
            continue
    gc.collect()
    gc.freeze()  # scanning these permanent objects again took up to 70 ms of a page
