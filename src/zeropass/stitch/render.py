"""A stitch as text for a terminal: what it is made of, the verdict, and what else was tried."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.stitch.results import Stitch, Try
from zeropass.tokens.vocabulary import shown_text

__all__ = ["render_classes", "render_stitch"]

LINES = 8


def render_stitch(found: Stitch) -> RenderableType:
    """One screen: the parts from input to answer, whether to believe it, the best of what was tried."""
    parts: list[RenderableType] = [*_parts(found), Text(), Text(found.verdict.text, style=_style(found))]
    parts += [Text(note, style="dim") for note in found.notes]
    if len(found.tries) > 1:
        parts += [Text(), _tries(found)]
    return Group(*parts)


def render_classes(texts: list[str], chances: list[dict[str, float]]) -> RenderableType:
    """A line for each text: the likeliest label and its probability."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for text, labels in zip(texts, chances, strict=True):
        best = max(labels, key=lambda name: labels[name])
        table.add_row(Text(shown_text(best), style="bold"), f"{labels[best]:.2f}", Text(shown_text(text, limit=100)))
    return table


def _parts(found: Stitch) -> Iterator[Text]:
    choice, own, other = found.choice, found.classifier, found.onto
    shared = f"{found.shared['tokens']:,} shared tokens"
    names = [Text(shown_text(str(one["name"])), style="bold") for one in (other, own)]
    if found.kind == "transplant":
        moved = ", ".join(f"{a} → {b}" for a, b in found.layers)
        yield Text.assemble(names[0], f": all {other['layers']} layers, with the change of ", names[1])
        yield Text(f"  layers {moved}; times {choice.strength:g}; {shared} ({choice.kernel}, {choice.frame})")
    else:
        fit = "" if choice.fit is None else f": {choice.fit:.0%} of held-out tokens arrive at themselves"
        yield Text.assemble("the first ", f"{choice.keep} of {other['layers']} layers of ", names[0])
        yield Text(f"  {shared} ({choice.kernel}, {choice.frame}){fit}")
        yield Text.assemble("the last ", f"{choice.take} of {own['layers']} layers of ", names[1], ", and its head")
    yield Text("labels " + ", ".join(shown_text(name) for name in found.labels[:LINES]), style="dim")


def _style(found: Stitch) -> str:
    return {True: "green", False: "red", None: "yellow"}[found.verdict.trusted]


def _tries(found: Stitch) -> Table:
    strength = found.kind == "transplant"
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("strength",) if strength else ("keep", "take", "kernel", "frame", "fit"):
        table.add_column(name, justify="left" if name in ("kernel", "frame") else "right")
    for name in ("expected", "agrees", "confidence", "consensus") if not strength else ("expected", "agrees"):
        table.add_column(name, justify="right")
    for one in found.tries[:LINES]:
        table.add_row(*(_transplanted(one) if strength else _tried(one)))
    return table


def _tried(one: Try) -> tuple[str, ...]:
    numbers = one.fit, one.expected, one.agreement, one.confidence, one.consensus
    return str(one.keep), str(one.take), one.kernel, one.frame, *map(_number, numbers)


def _transplanted(one: Try) -> tuple[str, ...]:
    return f"{one.strength:g}", _number(one.expected), _number(one.agreement)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
