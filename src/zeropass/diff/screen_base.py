"""The measures that screening takes of each change of a base, with what all of them share, which is computed once.

It is what `compare` finds of a change's kind, size and words, without its directions and parameters.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.arch.roles import side_of
from zeropass.checkpoints.adapter_changes import Change as AdapterChange
from zeropass.checkpoints.adapter_changes import LowRank, OfExperts
from zeropass.diff.changes import Change, Comparison
from zeropass.diff.effects import Effects, Sum, word_mask
from zeropass.diff.random_changes import RandomChanges
from zeropass.diff.relations import facts_of, relation_of
from zeropass.diff.screen_results import Screened
from zeropass.diff.standouts import finding_of, standouts
from zeropass.diff.tensors import constants, tensor_changes, unread_changes
from zeropass.diff.thresholds import Thresholds
from zeropass.diff.values import through_values
from zeropass.diff.verdict import Sizes, known_finding
from zeropass.lens import Lens
from zeropass.model.adapted import Adapted
from zeropass.model.frames import Frames
from zeropass.model.model import Model

__all__ = ["ScreenBase"]

WORDS, LAYERS, OUTSIDE, SETS = 5, 3, 8, 4
"""Limits: words of a row, layers, names of tensors outside blocks, sets of matrices whose effect is kept."""

Place = tuple[int, str]
"""The layer and the role of a matrix of a block."""


@dataclass(eq=False)
class ScreenBase:
    """A base that many changes are measured on.

    Attributes:
        frames: The frames of the base.
        thresholds: What benign changes of the base reach, if that is known.
        lengths: The norm of each matrix of a block.
    """

    frames: Frames
    thresholds: Thresholds | None = None
    lengths: dict[Place, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take the tokens that are shown, and which of them are words."""
        self.ids: Tensor = Lens.over(self.frames, with_coherence=False).view("default").ids
        self.words: Tensor = word_mask(self.base.vocab, self.ids)
        self.random: RandomChanges = RandomChanges(self.frames, self.ids, self.words)

    @property
    def base(self) -> Model:
        """The base."""
        return self.frames.model

    def read(self, report: Progress) -> None:
        """Read the base once: the norms of its matrices."""
        layers = self.base.dims.layers
        for layer in range(layers):
            report("reading the base", layer, layers)
            for role in self.base.matrices(layer):
                self.lengths[layer, role] = float(self.base.matrix(role, layer).double().norm())
        report("reading the base", layers, layers)

    def measured(self, tuned: Model, row: Screened) -> tuple[Screened, Tensor | None]:
        """Fill in what is measured of a change.

        Args:
            tuned: The base with an adapter on it, or a model that was made of the base.
            row: Its row, with its name, path and hash.

        Returns:
            The row; and the excess of the words in what the change writes, (n,), if it writes anything.
        """
        pair, effects = Comparison(self.base, tuned), Effects(self.frames)
        sizes: dict[Place, float] = {}
        roundings, cosines, square = [], [], 0.0
        wrote: list[Place] = []
        for (layer, role), length in self.lengths.items():
            change = self._change(pair, layer, role, length)
            if change is None:
                cosines.append(1.0)
                continue
            cosines.append(change.cosine)
            roundings.append(change.rounding)
            if change.rounding:
                continue
            square += change.norm**2
            sizes[layer, role] = change.relative
            effects.add(change)
            if side_of(role) == "write":
                wrote.append((layer, role))
        effects.base = self._base_effect(tuple(wrote))
        effects.close()
        written = effects if "writes" in effects.change.totals else through_values(pair, self.frames)
        tables = (*tensor_changes(pair)[0], *unread_changes(pair))
        total = sum(length**2 for length in self.lengths.values())
        sides = Sizes(
            relation=relation_of(pair, sum(cosines) / len(cosines), roundings, tables, constants(pair)),
            relative=math.sqrt(square / total) if total else 0.0,
            base=self.facts,
            tuned=facts_of(tuned),
        )
        row = replace(
            row,
            relation=sides.relation,
            relative=sides.relative,
            layers=_layers(sizes),
            roles=_roles(sizes),
            outside=tuple(table.name for table in tables if table.state != "rounded")[:OUTSIDE],
            **_facts(tuned),
        )
        known = known_finding(sides)
        if known is not None and sides.relation == "unrelated":
            return replace(row, finding=known), None
        row = replace(
            row,
            finding=known or finding_of(written, self.random, self.thresholds),
            writes=standouts(written, "writes", self.ids, self.words, self.base.vocab, WORDS),
            sees=standouts(effects, "sees", self.ids, self.words, self.base.vocab, WORDS),
        )
        writes = "writes" in written.change.totals
        return row, written.excess(self.ids)[self.words] if writes else None

    def _change(self, pair: Comparison, layer: int, role: str, length: float) -> Change | None:
        """Return the change of a matrix, or None for none; a matrix that an adapter leaves alone is not read."""
        tuned = pair.tuned
        if isinstance(tuned, Adapted) and (role, layer) not in tuned.replaced:
            added = tuned.change(role, layer)
            change = None if added is None else Change(layer=layer, role=role, added=added, before=length)
        else:
            change = pair.change(role, layer)
        return change if change is not None and change.norm else None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The name, the hash and the stored types of the base."""
        return facts_of(self.base)

    @cached_property
    def _base_effect(self) -> Callable[[tuple[Place, ...]], Sum]:
        """`_compute_base_effect`, kept for the sets of matrices that were asked for last."""
        return lru_cache(SETS)(self._compute_base_effect)

    def _compute_base_effect(self, wrote: tuple[Place, ...]) -> Sum:
        """Return the effect of some of the base's own writing matrices."""
        effects = Effects(self.frames)
        for layer, role in wrote:
            effects.add_base(role, layer, self.base.matrix(role, layer))
        effects.close()
        return effects.base


def _layers(sizes: Mapping[Place, float]) -> tuple[int, ...]:
    """Return the layers that changed most, rising."""
    squares: dict[int, float] = defaultdict(float)
    for (layer, _), relative in sizes.items():
        squares[layer] += relative**2
    return tuple(sorted(sorted(squares, key=lambda layer: -squares[layer])[:LAYERS]))


def _roles(sizes: Mapping[Place, float]) -> tuple[str, ...]:
    """Return the roles that changed, the one that changed most, by its mean, first."""
    each: dict[str, list[float]] = defaultdict(list)
    for (_, role), relative in sizes.items():
        each[role].append(relative)
    return tuple(sorted(each, key=lambda role: -sum(each[role]) / len(each[role])))


def _facts(tuned: Model) -> dict[str, Any]:
    """Return what is known of a change without reading it."""
    if not isinstance(tuned, Adapted):
        return {"kind": "model"}
    ranks = (_rank(change) for change in tuned.changed.values())
    return {
        "kind": "adapter",
        "method": tuned.adapters[0].settings.method,
        "rank": max(ranks, default=0),
        "warnings": tuned.warnings,
    }


def _rank(change: AdapterChange) -> int:
    """Return the rank of the factors of an adapter's change; 0 without factors."""
    if isinstance(change, OfExperts):
        return max(map(_rank, change.parts.values()), default=0)
    return change.up.shape[1] if isinstance(change, LowRank) else 0
