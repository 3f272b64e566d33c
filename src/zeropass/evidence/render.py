"""Evidence as one page of HTML, as Markdown tables and as a summary for the terminal (docs/evidence.md).

Names, texts and settings come from files that nobody vouches for: HTML is escaped by Jinja2, Markdown by `_markdown`,
and whatever is shown goes through `zeropass.tokens.vocabulary.shown_text` first.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean, median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from zeropass.evidence.figures import figures
from zeropass.evidence.list_types import (
    METRIC,
    Kind,
    frame_order,
    inverse_lines,
    is_main,
    kinds,
    layer_results,
    own_target,
    primary,
    role_order,
)
from zeropass.evidence.results import MEASURES, NULLS, Evidence, Result
from zeropass.records.numbers import NOTHING, coefficient
from zeropass.tokens.vocabulary import shown_text

__all__ = ["Cell", "Standing", "Table", "html", "layer_runs", "standings", "summary", "table_list", "tables"]

MARK = "·"
"""Stands behind a value that is not above its nulls."""

_THIRDS = ("early", "middle", "late")
_SIDES = {
    ("reading", "token"): "What a parameter sees",
    ("reading", "output"): "What it is about to say",
    ("reading", "paper"): "What it sees, by the raw embedding as published",
    ("writing", ""): "What a parameter says",
    ("promotes", ""): "What a head says when it attends to a token",
    ("attention", ""): "Which tokens a head attends to",
}
_SUMMARY_ROWS, _SUMMARY_GAPS = 25, 3  # with headings and notes the summary stays under 40 lines


@dataclass(frozen=True)
class Cell:
    """A cell of a table; ``low``: its value is not above its nulls, ``best``: it is the best of its group."""

    text: str
    low: bool = False
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table as data: ``head`` names the columns; the first cell of a row is its heading."""

    name: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """The table in GitHub's Markdown, its caption above it in bold."""
        lines = [f"**{_markdown(self.caption)}**", "", _row(_markdown(name) for name in self.head)]
        lines.append(_row("---" for _ in self.head))
        return "\n".join([*lines, *(_row(_markdown_cell(cell) for cell in row) for row in self.rows)]) + "\n"


@dataclass(frozen=True)
class Standing:
    """A kind of list with its results by layer, and the ``layers`` in which it is above its nulls."""

    kind: Kind
    results: Mapping[int, Result]
    layers: tuple[int, ...]

    @property
    def measured(self) -> tuple[int, ...]:
        """Every layer with a result."""
        return tuple(self.results)

    @property
    def mean(self) -> float:
        """Mean value over the layers measured."""
        return _mean(self.results.values())

    @property
    def best(self) -> int:
        """The layer with the largest value."""
        return max(
            self.results, key=lambda n: -math.inf if math.isnan(self.results[n].value) else self.results[n].value
        )

    @property
    def words(self) -> str:
        """Such as ``layers 3-17 (15 of 30)``, in the layers that were measured."""
        if not self.layers:
            return "no layer"
        if self.layers == self.measured:
            return "every layer measured"
        plural = "s" if len(self.layers) > 1 else ""
        runs = layer_runs(self.layers, self.measured)
        return f"layer{plural} {runs} ({len(self.layers)} of {len(self.measured)})"


def standings(evidence: Evidence) -> tuple[Standing, ...]:
    """One verdict for each kind of list that was judged, variants of frames included."""
    return tuple(
        Standing(kind, results, tuple(layer for layer, result in results.items() if result.above))
        for kind, results in kinds(evidence).items()
    )


def layer_runs(layers: Sequence[int], measured: Sequence[int]) -> str:
    """Layers as runs, ``3-17, 20``; a run holds every measured layer between its ends."""
    runs: list[list[int]] = []
    for number, layer in enumerate(measured):
        if layer not in layers:
            continue
        if runs and number and runs[-1][-1] == measured[number - 1]:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def html(evidence: Evidence) -> str:
    """One self-contained page: no script, no font and no picture from elsewhere."""
    found = standings(evidence)
    return _PAGE.render(
        model=_shown(str(evidence.model.get("name", "model without a name"))),
        facts=_facts(evidence.model),
        method=_facts(evidence.method),
        opening=_opening(found),
        sides=_sides(found),
        measures=MEASURES,
        nulls=NULLS,
        drawings=figures(evidence),
        tables=table_list(evidence),
        left_out={_shown(name): _shown(why) for name, why in evidence.left_out.items()},
        notes=[_shown(note) for note in evidence.notes],
        mark=MARK,
    )


def tables(evidence: Evidence) -> dict[str, str]:
    """Markdown tables by name: ``verdict``, ``frames``, one a measure and metric, ``effects``."""
    return {table.name: table.markdown() for table in table_list(evidence)}


def table_list(evidence: Evidence) -> tuple[Table, ...]:
    """The tables as data, without those that would be empty."""
    found = [_verdict_table(evidence), _variants_table(evidence), _frames_table(evidence)]
    for measure in MEASURES:
        found += _measure_tables(evidence, measure)
    found += [_inverses_table(evidence), _effects_table(evidence)]
    return tuple(table for table in found if table.rows)


def summary(evidence: Evidence) -> RenderableType:
    """The verdict for a terminal: under 40 lines at 100 columns."""
    name = _shown(str(evidence.model.get("name", "model without a name")))
    method = ", ".join(f"{key} {value}" for key, value in _facts(evidence.method) if key in ("text", "tokens", "seed"))
    title = _shown(str(evidence.model.get("title") or ""))
    parts: list[RenderableType] = [_line(name, "bold"), *([_line(title, "dim")] if title else []), _line(method, "dim")]
    verdict = _verdict_table(evidence)
    if verdict.rows:
        parts += [Text(), _verdict_grid(verdict)]
    if len(verdict.rows) > _SUMMARY_ROWS:
        parts.append(_line(f"more kinds of list in the report: {len(verdict.rows) - _SUMMARY_ROWS}", "dim"))
    parts += [_line(line) for line in _measure_lines(evidence)]
    out = [f"left out: {_shown(name)} ({_shown(why)})" for name, why in evidence.left_out.items()]
    parts += [_line(line, "yellow") for line in out[:_SUMMARY_GAPS]]
    if len(out) > _SUMMARY_GAPS:
        parts.append(_line(f"more that was left out, in the report: {len(out) - _SUMMARY_GAPS}", "yellow"))
    if evidence.notes:
        parts.append(_line(f"notes in the report: {len(evidence.notes)}", "dim"))
    return Group(*parts)


def _main(found: Iterable[Standing]) -> list[Standing]:
    return [standing for standing in found if is_main(standing.kind.measure, standing.kind.frame)]


def _opening(found: Sequence[Standing]) -> str:
    main = _main(found)
    if not main:
        return "No kind of list was judged, so nothing can be said about which to trust."
    everywhere = sum(verdict.layers == verdict.measured for verdict in main)
    nowhere = sum(not verdict.layers for verdict in main)
    return (
        f"Of {len(main)} kinds of list (a role read in a frame), {everywhere} are above their nulls in every "
        f"layer that was measured, {len(main) - everywhere - nowhere} in some layers and {nowhere} in none."
    )


def _sides(found: Sequence[Standing]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """``(what the lists say, [(kind, where it holds, how well)])`` for the main frames."""
    sides: dict[str, list[tuple[str, str, str]]] = {}
    for verdict in _main(found):
        kind = verdict.kind
        frame = kind.frame if kind.measure == "reading" else ""
        title = f"{_SIDES[kind.measure, frame]} (against {'the ' if frame else ''}{kind.target}{_token(frame)})"
        name = _shown(kind.role) + ("" if frame else f", {kind.frame}")
        size = (
            f"mean {coefficient(verdict.mean)}, layers measured: {len(verdict.measured)}, best in layer {verdict.best}"
        )
        sides.setdefault(title, []).append((name, verdict.words, size))
    return list(sides.items())


def _token(frame: str) -> str:
    return " token" if frame else ""


def _verdict_table(evidence: Evidence) -> Table:
    """The lists that the library shows, as means over thirds of the layers; variants are in the frames table."""
    rows, depth = [], _depth(evidence)
    for standing in _main(standings(evidence)):
        kind, results = standing.kind, standing.results
        thirds = map(coefficient, _thirds(list(results.values()), depth))
        where = layer_runs(standing.layers, standing.measured) or "none"
        count = f"{len(standing.layers)} of {len(standing.measured)}: {where}"
        noise = [null for result in results.values() if (null := result.null("noise"))]
        held = f"{sum(null.beaten for null in noise)} of {len(noise)}" if noise else NOTHING
        best = f"{coefficient(results[standing.best].value)} (layer {standing.best})"
        words = (f"{kind.role}, {kind.frame}", kind.target, *thirds, count, held, best)
        rows.append(tuple(Cell(_shown(word)) for word in words))
    head = ("list", "held against", *_THIRDS, "above its nulls in layers", "above noise", "best")
    return Table("verdict", "Where each kind of list is above its nulls (Spearman correlation)", head, tuple(rows))


def _variants_table(evidence: Evidence) -> Table:
    """Frames and their variants down, roles across: means from layer 1 on, because layer 0 reads e itself."""
    found = {
        (kind.frame, kind.role): fmean(values)
        for kind, results in kinds(evidence).items()
        if (values := [r.value for layer, r in results.items() if layer > 0 and math.isfinite(r.value)])
    }
    roles = sorted({role for _, role in found}, key=role_order)
    tops = [coefficient(max(value for (_, other), value in found.items() if other == role)) for role in roles]
    rows = []
    for frame in sorted({frame for frame, _ in found}, key=frame_order):
        texts = [coefficient(found.get((frame, role), math.nan)) for role in roles]
        cells = (Cell(text, best=text == top) for text, top in zip(texts, tops, strict=True))
        rows.append((Cell(_shown(frame)), *cells))
    caption = "Frames and variants, each against what its list claims: mean from layer 1 on, best of a role in bold"
    return Table("variants", caption, ("frame", *map(_shown, roles)), tuple(rows))


def _frames_table(evidence: Evidence) -> Table:
    """Every frame and target of a role, as means over thirds of the layers; the best of a role and target is bold."""
    groups: dict[tuple[str, str, str], dict[str, list[Result]]] = {}
    for measure in ("reading", "writing", "promotes", "attention"):
        found = [result for result in evidence.select(measure=measure, metric="spearman") if result.layer >= 0]
        for (role, frame), results in layer_results(found).items():
            for result in results:
                groups.setdefault((measure, role, result.target), {}).setdefault(frame, []).append(result)
    rows = [row for key, frames in groups.items() for row in _frame_rows(key, frames, _depth(evidence))]
    head = ("role", "held against", "frame", *_THIRDS, "above its nulls")
    return Table("frames", "Frames compared: mean Spearman correlation by depth, best in bold", head, tuple(rows))


def _frame_rows(
    key: tuple[str, str, str], frames: Mapping[str, Sequence[Result]], depth: int
) -> Iterable[tuple[Cell, ...]]:
    _, role, target = key
    means = {frame: _thirds(results, depth) for frame, results in frames.items()}
    best = [max((coefficient(row[n]) for row in means.values()), key=_as_float) for n in range(len(_THIRDS))]
    for frame, row in means.items():
        cells = [
            Cell(text, best=len(means) > 1 and text == top and text != NOTHING)
            for text, top in zip(map(coefficient, row), best, strict=True)
        ]
        above = sum(result.above for result in frames[frame])
        names = (Cell(_shown(role)), Cell(_shown(target)), Cell(_shown(frame)))
        yield (*names, *cells, Cell(f"{above} of {len(frames[frame])}"))


def _measure_tables(evidence: Evidence, measure: str) -> list[Table]:
    """One table for each metric of a measure; for states and pairs one for each target too."""
    if measure == "inverses":
        return []
    first = METRIC.get(measure, "spearman")
    found = [r for r in evidence.select(measure=measure) if is_main(r.measure, r.frame)]
    metrics = sorted({result.metric for result in found}, key=lambda metric: (metric != first, metric))
    made = []
    for metric in metrics:
        rows = [result for result in found if result.metric == metric]
        targets = sorted({result.target for result in rows}, reverse=True) if measure == "states" else [None]
        for target in targets:
            kept = [result for result in rows if target is None or result.target == target]
            name = "-".join(part for part in (measure, metric if metric != first else "", target or "") if part)
            caption = f"{MEASURES[measure]}: {_shown(metric)}{f', {_shown(target)}' if target else ''}, by layer"
            made.append(_layer_table(_slug(name), caption[0].upper() + caption[1:], _shown_first(measure, kept)))
    return made


def _shown_first(measure: str, results: Sequence[Result]) -> list[Result]:
    """What each list is judged by; attention keeps every offset, and so does whatever has no target of its own."""
    own = {(r.role, r.frame) for r in results if r.target == own_target(measure, r.frame)}
    return [
        r
        for r in results
        if measure == "attention" or (r.role, r.frame) not in own or r.target == own_target(measure, r.frame)
    ]


def _layer_table(name: str, caption: str, results: Sequence[Result]) -> Table:
    """Layers as rows, role, frame and, where there is a choice, target as columns."""
    columns = {(role, frame, r.target): None for (role, frame), rs in layer_results(results).items() for r in rs}
    found = {(r.layer, r.role, r.frame, r.target): r for r in results}
    varied = len({target for *_, target in columns}) > 1
    head = tuple(_shown(f"{role}, {frame}{f': {target}' if varied else ''}", 80) for role, frame, target in columns)
    layers = sorted({result.layer for result in results})
    rows = [
        (Cell(str(n) if n >= 0 else "all"), *(_cell(found.get((n, *column))) for column in columns)) for n in layers
    ]
    return Table(name, caption, ("layer", *head), tuple(rows))


def _inverses_table(evidence: Evidence) -> Table:
    lines = inverse_lines(evidence)
    found = {(k, *key): result for key, points in lines.items() for k, result in points}
    sizes = sorted({k for k, *_ in found})
    rows = [(Cell(f"{k:,}"), *(_cell(found.get((k, *key))) for key in lines)) for k in sizes]
    head = ("k", *(_shown(f"{role}, {name}") for role, name in lines))
    return Table("inverses", "Correlation of inner products with k scores kept", head, tuple(rows))


def _effects_table(evidence: Evidence) -> Table:
    """Cohen's d against each null, as median and range over the layers."""
    groups: dict[tuple[str, str, str, str], list[Result]] = {}
    for measure in MEASURES:
        for result in primary(evidence, measure):
            groups.setdefault((measure, result.role, result.frame, result.target), []).append(result)
    rows = []
    for (measure, role, frame, target), results in groups.items():
        cells = [Cell(_effect(results, name)) for name in NULLS]
        if any(cell.text != NOTHING for cell in cells):
            rows.append((Cell(_shown(f"{role}, {frame}: {target}")), Cell(measure), *cells))
    caption = "Effect sizes (Cohen's d) against each null: median over the layers, and the range"
    return Table("effects", caption, ("list", "measure", *NULLS), tuple(rows))


def _effect(results: Sequence[Result], name: str) -> str:
    effects = [null.effect for result in results if (null := result.null(name)) and null.effect is not None]
    if not effects:
        return NOTHING
    return f"{coefficient(median(effects))} ({coefficient(min(effects))} to {coefficient(max(effects))})"


def _verdict_grid(table: Table) -> Grid:
    """The verdict for a terminal: the table without its last columns, which a wide page has room for."""
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="dim")
    shown = table.head[:6]
    for at, name in enumerate(shown):
        # The last column holds the longest text, so it is the one that a narrow terminal cuts.
        width = None if at + 1 == len(shown) else max([len(name), *(min(len(row[at].text), 30) for row in table.rows)])
        grid.add_column(name, no_wrap=True, justify="right" if name in _THIRDS else "left", min_width=width)
    for row in table.rows[:_SUMMARY_ROWS]:
        role, _, frame = row[0].text.partition(", ")
        listed = Text(role, style="bold cyan").append(f" {frame}", style="not bold default")
        grid.add_row(listed, Text(row[1].text, style="dim"), *(Text(cell.text) for cell in row[2 : len(shown)]))
    return grid


def _measure_lines(evidence: Evidence) -> Iterable[str]:
    """A line for each measure that judges no list."""
    for measure in ("states", "pairs", "inverses"):
        found = [r for r in evidence.select(measure=measure, metric=METRIC[measure]) if not math.isnan(r.value)]
        if found:
            best = max(found, key=lambda result: result.value)
            tested = [result for result in found if result.nulls]
            above = f"{sum(r.above for r in tested)} of {len(tested)} above their nulls, " if tested else ""
            where = f", layer {best.layer}" if best.layer >= 0 else ""
            name = _shown(f"{best.role}, {best.frame}, {best.target}{where}", 80)
            yield f"{measure}: {above}best {coefficient(best.value)} ({name})"


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text; what is nested becomes one line."""
    return [(_shown(str(name).replace("_", " ")), _shown(_plain(value))) for name, value in facts.items()]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value > 9999 else str(value)


def _depth(evidence: Evidence) -> int:
    """How many layers the model has; as far as was measured if the record does not say."""
    layers = evidence.model.get("layers")
    seen = 1 + max((result.layer for result in evidence.results), default=0)
    return max(layers, seen) if isinstance(layers, int) else seen


def _thirds(results: Sequence[Result], depth: int) -> list[float]:
    """Means over the early, middle and late third of the layers; NaN where nothing was measured."""
    parts: list[list[Result]] = [[], [], []]
    for result in results:
        parts[len(parts) * result.layer // depth].append(result)
    return [_mean(part) for part in parts]


def _mean(results: Iterable[Result]) -> float:
    values = [result.value for result in results if not math.isnan(result.value)]
    return fmean(values) if values else math.nan


def _cell(result: Result | None) -> Cell:
    if result is None:
        return Cell(NOTHING)
    return Cell(coefficient(result.value), low=bool(result.nulls) and not result.above)


def _as_float(text: str) -> float:
    return -math.inf if text == NOTHING else float(text)


def _shown(text: str, limit: int = 500) -> str:
    return shown_text(text, limit)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, inside a table too."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escape(text, quote=False))


def _markdown_cell(cell: Cell) -> str:
    text = _markdown(cell.text)
    return (f"**{text}**" if cell.best else text) + (MARK if cell.low else "")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGE = _ENVIRONMENT.get_template("report.html.j2")
