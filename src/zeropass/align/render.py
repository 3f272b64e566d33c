"""Render an alignment as text for a terminal, with the words of its matches, and its layer maps as one drawing."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.align.results import Alignment, Matches, through
from zeropass.records.parameters import Record
from zeropass.render.heat_map import Panel, heat_maps
from zeropass.render.terminal import ROLE_STYLE, lists_in_short

__all__ = ["draw_layer_maps", "layers_in_short", "render_alignment", "render_matches"]


def render_matches(matches: Matches, query: Sequence[Record], records: Sequence[Sequence[Record]]) -> RenderableType:
    """Render the best matches of one address, best first, with words and with the null of the search.

    Args:
        matches: The matches.
        query: The records of the address.
        records: The records of each match.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    longest = max(len(address) for address in (matches.query, *(match.address for match in matches.matches)))
    table.add_column("", no_wrap=True, min_width=longest)
    table.add_column("score", justify="right", no_wrap=True, min_width=5)
    table.add_column("effect", justify="right", no_wrap=True, min_width=6)
    query_words = lists_in_short(query)
    for role in query_words:
        table.add_column(role)
    table.add_row(Text(matches.query, style="bold"), "", "", *query_words.values())
    for match, match_records in zip(matches.matches, records, strict=True):
        words = lists_in_short(match_records).values()
        table.add_row(Text(match.address, style=ROLE_STYLE), f"{match.score:.3f}", f"{match.effect:.1f}", *words)
    best = matches.matches[0]
    null_line = f"chance: the best score with shuffled tokens is {best.null_mean:.3f} (± {best.null_std:.3f})"
    return Group(table, Text(null_line, style="dim"), *_note(matches.lenses))


def render_alignment(alignment: Alignment) -> RenderableType:
    """Render layer maps as assignments, then the numbers of neurons and heads that have a match above chance."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("role", "frame", "score", "chance"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("score", "chance") else "left")
    table.add_column("layers of A go to layers of B")
    for layer_map in alignment.layers:
        scores = [layer_map.scores[a][b] for a, b in enumerate(layer_map.assigned) if b >= 0]
        null = "" if layer_map.null is None else f"{layer_map.null:.3f}"
        score = f"{sum(scores) / len(scores):.3f}"
        role = Text(layer_map.role, style=ROLE_STYLE)
        table.add_row(role, layer_map.frame, score, null, layers_in_short(layer_map.assigned))
    lines = [
        Text(
            f"{name}s: {c['all']:,}; {c['above_chance']:,} have a match above chance (5% false discoveries), "
            f"{c['mutual']:,} are each other's best; mean score {c['mean_score']:.3f}, by chance {c['mean_chance']:.3f}"
        )
        for name, c in alignment.summary()["matches"].items()
    ]
    shares = " and ".join(f"{share:.0%}" for share in alignment.method["shares"])
    shared = Text(f"{alignment.method['shared_tokens']:,} tokens are shared: {shares} of the vocabularies", style="dim")
    return Group(shared, table, *lines, *_note(alignment.lenses))


def _note(lenses: tuple[str, ...]) -> tuple[Text, ...]:
    """Return the line that says which lenses were used, if any."""
    return (Text(through("Lists", lenses), style="dim"),) if lenses else ()


def draw_layer_maps(alignment: Alignment) -> str:
    """Draw all layer maps as one SVG (the figure of Dar et al. 2023, §4.3).

    Roles go down and frames across. In each panel, layers of A go down and layers of B across; assigned pairs are
    marked.
    """
    first, second = (str(model.get("name", "?")) for model in alignment.models)
    panels = [Panel(row=m.role, column=m.frame, values=m.scores, marked=m.assigned) for m in alignment.layers]
    return heat_maps(f"Layers of {first} (down) and of {second} (across)", panels)


def layers_in_short(assigned: Sequence[int]) -> str:
    """Return the assigned layers in the order of A's, with runs of consecutive layers shortened: ``0–29``."""
    runs: list[list[int]] = []
    for layer in assigned:
        if runs and layer > 0 and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return " ".join(
        f"{run[0]}–{run[-1]}" if len(run) > 2 else " ".join("·" if layer < 0 else str(layer) for layer in run)
        for run in runs
    )
