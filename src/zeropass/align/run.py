"""Run `zeropass align` in one call: align two models and write the folder of layer maps and best matches."""

import datetime
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zeropass._io.atomic import Parts, claim_folder, key_of, write_text
from zeropass._io.progress import Progress, callback, shows_progress
from zeropass._io.typed_json import from_json
from zeropass.align.alignment_folder import write_alignment
from zeropass.align.layers import Tick, assigned, head_layer_map, layer_map, layer_views, raw_map
from zeropass.align.pair import Pair, neuron_views, pair_of
from zeropass.align.pairings import head_pairings, neuron_pairings
from zeropass.align.render import draw_layer_maps
from zeropass.align.results import SCHEMA_VERSION, Alignment, LayerMap, Pairing
from zeropass.align.token_lists import LENGTH
from zeropass.arch.roles import SELF_MAPS
from zeropass.errors import BadOption
from zeropass.model.model import Model
from zeropass.model.opening import ModelLike, open_model
from zeropass.model.paired_lenses import LENSES, LensChoice

__all__ = ["align_models"]

HEAD_NULLS = 4
"""Shuffles behind the null of the heads."""


@shows_progress
def align_models(
    first: ModelLike,
    second: ModelLike,
    folder: str | Path,
    *,
    lenses: tuple[LensChoice, LensChoice] = LENSES,
    seed: int = 0,
    progress: Progress | bool = True,
) -> Alignment:
    """Align all layers, neurons and heads of two models and write the folder (`alignment_folder`).

    Finished parts are saved in the folder; a repeated call continues from them.

    Args:
        first: The first model, or its name.
        second: The second model, or its name.
        folder: The folder to write.
        lenses: The lens of each model: see `pair_of`.
        seed: The seed of the shuffled tokens.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        The alignment.

    Raises:
        BadOption: The models share too few tokens, or the folder holds something else.
        BadLens: A lens belongs to another model, or cannot be read.
    """
    report = callback(progress)
    folder = Path(folder)
    claim_folder(folder, "an alignment", ("alignment.json", "parts"))
    first, second = open_model(first), open_model(second)
    pair = pair_of(first, second, lenses)
    null, neurons, views = pair.null(seed), neuron_views(pair), layer_views(pair)
    raw_roles = dict.fromkeys(view.roles for view in views) if first.dims.d == second.dims.d else {}
    work = _Work(
        Parts(folder, _key(pair, seed), BadOption),
        report,
        steps=len(views) + len(raw_roles) + 1 + 2 * len(SELF_MAPS),
        layers=first.dims.layers,
    )
    maps = [work.map(f"{v.roles[0]}-{v.frame}", partial(layer_map, pair, v, null)) for v in views]
    maps += [work.map(map_role, partial(head_layer_map, pair, map_role, null)) for map_role in SELF_MAPS]
    maps += [work.map(f"{roles[0]}-raw", partial(raw_map, pair, roles)) for roles in raw_roles]
    layers = neuron_layers(maps, roles={view.roles[0] for view in neurons})
    pairings = work.pairings("neurons", partial(neuron_pairings, pair, neurons, layers, null))
    nulls = [pair.null(seed + n) for n in range(HEAD_NULLS)]
    pairings += work.pairings("heads", partial(head_pairings, pair, nulls), rounds=len(SELF_MAPS))
    alignment = Alignment(
        models=(_facts(first), _facts(second)),
        method=_method(pair, seed, layers),
        layers=tuple(maps),
        pairings=tuple(pairings),
    )
    write_alignment(alignment, folder)
    write_text(folder / "layers.svg", draw_layer_maps(alignment))
    return alignment


@dataclass
class _Work:
    """The steps of the work, each saved when it is done.

    Attributes:
        parts: The saved results.
        progress: Is called for each layer of A in each step.
        steps: The number of steps.
        layers: The number of layers of A.
        step: The number of finished steps.
    """

    parts: Parts
    progress: Progress
    steps: int
    layers: int
    step: int = field(default=0, init=False)

    def map(self, name: str, make: Callable[[Tick], LayerMap]) -> LayerMap:
        """Return a layer map, loaded or computed."""
        layer_map: LayerMap = self._load_or_make(name, LayerMap, lambda tick: asdict(make(tick)))
        return layer_map

    def pairings(self, name: str, make: Callable[[Tick], Iterable[Pairing]], rounds: int = 1) -> list[Pairing]:
        """Return best matches, loaded or computed; ``rounds`` is the number of passes over all layers of A."""
        pairings: tuple[Pairing, ...] = self._load_or_make(
            name, tuple[Pairing, ...], lambda tick: [asdict(pairing) for pairing in make(tick)], rounds
        )
        return list(pairings)

    def _load_or_make(self, name: str, record_type: Any, make: Callable[[Tick], Any], rounds: int = 1) -> Any:
        """Return a saved part; make it and save it as JSON if it is missing or of another type."""
        try:
            part = from_json(record_type, self.parts.load(name), name)
        except ValueError:
            count = iter(range(self.step * self.layers, self.steps * self.layers))
            value = make(lambda: self.progress(name, next(count), self.steps * self.layers))
            self.parts.save(name, value)
            part = from_json(record_type, json.loads(json.dumps(value)), name)
        self.step += rounds
        return part


def _key(pair: Pair, seed: int) -> str:
    """Return a key of everything that a part depends on: weights, tokens, settings, versions of the arithmetic."""
    fingerprints = [model.fingerprint for model in pair.models]
    tokens = hashlib.sha256(torch.stack(pair.shared.pairs).cpu().numpy().tobytes()).hexdigest()
    lenses = [lens.facts.identity for lens in pair.lenses]
    return key_of(SCHEMA_VERSION, fingerprints, lenses, tokens, seed, LENGTH, HEAD_NULLS, torch.__version__)


def neuron_layers(maps: list[LayerMap], roles: set[str]) -> list[tuple[int, int]]:
    """Return the pairs of layers whose neurons are compared, assigned by the mean of the maps of the neuron roles."""
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
        "lenses": list(pair.lens_words),
        "seed": seed,
        "layers": [list(assigned_pair) for assigned_pair in layers],
    }
