"""Numbers as text, formatted alike wherever they are shown."""

import math

__all__ = ["NOTHING", "coefficient", "percent", "plain", "share"]

NOTHING = "–"
"""The sign for a number that is missing."""


def plain(value: float, sign: str = "") -> str:
    """Return a number with one decimal, or with two significant digits if it is below one, as changes often are."""
    below_one = 0 < abs(value) < 0.995  # what would be rounded to 1 has its decimal, too
    return f"{value:{sign}.2g}" if below_one else f"{value:{sign}.1f}"


def coefficient(value: float) -> str:
    """Return a number from -1 to 1 with two decimals and no leading zero: ``.52``, ``-.03``, ``1.00``."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{round(value, 2) + 0.0:.2f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def percent(value: float) -> str:
    """Return a share with two decimals, or two significant digits if those would be too few."""
    return f"{value:.2%}" if value >= 0.001 or not value else f"{100 * value:.2g}%"


def share(value: float) -> str:
    """Return a share with two decimals, rounded down: only all of something is 100%."""
    return f"{math.floor(10_000 * value) / 100:.2f}%"
