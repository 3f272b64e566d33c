"""An alignment in a folder.

::

    alignment.json     what was compared and how, and the layer maps
    layers.svg         the layer maps drawn (`heatmaps`)
    layers.parquet     one row for each role, frame and pair of layers
    matches.parquet    one row for each neuron and head of the first model, with its best match in the second
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

from zeropass._io.atomic import atomic_write, make_folder
from zeropass._io.parquet import columns_of, read_rows, write_rows
from zeropass._io.parse import holding, read_schema
from zeropass._io.typed_json import from_json
from zeropass.align.results import SCHEMA_VERSION, Alignment, Pairing
from zeropass.errors import BadAddress, BadOption
from zeropass.model.address import parse

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
    with atomic_write(folder / "alignment.json", BadOption) as temporary:
        text = json.dumps(value | {"layers": [asdict(m) for m in found.layers]}, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_alignment(folder: Path) -> Alignment:
    """What `write_alignment` wrote; BadOption, naming the file, if it is not that."""
    path, table = folder / "alignment.json", folder / "matches.parquet"
    with holding(path, "an alignment"):
        value = read_schema(path, SCHEMA_VERSION)
        kept = {name: value[name] for name in ("models", "method", "layers")}
        found = from_json(Alignment, kept | {"pairings": ()})
        _check_maps(found)
    with holding(table, "an alignment"):
        pairings = tuple(from_json(Pairing, row, f"row {n}") for n, row in enumerate(read_rows(table)))
        for one in pairings:
            _check_addresses(one)
        return replace(found, pairings=pairings)


def _check_maps(found: Alignment) -> None:
    """Raise ValueError for models without names, for maps that are no table, and for layers that are not there."""
    if not all(isinstance(model.get("name"), str) for model in found.models):
        raise ValueError("models are not two that have names")
    if type(found.method.get("shared_tokens", 0)) is not int:
        raise ValueError("method.shared_tokens is not a whole number")
    for one in found.layers:
        across = len(one.scores[0]) if one.scores else 0
        if not across or any(len(line) != across for line in one.scores) or len(one.assigned) != len(one.scores):
            raise ValueError(f"the layers of {one.role} in {one.frame} are no table")
        if not all(-1 <= layer < across for layer in one.assigned):
            raise ValueError(f"{one.role} in {one.frame} assigns layers that are not there")


def _check_addresses(one: Pairing) -> None:
    for address in (one.first, one.second):
        try:
            parse(address)
        except BadAddress as error:
            raise ValueError(str(error)) from error
