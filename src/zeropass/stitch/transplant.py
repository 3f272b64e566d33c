"""Transplants of the change that fine-tuning made in A into the blocks of B (docs/stitching.md, "Transplants").

The result is an ordinary checkpoint of B. The change is moved part by part. Layers and neurons go to their partners
(`align`). So do heads, as complete maps, because single dimensions inside a head have no partners. Reading vectors go
through the map T from B's stream to A's, transposed; writing vectors go through the map S from A's stream to B's. A's
norms are folded in before, and B's are unfolded after:

    ΔR_B = c (γ_A ⊙ ΔR_A) Tᵀ / γ_B        ΔV_B = ΔV_A S

A head's map with the change added, ``V_B O_B + Δ``, is reduced to the rank of the head (the best approximation, Eckart
and Young 1936). Constants (biases) are one more coordinate of reading vectors. In rotary models the coordinates of
queries and keys have a meaning: two belong to each frequency. Only the phase within such a plane is free; the two heads
before the change determine it. Embeddings stay as they are.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zeropass._io.progress import Progress, silent
from zeropass.align.layers import assigned, likeness
from zeropass.align.pair import Pair, neuron_views, pair_of
from zeropass.arch.roles import side_of, site_of
from zeropass.errors import BadOption
from zeropass.model.model import Model
from zeropass.model.translation import Bridge, Translation
from zeropass.numerics.projection import fold_read, fold_write, unfolded
from zeropass.stitch.halves import head_of, load_plain_classifier, put

__all__ = ["Moved", "Transplant", "moved_layers", "put_level", "transplant_of"]

_Sides = list[Tensor]
"""Both sides of a head's map, (d_h, d + 1) each: rows with their constants as the last column."""


@dataclass(frozen=True)
class Moved:
    """A layer of A, and the layer of B to which its change goes."""

    first: int
    second: int


@dataclass(frozen=True, eq=False)
class Transplant:
    """The change from ``base`` to ``tuned`` (A), ready to be put into ``onto`` (B).

    Attributes:
        base: A before the change.
        tuned: A after the change.
        onto: B.
        layers: The layers whose change is moved.
        pair: The alignment of base and onto.
        bridge: The bridge from B's stream to A's.
        kernel: The kernel of the translations.
        frame: The frame of the translations.
    """

    base: Model
    tuned: Model
    onto: Model
    layers: tuple[Moved, ...]
    pair: Pair
    bridge: Bridge
    kernel: str
    frame: str

    @cached_property
    def there(self) -> Translation:
        """The translation from A's stream to B's, for writing vectors."""
        return self.bridge.back.translation(self.kernel, self.frame)

    @cached_property
    def read(self) -> Translation:
        """The translation from B's stream, as its norms leave it, to A's: for reading vectors.

        In a pre-norm model the scale of the map is removed, because the norm in front of a reading vector gives every
        state of a stream the same length, √d.
        """
        translation = self.bridge.translation(self.kernel, self.frame)
        if self.base.family.norm_place == "post":
            return translation
        widths = self.onto.dims.d, self.base.dims.d
        unscaled = translation.weight / (translation.weight.square().sum() / min(widths)).sqrt()
        return Translation(unscaled * (widths[1] / widths[0]) ** 0.5, torch.zeros_like(translation.bias))

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on the changes that stay behind."""
        notes = []
        if not self._same_positions:
            notes.append(
                "Changes of queries and keys stay behind: the models turn them by other frequencies, or distances "
                "have vectors."
            )
        if self.onto.dims.group > 1 or self.base.dims.group > 1:
            notes.append("Changes of heads stay behind: key and value heads are shared.")
        elif any(dims.value_dim or dims.by_layer for dims in (self.base.dims, self.onto.dims)):
            notes.append("Changes of heads stay behind: not all vectors of heads, or not all layers, have one width.")
        return tuple(notes)

    def null(self, seed: int) -> "Transplant":
        """Return the null: the same transplant with wrong partners for the tokens. The layers stay."""
        return replace(self, pair=self.pair.null(seed), bridge=self.bridge.shuffled(seed))

    def classifier(self, strength: float) -> Any:
        """Return B in transformers with ``strength`` times the change in its blocks, and with A's head."""
        hf = load_plain_classifier(self.onto, self.tuned)
        with torch.no_grad():
            for moved in self.layers if strength else ():
                for name, values in self._changed(moved, strength).items():
                    put(hf, self.onto, name, moved.second, values)
            self._put_head(hf)
        return hf

    def _changed(self, moved: Moved, strength: float) -> dict[str, Tensor]:
        """Return B's tensors of one layer after the change."""
        tensors = self._neurons(moved, strength)
        tensors |= self._biases(moved, strength)
        if self.onto.dims.group == self.base.dims.group == 1 and not self._uneven:
            tensors |= self._heads(moved, strength, "vo")
            if self._same_positions:
                tensors |= self._heads(moved, strength, "qk")
        return tensors

    @property
    def _uneven(self) -> bool:
        """True if the heads of a model read through latents, where a map is no pair of tensors, or differ in width."""
        return any(dims.kv_latent or dims.value_dim or dims.by_layer for dims in (self.base.dims, self.onto.dims))

    @property
    def _same_positions(self) -> bool:
        """True if positions turn queries and keys of both models in the same way, or not at all."""
        first, second = self.base.dims, self.onto.dims
        if self.base.has("distances") or self.onto.has("distances"):
            return False
        return first.rope == second.rope and (first.rope is None or first.head_dim == second.head_dim)

    def _partners(self, moved: Moved, part: str) -> tuple[Tensor, Tensor, Tensor]:
        """Pair the neurons (``ff``) or heads (``vo``, ``qk``) of two layers one to one.

        Returned are rows of A, the matching rows of B, and signs: for a neuron 1 if up and value point the same way in
        both models, else -1.
        """
        if (moved, part) not in self._cached_partners:
            layers = moved.first, moved.second
            views = neuron_views(self.pair) if part == "ff" else ()
            scores = self.pair.neuron_scores(views, layers) if views else self.pair.head_cosines(part, layers)
            assignment = linear_sum_assignment(scores.cpu().numpy(), maximize=True)
            rows, columns = (torch.from_numpy(indices).to(scores.device) for indices in assignment)
            joint = [self.pair.agreement(view, layers)[rows, columns] for view in views if view.flips]
            sign = torch.where(sum(joint, torch.zeros(len(rows), device=rows.device)) < 0, -1.0, 1.0)
            self._cached_partners[moved, part] = rows, columns, sign
        return self._cached_partners[moved, part]

    @cached_property
    def _cached_partners(self) -> dict[tuple[Moved, str], tuple[Tensor, Tensor, Tensor]]:
        return {}

    def _neurons(self, moved: Moved, strength: float) -> dict[str, Tensor]:
        """Return B's neurons of one layer, with their biases, after the change."""
        rows, columns, sign = self._partners(moved, "ff")
        flipping = {view.roles[1] for view in neuron_views(self.pair) if view.flips}
        tensors = {}
        for role in self.onto.family.ff_roles:
            factor = strength * (sign if role in flipping else torch.ones_like(sign))
            matrix = self.onto.matrix(role, moved.second)
            delta, constant = self._delta(role, moved, rows)
            matrix[columns] += factor[:, None] * delta
            tensors[role] = matrix
            bias = self.onto.vector(f"{role}_bias", moved.second) if side_of(role) == "read" else None
            if bias is not None:
                bias[columns] += factor * (constant - self._shifted(delta, role, moved.second))
                tensors[f"{role}_bias"] = bias
        return tensors

    def _biases(self, moved: Moved, strength: float) -> dict[str, Tensor]:
        """Return the biases that a block adds to the stream: those of its outputs, and of a post-norm block's norms."""
        names = ["o_bias", "value_bias"]
        if self.base.family.norm_place == "post":
            names += ["attn_norm_bias", "ff_norm_bias"]
        tensors = {}
        for name in names:
            old, new = (model.vector(name, moved.first) for model in self._before_and_after)
            bias = self.onto.vector(name, moved.second)
            if old is None or new is None or bias is None:
                continue
            if name.endswith("norm_bias"):
                tensors[name] = bias + strength * self.there.directions(new - old)
            else:
                role = name.removesuffix("_bias")
                gains = [self._gain(model, role, moved.first) for model in self._before_and_after]
                old, new = (b if g is None else b * g for b, g in zip((old, new), gains, strict=True))
                tensors[name] = bias + strength * self._unfolded(self.there.directions(new - old), role, moved.second)
        return tensors

    def _delta(self, role: str, moved: Moved, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the change of the rows of a role, as rows of B, and that of their constants."""
        before, after = (
            (self._folded(model, role, moved.first), self._constant(model, role, moved.first))
            for model in self._before_and_after
        )
        delta, constant = (after[0] - before[0])[rows], (after[1] - before[1])[rows]
        if side_of(role) == "write":
            return self._unfolded(self.there.directions(delta), role, moved.second), constant
        return self._unfolded(self.read.readers(delta), role, moved.second), constant + delta @ self.read.bias

    @property
    def _before_and_after(self) -> tuple[Model, Model]:
        return self.base, self.tuned

    def _heads(self, moved: Moved, strength: float, map_role: str) -> dict[str, Tensor]:
        """Return both sides of the head maps of a layer after the change."""
        sides = {role: self._side(self.onto, role, moved.second) for role in map_role}
        carried = [[self._carried(model, role, moved.first) for role in map_role] for model in self._before_and_after]
        rotary = map_role == "qk" and self.onto.dims.rope is not None
        heads, partners, _ = self._partners(moved, map_role)
        for a, b in zip(heads.tolist(), partners.tolist(), strict=True):
            before, after = ([_of_head(rows, self.base, a) for rows in both_sides] for both_sides in carried)
            head = [_of_head(rows, self.onto, b) for rows in sides.values()]
            changed = _turned(head, before, after, strength) if rotary else _cut_back(head, before, after, strength)
            for values, new_values in zip(head, changed, strict=True):
                values.copy_(new_values)
        tensors = {}
        for role, rows in sides.items():
            matrix = self._unfolded(rows[:, :-1], role, moved.second)
            tensors[role] = matrix
            if role != "o" and self.onto.has(f"{role}_bias"):
                tensors[f"{role}_bias"] = rows[:, -1] - self._shifted(matrix, role, moved.second)
        return tensors

    def _carried(self, model: Model, role: str, layer: int) -> Tensor:
        """Return all rows of a head role of A, with their constants, in B's coordinates: (h d_h, d_B + 1)."""
        rows = self._side(model, role, layer)
        if side_of(role) == "write":
            return torch.cat([self.there.directions(rows[:, :-1]), rows[:, -1:]], 1)
        constant = rows[:, -1:] + (rows[:, :-1] @ self.read.bias)[:, None]
        return torch.cat([self.read.readers(rows[:, :-1]), constant], 1)

    def _side(self, model: Model, role: str, layer: int) -> Tensor:
        """Return all rows of a head role, norm folded in, with their constants as the last column: (h d_h, d + 1)."""
        return torch.cat([self._folded(model, role, layer), self._constant(model, role, layer)[:, None]], 1)

    def _folded(self, model: Model, role: str, layer: int) -> Tensor:
        rows, gain = model.matrix(role, layer), self._gain(model, role, layer)
        if gain is None:
            return rows
        return (fold_write if side_of(role) == "write" else fold_read)(rows, gain, model.family.norm)

    def _unfolded(self, rows: Tensor, role: str, layer: int) -> Tensor:
        gain = self._gain(self.onto, role, layer)
        return rows if gain is None else unfolded(rows, gain)

    def _gain(self, model: Model, role: str, layer: int) -> Tensor | None:
        """Return the gain of the norm before a reading role of a pre-norm model, or after a writing role of another."""
        pre = model.family.norm_place == "pre"
        return model.vector(f"{site_of(role)}_norm", layer) if pre == (side_of(role) == "read") else None

    def _constant(self, model: Model, role: str, layer: int) -> Tensor:
        """Return the part of a reading row that does not depend on the stream: its bias, and its product with β."""
        rows = model.rows(role, layer)
        bias = model.vector(f"{role}_bias", layer) if side_of(role) == "read" else None
        constant = torch.zeros(rows, device=model.device) if bias is None else bias
        shift = model.vector(f"{site_of(role)}_norm_bias", layer)
        if shift is not None and model.family.norm_place == "pre" and side_of(role) == "read":
            constant = constant + model.matrix(role, layer) @ shift
        return constant

    def _shifted(self, rows: Tensor, role: str, layer: int) -> Tensor | float:
        """Return what rows of B read of its norm's shift β, which is therefore left out of their bias."""
        shift = self.onto.vector(f"{site_of(role)}_norm_bias", layer)
        return rows @ shift if shift is not None and self.onto.family.norm_place == "pre" else 0.0

    def _put_head(self, hf: Any) -> None:
        """Put A's head on B: it reads the normed last state, or through the pooler the first token."""
        head = head_of(hf)
        rows = self.tuned.matrix("classifier")
        if self.base.family.norm_place == "pre":
            gains = [model.vector("final_norm") for model in (self.tuned, self.onto)]
            readers = self.read.readers(fold_read(rows, gains[0], self.base.family.norm))
            head.weight.copy_(readers if gains[1] is None else unfolded(readers, gains[1]))
            return
        pooler, bias = self.tuned.matrix("pooler"), self.tuned.vector("pooler_bias")
        size = len(pooler)
        if size > self.onto.dims.d:
            raise BadOption(
                f"The pooler of {self.tuned.name} has {size} units, that of {self.onto.name} only {self.onto.dims.d}: "
                "its head cannot be transplanted. A stitch can be made (without --transplant)."
            )
        dense = hf.base_model.pooler.dense
        dense.weight.zero_()[:size].copy_(self.read.readers(pooler))
        dense.bias.zero_()[:size].copy_(pooler @ self.read.bias + (0 if bias is None else bias))
        head.weight.zero_()[:, :size].copy_(rows)
        head.bias.zero_()


def moved_layers(pair: Pair, first: int, progress: Progress = silent) -> tuple[Moved, ...]:
    """Assign a layer of B to each layer of A from ``first`` on, one to one, by likeness."""
    base, onto = pair.models
    views = neuron_views(pair)
    scores = []
    for a in range(first, base.dims.layers):
        progress("layers", a - first, base.dims.layers - first)
        scores.append([likeness(pair.neuron_scores(views, (a, b))) for b in range(onto.dims.layers)])
    return tuple(Moved(first + n, b) for n, b in enumerate(assigned(scores)) if b >= 0)


def transplant_of(
    base: Model, tuned: Model, onto: Model, first: int, kernel: str, frame: str, progress: Progress
) -> Transplant:
    """Align the layers of A, from the ``first`` that changed, with those of B.

    Args:
        base: A before tuning.
        tuned: A after tuning, with the classifier's head.
        onto: B.
        first: The first layer that tuning changed.
        kernel: The kernel of the map between the streams (`translation.KERNELS`).
        frame: What stands for a token.
        progress: Reports progress.

    Raises:
        BadOption: A and B are of different families, or share too few tokens.
    """
    if base.family.name != onto.family.name:
        raise BadOption(
            f"A change of a {base.family.name} cannot be put into a {onto.family.name}; a stitch can be made where the "
            "head fits (without --transplant)."
        )
    pair = pair_of(base, onto, lenses=(None, None))
    bridge = Bridge(pair.first.frames, pair.second.frames, pair.shared).back
    return Transplant(
        base=base,
        tuned=tuned,
        onto=onto,
        layers=moved_layers(pair, first, progress),
        pair=pair,
        bridge=bridge,
        kernel=kernel,
        frame=frame,
    )


def put_level(hf: Any, level: Tensor, state: Tensor) -> None:
    """Add constants to the logits of a classifier: in the bias of its head or, if it has none, along a state.

    Args:
        hf: The classifier in transformers.
        level: The constants, (labels,).
        state: The mean state that the head reads, (d,).
    """
    head = head_of(hf)
    with torch.no_grad():
        if head.bias is not None:
            head.bias += level.to(head.bias.device)
        else:
            head.weight += torch.outer(level, state / state.square().sum()).to(head.weight.device)


def _of_head(rows: Tensor, model: Model, head: int) -> Tensor:
    width = model.dims.head_dim
    return rows[head * width : (head + 1) * width]


def _cut_back(head: _Sides, before: _Sides, after: _Sides, strength: float) -> _Sides:
    """Return ``head + strength (after − before)``, maps ``leftᵀ right``, as well as the head's rank allows."""
    left = torch.cat([head[0], strength * after[0], -strength * before[0]])
    right = torch.cat([head[1], after[1], before[1]])
    (q, r), (p, s) = (torch.linalg.qr(side.double().T) for side in (left, right))
    u, values, v = torch.linalg.svd(r @ s.T)
    rank = len(head[0])
    root = values[:rank].sqrt()
    return [((q @ u[:, :rank]) * root).T.float(), ((p @ v[:rank].T) * root).T.float()]


def _turned(head: _Sides, before: _Sides, after: _Sides, strength: float) -> _Sides:
    """Return ``head + strength (after − before)`` for rotary queries and keys, with the change turned to fit the head.

    Coordinates f and f + d_h / 2 are one complex number of frequency f. Multiplying both sides of a head by one phase
    for each frequency does not change what it computes. The phases bring ``before`` as close to ``head`` as possible.
    """
    current, old, new = ([torch.complex(*side.chunk(2)) for side in sides] for sides in (head, before, after))
    overlap = torch.stack([(a.conj() * b).sum(1) for a, b in zip(old, current, strict=True)]).sum(0)
    phase = torch.polar(torch.ones_like(overlap.abs()), overlap.angle())[:, None]
    changed = (a + strength * phase * (c - b) for a, b, c in zip(current, old, new, strict=True))
    return [torch.cat([side.real, side.imag]) for side in changed]
