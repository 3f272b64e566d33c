"""Find rows of a Parquet file by the file's statistics, for the server.

It takes about a third of the time of a DuckDB query, and a page asks for rows several times; DuckDB stays for all other
queries and for the command line, where loading pyarrow (an eighth of a second) would cost more than it saves.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zeropass.atlas.schema import Place, Wanted

__all__ = ["rows_of"]

_Stamp = tuple[Place, int, int]
"""The state of a file when it was read: its path, time of change in ns and size."""

_CACHED = 512
"""Number of files whose statistics are kept: all of a model of 70 layers."""


def rows_of(path: Place, wanted: Wanted, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the rows whose columns have the wanted values, in the order of the file.

    Only the row groups are read whose statistics allow all of these values.

    Args:
        path: A Parquet file, on this machine or on the hub.
        wanted: The values; columns that the file lacks are ignored.
        columns: Names of the columns to return.

    Raises:
        OSError, ValueError, KeyError: The file is damaged.
    """
    state = path.stat()
    stamp = path, state.st_mtime_ns, state.st_size
    wanted = {name: value for name, value in wanted.items() if name in _paths(stamp)}
    spans = [(value, _spans(stamp, name)) for name, value in wanted.items()]
    groups = [i for i in range(_metadata(stamp).num_row_groups) if all(_within(value, of[i]) for value, of in spans)]
    with _source(path) as source, pq.ParquetFile(source, metadata=_metadata(stamp)) as file:
        table = file.read_row_groups(groups, columns=list({*wanted, *columns}), use_threads=False)
    for name, value in wanted.items():
        table = table.filter(pc.equal(table[name], pa.scalar(value, table[name].type)))
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


@lru_cache(_CACHED)
def _metadata(stamp: _Stamp) -> pq.FileMetaData:
    with _source(stamp[0]) as source:
        return pq.read_metadata(source)


def _source(path: Place) -> AbstractContextManager[Any]:
    """Return what pyarrow reads a file from: the path of a file on this machine, which it maps, or an open file."""
    return nullcontext(path) if isinstance(path, Path) else path.open()


@lru_cache(_CACHED)
def _paths(stamp: _Stamp) -> list[str]:
    schema = _metadata(stamp).schema
    return [schema.column(place).path for place in range(len(schema))]


@lru_cache(4 * _CACHED)
def _spans(stamp: _Stamp, name: str) -> list[tuple[Any, Any] | None]:
    """Return the least and the greatest value of a column in each row group, or None if the file lacks them."""
    metadata, place = _metadata(stamp), _paths(stamp).index(name)
    groups = (metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups))
    return [(group.min, group.max) if group is not None and group.has_min_max else None for group in groups]


def _within(value: int | str, span: tuple[Any, Any] | None) -> bool:
    return span is None or bool(span[0] <= value <= span[1])
