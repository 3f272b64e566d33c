"""An alignment as text for a terminal, with the words of its matches, and its layer maps as one picture."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.align.results import Alignment, Matches
from zeropass.records.parameters import Record
from zeropass.render.heat_map import Panel, heat_maps
from zeropass.render.terminal import ROLE_STYLE, lists_in_short

__all__ = ["draw_layer_maps", "layers_in_short", "render_alignment", "render_matches"]


def render_matches(found: Matches, query: Sequence[Record], records: Sequence[Sequence[Record]]) -> RenderableType:
    """The best matches of one address, best first, with words, and what searching that much finds by chance.

    query: the records of the address; records: those of each match.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    longest = max(len(address) for address in (found.query, *(one.address for one in found.matches)))
    table.add_column("", no_wrap=True, min_width=longest)
    table.add_column("score", justify="right", no_wrap=True, min_width=5)
    table.add_column("effect", justify="right", no_wrap=True, min_width=6)
    shown = lists_in_short(query)
    for role in shown:
        table.add_column(role)
    table.add_row(Text(found.query, style="bold"), "", "", *shown.values())
    for match, own in zip(found.matches, records, strict=True):
        words = lists_in_short(own).values()
        table.add_row(Text(match.address, style=ROLE_STYLE), f"{match.score:.3f}", f"{match.effect:.1f}", *words)
    best = found.matches[0]
    chance = f"chance: the best score with shuffled tokens is {best.null_mean:.3f} (± {best.null_std:.3f})"
    return Group(table, Text(chance, style="dim"))


def render_alignment(found: Alignment) -> RenderableType:
    """Layer maps as assignments, then how many neurons and heads have a match above chance."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("role", "frame", "score", "chance"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("score", "chance") else "left")
    table.add_column("layers of A go to layers of B")
    for one in found.layers:
        scores = [one.scores[a][b] for a, b in enumerate(one.assigned) if b >= 0]
        chance = "" if one.null is None else f"{one.null:.3f}"
        score = f"{sum(scores) / len(scores):.3f}"
        table.add_row(Text(one.role, style=ROLE_STYLE), one.frame, score, chance, layers_in_short(one.assigned))
    lines = [
        Text(
            f"{kind}s: {c['all']:,}; {c['above_chance']:,} have a match above chance (5% false discoveries), "
            f"{c['mutual']:,} are each other's best; mean score {c['mean_score']:.3f}, by chance {c['mean_chance']:.3f}"
        )
        for kind, c in found.summary()["matches"].items()
    ]
    shares = " and ".join(f"{share:.0%}" for share in found.method["shares"])
    shared = Text(f"{found.method['shared_tokens']:,} tokens are shared: {shares} of the vocabularies", style="dim")
    return Group(shared, table, *lines)


def draw_layer_maps(found: Alignment) -> str:
    """Draw all layer maps as one SVG (the figure of Dar et al. 2023, §4.3).

    Roles go down, frames across; in each panel layers of A go down, those of B across, and what is assigned is marked.
    """
    first, second = (str(model.get("name", "?")) for model in found.models)
    panels = [Panel(row=m.role, column=m.frame, values=m.scores, marked=m.assigned) for m in found.layers]
    return heat_maps(f"Layers of {first} (down) and of {second} (across)", panels)


def layers_in_short(assigned: Sequence[int]) -> str:
    """The layers that those of A go to, in order; what runs along with A is shortened: ``0–29``."""
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
