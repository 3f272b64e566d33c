"""Small tables as Parquet files.

Importing pyarrow takes a quarter of a second, so modules that every command imports must not import this one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zeropass._io.atomic import atomic_write
from zeropass.errors import ZeropassError

__all__ = ["columns_of", "read_rows", "write_rows"]

_TYPES: dict[Any, str] = {str: "string", int: "int32", float: "double", float | None: "double", bool: "bool"}


def columns_of(record: type) -> dict[str, str]:
    """Return the columns of a dataclass, as `write_rows` takes them: its fields that are text or a number."""
    return {field.name: _TYPES[field.type] for field in fields(record) if field.type in _TYPES}


def write_rows(
    rows: Iterable[dict[str, Any]], path: Path, types: Mapping[str, str], error: type[ZeropassError]
) -> None:
    """Write a table atomically.

    Args:
        rows: Rows as dictionaries by column.
        path: The Parquet file.
        types: Arrow's type names by column.
        error: The class of the error to raise on failure.
    """
    schema = pa.schema([(name, pa.type_for_alias(alias)) for name, alias in types.items()])
    with atomic_write(path, error) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table; raise OSError or ValueError if it is missing or damaged."""
    try:
        return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
