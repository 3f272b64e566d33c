"""An alignment in a folder.

::

    alignment.json     what was compared and how, and the layer maps
    layers.svg         the layer maps drawn (`heatmaps`)
    layers.parquet     one row for each role, frame and pair of layers
    matches.parquet    one row for each neuron and head of the first model, with its best match in the second
"""

import json
from dataclasses import asdict
from pathlib import Path

from zeropass.align.results import SCHEMA_VERSION, Alignment, Pairing, map_from_json
from zeropass.disk import beside, holding, make_folder, read_schema
from zeropass.errors import BadOption
from zeropass.parquet import columns_of, read_rows, write_rows

__all__ = ["read_alignment", "write_alignment"]

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
    make_folder(folder, BadOption)
    rows = [
        {"role": m.role, "frame": m.frame, "first": a, "second": b, "score": score, "assigned": m.assigned[a] == b}
        for m in found.layers
        for a, line in enumerate(m.scores)
        for b, score in enumerate(line)
    ]
    write_rows(rows, folder / "layers.parquet", _LAYERS, BadOption)
    write_rows(map(asdict, found.pairings), folder / "matches.parquet", columns_of(Pairing), BadOption)
    value = {"schema": SCHEMA_VERSION, "models": found.models, "method": found.method}
    with beside(folder / "alignment.json", BadOption) as temporary:
        text = json.dumps(value | {"layers": [asdict(m) for m in found.layers]}, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_alignment(folder: Path) -> Alignment:
    """What `write_alignment` wrote; BadOption, naming the file, if it is not that."""
    path, table = folder / "alignment.json", folder / "matches.parquet"
    with holding(path, "an alignment"):
        value = read_schema(path, SCHEMA_VERSION)
        models, method = (value["models"][0], value["models"][1]), value["method"]
        layers = tuple(map(map_from_json, value["layers"]))
    with holding(table, "an alignment"):
        return Alignment(models, method, layers, tuple(Pairing(**row) for row in read_rows(table)))
