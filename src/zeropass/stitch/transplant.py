"""What fine-tuning changed in A, put into B's own blocks: the result is an ordinary checkpoint of B (design.md §4).

A change is moved part by part. Layers and neurons go to their partners (`align`); heads to theirs, as whole maps, since
the insides of a head have no partner. What reads goes through the map from B's stream to A's, transposed, what writes
through the map from A's to B's, both with the norms that they meet folded in and B's taken out again:

    ΔR_B = c (γ_A ⊙ ΔR_A) Tᵀ / γ_B        ΔV_B = ΔV_A S

A head's map with the change added, ``V_B O_B + Δ``, is cut back to the rank that the head has (its best approximation,
Eckart and Young 1936). Constants (biases) are one more number of what reads. Queries and keys of rotary models have
coordinates that mean something, two for each frequency: only the phase within such a plane is free, and is taken from
the two heads before the change. Embeddings stay as they are.
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
from zeropass.arch.spec import side_of, site_of
from zeropass.errors import BadOption
from zeropass.model.model import Model
from zeropass.model.translation import Bridge, Translation
from zeropass.numerics.projection import fold_read, fold_write, unfolded
from zeropass.stitch.halves import head_of, load_plain_classifier, put

__all__ = ["Moved", "Transplant", "moved_layers", "put_level", "transplant_of"]

_Sides = list[Tensor]
"""Both sides of a head's map, (d_h, d + 1) each: rows with their constants."""


@dataclass(frozen=True)
class Moved:
    """A layer of A whose change goes to a layer of B."""

    first: int
    second: int


@dataclass(frozen=True, eq=False)
class Transplant:
    """The change of ``tuned`` against ``base``, ready to be put into ``onto``."""

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
        """From A's stream to B's, for what writes."""
        return self.bridge.back.translation(self.kernel, self.frame)

    @cached_property
    def read(self) -> Translation:
        """From B's stream, as its norms leave it, to A's: for what reads.

        A norm in front makes both streams one long (√d), so a pre-norm reader sees the map without its scale.
        """
        found = self.bridge.translation(self.kernel, self.frame)
        if self.base.family.norm_place == "post":
            return found
        widths = self.onto.dims.d, self.base.dims.d
        turned = found.weight / (found.weight.square().sum() / min(widths)).sqrt()
        return Translation(turned * (widths[1] / widths[0]) ** 0.5, torch.zeros_like(found.bias))

    @property
    def notes(self) -> tuple[str, ...]:
        """What stays behind."""
        found = []
        if not self._same_positions:
            found.append("Changes of queries and keys stay behind: the models turn them by other frequencies.")
        if self.onto.dims.group > 1 or self.base.dims.group > 1:
            found.append("Changes of heads stay behind: key and value heads are shared.")
        return tuple(found)

    def null(self, seed: int) -> "Transplant":
        """The same through wrong partners for the tokens: what stands for chance. The layers stay."""
        return replace(self, pair=self.pair.null(seed), bridge=self.bridge.shuffled(seed))

    def classifier(self, strength: float) -> Any:
        """B in transformers with ``strength`` times the change in its blocks, and with A's head."""
        hf = load_plain_classifier(self.onto, self.tuned)
        with torch.no_grad():
            for layer in self.layers if strength else ():
                for what, values in self._changed(layer, strength).items():
                    put(hf, self.onto, what, layer.second, values)
            self._head(hf)
        return hf

    def _changed(self, at: Moved, strength: float) -> dict[str, Tensor]:
        """B's tensors of one layer after the change."""
        found = self._neurons(at, strength)
        found |= self._biases(at, strength)
        if self.onto.dims.group == self.base.dims.group == 1:
            found |= self._heads(at, strength, "vo")
            if self._same_positions:
                found |= self._heads(at, strength, "qk")
        return found

    @property
    def _same_positions(self) -> bool:
        """Whether queries and keys of both are turned alike by positions, or not at all."""
        own, other = self.base.dims, self.onto.dims
        return own.rope == other.rope and (own.rope is None or own.head_dim == other.head_dim)

    def _partners(self, at: Moved, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        """Neurons (``ff``) or heads (``vo``, ``qk``) of two layers, one to one: rows of A, rows of B, and for neurons
        whether up and value point the same way in both (1) or not (-1).
        """
        if (at, kind) not in self._known:
            layers = at.first, at.second
            views = neuron_views(self.base, self.onto) if kind == "ff" else ()
            scores = self.pair.neuron_scores(views, layers) if views else self.pair.head_cosines(kind, layers)
            found = linear_sum_assignment(scores.cpu().numpy(), maximize=True)
            rows, columns = (torch.from_numpy(one).to(scores.device) for one in found)
            joint = [self.pair.agreement(view, layers)[rows, columns] for view in views if view.flips]
            sign = torch.where(sum(joint, torch.zeros(len(rows), device=rows.device)) < 0, -1.0, 1.0)
            self._known[at, kind] = rows, columns, sign
        return self._known[at, kind]

    @cached_property
    def _known(self) -> dict[tuple[Moved, str], tuple[Tensor, Tensor, Tensor]]:
        return {}

    def _neurons(self, at: Moved, strength: float) -> dict[str, Tensor]:
        rows, columns, sign = self._partners(at, "ff")
        flipping = {view.roles[1] for view in neuron_views(self.base, self.onto) if view.flips}
        found = {}
        for role in self.onto.family.ff_roles:
            turn = strength * (sign if role in flipping else torch.ones_like(sign))
            own = self.onto.matrix(role, at.second)
            delta, constant = self._delta(role, at, rows)
            own[columns] += turn[:, None] * delta
            found[role] = own
            bias = self.onto.vector(f"{role}_bias", at.second) if side_of(role) == "read" else None
            if bias is not None:
                bias[columns] += turn * (constant - self._shifted(delta, role, at.second))
                found[f"{role}_bias"] = bias
        return found

    def _biases(self, at: Moved, strength: float) -> dict[str, Tensor]:
        """What the output layers of both halves, and the norms of a post-norm block, add to the stream."""
        names = ["o_bias", "value_bias"]
        if self.base.family.norm_place == "post":
            names += ["attn_norm_bias", "ff_norm_bias"]
        found = {}
        for name in names:
            old, new = (m.vector(name, at.first) for m in self._own)
            own = self.onto.vector(name, at.second)
            if old is None or new is None or own is None:
                continue
            if name.endswith("norm_bias"):
                found[name] = own + strength * self.there.directions(new - old)
            else:
                role = name.removesuffix("_bias")
                gains = [self._gain(m, role, at.first) for m in self._own]
                old, new = (b if g is None else b * g for b, g in zip((old, new), gains, strict=True))
                found[name] = own + strength * self._unfolded(self.there.directions(new - old), role, at.second)
        return found

    def _delta(self, role: str, at: Moved, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Change of the rows of a role as rows of B, and of their constants."""
        before, after = ((self._folded(m, role, at.first), self._constant(m, role, at.first)) for m in self._own)
        delta, constant = (after[0] - before[0])[rows], (after[1] - before[1])[rows]
        if side_of(role) == "write":
            return self._unfolded(self.there.directions(delta), role, at.second), constant
        return self._unfolded(self.read.readers(delta), role, at.second), constant + delta @ self.read.bias

    @property
    def _own(self) -> tuple[Model, Model]:
        return self.base, self.tuned

    def _heads(self, at: Moved, strength: float, kind: str) -> dict[str, Tensor]:
        """Both sides of a layer's head maps with the change added."""
        sides = {role: self._side(self.onto, role, at.second) for role in kind}
        tunes = [[self._carried(m, role, at.first) for role in kind] for m in self._own]
        turned = kind == "qk" and self.onto.dims.rope is not None
        heads, partners, _ = self._partners(at, kind)
        for a, b in zip(heads.tolist(), partners.tolist(), strict=True):
            before, after = ([_of_head(rows, self.base, a) for rows in tune] for tune in tunes)
            own = [_of_head(rows, self.onto, b) for rows in sides.values()]
            made = _turned(own, before, after, strength) if turned else _cut_back(own, before, after, strength)
            for values, kept in zip(own, made, strict=True):
                values.copy_(kept)
        found = {}
        for role, rows in sides.items():
            plain = self._unfolded(rows[:, :-1], role, at.second)
            found[role] = plain
            if role != "o" and self.onto.has(f"{role}_bias"):
                found[f"{role}_bias"] = rows[:, -1] - self._shifted(plain, role, at.second)
        return found

    def _carried(self, model: Model, role: str, layer: int) -> Tensor:
        """All rows of a head role of A, with their constants, in B's coordinates: (h d_h, d_B + 1)."""
        rows = self._side(model, role, layer)
        if side_of(role) == "write":
            return torch.cat([self.there.directions(rows[:, :-1]), rows[:, -1:]], 1)
        constant = rows[:, -1:] + (rows[:, :-1] @ self.read.bias)[:, None]
        return torch.cat([self.read.readers(rows[:, :-1]), constant], 1)

    def _side(self, model: Model, role: str, layer: int) -> Tensor:
        """All rows of a head role with their norm folded in, and their constant as one number more: (h d_h, d + 1)."""
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
        """The gain of the norm that a role meets: before what reads in a pre-norm model, after what writes else."""
        pre = model.family.norm_place == "pre"
        return model.vector(f"{site_of(role)}_norm", layer) if pre == (side_of(role) == "read") else None

    def _constant(self, model: Model, role: str, layer: int) -> Tensor:
        """What a reading row holds whatever the stream: its bias, and the norm's shift through it."""
        rows = model.rows(role, layer)
        bias = model.vector(f"{role}_bias", layer) if side_of(role) == "read" else None
        found = torch.zeros(rows, device=model.device) if bias is None else bias
        shift = model.vector(f"{site_of(role)}_norm_bias", layer)
        if shift is not None and model.family.norm_place == "pre" and side_of(role) == "read":
            found = found + model.matrix(role, layer) @ shift
        return found

    def _shifted(self, rows: Tensor, role: str, layer: int) -> Tensor | float:
        """What rows of B read of its norm's shift, whatever the stream: that needs no bias."""
        shift = self.onto.vector(f"{site_of(role)}_norm_bias", layer)
        return rows @ shift if shift is not None and self.onto.family.norm_place == "pre" else 0.0

    def _head(self, hf: Any) -> None:
        """A's head as B reads: its rows are readers, of the normed last state, or of the first token by the pooler."""
        head = head_of(hf)
        rows = self.tuned.matrix("classifier")
        if self.base.family.norm_place == "pre":
            gains = [m.vector("final_norm") for m in (self.tuned, self.onto)]
            read = self.read.readers(fold_read(rows, gains[0], self.base.family.norm))
            head.weight.copy_(read if gains[1] is None else unfolded(read, gains[1]))
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
    """For each layer of A from ``first`` on the layer of B that is most like it, one to one."""
    base, onto = pair.models
    views = neuron_views(base, onto)
    scores = []
    for a in range(first, base.dims.layers):
        progress("layers", a - first, base.dims.layers - first)
        scores.append([likeness(pair.neuron_scores(views, (a, b))) for b in range(onto.dims.layers)])
    found = assigned(scores)
    return tuple(Moved(first + n, b) for n, b in enumerate(found) if b >= 0)


def transplant_of(
    base: Model, tuned: Model, onto: Model, first: int, kernel: str, frame: str, progress: Progress
) -> Transplant:
    """Align the changed layers of A with those of B. BadOption for families that have no roles in common."""
    if base.family.name != onto.family.name:
        raise BadOption(
            f"A change of a {base.family.name} cannot be put into a {onto.family.name}; a stitch can be made where the "
            "head fits (without --transplant)."
        )
    pair = pair_of(base, onto)
    across = Bridge(pair.first.frames, pair.second.frames, pair.shared).back
    return Transplant(base, tuned, onto, moved_layers(pair, first, progress), pair, across, kernel, frame)


def put_level(hf: Any, level: Tensor, state: Tensor) -> None:
    """Add ``level`` (labels,) to logits: to the head's bias, or, where it has none, along the mean state (d,)."""
    head = head_of(hf)
    with torch.no_grad():
        if head.bias is not None:
            head.bias += level.to(head.bias.device)
        else:
            head.weight += torch.outer(level, state / state.square().sum()).to(head.weight.device)


def _of_head(rows: Tensor, model: Model, head: int) -> Tensor:
    width = model.dims.head_dim
    return rows[head * width : (head + 1) * width]


def _cut_back(own: _Sides, before: _Sides, after: _Sides, strength: float) -> _Sides:
    """``own + strength (after − before)``, three maps ``leftᵀ right``, at own's rank: its best approximation."""
    left = torch.cat([own[0], strength * after[0], -strength * before[0]])
    right = torch.cat([own[1], after[1], before[1]])
    (q, r), (p, s) = (torch.linalg.qr(one.double().T) for one in (left, right))
    u, values, v = torch.linalg.svd(r @ s.T)
    rank = len(own[0])
    root = values[:rank].sqrt()
    return [((q @ u[:, :rank]) * root).T.float(), ((p @ v[:rank].T) * root).T.float()]


def _turned(own: _Sides, before: _Sides, after: _Sides, strength: float) -> _Sides:
    """The same for rotary queries and keys: coordinates f and f + d_h / 2 are one complex number of frequency f.

    Both sides of a head may be multiplied by one phase a frequency without changing what it computes; it is chosen so
    that ``before`` comes closest to ``own``.
    """
    mine, old, new = ([torch.complex(*one.chunk(2)) for one in sides] for sides in (own, before, after))
    overlap = torch.stack([(a.conj() * b).sum(1) for a, b in zip(old, mine, strict=True)]).sum(0)
    phase = torch.polar(torch.ones_like(overlap.abs()), overlap.angle())[:, None]
    moved = (a + strength * phase * (c - b) for a, b, c in zip(mine, old, new, strict=True))
    return [torch.cat([one.real, one.imag]) for one in moved]
