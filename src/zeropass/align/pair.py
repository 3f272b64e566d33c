"""Two models side by side: their parameters as vectors that one product compares over the shared tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from zeropass.align.token_lists import Lists, carried, lists_of
from zeropass.arch.spec import default_frames, side_of, space_of
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.shared_tokens import Shared, shared_tokens
from zeropass.model.vectors import vector_set
from zeropass.numerics.cross_gram import cross_kernel, head_products, unit
from zeropass.numerics.projection import rotate

__all__ = ["Half", "Pair", "View", "neuron_views", "pair_of"]

KEPT = 1 << 28
"""Bytes of vectors that a half, and a pair, keeps at hand (a layer's neurons in one view: 3.5 MB for SmolLM2)."""


@dataclass(frozen=True)
class View:
    """One way to compare two parameters: a role of each model, read in one frame.

    ``flips``: up and value of a gated neuron change sign together without changing what it computes, so only the
    absolute value of their joint score means something.
    """

    roles: tuple[str, str]
    frame: str
    flips: bool = False


@dataclass(frozen=True, eq=False)
class Half:
    """One model, and the ids of the tokens that it shares with another: what is its own in every comparison."""

    frames: Frames
    ids: Tensor

    @property
    def model(self) -> Model:
        """The model."""
        return self.frames.model

    def rows(self, space: str) -> Tensor:
        """Rows (V, d) of a space."""
        return self.frames.rows(space).matrix

    def kernel(self, space: str) -> Tensor:
        """The covariance (d, d) of a space's rows over the shared tokens."""
        if space not in self._kernels:
            rows = self.rows(space)
            self._kernels[space] = cross_kernel(rows, rows, (self.ids, self.ids))
        return self._kernels[space]

    @cached_property
    def _kernels(self) -> dict[str, Tensor]:
        return {}

    def vectors(self, layer: int, role: str, frame: str) -> tuple[str, Tensor]:
        """The space, and all vectors (n, d) of a role, scaled to scores of variance one over the shared tokens."""
        return self._recent(layer, role, frame)

    def lists(self, layer: int, role: str, frame: str) -> Lists:
        """The list of each vector of a role."""
        if (layer, role, frame) not in self._lists:
            space, vectors = self.vectors(layer, role, frame)
            self._lists[layer, role, frame] = lists_of(vectors, self.rows(space), self.ids, self.mean(space))
        return self._lists[layer, role, frame]

    def mean(self, space: str) -> Tensor:
        """The mean (d,) of a space's rows over the shared tokens."""
        if space not in self._means:
            self._means[space] = self.rows(space)[self.ids].mean(0)
        return self._means[space]

    @property
    def kept(self) -> int:
        """How many sets of vectors are kept at hand."""
        return max(4, KEPT // (4 * max(self.model.dims.neurons, self.model.dims.d) * self.model.dims.d))

    @cached_property
    def _lists(self) -> dict[tuple[int, str, str], Lists]:
        return {}

    @cached_property
    def _means(self) -> dict[str, Tensor]:
        return {}

    @cached_property
    def _recent(self) -> Callable[[int, str, str], tuple[str, Tensor]]:
        return lru_cache(self.kept)(self._made)

    def _made(self, layer: int, role: str, frame: str) -> tuple[str, Tensor]:
        found = vector_set(self.model, layer, role)
        space = space_of(frame, found.side, found.reads_at)
        folded = self.frames.fold(found.vectors, frame, found.side, found.norm, layer)
        return space, unit(folded, self.kernel(space))

    def head_maps(self, layer: int, kind: str) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
        """(space, vectors (heads d_h, d)) of both sides of a layer's head maps, each map of Frobenius norm one.

        `Frames.head_map` without what is the same for every token: centring over the shared tokens removes it.
        """
        return self._recent_heads(layer, kind)

    @cached_property
    def _recent_heads(self) -> Callable[[int, str], tuple[tuple[str, Tensor], tuple[str, Tensor]]]:
        return lru_cache(self.kept)(self._made_heads)

    def _made_heads(self, layer: int, kind: str) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
        right_frame = self.frames.right_frame(kind, "token")
        left = self._head_side(layer, kind[0], "token", self.frames.usual_offset(kind, "token"))
        right = self._head_side(layer, kind[1], right_frame, 0)
        heads, grams = self.model.dims.heads, []
        for space, vectors in (left, right):
            each = vectors.view(heads, -1, vectors.shape[1])
            grams.append(each @ self.kernel(space) @ each.transpose(1, 2))
        norms = (grams[0] * grams[1]).sum((1, 2)).clamp_min(0).sqrt()
        scale = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms)).repeat_interleave(self.model.dims.head_dim)
        return (left[0], left[1] * scale[:, None]), right

    def _head_side(self, layer: int, role: str, frame: str, offset: int) -> tuple[str, Tensor]:
        heads, width = self.model.dims.heads, self.model.dims.head_dim
        vectors = torch.cat([self.model.head(role, layer, head) for head in range(heads)])
        folded = self.frames.fold(vectors, frame, side_of(role), "attn_norm", layer)
        if offset:
            columns = folded.view(heads, width, -1).transpose(1, 2)
            folded = rotate(columns, offset, self.frames.frequencies(layer)).transpose(1, 2).reshape(folded.shape)
        return space_of(frame, side_of(role), layer), folded


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models and the tokens that they share; `null` has wrong partners for them."""

    first: Half
    second: Half
    shared: Shared

    @property
    def halves(self) -> tuple[Half, Half]:
        """Both halves."""
        return self.first, self.second

    @property
    def models(self) -> tuple[Model, Model]:
        """Both models."""
        return self.first.model, self.second.model

    def null(self, seed: int) -> "Pair":
        """The same models with wrong partners for their tokens (`Shared.shuffled`)."""
        return Pair(self.first, self.second, self.shared.shuffled(seed))

    def cross(self, space: str, other: str) -> Tensor:
        """The kernel (d₁, d₂) between a space of the first model and one of the second."""
        if (space, other) not in self._kernels:
            rows = self.first.rows(space), self.second.rows(other)
            self._kernels[space, other] = cross_kernel(*rows, self.shared.pairs)
        return self._kernels[space, other]

    @cached_property
    def _kernels(self) -> dict[tuple[str, str], Tensor]:
        return {}

    def agreement(self, view: View, layers: tuple[int, int]) -> Tensor:
        """How far each two vectors (n₁, n₂) of one layer each agree: the mean of how high each scores the other's list.

        The score of a list is `lists.carried`: 1 for the same vector.
        """
        (role, other), frame = view.roles, view.frame
        space, x = self.first.vectors(layers[0], role, frame)
        other_space, y = self.second.vectors(layers[1], other, frame)
        there = self._images[0](layers[0], role, frame, other_space)
        back = self._images[1](layers[1], other, frame, space)
        return torch.addmm(there @ y.T, x, back.T, beta=0.5, alpha=0.5)

    @cached_property
    def _images(self) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        """For each side: (layer, role, frame, space of the other side) -> what stands there for its lists."""
        there, back = (lru_cache(half.kept)(partial(self._image, side)) for side, half in enumerate(self.halves))
        return there, back

    def _image(self, side: int, layer: int, role: str, frame: str, space: str) -> Tensor:
        own, other = self.halves[side], self.halves[1 - side]
        found = own.lists(layer, role, frame)
        here = Lists(self.shared.partners[side][found.ids].to(other.ids.device), found.z)
        return carried(here, other.rows(space), other.mean(space))

    def correlations(self, view: View, layers: tuple[int, int]) -> Tensor:
        """Correlations (n₁, n₂) over all shared tokens: the paper's measure, here to compare `agreement` with."""
        space, x = self.first.vectors(layers[0], view.roles[0], view.frame)
        other, y = self.second.vectors(layers[1], view.roles[1], view.frame)
        return x @ self.cross(space, other) @ y.T

    def neuron_scores(self, views: tuple[View, ...], layers: tuple[int, int]) -> Tensor:
        """Scores (n₁, n₂) of all neurons of one layer each: the mean of their agreement over the views."""
        total, flipping = torch.zeros(()), torch.zeros(())
        for view in views:
            found = self.agreement(view, layers)
            total, flipping = (total, flipping + found) if view.flips else (total + found, flipping)
        return (total + flipping.abs()) / len(views)

    def head_cosines(self, kind: str, layers: tuple[int, int]) -> Tensor:
        """Cosines (h₁, h₂) between the head maps of two layers, centred over the shared tokens on both sides.

        Query heads that share keys have maps of their own, so the result is over query heads.
        """
        sides = zip(self.first.head_maps(layers[0], kind), self.second.head_maps(layers[1], kind), strict=True)
        left, right = (x @ self.cross(space, other) @ y.T for (space, x), (other, y) in sides)
        return head_products(left, right, (self.models[0].dims.heads, self.models[1].dims.heads))


def pair_of(first: Model, second: Model) -> Pair:
    """Two models side by side; BadOption if they share too few tokens."""
    shared = shared_tokens(first, second)
    return Pair(Half(Frames(first), shared.first), Half(Frames(second), shared.second), shared)


def neuron_views(first: Model, second: Model) -> tuple[View, ...]:
    """How neurons of two models are compared: every role in every usual frame; a gate stands for a key if it must."""
    return tuple(
        View(roles, frame, flips=roles[0] in ("up", "value") and "gate" in first.family.ff_roles)
        for roles in _role_pairs(first.family.ff_roles, second.family.ff_roles)
        for frame in default_frames(side_of(roles[0]))
    )


def _role_pairs(own: tuple[str, ...], other: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if own == other:
        yield from zip(own, other, strict=True)
    else:
        yield ("key" if "key" in own else "gate"), ("key" if "key" in other else "gate")
        yield "value", "value"
