"""A page as HTML, JSON, CSV or SVG. Everything that comes from a file is escaped by Jinja2, in every format."""

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
from zeropass.arch.spec import base_role
from zeropass.errors import BadAddress
from zeropass.records.numbers import plain
from zeropass.records.parameters import Token
from zeropass.tokens.vocabulary import LONGEST, SPACE, shown_text
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
"""Characters of a name or message that a page shows."""


@dataclass(frozen=True)
class Site:
    """Where pages are shown: ``to`` makes the address of a path of a context as the page that is made has to link it.

    It is "" for a page that is not there.

    ``live``: a server answers, so that offsets, filters and words can be asked for. ``raw`` is the address of another
    format of this very page, ``asset`` that of a file of `STATIC`.
    """

    to: Callable[[str, Context], str]
    raw: Callable[[str], str]
    asset: Callable[[str], str]
    live: bool
    contexts: Sequence[Context] = field(default=())

    def html(self, page: Page, context: Context) -> str:
        """A page as HTML."""
        return _environment().get_template(page.template).render(**self._names(context), page=page, **page.shown)

    def svg(self, page: Page, context: Context) -> str:
        """The picture of a page by itself; BadAddress if it has none."""
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
        """A page that says what went wrong.

        Of a word that is no token, ``meant`` are what may have been asked, with their addresses, ``pieces`` its tokens.
        """
        page = Page("", "error.html", title, {}, crumbs=((context.name, ""),))
        template, text = _environment().get_template("error.html"), shown_text(message, 2000)
        told = {"page": page, "status": status, "message": text, "meant": meant, "pieces": pieces, "query": query}
        return template.render(**self._names(context), **told)

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
        """`to` for templates, where a path is of the page's own context unless another is named."""
        return lambda path, other=None: self.to(path, other or context)

    def _draw(self, picture: Picture, context: Context, style: str) -> str:
        names = {"to": self._to(context), "live": self.live, "context": context, "style": Markup(style)}  # noqa: S704 - our own file
        return _environment().get_template(picture.template).render(**names, **picture.shown)


def as_json(page: Page) -> str:
    """The data of a page; numbers that JSON does not have become null."""
    data = page.data() if callable(page.data) else page.data
    try:
        return json.dumps(data, ensure_ascii=True, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(data), ensure_ascii=True, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def as_csv(page: Page) -> str:
    """The table of a page; BadAddress if it has none. What a spreadsheet would take as a formula gets a ' before it."""
    if page.table is None:
        raise BadAddress(f"{page.title} has no table.")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(page.table.columns)
    rows = page.table.rows() if callable(page.table.rows) else page.table.rows
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue().encode("utf-8", "backslashreplace").decode("utf-8")


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


@cache
def picture_style() -> tuple[str, str]:
    """The style sheet of a picture that stands alone, and its hash for a Content-Security-Policy."""
    text = (STATIC / "picture.css").read_text(encoding="utf-8")
    return text, base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "base_role": base_role,
        "shown": _shown,
        "number": plain,
        "plain": lambda text: shown_text(str(text), LONGEST_SHOWN),
    }
    made.globals |= {"at": at, "layer_path": layer_path, "token_path": token, "by": by, "version": zeropass.__version__}
    return made


def _link(to: Callable[..., str], path: str, text: object, kind: str = "") -> Markup:
    """A link to a page, or its text alone where the page is not there; ``kind`` is its class."""
    href = to(path)
    own = f' class="{escape(kind)}"' if kind else ""
    shown = escape(str(text))
    return Markup(f'<a{own} href="{escape(href)}">{shown}</a>' if href else f"<span{own}>{shown}</span>")  # noqa: S704 - every part is escaped


def _chips(to: Callable[..., str], tokens: Sequence[Token], limit: int = LONGEST) -> Markup:
    """Some tokens as a page shows them."""
    every = ["".join(_around(to(token(one.id)), one.token, limit)) for one in tokens]
    return Markup(" ".join(every))  # noqa: S704 - every part is escaped


def _chip(to: Callable[..., str], i: int, text: str, z: float | None = None, limit: int = LONGEST) -> Markup:
    """A token as a page shows it: a link to its page, a leading space pale, and z. Hundreds stand on a page."""
    begin, end = _around(to(token(i)), text, limit)
    beside = "" if z is None else f"<small>{plain(z)}</small>"
    return Markup(f"{begin}{beside}{end}")  # noqa: S704 - every part is escaped, or a number


@lru_cache(1 << 16)  # a page shows hundreds of tokens, and others show the same
def _around(href: str, text: str, limit: int) -> tuple[str, str]:
    """What stands before and behind the z of a token."""
    shown = _shown(text, limit)
    name = f"<i>{SPACE}</i>{escape(shown[1:])}" if len(shown) > 1 and shown[0] == SPACE else escape(shown)
    begin, end = (f'<a class="chip" href="{escape(href)}">', "</a>") if href else ('<span class="chip">', "</span>")
    return begin + name, end


def _shown(text: str, limit: int = LONGEST) -> str:
    """A token as a page shows it; one without text as a sign for nothing."""
    return shown_text(text, limit) or "∅"
