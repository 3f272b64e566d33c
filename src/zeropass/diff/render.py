"""A comparison as text for a terminal: the verdict first, then where, what and who."""

import math
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.diff.results import Diff, MatrixChange, Moved, ParameterChange
from zeropass.records.numbers import percent, share
from zeropass.records.parameters import Direction, Record, TokenScore, VectorRecord
from zeropass.render.terminal import token_text
from zeropass.tokens.vocabulary import shown_text

__all__ = ["render_diff"]

BARS = "▁▂▃▄▅▆▇█"
SHOWN, WORDS, LINES, WATCHED = 10, 5, 6, 10
"""How many to show: tokens of all changes, words of a list, lines of a kind, watched words."""


def render_diff(found: Diff) -> RenderableType:
    """The first screen of a comparison: sixty lines at most."""
    names = Text.assemble(
        (shown_text(str(found.base["name"])), "bold"), " → ", (shown_text(str(found.tuned["name"])), "bold")
    )
    parts: list[RenderableType] = [names, *(Text(line) for line in found.verdict)]
    if found.relation == "unrelated":
        return Group(*parts)
    if found.words:
        parts += [Text(), _watched(found)]
    changed = any(not one.rounding for one in found.matrices)
    if changed and found.sees and found.writes:
        parts += [Text(), *_standouts(found)]
    if found.outside:
        parts += [Text(), _outside(found)]
    if changed:
        parts += [Text(), _where(found), Text(), *_directions(found), Text(), _parameters(found)]
    parts += _moved(found)
    if found.added:
        shown = Text(" ").join(token_text(token) for token in found.added[:SHOWN])
        parts.append(Text.assemble(("tokens added: ", "dim"), shown))
    return Group(*parts)


def _standouts(found: Diff) -> Iterator[Text]:
    for name, standouts in (("sees", found.sees), ("writes", found.writes)):
        line = Text(f"{name:<7}", style="italic")
        for one in standouts[:SHOWN]:
            line.append_text(token_text(one.token.token)).append(f" {one.z:.1f}  ", style="dim")
        yield line


def _where(found: Diff) -> Table:
    """A line for each role: how much each layer changed, as bars of one scale."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("role")
    table.add_column("layer 0 … last", no_wrap=True)
    for name in ("most", "at layer", "rank"):
        table.add_column(name, justify="right")
    changed = [one for one in found.matrices if not one.rounding]
    most = max(one.relative for one in changed)
    layers = 1 + max(one.layer for one in found.matrices)
    for role in dict.fromkeys(one.role for one in changed):
        own = {one.layer: one for one in changed if one.role == role}
        top = max(own.values(), key=lambda one: one.relative)
        bars = "".join(_bar(own[n].relative / most) if n in own else "·" for n in range(layers))
        ranks = sorted(one.rank for one in own.values())
        table.add_row(
            Text(role, style="bold cyan"), bars, percent(top.relative), str(top.layer), f"{ranks[len(ranks) // 2]:.1f}"
        )
    return table


def _bar(share: float) -> str:
    return BARS[min(int(share * len(BARS)), len(BARS) - 1)]


def _directions(found: Diff) -> Iterator[Text]:
    """The strongest single directions of all, relative to the matrix that they are in."""
    yield Text("strongest directions: reads → writes (q and k: query → key); − the other pole", style="dim")
    every = [(one.relative * math.sqrt(d.share), one, d) for one in found.matrices for d in one.directions]
    every.sort(key=lambda found: -found[0])
    for _, one, direction in every[:LINES]:
        yield _direction(one, direction)
        yield _pole("−", direction.left_bottom, direction.right_bottom)


def _direction(one: MatrixChange, direction: Direction) -> Text:
    near = " ≈ too close to a neighbour to mean anything alone" if direction.close else ""
    line = Text.assemble((f"L{one.layer} ", "bold"), (one.role, "bold cyan"), (f" {direction.share:.0%}{near} ", "dim"))
    return line.append_text(_pole("+", direction.left, direction.right))


def _pole(sign: str, left: Sequence[TokenScore], right: Sequence[TokenScore]) -> Text:
    line = Text("    " if sign == "−" else "").append(f"{sign} ", style="dim")
    line.append_text(_words(left)).append(" → ", style="dim")
    return line.append_text(_words(right))


def _words(tokens: Sequence[TokenScore]) -> Text:
    return Text(" ").join(token_text(one.token) for one in tokens[:WORDS])


def _parameters(found: Diff) -> Table:
    """Neurons and heads that got other words; of those whose words stay the same only how many they are."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("changed most", "by", "before", "after"):
        table.add_column(name)
    every = [(one, *_telling(one)) for one in (*found.neurons, *found.heads)]
    other = [(one, before, after) for one, before, after in every if _tokens(before) != _tokens(after)]
    for one, before, after in other[:LINES]:
        table.add_row(Text(one.address, style="bold"), percent(one.relative), _list(before), _list(after))
    if same := len(every) - len(other):
        most = f"up to {percent(max(one.relative for one, *_ in every))}"
        table.add_row(Text(f"{same} more", style="dim"), most, Text("the same words before and after", style="dim"), "")
    return table


def _outside(found: Diff) -> Table:
    """Rows outside the blocks: of each the lists after the change in which a token stands out, or all."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("outside the blocks", "by", "", "reads or writes; − the other pole"):
        table.add_column(name)
    for one in found.outside[:LINES]:
        by = percent(one.relative) if one.before else "new"
        lists = [record for record in one.after if isinstance(record, VectorRecord)]
        for record in [record for record in lists if not record.faint] or lists:
            row = Text(one.address, style="bold").append(f" {shown_text(one.label)}", style="italic")
            words = _words(record.top).append("  − ", style="dim").append_text(_words(record.bottom))
            table.add_row(row, by, Text(record.verb, style="dim"), words)
    return table


def _telling(one: ParameterChange) -> tuple[Record, Record]:
    """The list in which most words are new; what a neuron writes if none is."""
    pairs = list(zip(one.before, one.after, strict=True))
    return max(reversed(pairs), key=lambda pair: len(set(_tokens(pair[1])) - set(_tokens(pair[0]))))


def _tokens(record: Record) -> list[str]:
    if isinstance(record, VectorRecord):
        return [token.token for token in record.top[:WORDS]]
    return [f"{one.left.token}→{one.right.token}" for one in getattr(record, "pairs", ())[:WORDS]]


def _list(record: Record) -> Text:
    shown = Text(" ").join(token_text(token) for token in _tokens(record))
    return Text.assemble((f"{record.role} ", "dim"), shown)


def _moved(found: Diff) -> Iterator[Text]:
    every = (
        ("norms and biases moved: ", found.vectors),
        ("embedding rows moved: ", found.embedding),
        ("unembedding rows moved: ", found.unembedding),
    )
    for name, moved in every:
        if moved:
            yield Text(name, style="dim").append_text(Text(", ").join(map(_one_moved, moved[:LINES])))


def _one_moved(one: Moved) -> Text:
    return token_text(one.name).append(f" {percent(one.relative)}", style="dim")


def _watched(found: Diff) -> Table:
    """A line for each watched word: whether the change concerns it, and among how many tokens it stands out."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("watched", "concerned", "chance", "sees it more than", "writes it more than", "most in"):
        table.add_column(name)
    for one in found.words[:WATCHED]:
        pieces = " + ".join(map(shown_text, one.pieces)) if one.split else ""
        word = Text(shown_text(one.word), style="bold").append(f"  split: {pieces}" if pieces else "", style="dim")
        said = "cannot tell" if one.concerned is None else "yes" if one.concerned else "no"
        place = next((f"L{where.layer} {where.role}" for where in found.watch if where.word == one.word), "")
        table.add_row(
            word,
            said,
            _chance(one.chance),
            *("" if part is None else share(part) for part in (one.sees, one.writes)),
            place,
        )
    if (rest := len(found.words) - WATCHED) > 0:
        table.add_row(Text(f"{rest} more, in diff.json", style="dim"))
    return table


def _chance(chance: float) -> str:
    """How often a token like it stands out as far."""
    return f"{chance:.1%}" if chance < 0.1 else f"{chance:.0%}"
