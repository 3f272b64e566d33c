"""`zeropass align` as one call: two models in, layer maps and best matches out, a folder written."""

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

from zeropass._io.atomic import Parts, atomic_write, claim_folder, key_of
from zeropass._io.progress import Progress, silent
from zeropass._io.typed_json import from_json
from zeropass.align.alignment_folder import write_alignment
from zeropass.align.layers import Tick, assigned, head_layer_map, layer_map, layer_views, raw_map
from zeropass.align.pair import Pair, neuron_views, pair_of
from zeropass.align.pairings import head_pairings, neuron_pairings
from zeropass.align.render import draw_layer_maps
from zeropass.align.results import SCHEMA_VERSION, Alignment, LayerMap, Pairing
from zeropass.align.token_lists import LENGTH
from zeropass.arch.spec import SELF_MAPS
from zeropass.errors import BadOption
from zeropass.model.model import Model

__all__ = ["align_models"]

HEAD_NULLS = 4


def align_models(first: Model, second: Model, folder: Path, *, seed: int = 0, progress: Progress = silent) -> Alignment:
    """Align all layers, neurons and heads of two models and write the folder (`results`).

    Finished parts are kept in it, so that a call that was stopped continues. Raises BadOption where the models share
    too few tokens, or the folder holds something else.
    """
    claim_folder(folder, "an alignment", ("alignment.json", "parts"))
    pair = pair_of(first, second)
    null, neurons, views = pair.null(seed), neuron_views(first, second), layer_views(pair)
    stored = dict.fromkeys(view.roles for view in views) if first.dims.d == second.dims.d else {}
    work = _Work(
        Parts(folder, _key(pair, seed), BadOption),
        progress,
        steps=len(views) + len(stored) + 1 + 2 * len(SELF_MAPS),
        layers=first.dims.layers,
    )
    maps = [work.map(f"{v.roles[0]}-{v.frame}", partial(layer_map, pair, v, null)) for v in views]
    maps += [work.map(kind, partial(head_layer_map, pair, kind, null)) for kind in SELF_MAPS]
    maps += [work.map(f"{r[0]}-raw", partial(raw_map, pair, r)) for r in stored]
    layers = neuron_layers(maps, roles={view.roles[0] for view in neurons})
    pairings = work.pairings("neurons", partial(neuron_pairings, pair, neurons, layers, null))
    nulls = [pair.null(seed + n) for n in range(HEAD_NULLS)]
    pairings += work.pairings("heads", partial(head_pairings, pair, nulls), rounds=len(SELF_MAPS))
    found = Alignment((_facts(first), _facts(second)), _method(pair, seed, layers), tuple(maps), tuple(pairings))
    write_alignment(found, folder)
    with atomic_write(folder / "layers.svg", BadOption) as temporary:
        temporary.write_text(draw_layer_maps(found), encoding="utf-8")
    return found


@dataclass
class _Work:
    """Steps one after the other, each kept when it is done; progress counts the layers of A in each."""

    parts: Parts
    progress: Progress
    steps: int
    layers: int
    step: int = field(default=0, init=False)

    def map(self, name: str, make: Callable[[Tick], LayerMap]) -> LayerMap:
        """A layer map, made or as it was kept."""
        found: LayerMap = self._kept(name, LayerMap, lambda tick: asdict(make(tick)))
        return found

    def pairings(self, name: str, make: Callable[[Tick], Iterable[Pairing]], rounds: int = 1) -> list[Pairing]:
        """Best matches, made or as they were kept; ``rounds``: how often all layers are gone through."""
        found: tuple[Pairing, ...] = self._kept(
            name, tuple[Pairing, ...], lambda tick: [asdict(one) for one in make(tick)], rounds
        )
        return list(found)

    def _kept(self, name: str, kind: Any, make: Callable[[Tick], Any], rounds: int = 1) -> Any:
        """The part of a type that was kept; made, and kept as JSON, where none was or it is something else."""
        try:
            found = from_json(kind, self.parts.load(name), name)
        except ValueError:
            count = iter(range(self.step * self.layers, self.steps * self.layers))
            value = make(lambda: self.progress(name, next(count), self.steps * self.layers))
            self.parts.save(name, value)
            found = from_json(kind, json.loads(json.dumps(value)), name)
        self.step += rounds
        return found


def _key(pair: Pair, seed: int) -> str:
    """What a part depends on: weights, tokens, settings, versions of the arithmetic."""
    prints = [model.fingerprint for model in pair.models]
    tokens = hashlib.sha256(torch.stack(pair.shared.pairs).cpu().numpy().tobytes()).hexdigest()
    return key_of(SCHEMA_VERSION, prints, tokens, seed, LENGTH, HEAD_NULLS, torch.__version__)


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
