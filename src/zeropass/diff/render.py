"""A comparison as text for a terminal: the verdict first, then places, directions and parameters; and as a heat map."""

import html
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.diff.results import ChangeDirection, Diff, MatrixChange, Moved
from zeropass.diff.telling import exchange, telling
from zeropass.diff.verdict import NO_NEW_WORDS, figure, meaning, none_telling, sides, telling_basis, where
from zeropass.records.numbers import percent, plain, share
from zeropass.records.parameters import TokenScore, VectorRecord
from zeropass.render.heat_map import shade, svg_file
from zeropass.render.terminal import Flow, token_text
from zeropass.tokens.shown import shown_text

__all__ = ["draw_changes", "render_diff"]

BARS = "▁▂▃▄▅▆▇█"
SHOWN, WORDS, LINES, WATCHED, PLACED = 10, 5, 6, 10, 3
"""Limits of the output: words of all changes, words of a list, lines of a section, watched words, words with places."""

CELL, LEFT, TOP = 18, 60, 30
"""The size of a cell of the heat map, and the place of the first, in pixels."""


def render_diff(difference: Diff) -> RenderableType:
    """Return the first screen of a comparison, at most sixty lines."""
    names = Text.assemble(
        (shown_text(str(difference.base["name"])), "bold"), " → ", (shown_text(str(difference.tuned["name"])), "bold")
    )
    first, *rest = difference.verdict
    parts: list[RenderableType] = [names, Text(first), *(Text(line) for line in (meaning(difference), *rest) if line)]
    if difference.relation == "unrelated":
        return Group(*parts)
    if difference.words:
        parts += [Text(), _watched(difference)]
    changed = any(not matrix.rounding for matrix in difference.matrices)
    if changed:
        parts += [Text(), *_standouts(difference)]
    if difference.outside:
        parts += [Text(), _outside(difference)]
    if changed:
        parts += [Text(), _where(difference), Text(), *_directions(difference), Text(), _parameters(difference)]
    parts += _moved(difference)
    if difference.added:
        shown = Text(" ").join(token_text(token) for token in difference.added[:SHOWN])
        parts.append(Text.assemble(("tokens added: ", "dim"), shown))
    return Group(*parts)


def _standouts(difference: Diff) -> Iterator[Flow | Text]:
    """Yield a line for each side with the words that all changes together concern most, and one with where."""
    for side in sides(difference):
        tokens = [
            Text.assemble(token_text(word.token.token), (f" {plain(figure(word))}", "dim")) for word in side.words
        ]
        yield Flow([Text.assemble((f"{side.verb:<7}", "italic"), tokens[0]), *tokens[1:SHOWN]], indent=0)
        yield Text(f"       {side.basis}", style="dim")
        named = [word for word in side.words[:PLACED] if word.places]
        if named:
            places = "; ".join(f"{shown_text(word.token.token)} {where(word)}" for word in named)
            yield Text(f"       most of it: {places} (equal parts would be {side.equal:.0%})", style="dim")


def _where(difference: Diff) -> Table:
    """Return a table with a row for each role: how much each layer changed, as bars of one scale."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("role")
    table.add_column("layer 0 … last", no_wrap=True)
    for name in ("most", "at layer", "rank"):
        table.add_column(name, justify="right")
    changed = [matrix for matrix in difference.matrices if not matrix.rounding]
    most = max(matrix.relative for matrix in changed)
    layers = 1 + max(matrix.layer for matrix in difference.matrices)
    for role in dict.fromkeys(matrix.role for matrix in changed):
        by_layer = {matrix.layer: matrix for matrix in changed if matrix.role == role}
        top = max(by_layer.values(), key=lambda matrix: matrix.relative)
        bars = "".join(_bar(by_layer[n].relative / most) if n in by_layer else "·" for n in range(layers))
        ranks = sorted(matrix.rank for matrix in by_layer.values())
        table.add_row(
            Text(role, style="bold cyan"), bars, percent(top.relative), str(top.layer), f"{ranks[len(ranks) // 2]:.1f}"
        )
    return table


def _bar(share: float) -> str:
    return BARS[min(int(share * len(BARS)), len(BARS) - 1)]


def _directions(difference: Diff) -> Iterator[Text]:
    """Yield the most telling single directions of all changes, or that there is none."""
    chosen = telling(difference)
    if not chosen:
        yield Text(none_telling(difference), style="dim")
        return
    yield Text(f"telling directions, {telling_basis(difference)}", style="dim")
    for matrix, direction in chosen[:LINES]:
        yield _direction(matrix, direction)
        yield _pole("−", direction.left_bottom, direction.right_bottom)


def _direction(matrix: MatrixChange, direction: ChangeDirection) -> Text:
    """Return the line of a direction with its positive pole."""
    note = " ≈ too close to a neighbour to mean anything alone" if direction.close else ""
    place = (f"L{matrix.layer} ", "bold"), (matrix.role, "bold cyan")
    figures = f" {direction.share:.0%}, z {direction.z:.1f} (chance {direction.chance:.1f}){note} "
    line = Text.assemble(*place, (figures, "dim"))
    return line.append_text(_pole("+", direction.left, direction.right))


def _pole(sign: str, left: Sequence[TokenScore], right: Sequence[TokenScore]) -> Text:
    """Return one pole of a direction: the words read, an arrow, the words written."""
    line = Text("    " if sign == "−" else "").append(f"{sign} ", style="dim")
    line.append_text(_words(left)).append(" → ", style="dim")
    return line.append_text(_words(right))


def _words(tokens: Sequence[TokenScore]) -> Text:
    return Text(" ").join(token_text(score.token) for score in tokens[:WORDS])


def _parameters(difference: Diff) -> Table:
    """Return a table of neurons and heads with the words that came and went; those without new words are counted."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("changed most", "by", "list", "came", "went"):
        table.add_column(name)
    changes = [(change, exchange(change)) for change in (*difference.neurons, *difference.heads)]
    new = [(change, words) for change, words in changes if words is not None]
    for change, words in new[:LINES]:
        label = Text(f"{words.role} {words.sign}".rstrip(), style="dim")
        lists = (Text(" ").join(map(token_text, tokens)) for tokens in (words.came, words.went))
        table.add_row(Text(change.address, style="bold"), percent(change.relative), label, *lists)
    if same := [change for change, words in changes if words is None]:
        most = f"up to {percent(max(change.relative for change in same))}"
        table.add_row(Text(f"{len(same)} more", style="dim"), most, "", Text(NO_NEW_WORDS, style="dim"))
    return table


def _outside(difference: Diff) -> Table:
    """Return a table of rows outside the blocks, with their new lists in which a token stands out, or all new lists."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("outside the blocks", "by", "", "reads or writes; − the other pole"):
        table.add_column(name)
    for change in difference.outside[:LINES]:
        by = percent(change.relative) if change.before else "new"
        lists = [record for record in change.after if isinstance(record, VectorRecord)]
        for record in [record for record in lists if not record.faint] or lists:
            row = Text.assemble((change.address, "bold"), (f" {shown_text(change.label)}", "italic"))
            words = _words(record.top).append("  − ", style="dim").append_text(_words(record.bottom))
            table.add_row(row, by, Text(record.verb, style="dim"), words)
    return table


def _moved(difference: Diff) -> Iterator[Text]:
    """Yield a line each for the vectors and the rows of tables that moved most."""
    sections = (
        ("norms and biases moved: ", difference.vectors),
        ("embedding rows moved: ", difference.embedding),
        ("unembedding rows moved: ", difference.unembedding),
    )
    for name, moved in sections:
        if moved:
            yield Text.assemble((name, "dim"), Text(", ").join(map(_moved_vector, moved[:LINES])))


def _moved_vector(vector: Moved) -> Text:
    return token_text(vector.name).append(f" {percent(vector.relative)}", style="dim")


def _watched(difference: Diff) -> Table:
    """Return a table of the watched words: whether the change concerns them, and how far they stand out."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("watched", "concerned", "chance", "sees it more than", "writes it more than", "most in"):
        table.add_column(name)
    for word in difference.words[:WATCHED]:
        pieces = " + ".join(map(shown_text, word.pieces)) if word.split else ""
        cell = Text.assemble((shown_text(word.word), "bold"), (f"  split: {pieces}" if pieces else "", "dim"))
        answer = "cannot tell" if word.concerned is None else "yes" if word.concerned else "no"
        place = next((f"L{matrix.layer} {matrix.role}" for matrix in difference.watch if matrix.word == word.word), "")
        table.add_row(
            cell,
            answer,
            _p_value(word.chance),
            *("" if part is None else share(part) for part in (word.sees, word.writes)),
            place,
        )
    if (rest := len(difference.words) - WATCHED) > 0:
        table.add_row(Text(f"{rest} more, in diff.json", style="dim"))
    return table


def _p_value(p_value: float) -> str:
    """Format a p-value as a percentage."""
    return f"{p_value:.1%}" if p_value < 0.1 else f"{p_value:.0%}"


def draw_changes(matrices: Sequence[tuple[int, str, float, float]]) -> str:
    """Draw the relative change of every matrix as an SVG heat map: one row per role, one column per layer.

    Args:
        matrices: The layer and role of each matrix, and the size and rank of its change.
    """
    roles = list(dict.fromkeys(role for _, role, _, _ in matrices))
    layers = 1 + max((layer for layer, _, _, _ in matrices), default=0)
    most = max((relative for _, _, relative, _ in matrices), default=0.0) or 1.0
    labels = [html.escape(shown_text(role)) for role in roles]
    parts = [f'<text x="8" y="{TOP + n * CELL + 13}">{label}</text>' for n, label in enumerate(labels)]
    for layer, role, relative, rank in matrices:
        row = roles.index(role)
        parts.append(
            f'<rect class="cell" x="{LEFT + layer * CELL}" y="{TOP + row * CELL}" width="{CELL - 1}" '
            f'height="{CELL - 1}" fill="#084594" fill-opacity="{shade(relative, 0.0, most):.3f}" stroke="#ddd">'
            f"<title>L{layer} {labels[row]}: {relative:.3%}, rank {rank:.1f}</title></rect>"
        )
    foot = TOP + len(roles) * CELL + 16
    parts += [f'<text class="faint" x="{LEFT + n * CELL}" y="{foot}">{n}</text>' for n in range(0, layers, 5)]
    title = f"Relative change by layer (across) and role (down); darkest is {most:.2%}"
    return svg_file(title, max(LEFT + layers * CELL, 430) + 10, foot + 14, parts)
