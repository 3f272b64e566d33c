"""The formats of a page: HTML, JSON, CSV and SVG. Jinja2 escapes everything that comes from a file, in every format."""

import base64
import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import zeropass
from zeropass.arch.roles import base_role
from zeropass.errors import BadAddress
from zeropass.records.numbers import coefficient, plain
from zeropass.records.parameters import Token
from zeropass.tokens.shown import LONGEST, SPACE, shown_text
from zeropass.web.context import Context
from zeropass.web.pages.page import Page, Picture, at, by, layer_path, token

__all__ = ["FORMATS", "STATIC", "Site", "as_csv", "as_json", "picture_style"]

HERE = Path(__file__).parent
STATIC = HERE / "static"
FORMATS = {
    "html": "text/html; charset=utf-8",
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "svg": "image/svg+xml; charset=utf-8",
}
LONGEST_SHOWN = 400
"""The number of characters of a name or message that a page shows."""


@dataclass(frozen=True)
class Site:
    """The place where pages are shown, which determines their links.

    Attributes:
        to: Returns the address of a path of a context, as the current page links it; "" if it is absent.
        raw: Returns the address of the current page in another format.
        asset: Returns the address of a file of `STATIC`.
        live: True if a server answers, so that offsets, filters and words can be requested.
        contexts: All contexts of the site.
    """

    to: Callable[[str, Context], str]
    raw: Callable[[str], str]
    asset: Callable[[str], str]
    live: bool
    contexts: Sequence[Context] = field(default=())

    def html(self, page: Page, context: Context) -> str:
        """Return a page as HTML."""
        return _environment().get_template(page.template).render(**self._names(context), page=page, **page.shown)

    def svg(self, page: Page, context: Context) -> str:
        """Return the picture of a page as a file of its own. Raise BadAddress if the page has none."""
        if page.picture is None:
            raise BadAddress(f"{page.title} has no picture.")
        return self._draw(page.picture, context, picture_style()[0])

    def error(
        self,
        status: int,
        title: str,
        message: str,
        context: Context,
        meant: Mapping[str, str] = MappingProxyType({}),
        pieces: Sequence[Token] = (),
        query: str = "",
    ) -> str:
        """Return a page that says what went wrong.

        Args:
            status: The status code.
            title: The title of the page.
            message: The error message.
            context: The context of the request.
            meant: Queries that the reader may have meant by one with an unknown word, with their addresses.
            pieces: The tokens of the unknown word.
            query: The query, for the search field.
        """
        page = Page(path="", template="error.html", title=title, data={}, crumbs=((context.name, ""),))
        template, text = _environment().get_template("error.html"), shown_text(message, 2000)
        values = {"page": page, "status": status, "message": text, "meant": meant, "pieces": pieces, "query": query}
        return template.render(**self._names(context), **values)

    def _names(self, context: Context) -> dict[str, Any]:
        def draw(picture: Picture | None) -> Markup:
            return Markup(self._draw(picture, context, "")) if picture else Markup("")  # noqa: S704 - escaped by Jinja2

        to = self._to(context)
        return {
            "to": to,
            "link": partial(_link, to),
            "chip": partial(_chip, to),
            "chips": partial(_chips, to),
            "raw": self.raw,
            "asset": self.asset,
            "live": self.live,
            "context": context,
            "contexts": self.contexts,
            "draw": draw,
        }

    def _to(self, context: Context) -> Callable[..., str]:
        """Return `to` for templates, where a path is of the page's own context unless another is named."""
        return lambda path, other=None: self.to(path, other or context)

    def _draw(self, picture: Picture, context: Context, style: str) -> str:
        names = {"to": self._to(context), "live": self.live, "context": context, "style": Markup(style)}  # noqa: S704 - our own file
        return _environment().get_template(picture.template).render(**names, **picture.shown)


def as_json(page: Page) -> str:
    """Return the data of a page as JSON. Numbers that JSON does not have become null."""
    data = page.data() if callable(page.data) else page.data
    try:
        return json.dumps(data, ensure_ascii=True, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(data), ensure_ascii=True, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def as_csv(page: Page) -> str:
    """Return the table of a page as CSV, with a ' before what looks like a formula. Raise BadAddress if it has none."""
    if page.table is None:
        raise BadAddress(f"{page.title} has no table.")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(page.table.columns)
    rows = page.table.rows() if callable(page.table.rows) else page.table.rows
    writer.writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue().encode("utf-8", "backslashreplace").decode("utf-8")


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


@cache
def picture_style() -> tuple[str, str]:
    """Return the style sheet of a picture that stands alone, and its hash for a Content-Security-Policy."""
    text = (STATIC / "picture.css").read_text(encoding="utf-8")
    return text, base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "base_role": base_role,
        "shown": _shown,
        "number": plain,
        "coefficient": coefficient,
        "plain": lambda text: shown_text(str(text), LONGEST_SHOWN),
    }
    environment.globals |= {
        "at": at,
        "layer_path": layer_path,
        "token_path": token,
        "by": by,
        "version": zeropass.__version__,
    }
    return environment


def _link(to: Callable[..., str], path: str, text: object, css_class: str = "") -> Markup:
    """Return a link to a page, of the class ``css_class``; its text alone if the page is absent."""
    href = to(path)
    attribute = f' class="{escape(css_class)}"' if css_class else ""
    shown = escape(str(text))
    return Markup(f'<a{attribute} href="{escape(href)}">{shown}</a>' if href else f"<span{attribute}>{shown}</span>")  # noqa: S704 - every part is escaped


def _chips(to: Callable[..., str], tokens: Sequence[Token], limit: int = LONGEST) -> Markup:
    """Return some tokens as a page shows them."""
    chips = ["".join(_around(to(token(item.id)), item.token, limit)) for item in tokens]
    return Markup(" ".join(chips))  # noqa: S704 - every part is escaped


def _chip(to: Callable[..., str], i: int, text: str, z: float | None = None, limit: int = LONGEST) -> Markup:
    """Return a token as a page shows it: a link to its page, a leading space pale, and z."""
    begin, end = _around(to(token(i)), text, limit)
    z_text = "" if z is None else f"<small>{plain(z)}</small>"
    return Markup(f"{begin}{z_text}{end}")  # noqa: S704 - every part is escaped, or a number


@lru_cache(1 << 16)  # a page shows hundreds of tokens, and other pages repeat them
def _around(href: str, text: str, limit: int) -> tuple[str, str]:
    """Return the HTML before and after the z of a token."""
    shown = _shown(text, limit)
    name = f"<i>{SPACE}</i>{escape(shown[1:])}" if len(shown) > 1 and shown[0] == SPACE else escape(shown)
    begin, end = (f'<a class="chip" href="{escape(href)}">', "</a>") if href else ('<span class="chip">', "</span>")
    return begin + name, end


def _shown(text: str, limit: int = LONGEST) -> str:
    """Return a token as a page shows it; the empty token as ∅."""
    return shown_text(text, limit) or "∅"
