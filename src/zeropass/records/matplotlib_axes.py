"""Panels on the axes of matplotlib, which is an extra.

The colours are those of Okabe and Ito and ColorBrewer's YlGnBu, which colour-blind readers can tell apart; what differs
by colour differs by shape or by lightness as well, so a print in grey can be read. Fonts and their size are the user's.
"""

import math
from collections.abc import Iterable, Sequence
from functools import singledispatch
from importlib import import_module
from itertools import cycle, islice
from textwrap import wrap
from typing import Any

import numpy as np

from zeropass.errors import BadOption, MissingExtra
from zeropass.records.label_places import free_places
from zeropass.records.panels import Bars, Columns, Curve, Curves, Entry, HeatMap, Panel, Points
from zeropass.tokens.shown import shown_text

try:
    from matplotlib import rcParams
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.ticker import FixedFormatter, MaxNLocator

    from zeropass.records.matplotlib_text import set_plain
except ImportError as _error:
    raise MissingExtra("Figures are drawn with matplotlib, an extra: pip install 'zeropass[plots]'.") from _error

__all__ = ["draw", "plotted"]

MOST = 64
"""The largest number of panels of a figure."""

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#000000")
MARKERS = "os^Dv<>"
RIGHT, LEFT, PALE = "#A6CEE3", "#FDCD9B", "#E4E4E4"
"""The colours of bars that labels stand on."""

INK, DIM, NULL = "#222222", "#777777", "#AAAAAA"
ROW, WIDTH, CELL, MAP = 0.2, 3.6, 0.19, 2.6
"""The height of a bar, the width of a panel, the size of a cell at most, and that of a map of numbers, in inches."""

LEAST_ROWS, MOST_TICKS = 3, 24
"""The number of rows that bars have room for at least, and of numbers along a heat map at most."""

SMALL = "small"
TITLE, NOTE = 46, 56
"""The number of characters of a line of a title and of a note, which a panel of `WIDTH` has room for."""


def plotted(panels: Iterable[Panel], ax: Any = None) -> "np.ndarray[Any, Any]":
    """Draw panels on axes, and return these in an array of shape (panels,).

    Args:
        panels: The panels.
        ax: As many axes, in a sequence or an array of any shape; those of a new figure if not given.

    Raises:
        BadOption: If ``ax`` is something else, or there are no panels or more than `MOST`.
    """
    panels = list(islice(panels, MOST + 1))
    if not panels:
        raise BadOption("There is nothing to draw.")
    if len(panels) > MOST:
        raise BadOption(f"A figure has at most {MOST} panels; plot a part, such as a slice [:4].")
    axes = _new_axes(panels) if ax is None else _given_axes(ax, len(panels))
    for panel, place in zip(panels, axes, strict=True):
        draw(panel, place)
        _label(panel, place)
    for panel, place in zip(panels, axes, strict=True):
        if isinstance(panel, Points):
            place.figure.canvas.figure.draw_without_rendering()
            _label_points(place, panel)
    return axes


def _given_axes(ax: Any, count: int) -> "np.ndarray[Any, Any]":
    axes = np.empty(count, dtype=object)
    flat = list(np.ravel(np.asarray(ax, dtype=object)))
    if wrong := [type(place).__name__ for place in flat if not isinstance(place, Axes)]:
        raise BadOption(f"ax holds a value of type {wrong[0]}; it takes Axes of matplotlib.")
    if len(flat) != count:
        raise BadOption(f"ax holds {len(flat)} axes, and there are {count} panels to draw: one each.")
    axes[:] = flat
    return axes


def _new_axes(panels: Sequence[Panel]) -> "np.ndarray[Any, Any]":
    """Return axes for panels in a new figure, which a notebook shows."""
    across = math.ceil(math.sqrt(len(panels))) if len(panels) > 6 else min(len(panels), 2)
    down = math.ceil(len(panels) / across)
    sizes = [_size(panel) for panel in panels] + [(0.0, 0.0)] * (across * down - len(panels))
    widths = [max(width for width, _ in sizes[column::across]) for column in range(across)]
    heights = [max(height for _, height in sizes[row * across : (row + 1) * across]) for row in range(down)]
    scale = rcParams["font.size"] / 10  # larger letters need a larger figure
    # A notebook shows the figures of pyplot, which chooses a backend when it is imported.
    figure, grid = import_module("matplotlib.pyplot").subplots(
        down,
        across,
        figsize=(scale * sum(widths), scale * sum(heights)),
        gridspec_kw={"width_ratios": widths, "height_ratios": heights},
        layout="constrained",
        squeeze=False,
    )
    for place in grid.flat[len(panels) :]:
        figure.delaxes(place)
    axes: np.ndarray[Any, Any] = grid.flatten()[: len(panels)]
    return axes


def _size(panel: Panel) -> tuple[float, float]:
    """Return the width and height of a panel in inches."""
    head = 0.6 + 0.19 * len(_lines([panel.title], TITLE)) + 0.16 * len(_lines(panel.notes, NOTE))
    if isinstance(panel, Bars):
        return WIDTH, head + ROW * max(len(panel.right), len(panel.left), LEAST_ROWS)
    if isinstance(panel, HeatMap):
        rows, columns = (0.075 * max(map(len, labels), default=0) for labels in (panel.rows, panel.columns))
        cell = CELL if _is_named(panel) else min(CELL, MAP / max(len(panel.rows), len(panel.columns), 1))
        width, height = (cell * len(labels) for labels in (panel.columns, panel.rows))
        return max(WIDTH + max(rows - 0.5, 0), width + rows + 1.1), max(1.8, head + height + columns)
    return WIDTH + 0.6, head + 1.75 + 0.18 * math.ceil(len(panel.legend) / 2)


def _is_named(panel: HeatMap) -> bool:
    """Tell whether rows or columns have names, all of which are shown, rather than numbers, of which some are."""
    return any(len(label) > 3 for label in (*panel.rows, *panel.columns))


def _legend(panel: Panel, axes: Axes, handles: Sequence[Artist]) -> None:
    """Write the legend of a panel below its axes."""
    if panel.legend:
        style: dict[str, Any] = {"frameon": False, "fontsize": SMALL, "ncols": 2, "borderaxespad": 0}
        names = [" "] * len(panel.legend)
        legend = axes.legend(handles, names, loc="upper left", bbox_to_anchor=(0, -0.24), **style)
        for text, name in zip(legend.get_texts(), panel.legend, strict=True):
            set_plain(text, name)


def _lines(texts: Iterable[str], longest: int) -> list[str]:
    return [line for text in texts for line in wrap(shown_text(text, limit=200), longest)]


def _label(panel: Panel, axes: Axes) -> None:
    """Write what all panels have: title, notes, labels of the axes."""
    notes = _lines(panel.notes, NOTE)
    title = axes.set_title(" ", loc="left", pad=5 + 11 * len(notes), fontsize="medium", color=INK)
    set_plain(title, "\n".join(_lines([panel.title], TITLE)))
    if notes:
        below = axes.annotate(" ", (0, 1), (0, 3), "axes fraction", "offset points", fontsize=SMALL, color=DIM)
        set_plain(below, "\n".join(notes))
    for artist, text in ((axes.xaxis.label, panel.x), (axes.yaxis.label, panel.y)):
        artist.set_fontsize(SMALL)
        set_plain(artist, text)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)


@singledispatch
def draw(panel: Panel, _axes: Axes) -> None:
    """Draw a panel on axes, but for its title and the labels of its axes."""
    raise TypeError(f"There is no drawing of a {type(panel).__name__}.")


# --- Bars -------------------------------------------------------------------------------------------------------------


@draw.register
def _(panel: Bars, axes: Axes) -> None:
    values = [value for _, value in (*panel.right, *panel.left) if math.isfinite(value)]
    most = 1.04 * max(map(abs, values), default=0.0) or 1.0
    if panel.band:
        axes.axvspan(*panel.band, color=NULL, alpha=0.5, linewidth=0, zorder=0)
    for entries, colour, side in ((panel.right, RIGHT, 1), (panel.left, LEFT, -1)):
        lengths = [value if math.isfinite(value) else 0 for _, value in entries]
        axes.barh(range(len(entries)), lengths, height=0.84, color=PALE if panel.pale else colour, linewidth=0)
        for row, (text, _) in enumerate(entries):
            aligned = "left" if side > 0 else "right"
            label = axes.annotate(" ", (0, row), (3 * side, 0), textcoords="offset points", ha=aligned, va="center")
            label.set(fontsize=SMALL, color=DIM if panel.pale else INK, in_layout=False)
            set_plain(label, text)
    for value in panel.lines:
        axes.axvline(value, color=DIM, linestyle="--", linewidth=0.8, zorder=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlim(-most if panel.left or min(values, default=0.0) < 0 else 0, most)
    axes.set_ylim(max(len(panel.right), len(panel.left), LEAST_ROWS) - 0.4, -0.6)
    if panel.mirrored:
        axes.xaxis.set_major_formatter(lambda x, _: f"{abs(x):g}")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


# --- Heat maps --------------------------------------------------------------------------------------------------------


@draw.register
def _(panel: HeatMap, axes: Axes) -> None:
    values = np.array(panel.values, dtype=float).reshape(len(panel.rows), len(panel.columns))
    shown = values[np.isfinite(values)]
    low, high = panel.ends or (shown.min(initial=math.inf), shown.max(initial=-math.inf))
    low, high = (low, high) if low < high else (low - 0.5, low + 0.5) if math.isfinite(low) else (0.0, 1.0)
    cells = np.ma.masked_invalid(values)
    mesh = axes.pcolormesh(cells, cmap="YlGnBu", vmin=low, vmax=high, edgecolors="white", linewidth=0.4)
    marks = [(column + 0.5, row + 0.5) for row, column in enumerate(panel.marked) if column >= 0]
    size = 60 / max(len(panel.rows), len(panel.columns), 15)
    axes.plot(*np.reshape(marks, (-1, 2)).T, "o", color="white", ms=size, mec=INK, mew=0.6)
    _ticks(axes, "x", panel.columns)
    _ticks(axes, "y", panel.rows)
    axes.set_xlim(0, max(1, len(panel.columns)))
    axes.set_ylim(max(1, len(panel.rows)), 0)
    axes.spines[:].set_visible(False)
    beyond = shown.min(initial=low) < low, shown.max(initial=high) > high
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    bar = axes.figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.02, aspect=25, extend=extend)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL)
    bar.ax.yaxis.label.set_fontsize(SMALL)
    set_plain(bar.ax.yaxis.label, panel.scale)


def _ticks(axes: Axes, name: str, labels: Sequence[str]) -> None:
    """Write the labels of rows or columns in the middle of their cells: all tokens, and of many numbers some."""
    step = math.ceil(len(labels) / MOST_TICKS)
    axis = axes.xaxis if name == "x" else axes.yaxis
    places, texts = range(0, len(labels), step or 1), labels[:: step or 1]
    axis.set_ticks([place + 0.5 for place in places], labels=[" " for _ in places])
    axis.set_tick_params(length=0)
    ticks = axis.get_ticklabels()
    for tick, text in zip(ticks, texts, strict=True):
        set_plain(tick, text)
        if name == "x" and max(map(len, labels)) > 3:
            tick.set(rotation=50, ha="right", rotation_mode="anchor")
    axis.set_major_formatter(FixedFormatter([tick.get_text() for tick in ticks]))


# --- Curves -----------------------------------------------------------------------------------------------------------


@draw.register
def _(panel: Curves, axes: Axes) -> None:
    dashes, styles = cycle(("-", "--", ":")), cycle(zip(COLOURS, MARKERS, strict=True))
    names = dict.fromkeys([*panel.groups, *(curve.name for curve in panel.curves if not curve.null)])
    styles_of = dict(zip(names, styles, strict=False))
    handles = []
    for curve in panel.curves:
        colour, marker = (NULL, "") if curve.null else styles_of[curve.name]
        line = _curve(axes, curve, colour, next(dashes) if curve.null else "-", marker)
        handles += [line] if curve.name else []
    _legend(panel, axes, handles)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _curve(axes: Axes, curve: Curve, colour: str, dash: str, marker: str) -> Artist:
    """Draw a line with its band, and hollow points where it has them."""
    if curve.low:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.25, linewidth=0)
    (line,) = axes.plot(curve.x, curve.y, color=colour, ls=dash, marker=marker, linewidth=1.3, markersize=3.5)
    hollow = [(x, y) for x, y, below in zip(curve.x, curve.y, curve.hollow, strict=False) if below]
    axes.plot(*np.reshape(hollow, (-1, 2)).T, marker, color=colour, markersize=3.5, markerfacecolor="white")
    return line


# --- Points -----------------------------------------------------------------------------------------------------------


@draw.register
def _(panel: Points, axes: Axes) -> None:
    handles: list[Artist] = []
    for group, colour, marker in zip(panel.groups, cycle(COLOURS), cycle(MARKERS), strict=False):
        for hollow in (False, True):
            places = [(p.x, p.y) for p in panel.dots if (p.group, p.hollow) == (group, hollow)]
            face = "white" if hollow else colour
            axes.plot(*np.reshape(places, (-1, 2)).T, marker, color=colour, markersize=4.5, markerfacecolor=face)
        if any(dot.group == group for dot in panel.dots):
            handles += axes.plot([], [], marker, color=colour, markersize=4.5)
    axes.margins(0.08, 0.1)
    _legend(panel, axes, handles)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _label_points(axes: Axes, panel: Points) -> None:
    """Write labels beside their points where they cover nothing; the figure must have its layout."""
    scale = 72 / axes.figure.dpi
    dots = sorted(panel.dots, key=lambda dot: not dot.label)
    labels = []
    for dot in (dot for dot in dots if dot.label):
        label = axes.annotate(" ", (dot.x, dot.y), (0, 0), textcoords="offset points", fontsize=SMALL, color=INK)
        label.set_in_layout(False)
        set_plain(label, dot.label)
        labels.append(label)
    points = (axes.transData.transform(np.reshape([(dot.x, dot.y) for dot in dots], (-1, 2))) * scale).tolist()
    extents = (label.get_window_extent() for label in labels)
    sizes = [(extent.width * scale, extent.height * scale) for extent in extents]
    left, low, right, high = (edge * scale for edge in axes.bbox.extents)
    places = dict(free_places(points, sizes, (left, low, right, high)))
    for number, label in enumerate(labels):
        if number in places:
            label.set_position((places[number][0] - points[number][0], places[number][1] - points[number][1]))
        else:
            label.remove()


# --- Columns ----------------------------------------------------------------------------------------------------------

FREE = 0.42
"""The share of the height that is left to labels above columns."""


@draw.register
def _(panel: Columns, axes: Axes) -> None:
    step = panel.width / max(len(panel.series), 1)
    handles: list[Any] = []
    for number, ((_, columns), colour) in enumerate(zip(panel.series, (BLUE, ORANGE, GREEN), strict=False)):
        shift = (number + 0.5) * step - panel.width / 2
        xs = [x + shift for x, _ in columns]
        handles.append(axes.bar(xs, [height for _, height in columns], step, color=colour, linewidth=0))
    peak = max((height for _, columns in panel.series for _, height in columns), default=0) or 1
    room = 1 - (FREE if panel.marked else 0.03)
    if panel.log:
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(0, 10 ** ((math.log10(peak) + 1) / room - 1))
        axes.set_yticks([0, *(10**n for n in range(math.floor(math.log10(peak)) + 1))])
        axes.minorticks_off()
    else:
        axes.set_ylim(0, peak / room)
    _legend(panel, axes, handles)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for side in (1, -1):
        _marks(axes, [(text, x) for text, x in panel.marked if (x >= 0) == (side > 0)], side)


def _marks(axes: Axes, marked: Sequence[Entry], side: int) -> None:
    """Write labels above columns, the outermost highest, so that no line crosses a label."""
    for number, (text, x) in enumerate(sorted(marked, key=lambda entry: -abs(entry[1]))):
        height = 1 - FREE * (number + 0.5) / len(marked)
        axes.plot([x, x], [0, height + 0.02], color=NULL, linewidth=0.6, transform=axes.get_xaxis_transform(), zorder=0)
        label = axes.annotate(" ", (x, height), (-3 * side, 0), axes.get_xaxis_transform(), "offset points")
        label.set(fontsize=SMALL, color=INK, in_layout=False, ha="right" if side > 0 else "left", va="center")
        set_plain(label, text)
