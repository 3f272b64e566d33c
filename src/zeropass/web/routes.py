"""The routes: the page for each address, and the limits of what a request may hold."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from zeropass.errors import BadOption
from zeropass.tokens.shown import View
from zeropass.web.context import Context
from zeropass.web.formats import FORMATS
from zeropass.web.pages import comparison_pages, glossary_page, model_pages, parameter_pages, word_pages
from zeropass.web.pages.page import Page
from zeropass.web.pages.parameter_pages import Asked
from zeropass.web.responder import Responder, wanted
from zeropass.web.security import App, Receive, Scope, Send

__all__ = ["Suffixes", "router"]

Short = Annotated[str, Query(max_length=100)]
Count = Annotated[int, Query(ge=1, le=500)]


class Suffixes:
    """Middleware that moves a suffix such as ``.json`` from the path to the scope, out of the way of the routes."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request without its suffix, and HEAD as GET, whose body the server leaves out."""
        if scope["type"] == "http":
            scope = {**scope, "method": "GET"}
            stem, dot, suffix = scope["path"].rpartition(".")
            if dot and suffix in FORMATS and not stem.startswith("/static/"):
                stem = stem[: -len("index")] if stem.endswith("/index") else stem
                scope |= {"path": stem, "raw_path": stem.encode(), "zeropass.format": suffix}
        await self.app(scope, receive, send)


def router(responder: Responder) -> APIRouter:
    """Return the routes of all pages of a context."""
    routes = APIRouter()

    @routes.get("/")
    async def model(request: Request) -> Response:
        return await responder.answer(request, model_pages.model)

    @routes.get("/by/{measure}/{kind}")
    async def model_by(request: Request, measure: str, kind: str) -> Response:
        return await responder.answer(request, model_pages.model, measure, kind)

    @routes.get("/layer/{number}")
    @routes.get("/layer/{number}/{page}")
    async def layer(request: Request, number: int, page: int = 1) -> Response:
        return await responder.answer(request, model_pages.layer, number, page)

    @routes.get("/outside")
    async def outside(request: Request) -> Response:
        return await responder.answer(request, model_pages.outside)

    @routes.get("/heads")
    @routes.get("/heads/{trait}")
    async def heads(request: Request, trait: str = "") -> Response:
        return await responder.answer(request, model_pages.heads, trait)

    @routes.get("/tokens")
    @routes.get("/tokens/{page}")
    async def tokens(request: Request, page: int = 1) -> Response:
        return await responder.answer(request, model_pages.tokens, page)

    @routes.get("/help")
    async def help_page(request: Request) -> Response:
        return await responder.answer(request, model_pages.help_page)

    @routes.get("/glossary")
    async def glossary(request: Request) -> Response:
        return await responder.answer(request, glossary_page.glossary)

    _add_parameter_routes(routes, responder)
    _add_word_routes(routes, responder)
    _add_comparison_routes(routes, responder)
    return routes


def _add_parameter_routes(routes: APIRouter, responder: Responder) -> None:
    @routes.get("/at/{address}")
    async def at(request: Request, address: str, tokens: View | None = None, k: Count | None = None) -> Response:
        computed = tokens is not None or k is not None
        return await responder.answer(request, parameter_pages.parameter, address, tokens, k, computed=computed)

    @routes.get("/map/{address}")
    async def head_map(
        request: Request,
        address: str,
        offset: Annotated[str, Query(max_length=9)] = "",
        left: Short = "",
        right: Short = "",
        k: Count = 50,
    ) -> Response:
        asked = Asked(offset=_offset(offset), left=left, right=right, k=k)
        computed = asked != Asked(k=k)
        return await responder.answer(request, parameter_pages.head_map, address, asked, computed=computed)

    @routes.get("/svd/{address}")
    async def svd(request: Request, address: str, offset: Annotated[str, Query(max_length=9)] = "") -> Response:
        return await responder.answer(request, parameter_pages.svd, address, Asked(_offset(offset)), computed=True)

    @routes.get("/subheads/{address}")
    async def subheads(request: Request, address: str) -> Response:
        return await responder.answer(request, parameter_pages.subheads, address)

    for name, make in (
        ("near", parameter_pages.surroundings),
        ("spread", parameter_pages.spread),
        ("cloud", parameter_pages.cloud),
    ):
        _add_computed_route(routes, responder, name, make)


def _add_computed_route(
    routes: APIRouter, responder: Responder, name: str, make: Callable[[Context, str], Page]
) -> None:
    @routes.get(f"/{name}/{{address}}")
    async def computed(request: Request, address: str) -> Response:
        return await responder.answer(request, make, address, computed=True)


def _offset(text: str) -> int | None:
    """Return an offset as a form sends it; an empty field means none."""
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise BadOption(f"The offset {text!r} is no distance: it is how many positions the query stands after the key.")
    return int(text)


def _add_word_routes(routes: APIRouter, responder: Responder) -> None:
    @routes.get("/token/{i}")
    async def token(request: Request, i: int) -> Response:
        return await responder.answer(request, word_pages.of_token, i)

    @routes.get("/nearest/{i}")
    async def nearest(request: Request, i: int) -> Response:
        return await responder.answer(request, word_pages.nearest, i, computed=True)

    @routes.get("/find")
    async def find(request: Request, q: Annotated[str, Query(max_length=400)] = "", k: Count = 20) -> Response:
        if wanted(request) == "html" and not request.query_params.get("all"):
            place = await responder.look_up(word_pages.goal, q)
            if place is not None:
                return RedirectResponse(f"{responder.root}/{place}", 303)
        return await responder.answer(request, word_pages.find, q, k, computed=True)


def _add_comparison_routes(routes: APIRouter, responder: Responder) -> None:
    @routes.get("/align")
    async def alignment(request: Request) -> Response:
        return await responder.answer(request, comparison_pages.alignment)

    @routes.get("/align/{number}")
    @routes.get("/align/{number}/{page}")
    async def align_layer(request: Request, number: int, page: int = 1) -> Response:
        return await responder.answer(request, comparison_pages.align_layer, number, page)

    @routes.get("/diff")
    async def difference(request: Request) -> Response:
        return await responder.answer(request, comparison_pages.difference)
