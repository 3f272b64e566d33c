"""Render a stitch as text for a terminal: its parts, the verdict, and what else was tried."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.align.results import through
from zeropass.stitch.results import Stitch, Try
from zeropass.tokens.shown import shown_text

__all__ = ["render_classes", "render_stitch"]

LINES = 8
"""Tries, and labels, that are shown."""


def render_stitch(stitch: Stitch) -> RenderableType:
    """Render one screen: the parts from input to answer, the verdict, and the best tries."""
    lines: list[RenderableType] = [*_parts(stitch), Text(), Text(stitch.verdict.text, style=_style(stitch))]
    notes = [through("Tokens", stitch.lenses)] if stitch.choice.frame == "seen" else []
    lines += [Text(note, style="dim") for note in (*stitch.notes, *notes)]
    if len(stitch.tries) > 1:
        lines += [Text(), _tries(stitch)]
    return Group(*lines)


def render_classes(texts: list[str], probabilities: list[dict[str, float]]) -> RenderableType:
    """Render a line for each text: the likeliest label and its probability."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for text, by_label in zip(texts, probabilities, strict=True):
        best = max(by_label, key=lambda label: by_label[label])
        table.add_row(Text(shown_text(best), style="bold"), f"{by_label[best]:.2f}", Text(shown_text(text, limit=100)))
    return table


def _parts(stitch: Stitch) -> Iterator[Text]:
    choice, classifier, onto = stitch.choice, stitch.classifier, stitch.onto
    shared = f"{stitch.shared['tokens']:,} shared tokens"
    names = [Text(shown_text(str(model["name"])), style="bold") for model in (onto, classifier)]
    if stitch.kind == "transplant":
        moved = ", ".join(f"{a} → {b}" for a, b in stitch.layers)
        yield Text.assemble(names[0], f": all {onto['layers']} layers, with the change of ", names[1])
        yield Text(f"  layers {moved}; times {choice.strength:g}; {shared} ({choice.kernel}, {choice.frame})")
    else:
        fit = "" if choice.fit is None else f": {choice.fit:.0%} of held-out tokens arrive at themselves"
        yield Text.assemble("the first ", f"{choice.keep} of {onto['layers']} layers of ", names[0])
        yield Text(f"  {shared} ({choice.kernel}, {choice.frame}){fit}")
        yield Text.assemble(
            "the last ", f"{choice.take} of {classifier['layers']} layers of ", names[1], ", and its head"
        )
    yield Text("labels " + ", ".join(shown_text(label) for label in stitch.labels[:LINES]), style="dim")


def _style(stitch: Stitch) -> str:
    return {True: "green", False: "red", None: "yellow"}[stitch.verdict.trusted]


def _tries(stitch: Stitch) -> Table:
    transplanted = stitch.kind == "transplant"
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("strength",) if transplanted else ("keep", "take", "kernel", "frame", "fit"):
        table.add_column(name, justify="left" if name in ("kernel", "frame") else "right")
    for name in ("expected", "agrees", "confidence", "consensus") if not transplanted else ("expected", "agrees"):
        table.add_column(name, justify="right")
    for choice in stitch.tries[:LINES]:
        table.add_row(*(_transplant_row(choice) if transplanted else _stitch_row(choice)))
    return table


def _stitch_row(choice: Try) -> tuple[str, ...]:
    numbers = choice.fit, choice.expected, choice.agreement, choice.confidence, choice.consensus
    return str(choice.keep), str(choice.take), choice.kernel, choice.frame, *map(_number, numbers)


def _transplant_row(choice: Try) -> tuple[str, ...]:
    return f"{choice.strength:g}", _number(choice.expected), _number(choice.agreement)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
