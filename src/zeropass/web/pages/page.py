"""A page is one value that becomes HTML, JSON, CSV or SVG; addresses of pages are made here and nowhere else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Page", "Picture", "Table", "at", "by", "layer_path", "token"]


@dataclass(frozen=True)
class Table:
    """What a page shows as rows: one tidy table, for CSV; or a function that makes them when they are asked for."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]] | Callable[[], Sequence[Sequence[Any]]]


@dataclass(frozen=True)
class Picture:
    """What a page shows as a picture: a template and what it draws, laid out already."""

    template: str
    shown: dict[str, Any]


@dataclass(frozen=True)
class Page:
    """One page. ``path`` is its address below the root of its context, without a suffix; the first page has none.

    ``data`` is its JSON, or a function that makes it, ``shown`` what only the template needs. ``crumbs`` lead to it,
    ``before`` and ``after`` stand beside it.
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
    """Path of a parameter."""
    return f"at/{address}"


def layer_path(layer: int, page: int = 1) -> str:
    """Path of a layer; its neurons fill several pages. What lies outside the blocks is layer -1."""
    if layer < 0:
        return "outside"
    return f"layer/{layer}" if page == 1 else f"layer/{layer}/{page}"


def token(i: int) -> str:
    """Path of a token."""
    return f"token/{i}"


def by(measure: str, side: str, frame: str) -> str:
    """Path of the map by a measure of one kind of list."""
    return f"by/{measure}/{side}-{frame}"


def count_pages(total: int, size: int) -> int:
    """How many pages of a size hold a total; one if there is nothing."""
    return max(1, -(-total // size))
