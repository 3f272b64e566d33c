"""Evidence as one page of HTML, as Markdown tables and as a summary for the terminal (docs/evidence.md).

Names, texts and settings come from untrusted files. Jinja2 escapes HTML and `_markdown` escapes Markdown; all shown
text goes through `zeropass.tokens.vocabulary.shown_text` first.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from zeropass.tokens.shown import shown_text

__all__ = ["Cell", "Standing", "Table", "html", "layer_runs", "standings", "summary", "table_list", "tables"]

MARK = "·"
"""The mark behind a value that is not above its nulls."""

_THIRDS = ("early", "middle", "late")
_SIDES = {
    ("reading", "token"): "What a parameter sees",
    ("reading", "seen"): "What a parameter sees, through the lens",
    ("reading", "output"): "What it is about to say",
    ("reading", "paper"): "What it sees, by the raw embedding as published",
    ("writing", ""): "What a parameter says",
    ("promotes", ""): "What a head says when it attends to a token",
    ("attention", ""): "Which tokens a head attends to",
}
_SUMMARY_ROWS, _SUMMARY_GAPS = 25, 3  # With headings and notes the summary stays under 40 lines.


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: Its text.
        low: True if its value is not above its nulls.
        best: True if its value is the best of its group.
    """

    text: str
    low: bool = False
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table as data.

    Attributes:
        name: Its name.
        caption: Its caption.
        head: The names of the columns.
        rows: The rows; the first cell of each is its heading.
    """

    name: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown, with its caption above it in bold."""
        lines = [f"**{_markdown(self.caption)}**", "", _row(_markdown(name) for name in self.head)]
        lines.append(_row("---" for _ in self.head))
        return "\n".join([*lines, *(_row(_markdown_cell(cell) for cell in row) for row in self.rows)]) + "\n"


@dataclass(frozen=True)
class Standing:
    """The standing of a kind of list.

    Attributes:
        kind: The kind of list.
        results: Its results by layer.
        layers: The layers in which it is above its nulls.
    """

    kind: Kind
    results: Mapping[int, Result]
    layers: tuple[int, ...]

    @property
    def measured(self) -> tuple[int, ...]:
        """The layers with a result."""
        return tuple(self.results)

    @property
    def mean(self) -> float:
        """The mean value over the measured layers."""
        return _mean(self.results.values())

    @property
    def best(self) -> int:
        """The layer with the largest value."""
        return max(
            self.results, key=lambda n: -math.inf if math.isnan(self.results[n].value) else self.results[n].value
        )

    @property
    def words(self) -> str:
        """The layers above the nulls in words, such as ``layers 3-17 (15 of 30)``."""
        if not self.layers:
            return "no layer"
        if self.layers == self.measured:
            return "every layer measured"
        plural = "s" if len(self.layers) > 1 else ""
        runs = layer_runs(self.layers, self.measured)
        return f"layer{plural} {runs} ({len(self.layers)} of {len(self.measured)})"


def standings(evidence: Evidence) -> tuple[Standing, ...]:
    """Return the standing of each kind of list that was judged, including variants of frames."""
    return tuple(
        Standing(list_type, results, tuple(layer for layer, result in results.items() if result.above))
        for list_type, results in kinds(evidence).items()
    )


def layer_runs(layers: Sequence[int], measured: Sequence[int]) -> str:
    """Return layers as runs, ``3-17, 20``; a run holds every measured layer between its ends."""
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
    """Return the evidence as one self-contained page, without scripts and without fonts or pictures from elsewhere."""
    judged = standings(evidence)
    return _PAGE.render(
        model=_shown(str(evidence.model.get("name", "model without a name"))),
        facts=_facts(evidence.model),
        method=_facts(evidence.method),
        opening=_opening(judged),
        sides=_sides(judged),
        measures=MEASURES,
        nulls=NULLS,
        drawings=figures(evidence),
        tables=table_list(evidence),
        left_out={_shown(name): _shown(reason) for name, reason in evidence.left_out.items()},
        notes=[_shown(note) for note in evidence.notes],
        mark=MARK,
    )


def tables(evidence: Evidence) -> dict[str, str]:
    """Return the Markdown tables by name: ``verdict``, ``frames``, one for each measure and metric, ``effects``."""
    return {table.name: table.markdown() for table in table_list(evidence)}


def table_list(evidence: Evidence) -> tuple[Table, ...]:
    """Return the tables as data, without those that would be empty."""
    candidates = [_verdict_table(evidence), _variants_table(evidence), _frames_table(evidence)]
    for measure in MEASURES:
        candidates += _measure_tables(evidence, measure)
    candidates += [_inverses_table(evidence), _effects_table(evidence)]
    return tuple(table for table in candidates if table.rows)


def summary(evidence: Evidence) -> RenderableType:
    """Return the verdict for a terminal, in fewer than 40 lines at 100 columns."""
    name = _shown(str(evidence.model.get("name", "model without a name")))
    method = ", ".join(f"{key} {value}" for key, value in _facts(evidence.method) if key in ("text", "tokens", "seed"))
    title = _shown(str(evidence.model.get("title") or ""))
    parts: list[RenderableType] = [_line(name, "bold"), *([_line(title, "dim")] if title else []), _line(method, "dim")]
    verdict = _verdict_table(evidence)
    frames = _summary_frames(verdict)
    rows = tuple(row for row in verdict.rows if _frame(row) in frames)[:_SUMMARY_ROWS]
    if rows:
        parts += [Text(), _verdict_grid(replace(verdict, rows=rows))]
    if more := len(verdict.rows) - len(rows):
        others = ", ".join(dict.fromkeys(_frame(row) for row in verdict.rows if _frame(row) not in frames))
        parts.append(_line(f"more kinds of list in the report: {more}{f' ({others})' if others else ''}", "dim"))
    parts += [_line(line) for line in _measure_lines(evidence)]
    gaps = [f"left out: {_shown(name)} ({_shown(reason)})" for name, reason in evidence.left_out.items()]
    parts += [_line(line, "yellow") for line in gaps[:_SUMMARY_GAPS]]
    if len(gaps) > _SUMMARY_GAPS:
        parts.append(_line(f"more that was left out, in the report: {len(gaps) - _SUMMARY_GAPS}", "yellow"))
    if evidence.notes:
        parts.append(_line(f"notes in the report: {len(evidence.notes)}", "dim"))
    return Group(*parts)


def _main(judged: Iterable[Standing]) -> list[Standing]:
    """Return the standings in the main frames."""
    return [standing for standing in judged if is_main(standing.kind.measure, standing.kind.frame)]


def _opening(judged: Sequence[Standing]) -> str:
    """Return the opening sentence of the page."""
    main = _main(judged)
    if not main:
        return "No kind of list was judged, so nothing can be said about which to trust."
    everywhere = sum(standing.layers == standing.measured for standing in main)
    nowhere = sum(not standing.layers for standing in main)
    return (
        f"Of {len(main)} kinds of list (a role read in a frame), {everywhere} are above their nulls in every "
        f"layer that was measured, {len(main) - everywhere - nowhere} in some layers and {nowhere} in none."
    )


def _sides(judged: Sequence[Standing]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return the main frames as ``[(what the lists say, [(kind of list, where it holds, how well)])]``."""
    sides: dict[str, list[tuple[str, str, str]]] = {}
    for standing in _main(judged):
        list_type = standing.kind
        frame = list_type.frame if list_type.measure == "reading" else ""
        target = f"{'the ' if frame else ''}{list_type.target}{_token(frame)}"
        title = f"{_SIDES[list_type.measure, frame]} (against {target})"
        name = _shown(list_type.role) + ("" if frame else f", {list_type.frame}")
        measured = f"layers measured: {len(standing.measured)}, best in layer {standing.best}"
        size = f"mean {coefficient(standing.mean)}, {measured}"
        sides.setdefault(title, []).append((name, standing.words, size))
    return list(sides.items())


def _token(frame: str) -> str:
    return " token" if frame else ""


def _verdict_table(evidence: Evidence) -> Table:
    """Return the lists that the library shows, with means over thirds of the layers; variants have their own tables."""
    rows, depth = [], _depth(evidence)
    for standing in _main(standings(evidence)):
        list_type, results = standing.kind, standing.results
        thirds = map(coefficient, _thirds(list(results.values()), depth))
        runs = layer_runs(standing.layers, standing.measured) or "none"
        above = f"{len(standing.layers)} of {len(standing.measured)}: {runs}"
        noise = [null for result in results.values() if (null := result.null("noise"))]
        above_noise = f"{sum(null.beaten for null in noise)} of {len(noise)}" if noise else NOTHING
        best = f"{coefficient(results[standing.best].value)} (layer {standing.best})"
        texts = (f"{list_type.role}, {list_type.frame}", list_type.target, *thirds, above, above_noise, best)
        rows.append(tuple(Cell(_shown(text)) for text in texts))
    head = ("list", "held against", *_THIRDS, "above its nulls in layers", "above noise", "best")
    return Table(
        name="verdict",
        caption="Where each kind of list is above its nulls (Spearman correlation)",
        head=head,
        rows=tuple(rows),
    )


def _variants_table(evidence: Evidence) -> Table:
    """Return the frames and variants by role: means from layer 1 on, because layer 0 reads the embedding itself."""
    means = {
        (list_type.frame, list_type.role): fmean(values)
        for list_type, results in kinds(evidence).items()
        if (values := [r.value for layer, r in results.items() if layer > 0 and math.isfinite(r.value)])
    }
    roles = sorted({role for _, role in means}, key=role_order)
    best = [coefficient(max(mean for (_, mean_role), mean in means.items() if mean_role == role)) for role in roles]
    rows = []
    for frame in sorted({frame for frame, _ in means}, key=frame_order):
        texts = [coefficient(means.get((frame, role), math.nan)) for role in roles]
        cells = (Cell(text, best=text == top) for text, top in zip(texts, best, strict=True))
        rows.append((Cell(_shown(frame)), *cells))
    caption = "Frames and variants, each against what its list claims: mean from layer 1 on, best of a role in bold"
    return Table(name="variants", caption=caption, head=("frame", *map(_shown, roles)), rows=tuple(rows))


def _frames_table(evidence: Evidence) -> Table:
    """Return every frame and target of a role, with means over thirds of the layers; the best frame is bold."""
    groups: dict[tuple[str, str, str], dict[str, list[Result]]] = {}
    for measure in ("reading", "writing", "promotes", "attention"):
        layered = [result for result in evidence.select(measure=measure, metric="spearman") if result.layer >= 0]
        for (role, frame), results in layer_results(layered).items():
            for result in results:
                groups.setdefault((measure, role, result.target), {}).setdefault(frame, []).append(result)
    rows = [row for key, frames in groups.items() for row in _frame_rows(key, frames, _depth(evidence))]
    head = ("role", "held against", "frame", *_THIRDS, "above its nulls")
    return Table(
        name="frames",
        caption="Frames compared: mean Spearman correlation by depth, best in bold",
        head=head,
        rows=tuple(rows),
    )


def _frame_rows(
    key: tuple[str, str, str], frames: Mapping[str, Sequence[Result]], depth: int
) -> Iterable[tuple[Cell, ...]]:
    """Yield a row for each frame of a (measure, role, target)."""
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
    """Return a table for each metric of a measure, and for states one for each target too."""
    if measure == "inverses":
        return []
    first = METRIC.get(measure, "spearman")
    results = [r for r in evidence.select(measure=measure) if is_main(r.measure, r.frame)]
    metrics = sorted({result.metric for result in results}, key=lambda metric: (metric != first, metric))
    layer_tables = []
    for metric in metrics:
        of_metric = [result for result in results if result.metric == metric]
        targets = sorted({result.target for result in of_metric}, reverse=True) if measure == "states" else [None]
        for target in targets:
            of_target = [result for result in of_metric if target is None or result.target == target]
            name = "-".join(part for part in (measure, metric if metric != first else "", target or "") if part)
            caption = f"{MEASURES[measure]}: {_shown(metric)}{f', {_shown(target)}' if target else ''}, by layer"
            shown = _shown_first(measure, of_target)
            layer_tables.append(_layer_table(_slug(name), caption[0].upper() + caption[1:], shown))
    return layer_tables


def _shown_first(measure: str, results: Sequence[Result]) -> list[Result]:
    """Return the results for the target that judges each list; all of them for attention and for lists without one."""
    judged = {(r.role, r.frame) for r in results if r.target == own_target(measure, r.frame)}
    return [
        r
        for r in results
        if measure == "attention" or (r.role, r.frame) not in judged or r.target == own_target(measure, r.frame)
    ]


def _layer_table(name: str, caption: str, results: Sequence[Result]) -> Table:
    """Return a table of layers by role and frame, and by target where there are several."""
    columns = {(role, frame, r.target): None for (role, frame), rs in layer_results(results).items() for r in rs}
    by_place = {(r.layer, r.role, r.frame, r.target): r for r in results}
    varied = len({target for *_, target in columns}) > 1
    head = tuple(_shown(f"{role}, {frame}{f': {target}' if varied else ''}", 80) for role, frame, target in columns)
    layers = sorted({result.layer for result in results})
    rows = [
        (Cell(str(n) if n >= 0 else "all"), *(_cell(by_place.get((n, *column))) for column in columns)) for n in layers
    ]
    return Table(name=name, caption=caption, head=("layer", *head), rows=tuple(rows))


def _inverses_table(evidence: Evidence) -> Table:
    """Return the correlations of k by kind of vector and inverse."""
    lines = inverse_lines(evidence)
    by_place = {(k, *key): result for key, points in lines.items() for k, result in points}
    sizes = sorted({k for k, *_ in by_place})
    rows = [(Cell(f"{k:,}"), *(_cell(by_place.get((k, *key))) for key in lines)) for k in sizes]
    head = ("k", *(_shown(f"{role}, {name}") for role, name in lines))
    return Table(
        name="inverses", caption="Correlation of inner products with k scores kept", head=head, rows=tuple(rows)
    )


def _effects_table(evidence: Evidence) -> Table:
    """Return Cohen's d against each null, as median and range over the layers."""
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
    return Table(name="effects", caption=caption, head=("list", "measure", *NULLS), rows=tuple(rows))


def _effect(results: Sequence[Result], name: str) -> str:
    """Return the median and the range of Cohen's d against one null, as text."""
    effects = [null.effect for result in results if (null := result.null(name)) and null.effect is not None]
    if not effects:
        return NOTHING
    return f"{coefficient(median(effects))} ({coefficient(min(effects))} to {coefficient(max(effects))})"


def _frame(row: tuple[Cell, ...]) -> str:
    """Return the frame of a row of the verdict table."""
    return row[0].text.rpartition(", ")[2]


def _summary_frames(verdict: Table) -> list[str]:
    """Return the first frames, in order, whose rows fit into the summary together, so that every role is seen."""
    frames = sorted(set(map(_frame, verdict.rows)), key=frame_order)
    while len(frames) > 1 and sum(_frame(row) in frames for row in verdict.rows) > _SUMMARY_ROWS:
        frames.pop()
    return frames


def _verdict_grid(table: Table) -> Grid:
    """Return the verdict table for a terminal, without its last columns, which would not fit."""
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="dim")
    shown = table.head[:6]
    for at, name in enumerate(shown):
        # The last column holds the longest text, so a narrow terminal cuts that column.
        width = None if at + 1 == len(shown) else max([len(name), *(min(len(row[at].text), 30) for row in table.rows)])
        grid.add_column(name, no_wrap=True, justify="right" if name in _THIRDS else "left", min_width=width)
    for row in table.rows:
        role, _, frame = row[0].text.partition(", ")
        listed = Text(role, style="bold cyan").append(f" {frame}", style="not bold default")
        grid.add_row(listed, Text(row[1].text, style="dim"), *(Text(cell.text) for cell in row[2 : len(shown)]))
    return grid


def _measure_lines(evidence: Evidence) -> Iterable[str]:
    """Yield a line for each measure that judges no list."""
    for measure in ("states", "pairs", "inverses"):
        results = [r for r in evidence.select(measure=measure, metric=METRIC[measure]) if not math.isnan(r.value)]
        if results:
            best = max(results, key=lambda result: result.value)
            tested = [result for result in results if result.nulls]
            above = f"{sum(r.above for r in tested)} of {len(tested)} above their nulls, " if tested else ""
            where = f", layer {best.layer}" if best.layer >= 0 else ""
            name = _shown(f"{best.role}, {best.frame}, {best.target}{where}", 80)
            yield f"{measure}: {above}best {coefficient(best.value)} ({name})"


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values as text; nested values become one line."""
    return [(_shown(str(name).replace("_", " ")), _shown(_plain(value))) for name, value in facts.items()]


def _plain(value: Any) -> str:
    """Return a value as text in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value > 9999 else str(value)


def _depth(evidence: Evidence) -> int:
    """Return the number of the model's layers; that of the measured layers if the record does not say."""
    layers = evidence.model.get("layers")
    measured = 1 + max((result.layer for result in evidence.results), default=0)
    return max(layers, measured) if isinstance(layers, int) else measured


def _thirds(results: Sequence[Result], depth: int) -> list[float]:
    """Return the means over the early, middle and late third of the layers; NaN where nothing was measured."""
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
    """Return text escaped so that Markdown shows it unchanged, even in a table."""
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
