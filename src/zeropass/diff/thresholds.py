"""Thresholds from benign changes of one base, kept for its other changes. No torch.

A user who has changes of a base that are known to be benign need not rely on what chance reaches alone: `zeropass
screen --benign` keeps how far words stand out in each of them, and `diff` and `screen` call narrow or a topic only what
is beyond their mean by `DEVIATIONS` standard deviations.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from zeropass._io.atomic import make_folder, write_json
from zeropass._io.parse import load_json
from zeropass._io.short_repr import ShortRepr
from zeropass._io.typed_json import from_json
from zeropass.checkpoints.demo import cache_folder
from zeropass.errors import BadOption

__all__ = ["DEVIATIONS", "FEWEST", "Benign", "Thresholds", "kept_thresholds", "read_thresholds", "write_thresholds"]

FEWEST, DEVIATIONS = 8, 3.0
"""The least number of benign changes, and how many standard deviations above their mean a threshold lies."""

SCHEMA_VERSION = 1
"""The version of the file."""


@dataclass(frozen=True, repr=False)
class Benign(ShortRepr):
    """One benign change: its name and hash, the highest excess of a word in what it writes, and its lead."""

    name: str
    sha256: str
    excess: float
    lead: float


@dataclass(frozen=True, repr=False)
class Thresholds(ShortRepr):
    """The benign changes of a base, and the thresholds that they make.

    Attributes:
        base: The fingerprint of the base's weights.
        changes: The benign changes, at least `FEWEST`.

    Raises:
        BadOption: There are too few of them.
    """

    base: str
    changes: tuple[Benign, ...]

    def __post_init__(self) -> None:
        """Raise BadOption for too few benign changes."""
        if len(self.changes) < FEWEST:
            raise BadOption(
                f"Thresholds need at least {FEWEST} different benign changes that write to the residual stream; "
                f"there are {len(self.changes)}."
            )

    @property
    def excess(self) -> float:
        """The excess from which words stand out more than in benign changes."""
        return _threshold([change.excess for change in self.changes])

    @property
    def lead(self) -> float:
        """The lead from which few words stand out more than in benign changes."""
        return _threshold([change.lead for change in self.changes])

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` can write."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}


def _threshold(values: Sequence[float]) -> float:
    return mean(values) + DEVIATIONS * stdev(values)


def write_thresholds(thresholds: Thresholds, path: Path | None = None) -> Path:
    """Write thresholds to a file, or into the cache, where `diff` and `screen` find them.

    Args:
        thresholds: The thresholds.
        path: The file; the cache if not given.

    Returns:
        The path of the file.

    Raises:
        BadOption: The file cannot be written; the message names it.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> from zeropass.diff.thresholds import Benign, Thresholds
        >>> changes = tuple(Benign(name=f"run-{n}", sha256=f"{n}", excess=3 + n / 10, lead=1.0) for n in range(8))
        >>> limits = Thresholds(base="the hash of the base", changes=changes)
        >>> round(limits.excess, 2), limits.lead
        (4.08, 1.0)
        >>> with TemporaryDirectory() as folder:
        ...     zp.write_thresholds(limits, Path(folder) / "thresholds.json").name
        'thresholds.json'
    """
    try:
        path = path or _cached(thresholds.base)
    except RuntimeError as error:
        raise BadOption("There is no cache, since this user has no home folder; $ZEROPASS_CACHE names one.") from error
    make_folder(path.parent, BadOption)
    write_json(path, thresholds.to_json())
    return path


def read_thresholds(path: str | Path) -> Thresholds:
    """Read thresholds from a file; raise BadOption, which names it, if they cannot be read."""
    try:
        value = load_json(Path(path))
        if not isinstance(value, dict) or value.pop("schema", None) != SCHEMA_VERSION:
            raise ValueError(f"it does not hold thresholds of schema {SCHEMA_VERSION}")
        return from_json(Thresholds, value)
    except (OSError, ValueError) as error:
        raise BadOption(
            f"{path} holds no thresholds that can be read: {error}. zeropass screen --benign makes them."
        ) from error


def kept_thresholds(base: str, thresholds: "Thresholds | str | Path | None") -> Thresholds | None:
    """Return the thresholds that a user asks for.

    Args:
        base: The fingerprint of the base.
        thresholds: Thresholds, a file, ``auto`` for those in the cache if there are any, or None or ``none``.

    Raises:
        BadOption: They cannot be read, or are those of another base.
    """
    if thresholds is None or thresholds == "none":
        return None
    if thresholds == "auto":
        with suppress(RuntimeError):  # this user has no home folder, so nothing is kept
            thresholds = _cached(base)
        if thresholds == "auto" or not Path(thresholds).exists():
            return None
    known = thresholds if isinstance(thresholds, Thresholds) else read_thresholds(thresholds)
    if known.base != base:
        raise BadOption(f"The thresholds are those of another base: of weights {known.base[:12]}…, not {base[:12]}….")
    return known


def _cached(base: str) -> Path:
    return cache_folder() / "thresholds" / f"{base}.json"
