"""What a comparison found: plain data, its JSON and its Parquet. No torch.

A folder of a comparison holds::

    diff.json          everything
    matrices.parquet   one row for each changed matrix: layer, role, how much, of which rank
    where.svg          the same as a picture
"""

import html
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zeropass.disk import beside, read_lines
from zeropass.errors import BadOption
from zeropass.views import Direction, Record, Token

__all__ = ["Diff", "MatrixChange", "Moved", "ParameterChange", "Standout", "Watched", "read_words", "write_diff"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class MatrixChange:
    """How one matrix changed. ``relative``: norm of the change over that of the matrix.

    ``rank``: effective rank of the change, (Σσ²)²/Σσ⁴: 1 for a single direction. ``rounding``: the difference is no
    more than what storing the numbers in another type does; such a matrix counts as unchanged. ``directions`` are the
    leading ones, strongest first: ``left`` what is read, ``right`` what is written. ``error``: how far the directions'
    values may be off, relative to the largest (0 where they are exact).
    """

    layer: int
    role: str
    relative: float
    rank: float
    rounding: bool
    directions: tuple[Direction, ...]
    error: float


@dataclass(frozen=True)
class Standout:
    """A token that a change concerns more than others: robust z, over the shown tokens, of the log of its effect."""

    token: Token
    z: float


@dataclass(frozen=True)
class Moved:
    """A vector that moved, by what it is called: its change over its length, and the cosine of before and after."""

    name: str
    relative: float
    cosine: float


@dataclass(frozen=True)
class ParameterChange:
    """A neuron, a head or a row outside the blocks, and its lists before and after in the base model's frames.

    ``before`` is empty, and ``relative`` 1, for what the base does not have. ``label``: what a classifier's row stands
    for, as the configuration has it.
    """

    address: str
    relative: float
    before: tuple[Record, ...]
    after: tuple[Record, ...]
    label: str = ""


@dataclass(frozen=True)
class Watched:
    """How much a matrix' change concerns the watched words: ``effect`` in deviations of random directions.

    ``above``: the share of as many other tokens, drawn at random, that the change concerns less.
    """

    layer: int
    role: str
    effect: float
    above: float


@dataclass(frozen=True)
class Diff:
    """All of a comparison. ``sees`` and ``writes`` are the tokens that all changes together concern most.

    ``alarm``: of ``sees`` and ``writes`` those in which a token stands out more than in any neutral fine-tune that was
    measured (`delta.verdict.ALARM`). ``outside``: rows outside the blocks that changed or are new.
    """

    base: dict[str, Any]
    tuned: dict[str, Any]
    verdict: tuple[str, ...]
    alarm: tuple[str, ...]
    relative: float
    matrices: tuple[MatrixChange, ...]
    vectors: tuple[Moved, ...]
    embedding: tuple[Moved, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    sees: tuple[Standout, ...]
    writes: tuple[Standout, ...]
    neurons: tuple[ParameterChange, ...]
    heads: tuple[ParameterChange, ...]
    outside: tuple[ParameterChange, ...]
    watch: tuple[Watched, ...]
    method: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A dict that json.dumps takes as it is."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}


def write_diff(found: Diff, folder: Path) -> None:
    """Write the folder, each file whole or not at all; BadOption, naming it, where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadOption(f"{folder} could not be made ({error.strerror or error}).") from error
    rows = [
        {"layer": m.layer, "role": m.role, "relative": m.relative, "rank": m.rank, "rounding": m.rounding}
        for m in found.matrices
    ]
    with beside(folder / "matrices.parquet", BadOption) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=_MATRICES), temporary)
    with beside(folder / "where.svg", BadOption) as temporary:
        temporary.write_text(picture(found), encoding="utf-8")
    with beside(folder / "diff.json", BadOption) as temporary:
        temporary.write_text(json.dumps(found.to_json(), allow_nan=False) + "\n", encoding="utf-8")


def read_words(path: Path) -> tuple[str, ...]:
    """The words of a file, one a line; BadOption, naming it, if there are none."""
    words = read_lines(path, "--watch", "word")
    if not words:
        raise BadOption(f"--watch {path} holds no words; there should be one a line.")
    return words


_MATRICES = pa.schema(
    [
        ("layer", pa.int32()),
        ("role", pa.string()),
        ("relative", pa.float64()),
        ("rank", pa.float64()),
        ("rounding", pa.bool_()),
    ]
)
CELL, LEFT, TOP = 18, 60, 44


def picture(found: Diff) -> str:
    """An SVG: a row for each role, a column for each layer, as dark as the matrix changed."""
    roles = list(dict.fromkeys(one.role for one in found.matrices))
    layers = 1 + max((one.layer for one in found.matrices), default=0)
    most = max((one.relative for one in found.matrices), default=0.0) or 1.0
    width, height = LEFT + max(layers * CELL, 320) + 10, TOP + len(roles) * CELL + 30
    title = html.escape(f"Relative change by layer (across) and role (down); darkest is {most:.2%}")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'font-family="sans-serif" font-size="12" aria-label="{title}">',
        f'<rect width="{width}" height="{height}" fill="#fff"/><text x="8" y="18">{title}</text>',
    ]
    parts += [f'<text x="8" y="{TOP + n * CELL + 13}">{html.escape(role)}</text>' for n, role in enumerate(roles)]
    for one in found.matrices:
        x, y = LEFT + one.layer * CELL, TOP + roles.index(one.role) * CELL
        size = f'width="{CELL - 1}" height="{CELL - 1}"'
        parts.append(
            f'<rect x="{x}" y="{y}" {size} fill="#084594" fill-opacity="{one.relative / most:.3f}" stroke="#ddd">'
            f"<title>L{one.layer} {html.escape(one.role)}: {one.relative:.3%}, rank {one.rank:.1f}</title></rect>"
        )
    foot = TOP + len(roles) * CELL + 16
    parts += [f'<text x="{LEFT + n * CELL}" y="{foot}">{n}</text>' for n in range(0, layers, 5)]
    return "".join([*parts, "</svg>\n"])
