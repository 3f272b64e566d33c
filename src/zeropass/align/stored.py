"""An alignment in a folder.

::

    alignment.json     what was compared and how, and the layer maps
    layers.svg         the layer maps drawn (`heatmaps`)
    layers.parquet     one row for each role, frame and pair of layers
    matches.parquet    one row for each neuron and head of the first model, with its best match in the second
"""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from zeropass.align.results import SCHEMA_VERSION, Alignment, Pairing, map_from_json
from zeropass.disk import beside
from zeropass.errors import BadOption
from zeropass.parquet import read_rows, write_rows

__all__ = ["read_alignment", "write_alignment"]

_TYPES: dict[Any, str] = {str: "string", float: "double", bool: "bool"}
_MATCHES = {one.name: _TYPES[one.type] for one in fields(Pairing)}
_LAYERS = {
    "role": "string",
    "frame": "string",
    "first": "int32",
    "second": "int32",
    "score": "double",
    "assigned": "bool",
}


def write_alignment(found: Alignment, folder: Path) -> None:
    """Write the folder, each file whole or not at all; BadOption, naming it, where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadOption(f"{folder} could not be made ({error.strerror or error}).") from error
    rows = [
        {"role": m.role, "frame": m.frame, "first": a, "second": b, "score": score, "assigned": m.assigned[a] == b}
        for m in found.layers
        for a, line in enumerate(m.scores)
        for b, score in enumerate(line)
    ]
    write_rows(rows, folder / "layers.parquet", _LAYERS, BadOption)
    write_rows(map(asdict, found.pairings), folder / "matches.parquet", _MATCHES, BadOption)
    value = {"schema": SCHEMA_VERSION, "models": found.models, "method": found.method}
    with beside(folder / "alignment.json", BadOption) as temporary:
        text = json.dumps(value | {"layers": [asdict(m) for m in found.layers]}, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_alignment(folder: Path) -> Alignment:
    """What `write_alignment` wrote; BadOption, naming the file, if it is not that."""
    path = folder / "alignment.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["schema"] != SCHEMA_VERSION:
            raise BadOption(f"{path} has schema {value['schema']!r}, this version reads {SCHEMA_VERSION}.")
        layers = tuple(map(map_from_json, value["layers"]))
        path = folder / "matches.parquet"
        pairings = tuple(Pairing(**row) for row in read_rows(path))
        return Alignment((value["models"][0], value["models"][1]), value["method"], layers, pairings)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BadOption(f"{path} does not hold an alignment ({type(error).__name__}: {error}).") from error
