"""Rows as data frames of pandas, which is an extra."""

from collections.abc import Sequence

from zeropass.errors import MissingExtra
from zeropass.records.tabular import Row

try:
    import pandas
except ImportError as _error:
    raise MissingExtra("Tables are data frames of pandas, an extra: pip install 'zeropass[tables]'.") from _error

__all__ = ["data_frame"]


def data_frame(rows: Sequence[Row]) -> pandas.DataFrame:
    """Return rows as a data frame; its columns are in the order in which they first occur."""
    return pandas.DataFrame.from_records(rows, columns=list(dict.fromkeys(name for row in rows for name in row)))
