"""Render relations as text for a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.records.numbers import NOTHING, coefficient
from zeropass.records.tabular import POLES
from zeropass.relations.pair_files import shipped_sets
from zeropass.relations.results import DOES, Relation, Relations, examples, small
from zeropass.relations.token_pairs import MOST_OF_VOCABULARY, VOCABULARY_SETS
from zeropass.render.terminal import ROLE_STYLE
from zeropass.tokens.shown import shown_text

__all__ = ["render_relations", "render_sets"]

_HEADS = 5
"""The number of heads of a set and pole that are shown."""


def render_sets() -> RenderableType:
    """Return the sets that ship with the package and those that a vocabulary gives: name, number of pairs, meaning."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("set", no_wrap=True)
    table.add_column("pairs", justify="right")
    table.add_column("left and right word")
    for pair_set in shipped_sets().values():
        table.add_row(Text(pair_set.name, style="bold"), str(len(pair_set.pairs)), pair_set.about)
    for name, (about, _) in VOCABULARY_SETS.items():
        table.add_row(Text(name, style="bold"), f"≤ {MOST_OF_VOCABULARY}", f"{about}, from the vocabulary")
    return table


def render_relations(relations: Relations) -> RenderableType:
    """Return each set with the heads that beat their null, then what the numbers are."""
    parts = [part for relation in relations for part in _relation(relation)]
    return Group(*parts, *(Text(note, style="dim") for note in relations.notes))


def _relation(relation: Relation) -> Iterator[RenderableType]:
    name, about = shown_text(relation.name), shown_text(relation.about, limit=200)
    yield Text.assemble((name, "bold"), f"  {about}" if about else "")
    for note in relation.notes:
        yield Text(f"  {note}", style="dim")
    by_pole = [[score for score in relation.named if score.pole == pole] for pole in POLES]
    if not any(by_pole):
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("  head", no_wrap=True)
    table.add_column("", no_wrap=True)
    for column in ("share", "shuffled", "z", "shuffled", "copies", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("for example")
    for score in (score for pole in by_pole for score in pole[:_HEADS]):
        copies = NOTHING if score.copies is None else coefficient(score.copies)
        table.add_row(
            Text(f"  {score.address}", style=ROLE_STYLE),
            Text(DOES[score.pole], style="italic"),
            coefficient(score.share),
            coefficient(score.shuffled),
            f"{score.z:.1f}",
            f"{score.shuffled_z:.1f}",
            copies,
            small(score.p),
            examples(score),
        )
    yield table
    if more := sum(len(pole[_HEADS:]) for pole in by_pole):
        yield Text(f"  and {more} more, which --json lists", style="dim")
