"""The glossary of the documentation as a page. Its one text is docs/glossary.md, which the package ships by a link."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from zeropass.web.context import Context
from zeropass.web.pages.page import Page

__all__ = ["Term", "glossary", "read_glossary"]

TEXT = Path(__file__).parent.parent / "glossary.md"


@dataclass(frozen=True)
class Term:
    """A term of the glossary.

    Attributes:
        section: The heading that it stands under.
        term: The term.
        anchor: Its anchor on the page, which is also the one in the documentation.
        text: Its explanation in Markdown.
    """

    section: str
    term: str
    anchor: str
    text: str


def glossary(context: Context) -> Page:
    """Return the page that explains the terms."""
    terms, html = read_glossary()
    crumbs = ((context.name, ""), ("How to read this", "help"))
    return Page(
        path="glossary",
        template="glossary.html",
        title="Glossary",
        data=[asdict(term) for term in terms],
        shown={"html": html},
        crumbs=crumbs,
    )


@cache
def read_glossary() -> tuple[list[Term], Markup]:
    """Return the terms of the glossary, and its text as HTML without the title, which each page has of its own."""
    text = TEXT.read_text(encoding="utf-8")
    parser = MarkdownIt("commonmark", {"html": False})
    title_length = 3  # the tokens that open a heading, hold its text and close it
    tokens = parser.parse(text)[title_length:]
    for heading, content in _headings(tokens):
        heading.attrSet("id", _anchor(content.content))
    for token in tokens:
        token.children = _without_files(token.children or [])
    return list(_terms(tokens, text.splitlines())), Markup(parser.renderer.render(tokens, parser.options, {}))  # noqa: S704 - our own file, whose HTML is escaped


def _headings(tokens: Sequence[Token]) -> Iterator[tuple[Token, Token]]:
    """Yield what opens each heading, and what holds its text."""
    return ((token, tokens[n + 1]) for n, token in enumerate(tokens) if token.type == "heading_open")


def _anchor(heading: str) -> str:
    """Return the anchor that hosts of Markdown give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _without_files(tokens: Sequence[Token]) -> list[Token]:
    """Return the tokens of a paragraph without its links to other files, which are not shipped; their text stays."""
    kept, inside = [], False
    for token in tokens:
        if token.type == "link_open":
            inside = not str(token.attrGet("href")).startswith("#")
        if not (inside and token.type in ("link_open", "link_close")):
            kept.append(token)
    return kept


def _terms(tokens: Sequence[Token], lines: Sequence[str]) -> Iterator[Term]:
    headings = list(_headings(tokens))
    starts = [heading.map[0] for heading, _ in headings if heading.map]
    section = ""
    for (heading, content), start, stop in zip(headings, starts, [*starts[1:], len(lines)], strict=True):
        if heading.tag == "h2":
            section = content.content
        else:
            text = "\n".join(lines[start + 1 : stop]).strip()
            yield Term(section=section, term=content.content, anchor=str(heading.attrGet("id")), text=text)
