"""The folder of a comparison.

::

    report.html        the same as one page to read, print and hand over
    diff.json          everything
    matrices.parquet   one row for each changed matrix: its layer and role, the size and the rank of the change
    where.svg          the same sizes as a heat map
"""

from pathlib import Path

from zeropass._io.atomic import make_folder, write_json, write_text
from zeropass._io.parquet import write_rows
from zeropass.diff.render import draw_changes
from zeropass.diff.report import report
from zeropass.diff.results import Diff
from zeropass.errors import BadOption

__all__ = ["write_diff"]

_MATRICES = {"layer": "int32", "role": "string", "relative": "double", "rank": "double", "rounding": "bool"}


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
        ['diff.json', 'matrices.parquet', 'report.html', 'where.svg']
    """
    folder = Path(folder)
    make_folder(folder, BadOption)
    rows = ({name: getattr(matrix, name) for name in _MATRICES} for matrix in difference.matrices)
    write_rows(rows, folder / "matrices.parquet", _MATRICES, BadOption)
    write_text(folder / "where.svg", draw_changes([(m.layer, m.role, m.relative, m.rank) for m in difference.matrices]))
    write_text(folder / "report.html", report(difference))
    write_json(folder / "diff.json", difference.to_json())
