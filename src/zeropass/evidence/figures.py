"""The figures of evidence, built without pyplot so that no global state is left behind (docs/evidence.md).

The colours are those of Okabe and Ito and ColorBrewer's YlGnBu, which colour-blind readers can tell apart. Every string
from the model or the measurement is escaped before it is drawn. SVG holds letters as outlines, so no font is needed.
"""

import html
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import numpy as np
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from zeropass.evidence.list_types import (
    METRIC,
    Kind,
    base,
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
from zeropass.records.matplotlib_axes import BLUE, COLOURS, GREEN, ORANGE, PURPLE, SKY, VERMILION
from zeropass.tokens.shown import shown_text

__all__ = ["Drawing", "attention_offsets", "by_layer", "figures", "frames_compared", "inverses", "svg", "trust"]

Dash = str | tuple[float, Sequence[float]]

_BASES = {
    "token": BLUE,
    "output": VERMILION,
    "paper": "#555555",
    "embedded": GREEN,
    "seen": SKY,
    "effect": ORANGE,
    "distinctive": GREEN,
}
_DASHES: tuple[Dash, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
_NULL_LINES = {"permuted": "-", "rotated": "--", "noise": ":"}
_NULL_WORDS = {"permuted": "solid", "rotated": "dashed", "noise": "dotted"}
_GREYS = {"permuted": "#AAAAAA", "rotated": "#777777", "noise": "#444444"}
_WIDTH = 8.0  # Inches: 800 px at 100 dpi.

_STYLE = {
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 3,
    "text.parse_math": False,  # A "$" in a name is no formula.
    "svg.fonttype": "path",
    "svg.hashsalt": "zeropass",
}
_styled = partial(style.context, ["default", _STYLE])  # The user's own matplotlibrc must not change a figure.


@dataclass(frozen=True)
class Drawing:
    """A figure with its texts.

    Attributes:
        name: The name of its file, without the ending.
        title: Its title.
        caption: Its caption.
        alt: The text for screen readers.
        figure: The figure.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure

    def svg(self) -> str:
        """Return the figure as an SVG element, of which a page can hold several."""
        return svg(self.figure, self.name, self.alt)


def figures(evidence: Evidence) -> tuple[Drawing, ...]:
    """Return every figure for which the evidence has results, in the order of the report."""
    judged = [result for rows in kinds(evidence).values() for result in rows.values()]
    main = [result for result in judged if is_main(result.measure, result.frame)]
    inverted = [result for points in inverse_lines(evidence).values() for _, result in points]
    offsets = _offset_results(evidence) if len({r.target for r in _offset_results(evidence)}) > 1 else []
    drawn = [_drawing("trust", main, lambda: trust(evidence))]
    drawn += [_layer_drawing(evidence, *view) for view in _VIEWS]
    drawn.append(_drawing("frames", judged, lambda: frames_compared(evidence)))
    drawn.append(_drawing("inverses", inverted, lambda: inverses(evidence)))
    drawn.append(_drawing("offsets", offsets, lambda: attention_offsets(evidence)))
    return tuple(drawing for drawing in drawn if drawing)


def svg(figure: Figure, name: str = "figure", label: str = "") -> str:
    """Return a figure as one ``<svg>`` element without prologue, comments, metadata or style sheet.

    Args:
        figure: The figure.
        name: The beginning of every id, so that several figures can be on one page.
        label: The text for screen readers; without it they skip the figure.
    """
    buffer = io.StringIO()
    with _styled():
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    text = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)  # 0.01 pt is enough.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    spoken = f'role="img" aria-label="{html.escape(label)}"' if label else 'aria-hidden="true"'
    head = f'<svg {spoken} style="stroke-linejoin:round;stroke-linecap:butt" '
    return re.sub(r"\n\s*(?=\n)", "", text.replace("<svg ", head, 1)).strip()


@_styled()
def trust(evidence: Evidence) -> Figure:
    """Draw a heat map of list types by layer, with a cross where a list is not above its nulls."""
    rows = {
        list_type: results
        for list_type, results in kinds(evidence).items()
        if is_main(list_type.measure, list_type.frame)
    }
    layers = sorted({layer for results in rows.values() for layer in results})
    figure = Figure(figsize=(_WIDTH, 1.3 + 0.24 * len(rows)))
    axes = figure.subplots()
    if not rows:
        return _nothing(figure, axes)
    values = np.array([[results[n].value if n in results else np.nan for n in layers] for results in rows.values()])
    scale = float(values[np.isfinite(values)].max(initial=0.5))
    shades = colormaps["YlGnBu"].resampled(20)  # With more, matplotlib draws the colour bar as a bitmap.
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=shades, vmin=0, vmax=scale, edgecolors="white", lw=0.5)
    axes.set_facecolor("#E8E8E8")
    low = np.array([[n in results and not results[n].above for n in layers] for results in rows.values()])
    for dark, colour in ((False, "#333333"), (True, "white")):
        y, x = np.nonzero(low & np.isfinite(values) & ((values > 0.6 * scale) == dark))
        axes.plot(x + 0.5, y + 0.5, "x", color=colour, markersize=4, markeredgewidth=0.8)
    _label_trust(axes, list(rows), layers)
    figure.colorbar(mesh, ax=axes, label="Spearman correlation", extend="min", fraction=0.04, pad=0.02, aspect=40)
    return figure


@_styled()
def by_layer(evidence: Evidence, measure: str, target: str | None = None) -> Figure:
    """Draw a grid of roles by frames: the value by layer with its 95% band, and its nulls in grey."""
    series = layer_results(primary(evidence, measure, target))
    roles, frames = _unique(role for role, _ in series), _unique(frame for _, frame in series)
    frames = sorted(frames, key=frame_order)
    figure, grid = _grid(max(1, len(roles)), max(1, len(frames)), height=1.35)
    if not series:
        return _nothing(figure, *grid.flat)
    for y, role in enumerate(roles):
        for x, frame in enumerate(frames):
            judged_by = own_target(measure, frame)
            title = f"{role}, {frame}" + (f": {judged_by}" if judged_by and measure == "reading" else "")
            _panel(grid[y, x], _label(title), series.get((role, frame), []))
    _outer(figure, grid, METRIC.get(measure, "spearman"))
    present = [name for name in NULLS if any(r.null(name) for results in series.values() for r in results)]
    lines = [("measured, 95% interval", BLUE, "-"), *((name, _GREYS[name], _NULL_LINES[name]) for name in present)]
    _legend(figure, lines)
    return figure


@_styled()
def frames_compared(evidence: Evidence) -> Figure:
    """Draw a panel for each role and a line for each frame or variant: how well each list agrees with its target."""
    results_by_type = kinds(evidence)
    roles = sorted(_unique(list_type.role for list_type in results_by_type), key=role_order)
    styles = _frame_styles(list_type.frame for list_type in results_by_type)
    figure, grid = _grid(-(-len(roles) // 2) or 1, 2, height=2.0)
    if not roles:
        return _nothing(figure, *grid.flat)
    for axes, role in zip(grid.flat, roles, strict=False):
        for list_type, results in results_by_type.items():
            if list_type.role == role:
                _line(axes, list(results.values()), *styles[list_type.frame])
        axes.set_title(_label(role), loc="left")
    _hide(grid.flat[len(roles) :])
    _outer(figure, grid, "spearman")
    _legend(figure, [(frame, *line_style) for frame, line_style in styles.items()])
    return figure


@_styled()
def inverses(evidence: Evidence) -> Figure:
    """Draw a panel for each kind of vector and a line for each inverse: correlation of inner products by k (log)."""
    lines = inverse_lines(evidence)
    panels, names = _unique(role for role, _ in lines), sorted({name for _, name in lines})
    figure, grid = _grid(1, max(1, len(panels)), height=2.8)
    if not lines:
        return _nothing(figure, *grid.flat)
    for axes, role in zip(grid.flat, panels, strict=True):
        for name, colour, _ in _cycled(names):
            points = sorted(lines.get((role, name), []), key=lambda point: point[0])
            _curve(axes, [k for k, _ in points], [r for _, r in points], colour)
        axes.set_title(_label(role), loc="left")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda k, _: f"{k:,.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    _outer(figure, grid, "correlation", "tokens kept, k")
    _legend(figure, _cycled(names), "o")
    return figure


@_styled()
def attention_offsets(evidence: Evidence) -> Figure:
    """Draw a panel for each frame and a line for each offset: how well the model's logits agree with the map."""
    offset_results = _offset_results(evidence)
    series = layer_results(offset_results)
    targets = sorted({result.target for result in offset_results}, key=_target_order)
    figure, grid = _grid(1, max(1, len(series)), height=2.8)
    if not series:
        return _nothing(figure, *grid.flat)
    for axes, ((role, frame), results) in zip(grid.flat, series.items(), strict=True):
        for target, colour, _ in _cycled(targets):
            points = [result for result in results if result.target == target]
            _curve(axes, [result.layer for result in points], points, colour)
        axes.set_title(_label(f"{role}, {frame}"), loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _outer(figure, grid, "spearman")
    _legend(figure, _cycled(targets), "o")
    return figure


_VIEWS = (
    ("states", "states", "same layer", "Active parameters and the state of their own layer (R_k)"),
    ("states-final", "states", "final", "Active parameters and the final state (R_k)"),
    ("pairs", "pairs", "jaccard", "Parameters that belong together (Sim_k)"),
    ("reading", "reading", None, "Reading vectors: the tokens they fire on against their lists"),
    ("writing", "writing", None, "Writing vectors: the logits they move against their lists"),
    ("promotes", "promotes", None, "Heads: the logits that attending to a token moves, against vo"),
    ("attention", "attention", None, "Heads: attention logits between tokens, against qk"),
)


_TEXTS = {
    "trust": (
        "Which lists can be trusted",
        "The darker a cell, the better the list agrees with the running model (Spearman correlation); a cross marks a "
        "list that is not above its permuted and rotated nulls, and grey was not measured.",
    ),
    "frames": (
        "Frames compared",
        "Each line is one way to make the rows of the tokens, higher is better, hollow points are not above their "
        "nulls. Reading vectors in an output frame are held against the predicted token, in any other against the "
        "current one, so compare those within a colour.",
    ),
    "inverses": (
        "Inverses of the embedding",
        "How well inner products survive the way to the vocabulary and back when only the k largest scores are kept, "
        "for each right inverse; noise shows what the embedding alone gives.",
    ),
    "offsets": (
        "Attention: offsets compared",
        "The map of a head depends on the distance between query and key; each line fixes it differently, and hollow "
        "points are not above their nulls.",
    ),
}


def _layer_drawing(evidence: Evidence, name: str, measure: str, target: str | None, title: str) -> Drawing | None:
    """Draw the figure of one measure by layer; return None without results."""
    results = primary(evidence, measure, target)
    caption = (
        f"Colour is the measured value with its 95% interval ({MEASURES[measure]}), hollow where it is not above its "
        f"nulls; grey is what a null gives. {_null_words(results)}"
    )
    return _drawing(name, results, lambda: by_layer(evidence, measure, target), (title, caption))


def _drawing(
    name: str, results: Sequence[Result], draw: Callable[[], Figure], texts: tuple[str, str] | None = None
) -> Drawing | None:
    """Draw the figure of some results and add its texts; return None without results."""
    if not results:
        return None
    title, caption = texts or _TEXTS[name]
    roles = ", ".join(_label(role) for role in _unique(result.role for result in results))
    layers = sorted({result.layer for result in results if result.layer >= 0})
    span = f", layers {layers[0]} to {layers[-1]}" if layers else ""
    return Drawing(
        name=name,
        title=title,
        caption=caption,
        alt=f"{title}: {roles}{span}. The numbers are in the tables.",
        figure=draw(),
    )


def _null_words(results: Sequence[Result]) -> str:
    """Return the part of a caption that explains the nulls of some results."""
    present = [name for name in NULLS if any(result.null(name) for result in results)]
    return " ".join(f"{name.capitalize()} ({_NULL_WORDS[name]}): {NULLS[name]}." for name in present)


def _panel(axes: Axes, title: str, results: Sequence[Result]) -> None:
    """Draw results by layer over their nulls, or hide a panel without results."""
    if not results:
        _hide([axes])
        return
    for name in NULLS:
        nulls = [(result.layer, null) for result in results if (null := result.null(name))]
        layers, grey = [layer for layer, _ in nulls], _GREYS[name]
        low, high = [null.low for _, null in nulls], [null.high for _, null in nulls]
        axes.fill_between(layers, low, high, color=grey, alpha=0.25, linewidth=0)
        axes.plot(layers, [null.mean for _, null in nulls], color=grey, ls=_NULL_LINES[name], lw=1)
    _curve(axes, [result.layer for result in results], results, BLUE)
    axes.set_title(title, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _curve(axes: Axes, x: Sequence[float], results: Sequence[Result], colour: str) -> None:
    """Draw values with their 95% band, and hollow points where a value with nulls is not above them."""
    if results:
        axes.fill_between(x, [r.low for r in results], [r.high for r in results], color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, [r.value for r in results], color=colour, marker="o")
        _hollow(axes, x, results, colour)


def _line(axes: Axes, results: Sequence[Result], colour: str, dash: Dash) -> None:
    """Draw values by layer, with hollow points where a value with nulls is not above them."""
    layers = [result.layer for result in results]
    width = 1.8 if dash == "-" else 1.0
    axes.plot(layers, [result.value for result in results], color=colour, ls=dash, lw=width, marker="o")
    _hollow(axes, layers, results, colour)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _hollow(axes: Axes, x: Sequence[float], results: Sequence[Result], colour: str) -> None:
    """Draw hollow points where a value with nulls is not above them."""
    below = [(at, r.value) for at, r in zip(x, results, strict=True) if r.nulls and not r.above]
    if below:
        axes.plot(*zip(*below, strict=True), "o", color=colour, markerfacecolor="white")


def _label_trust(axes: Axes, rows: Sequence[Kind], layers: Sequence[int]) -> None:
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_label(f"{row.role}, {row.frame}: {row.target}") for row in rows])
    step = -(-len(layers) // 32)
    axes.set_xticks(np.arange(0, len(layers), step) + 0.5, [str(n) for n in layers[::step]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer")
    axes.invert_yaxis()
    for y in range(1, len(rows)):
        if (rows[y].measure, rows[y].frame) != (rows[y - 1].measure, rows[y - 1].frame):
            axes.axhline(y, color="white", lw=3)


def _grid(rows: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(_WIDTH, 0.9 + height * rows))
    return figure, figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)


def _outer(figure: Figure, grid: np.ndarray, y: str, x: str = "layer") -> None:
    """Label the axes once for all panels, and number those that have no panel below them or to their left."""
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    for lines, end, labels in ((grid.T, -1, "labelbottom"), (grid, 0, "labelleft")):
        for line in lines:
            shown = [axes for axes in line if axes.axison]
            for axes in shown[end:][:1]:
                axes.tick_params(**{labels: True})


def _legend(figure: Figure, lines: Iterable[tuple[str, str, Dash]], marker: str = "") -> None:
    """Draw one legend above all panels, from labels, colours and dashes."""
    handles = [Line2D([], [], color=colour, ls=dash, marker=marker, label=_label(name)) for name, colour, dash in lines]
    figure.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False)


def _cycled(names: Iterable[str]) -> list[tuple[str, str, Dash]]:
    """Return solid lines for some names, in turn through the colours."""
    return [(name, colour, "-") for name, colour in zip(names, cycle(COLOURS), strict=False)]


def _nothing(figure: Figure, *grid: Axes) -> Figure:
    """Return the figure with a note that nothing was measured."""
    _hide(grid)
    figure.text(0.5, 0.5, "Nothing was measured.", ha="center")
    return figure


def _hide(grid: Iterable[Axes]) -> None:
    for axes in grid:
        axes.axis("off")


def _frame_styles(frames: Iterable[str]) -> dict[str, tuple[str, Dash]]:
    """Return a colour and a dash for each frame: variants of one frame have its colour and differ in the dash."""
    styles: dict[str, tuple[str, Dash]] = {}
    counts: dict[str, int] = {}
    for frame in sorted(_unique(frames), key=frame_order):
        number = counts.setdefault(base(frame), 0)
        counts[base(frame)] += 1
        styles[frame] = (_BASES.get(base(frame), PURPLE), _DASHES[number % len(_DASHES)])
    return styles


def _offset_results(evidence: Evidence) -> list[Result]:
    """Return the results of attention at every offset, in the main frames."""
    results = evidence.select(measure="attention", metric="spearman")
    return [result for result in results if is_main(result.measure, result.frame) and result.layer >= 0]


def _label(text: str) -> str:
    """Return a text as a figure may hold it: short, in printable ASCII."""
    return shown_text(text, 60).encode("ascii", "backslashreplace").decode()


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _target_order(target: str) -> tuple[float, str]:
    """Return a sort key: ``offset 0``, ``offset 4``, ``offset 16``, then the rest by name."""
    number = re.fullmatch(r"offset (\d{1,6})", target)
    return (int(number[1]) if number else math.inf), target
