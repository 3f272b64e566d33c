"""Results as figures: panels of plain data, which matplotlib draws. No torch, and no matplotlib until asked."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from zeropass.tokens.shown import shown_text

if TYPE_CHECKING:
    import numpy
    from matplotlib.axes import Axes

__all__ = ["LONGEST", "AsFigure", "AsFigures", "Bars", "Columns", "Curve", "Curves", "Dot", "Entry", "HeatMap", "Panel"]
__all__ += ["Points", "scale_of", "token_label"]

LONGEST = 16
"""The number of characters of a token's label."""

Entry = tuple[str, float]
"""A label and its value."""


@dataclass(frozen=True)
class Panel:
    """A part of a figure with axes of its own.

    Attributes:
        title: The heading.
        notes: Lines below the heading.
        x: The label of the horizontal axis.
        y: The label of the vertical axis.
    """

    title: str
    notes: Sequence[str] = ()
    x: str = ""
    y: str = ""

    @property
    def legend(self) -> Sequence[str]:
        """The names in the legend; none if there is nothing to tell apart."""
        names = self._names()
        return names if len(names) > 1 else []

    def _names(self) -> Sequence[str]:
        return []


@dataclass(frozen=True)
class Bars(Panel):
    """Horizontal bars from zero to both sides, best first, each with its label on it.

    Attributes:
        right: The entries of the right side.
        left: Those of the left side, which have a colour of their own; their values are mostly negative.
        mirrored: True if the axis has no sign, so that both sides show the same quantity.
        pale: True if the bars say little and are drawn in grey.
        lines: Values with a dashed line.
        band: The ends of a grey band, such as that of a null.
    """

    right: Sequence[Entry] = ()
    left: Sequence[Entry] = ()
    mirrored: bool = False
    pale: bool = False
    lines: Sequence[float] = ()
    band: tuple[float, float] | None = None


@dataclass(frozen=True)
class HeatMap(Panel):
    """Cells in rows and columns, the darker the higher.

    Attributes:
        rows: The labels of the rows, from the top.
        columns: The labels of the columns.
        values: ``values[row][column]``; NaN for a cell that stays empty.
        scale: The label of the scale of colours.
        ends: The values of the lightest and of the darkest colour; those of the cells if not given.
        marked: The marked column of each row; -1 for none.
    """

    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    values: Sequence[Sequence[float]] = ()
    scale: str = ""
    ends: tuple[float, float] | None = None
    marked: Sequence[int] = ()


@dataclass(frozen=True)
class Curve:
    """A line with points.

    Attributes:
        name: Its name in the legend.
        x: The places of the points, in order.
        y: Their values.
        low: The lower ends of a band around it; empty for no band.
        high: The upper ends.
        hollow: True for each point that is drawn hollow: not above its null, for example.
        null: True for the line of a null, which is grey.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    hollow: Sequence[bool] = ()
    null: bool = False


@dataclass(frozen=True)
class Curves(Panel):
    """Lines over one axis, mostly that of layers.

    Attributes:
        curves: The lines.
        groups: The names of the lines in the order of their colours, where several panels share them.
    """

    curves: Sequence[Curve] = ()
    groups: Sequence[str] = ()

    def _names(self) -> Sequence[str]:
        return [curve.name for curve in self.curves if curve.name]


@dataclass(frozen=True)
class Dot:
    """A point of a plane: its group and, if it has one, its label."""

    x: float
    y: float
    group: str
    label: str = ""
    hollow: bool = False


@dataclass(frozen=True)
class Points(Panel):
    """Points of a plane.

    Attributes:
        dots: The points; the first ones get their labels first, and one without room stays without.
        groups: The groups in the order of their colours.
    """

    dots: Sequence[Dot] = ()
    groups: Sequence[str] = ()

    def _names(self) -> Sequence[str]:
        return [group for group in self.groups if any(dot.group == group for dot in self.dots)]


@dataclass(frozen=True)
class Columns(Panel):
    """Upright bars in one or more series.

    Attributes:
        series: The height of a column at each x, by the name of the series.
        width: The width of a column in units of x.
        log: True if the heights are drawn by their logarithm.
        marked: Labels above the columns at their x.
    """

    series: Sequence[tuple[str, Sequence[tuple[float, float]]]] = ()
    width: float = 1.0
    log: bool = False
    marked: Sequence[Entry] = ()

    def _names(self) -> Sequence[str]:
        return [name for name, _ in self.series]


class AsFigure:
    """A result that is drawn as one panel."""

    def panel(self) -> Panel:
        """Return the panel as plain data."""
        raise NotImplementedError

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the result with matplotlib.

        Args:
            ax: The axes to draw on; those of a new figure if not given.

        Returns:
            The axes; ``ax.figure.savefig("list.pdf")`` writes the figure.

        Raises:
            MissingExtra: If matplotlib is not installed.
            BadOption: If ``ax`` is something else.

        Example:
            >>> import matplotlib
            >>> import zeropass as zp
            >>> matplotlib.use("Agg")  # in a script without a display
            >>> lens = zp.load("models/first")
            >>> ax = lens.explain("L2.ff.3.value", k=10)[0].plot()
            >>> ax.get_title(loc="left")
            'L2.ff.3 value writes'
        """
        axes: Axes = _plotted([self.panel()], None if ax is None else [ax])[0]
        return axes


class AsFigures:
    """A result that is drawn as several panels."""

    def panels(self) -> Iterator[Panel]:
        """Yield the panels as plain data."""
        raise NotImplementedError

    def plot(self, ax: "Sequence[Axes] | numpy.ndarray[Any, Any] | None" = None) -> "numpy.ndarray[Any, Any]":
        """Draw the result with matplotlib, on axes of its own for each panel.

        Args:
            ax: As many axes to draw on, in an array of any shape; those of a new figure if not given.

        Returns:
            An array of the axes, one for each panel; ``ax[0].figure.savefig("lists.pdf")`` writes the figure.

        Raises:
            MissingExtra: If matplotlib is not installed.
            BadOption: If ``ax`` is something else, or there is nothing to draw, or too much.
        """
        return _plotted(self.panels(), ax)


def _plotted(panels: Iterable[Panel], ax: Any) -> "numpy.ndarray[Any, Any]":
    drawn: numpy.ndarray[Any, Any] = import_module("zeropass.records.matplotlib_axes").plotted(panels, ax)
    return drawn


def token_label(text: str) -> str:
    """Return a token as a figure shows it: on one line, escaped where it does not print, cut."""
    return shown_text(text, LONGEST)


def scale_of(values: Iterable[float]) -> tuple[float, float]:
    """Return the ends of a scale: the 2nd and 98th percentiles, so that one outlier does not make all others pale."""
    ordered = sorted(value for value in values if math.isfinite(value))
    if not ordered:
        return 0.0, 1.0
    last = len(ordered) - 1
    return ordered[round(0.02 * last)], ordered[round(0.98 * last)]
