"""Render a catalogue of heads as text for a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.heads.results import RARE, Head, HeadCatalogue, Trait
from zeropass.records.numbers import NOTHING, coefficient
from zeropass.tokens.shown import shown_text

__all__ = ["render_heads"]

_COLUMNS = {
    "copying": "copy z",
    "closing": "close z",
    "previous": "prev",
    "offset": "best",
    "itself": "itself",
    "same": "same",
    "first": "first",
}
"""The traits of the table, with the heads of their columns; suppression is copying below zero."""


def render_heads(catalogue: HeadCatalogue) -> RenderableType:
    """Return a row for each head, with what does not stand out dim, then what the columns mean."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("head", no_wrap=True)
    for name in ("rank", *_COLUMNS.values(), "vo", "qk"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("does")
    for head in catalogue:
        table.add_row(Text(shown_text(head.address), style="bold"), *_cells(head), Text(", ".join(head.does)))
    return Group(table, *(Text(note, style="dim") for note in _notes(catalogue)))


def _cells(head: Head) -> Iterator[Text]:
    yield Text(coefficient(head.rank), style="" if head.copying.stands_out or head.suppression.stands_out else "dim")
    for name in _COLUMNS:
        trait = head.trait(name)
        standing = trait is not None and (trait.stands_out or (name == "copying" and head.suppression.stands_out))
        words = _value(trait)
        if name == "offset" and trait is not None:
            words = f"{words} at {head.distance}"
        yield Text(words, style="" if standing else "dim")
    for share in (head.vo_own, head.qk_own):
        yield Text(f"{share:.0%}", style="dim")


def _value(trait: Trait | None) -> str:
    return NOTHING if trait is None else coefficient(trait.value)


def _notes(catalogue: HeadCatalogue) -> Iterator[str]:
    """Yield what the columns mean, and what they rest on."""
    counts = ", ".join(f"{name} {count}" for name, count in catalogue.counts().items() if count)
    yield f"stands out, in so many heads: {counts or 'nothing'}"
    yield (
        "rank, copy z: where a token stands in what the head writes when it attends to that token; close z: the same "
        "of a closing bracket for its opening one; prev, best, itself, same, first: shares of the attention that is "
        "expected in a text of unrelated tokens; vo, qk: the share of the map that copying, and attention to the same "
        "token, account for (below zero: the opposite)."
    )
    lens = f"read through a {catalogue.lens}" if catalogue.lens else "read from the weights alone"
    yield (
        f"dim: as high in more than {RARE:.1%} of {catalogue.random_heads:,} random heads; "
        f"{catalogue.tokens:,} tokens, {lens}."
    )
