"""The folder of a comparison of two changes.

::

    against.json       everything
    matrices.parquet   one row for each matrix that either changes: both sizes, their cosine, their overlaps
"""

from pathlib import Path

from zeropass._io.atomic import make_folder, write_json
from zeropass._io.parquet import columns_of, write_rows
from zeropass.diff.against_results import Against, MatrixOverlap
from zeropass.errors import BadOption

__all__ = ["write_against"]


def write_against(result: Against, folder: str | Path) -> None:
    """Write a comparison of two changes to a folder, each file completely or not at all.

    Args:
        result: The comparison.
        folder: The folder, made if it does not exist.

    Raises:
        BadOption: The folder or a file cannot be written; the message names it.

    Example:
        >>> import os
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> result = zp.against("models/first", "models/tunes/reviews", "models/first")
        >>> with TemporaryDirectory() as folder:
        ...     zp.write_against(result, folder)
        ...     sorted(os.listdir(folder))
        ['against.json', 'matrices.parquet']
    """
    folder = Path(folder)
    make_folder(folder, BadOption)
    columns = columns_of(MatrixOverlap)
    rows = ({name: getattr(matrix, name) for name in columns} for matrix in result.matrices)
    write_rows(rows, folder / "matrices.parquet", columns, BadOption)
    write_json(folder / "against.json", result.to_json())
