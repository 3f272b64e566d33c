"""SQL on the tables of an atlas, with DuckDB."""

import os
from pathlib import Path

import duckdb

from zeropass.atlas.schema import PARAMETERS, TOKEN_INDEX, TOKENS, Place
from zeropass.errors import BadOption

__all__ = ["TABLES", "result_of"]

TABLES = {
    "parameters": PARAMETERS,
    "tokens": TOKENS,
    "hits": TOKEN_INDEX,
    "lists": "lists/*.parquet",
    "pairs": "pairs/*.parquet",
}
"""The names of the tables in queries, with their files."""


def result_of(connection: duckdb.DuckDBPyConnection, folder: Place, query: str) -> duckdb.DuckDBPyRelation:
    """Return the result of a query on the tables of an atlas; those that it lacks do not exist.

    Args:
        connection: A connection that keeps the tables for further queries.
        folder: The folder of the atlas. If it is on the hub, tables that the query does not name are not fetched.
        query: The query.

    Raises:
        BadOption: DuckDB cannot run the query, with its reason.
    """
    try:
        for name, files in TABLES.items():
            if isinstance(folder, Path) or name in query.lower():
                _add_view(connection, name, folder, files)
        relation = connection.sql(query)
    except duckdb.Error as error:
        raise BadOption(f"DuckDB cannot run this query: {error}") from error
    if relation is None:
        raise BadOption("An empty query returns no rows.")
    return relation


def _add_view(connection: duckdb.DuckDBPyConnection, name: str, folder: Place, files: str) -> None:
    """Make some files of an atlas a view, unless it is one or there are none."""
    if (name,) in connection.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall():
        return
    if not isinstance(folder, Path):
        folder.fetch(folder.glob(files))
    if paths := sorted(os.fspath(path) for path in folder.glob(files)):
        connection.read_parquet(paths, union_by_name=True).create_view(name)
