"""Render labels as text for a terminal, marked as another program's words."""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from zeropass.labels.results import LONGEST, Labels
from zeropass.render.terminal import ROLE_STYLE
from zeropass.tokens.shown import shown_text

__all__ = ["render_labels"]


def render_labels(labels: Labels) -> RenderableType:
    """Return each label below the heading of its list, then the notes on all of them."""
    parts: list[RenderableType] = []
    for label in labels:
        heading = Text.assemble(
            (shown_text(label.address), "bold"),
            (f" {shown_text(label.role)}", ROLE_STYLE),
            (f"  {shown_text(label.verb)}", "italic"),
            (f"  {label.words}", "dim"),
        )
        parts += [heading, Padding(Text(shown_text(label.sentence, limit=LONGEST)), (0, 0, 0, 2))]
    return Group(*parts, *(Text(shown_text(note, limit=1000), style="dim") for note in labels.notes))
