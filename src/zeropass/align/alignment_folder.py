"""The folder of an alignment.

::

    alignment.json     the two models, the method and the layer maps
    layers.svg         a drawing of the layer maps (`heat_map`)
    layers.parquet     one row for each role, frame and pair of layers
    matches.parquet    one row for each neuron and head of the first model, with its best match in the second
"""

from dataclasses import asdict, replace
from pathlib import Path

from zeropass._io.atomic import make_folder, write_json
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


def write_alignment(alignment: Alignment, folder: str | Path) -> None:
    """Write the folder, each file completely or not at all; raise BadOption, naming the file, on failure."""
    folder = Path(folder)
    make_folder(folder, BadOption)
    rows = [
        {"role": m.role, "frame": m.frame, "first": a, "second": b, "score": score, "assigned": m.assigned[a] == b}
        for m in alignment.layers
        for a, scores in enumerate(m.scores)
        for b, score in enumerate(scores)
    ]
    write_rows(rows, folder / "layers.parquet", _LAYERS, BadOption)
    write_rows(map(asdict, alignment.pairings), folder / "matches.parquet", columns_of(Pairing), BadOption)
    value = {"schema": SCHEMA_VERSION, "models": alignment.models, "method": alignment.method}
    write_json(folder / "alignment.json", value | {"layers": [asdict(m) for m in alignment.layers]})


def read_alignment(folder: str | Path) -> Alignment:
    """Read what `write_alignment` wrote; raise BadOption, naming the file, if it holds anything else."""
    folder = Path(folder)
    path, table = folder / "alignment.json", folder / "matches.parquet"
    with holding(path, "an alignment"):
        value = read_schema(path, SCHEMA_VERSION)
        fields = {name: value[name] for name in ("models", "method", "layers")}
        alignment = from_json(Alignment, fields | {"pairings": ()})
        _check_maps(alignment)
    with holding(table, "an alignment"):
        pairings = tuple(from_json(Pairing, row, f"row {n}") for n, row in enumerate(read_rows(table)))
        for pairing in pairings:
            _check_addresses(pairing)
        return replace(alignment, pairings=pairings)


def _check_maps(alignment: Alignment) -> None:
    """Raise ValueError for models without names, for layer maps that are no tables, and for absent layers."""
    if not all(isinstance(model.get("name"), str) for model in alignment.models):
        raise ValueError("models are not two that have names")
    if type(alignment.method.get("shared_tokens", 0)) is not int:
        raise ValueError("method.shared_tokens is not a whole number")
    lenses = alignment.method.get("lenses", [])
    if not isinstance(lenses, list) or len(lenses) not in (0, 2) or not all(isinstance(words, str) for words in lenses):
        raise ValueError("method.lenses are not the words of two lenses")
    for layer_map in alignment.layers:
        width = len(layer_map.scores[0]) if layer_map.scores else 0
        if (
            not width
            or any(len(row) != width for row in layer_map.scores)
            or len(layer_map.assigned) != len(layer_map.scores)
        ):
            raise ValueError(f"the layers of {layer_map.role} in {layer_map.frame} are no table")
        if not all(-1 <= layer < width for layer in layer_map.assigned):
            raise ValueError(f"{layer_map.role} in {layer_map.frame} assigns layers that are not there")


def _check_addresses(pairing: Pairing) -> None:
    for address in (pairing.first, pairing.second):
        try:
            parse(address)
        except BadAddress as error:
            raise ValueError(str(error)) from error
