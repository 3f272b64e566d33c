"""`zeropass align` as one call: two models in, layer maps and best matches out, a folder written."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zeropass.align.heatmaps import heat_maps
from zeropass.align.layers import assigned, head_layer_map, layer_map, layer_views, raw_map
from zeropass.align.pair import Pair, neuron_views, pair_of
from zeropass.align.pairings import head_pairings, neuron_pairings
from zeropass.align.results import Alignment, LayerMap, write_alignment
from zeropass.arch.spec import MAP_ROLES
from zeropass.disk import beside
from zeropass.errors import BadOption
from zeropass.model import Model

__all__ = ["align_models"]

HEAD_NULLS = 4
Progress = Callable[[str, int, int], None]


def align_models(
    first: Model, second: Model, folder: Path, *, seed: int = 0, progress: Progress = lambda *_: None
) -> Alignment:
    """Align all layers, neurons and heads of two models and write the folder (`results`).

    Raises BadOption where the models share too few tokens, or the folder holds something else.
    """
    _require_ours(folder)
    pair = pair_of(first, second)
    null = pair.null(seed)
    views, maps = layer_views(pair), []
    for n, view in enumerate(views):
        progress(f"layers by {view.roles[0]}, {view.frame}", n, len(views) + 2)
        maps.append(layer_map(pair, view, null))
    maps += [head_layer_map(pair, kind, null) for kind in MAP_ROLES]
    baselines = {view.roles: raw_map(pair, view) for view in views}
    maps += [found for found in baselines.values() if found is not None]
    neurons = neuron_views(first, second)
    layers = neuron_layers(maps, roles={view.roles[0] for view in neurons})
    progress("neurons", len(views), len(views) + 2)
    pairings = neuron_pairings(pair, neurons, layers, null)
    progress("heads", len(views) + 1, len(views) + 2)
    pairings += head_pairings(pair, [pair.null(seed + n) for n in range(HEAD_NULLS)])
    found = Alignment((_facts(first), _facts(second)), _method(pair, seed, layers), tuple(maps), tuple(pairings))
    write_alignment(found, folder)
    with beside(folder / "layers.svg", BadOption) as temporary:
        temporary.write_text(heat_maps(found), encoding="utf-8")
    return found


def neuron_layers(maps: list[LayerMap], roles: set[str]) -> list[tuple[int, int]]:
    """Pairs of layers whose neurons are compared: the assignment by the mean of the neuron roles' maps."""
    tables = [np.array(m.scores) for m in maps if m.role in roles and m.frame != "raw"]
    return [(a, b) for a, b in enumerate(assigned(np.mean(tables, 0))) if b >= 0]


def _facts(model: Model) -> dict[str, Any]:
    dims = model.dims
    return {
        "name": model.name,
        "family": model.family.name,
        "layers": dims.layers,
        "d": dims.d,
        "neurons": dims.neurons,
        "heads": dims.heads,
        "sha256": model.fingerprint,
    }


def _method(pair: Pair, seed: int, layers: list[tuple[int, int]]) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "shared_tokens": len(pair.shared),
        "shares": list(pair.shared.shares),
        "same_vocabulary": pair.shared.identical,
        "seed": seed,
        "layers": [list(both) for both in layers],
    }


def _require_ours(folder: Path) -> None:
    """BadOption for a folder that holds something other than an alignment."""
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / "alignment.json").is_file()):
        raise BadOption(f"{folder} exists and does not hold an alignment; give another --out.")
