"""SQL on the tables of an atlas, with DuckDB."""

from pathlib import Path

import duckdb

from zeropass.atlas.schema import PARAMETERS, TOKEN_INDEX, TOKENS
from zeropass.errors import BadOption

__all__ = ["TABLES", "connected", "result_of"]

TABLES = {
    "parameters": PARAMETERS,
    "tokens": TOKENS,
    "hits": TOKEN_INDEX,
    "lists": "lists/*.parquet",
    "pairs": "pairs/*.parquet",
}
"""The names of the tables in queries, with their files."""


def connected(folder: Path) -> duckdb.DuckDBPyConnection:
    """Return a connection in which the tables of an atlas are views; those that it lacks are left out."""
    connection = duckdb.connect()
    for name, files in TABLES.items():
        if paths := sorted(str(path) for path in folder.glob(files)):
            connection.read_parquet(paths, union_by_name=True).create_view(name)
    return connection


def result_of(connection: duckdb.DuckDBPyConnection, query: str) -> duckdb.DuckDBPyRelation:
    """Return the result of a query; raise BadOption, with DuckDB's reason, for one that it cannot run."""
    try:
        relation = connection.sql(query)
    except duckdb.Error as error:
        raise BadOption(f"DuckDB cannot run this query: {error}") from error
    if relation is None:
        raise BadOption("An empty query returns no rows.")
    return relation
