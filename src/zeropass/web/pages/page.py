"""A page is one value that becomes HTML, JSON, CSV or SVG. The addresses of pages are made here and nowhere else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Page", "Picture", "Table", "at", "by", "layer_path", "token"]


@dataclass(frozen=True)
class Table:
    """The rows of a page, as one tidy table for CSV.

    Attributes:
        columns: The names of the columns.
        rows: The rows, or a function that makes them when they are needed.
    """

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]] | Callable[[], Sequence[Sequence[Any]]]


@dataclass(frozen=True)
class Picture:
    """The picture of a page.

    Attributes:
        template: The name of its template.
        shown: What the template draws, with positions.
    """

    template: str
    shown: dict[str, Any]


@dataclass(frozen=True)
class Page:
    """A page in all its formats.

    Attributes:
        path: Its address below the root of its context, without a suffix; empty for the first page.
        template: The name of its template.
        title: Its title.
        data: Its JSON, or a function that makes it.
        shown: What only the template needs.
        table: Its rows for CSV.
        picture: Its picture.
        crumbs: The names and paths of the pages that lead to it.
        before: The path of the previous page.
        after: The path of the next page.
    """

    path: str
    template: str
    title: str
    data: Any
    shown: dict[str, Any] = field(default_factory=dict)
    table: Table | None = None
    picture: Picture | None = None
    crumbs: tuple[tuple[str, str], ...] = ()
    before: str | None = None
    after: str | None = None

    @property
    def file(self) -> str:
        """Its file in a static site, without a suffix."""
        return self.path or "index"


def at(address: object) -> str:
    """Return the path of a parameter."""
    return f"at/{address}"


def layer_path(layer: int, page: int = 1) -> str:
    """Return the path of a page of a layer, whose neurons fill several. Layer -1 is what lies outside the blocks."""
    if layer < 0:
        return "outside"
    return f"layer/{layer}" if page == 1 else f"layer/{layer}/{page}"


def token(i: int) -> str:
    """Return the path of a token."""
    return f"token/{i}"


def by(measure: str, side: str, frame: str) -> str:
    """Return the path of the model's map by a measure, for one kind of list."""
    return f"by/{measure}/{side}-{frame}"


def count_pages(total: int, size: int) -> int:
    """Return the number of pages of a size that hold a total; at least one."""
    return max(1, -(-total // size))
