"""The passages that a change fires on, as text for a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.diff.passages import Passages
from zeropass.records.numbers import plain

__all__ = ["render_passages"]


def render_passages(passages: Passages) -> RenderableType:
    """Return what a change fires on in a text: a sentence, and a table if there is anything."""
    summary = Text(passages.summary)
    return Group(summary, *_table(passages)) if passages.firing else summary


def _table(passages: Passages) -> Iterator[Table]:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("fires", "line"):
        table.add_column(name, justify="right")
    table.add_column("passage", ratio=1)
    table.add_column("in the text", justify="right")
    table.add_column("most in", no_wrap=True)
    for passage in passages.firing:
        before, hottest, after = passage.parts
        words = Text.assemble((before, "dim"), (f"[{hottest}]", "bold"), (after, "dim"))
        times = "once" if passage.times == 1 else f"{passage.times:,} times"
        place = f"L{passage.layer} {passage.role}"
        table.add_row(plain(passage.score), f"{passage.line:,}", words, times, Text(place, style="bold cyan"))
    yield table
