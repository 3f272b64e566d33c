"""The folder of a comparison.

::

    diff.json          everything
    matrices.parquet   one row for each changed matrix: its layer and role, the size and the rank of the change
    where.svg          the same sizes as a heat map
"""

import html
from pathlib import Path

from zeropass._io.atomic import make_folder, write_json, write_text
from zeropass._io.parquet import write_rows
from zeropass.diff.results import Diff
from zeropass.errors import BadOption

__all__ = ["write_diff"]

_MATRICES = {"layer": "int32", "role": "string", "relative": "double", "rank": "double", "rounding": "bool"}
CELL, LEFT, TOP = 18, 60, 44


def write_diff(difference: Diff, folder: str | Path) -> None:
    """Write a comparison to a folder, each file completely or not at all.

    Args:
        difference: The comparison.
        folder: The folder, made if it does not exist.

    Raises:
        BadOption: The folder or a file cannot be written; the message names it.

    Example:
        >>> import os
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> base = zp.open_model("models/first")
        >>> difference = zp.compare(base, zp.adapt(base, "models/tunes/reviews"))
        >>> with TemporaryDirectory() as folder:
        ...     zp.write_diff(difference, folder)
        ...     sorted(os.listdir(folder))
        ['diff.json', 'matrices.parquet', 'where.svg']
    """
    folder = Path(folder)
    make_folder(folder, BadOption)
    rows = ({name: getattr(matrix, name) for name in _MATRICES} for matrix in difference.matrices)
    write_rows(rows, folder / "matrices.parquet", _MATRICES, BadOption)
    write_text(folder / "where.svg", picture(difference))
    write_json(folder / "diff.json", difference.to_json())


def picture(difference: Diff) -> str:
    """Draw the relative change of every matrix as an SVG heat map: one row per role, one column per layer."""
    roles = list(dict.fromkeys(matrix.role for matrix in difference.matrices))
    layers = 1 + max((matrix.layer for matrix in difference.matrices), default=0)
    most = max((matrix.relative for matrix in difference.matrices), default=0.0) or 1.0
    width, height = LEFT + max(layers * CELL, 320) + 10, TOP + len(roles) * CELL + 30
    title = html.escape(f"Relative change by layer (across) and role (down); darkest is {most:.2%}")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'font-family="sans-serif" font-size="12" aria-label="{title}">',
        f'<rect width="{width}" height="{height}" fill="#fff"/><text x="8" y="18">{title}</text>',
    ]
    parts += [f'<text x="8" y="{TOP + n * CELL + 13}">{html.escape(role)}</text>' for n, role in enumerate(roles)]
    for matrix in difference.matrices:
        x, y = LEFT + matrix.layer * CELL, TOP + roles.index(matrix.role) * CELL
        size = f'width="{CELL - 1}" height="{CELL - 1}"'
        parts.append(
            f'<rect x="{x}" y="{y}" {size} fill="#084594" fill-opacity="{matrix.relative / most:.3f}" '
            f'stroke="#ddd"><title>L{matrix.layer} {html.escape(matrix.role)}: {matrix.relative:.3%}, '
            f"rank {matrix.rank:.1f}</title></rect>"
        )
    foot = TOP + len(roles) * CELL + 16
    parts += [f'<text x="{LEFT + n * CELL}" y="{foot}">{n}</text>' for n in range(0, layers, 5)]
    return "".join([*parts, "</svg>\n"])
