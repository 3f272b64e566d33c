"""A pair of models: their parameters as vectors that one matrix product compares over the shared tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from zeropass._io.progress import waiting
from zeropass._io.short_repr import ShortRepr
from zeropass.align.token_lists import Lists, carried, lists_of
from zeropass.arch.frame_names import LENS_FRAMES, default_frames, space_of
from zeropass.arch.roles import Side, side_of
from zeropass.errors import BadOption
from zeropass.model.frames import Frames
from zeropass.model.lens_maps import LensMaps
from zeropass.model.model import Model
from zeropass.model.opening import ModelLike, open_model
from zeropass.model.paired_lenses import LENSES, LensChoice, paired_lens
from zeropass.model.positions import lengthening
from zeropass.model.shared_tokens import Shared, shared_tokens
from zeropass.model.vectors import is_bare, vector_set
from zeropass.numerics.cross_gram import cross_kernel, head_products, unit
from zeropass.numerics.projection import rotate

__all__ = ["Half", "Pair", "View", "neuron_views", "pair_of"]

KEPT = 1 << 28
"""Bytes of vectors that a half, and a pair, caches (the neurons of a layer in one view: 3.5 MB for SmolLM2)."""


@dataclass(frozen=True)
class View:
    """A way to compare two parameters: a role of each model, read in one frame.

    Attributes:
        roles: The role in the first model, and that in the second.
        frame: The frame of both.
        flips: True for up and value of a gated neuron. They can change sign together without changing what the neuron
            computes, so only the absolute value of their joint score is meaningful.
    """

    roles: tuple[str, str]
    frame: str
    flips: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Half(ShortRepr):
    """One model of a pair, with all that does not depend on how the shared tokens are paired.

    Attributes:
        frames: The frames of the model, with its lens if there is one.
        ids: Ids of the tokens that it shares with the other model, (S,).
    """

    frames: Frames
    ids: Tensor

    @property
    def model(self) -> Model:
        """The model."""
        return self.frames.model

    def rows(self, space: str) -> Tensor:
        """Return the rows (V, d) of a space."""
        return self.frames.rows(space).matrix

    def kernel(self, space: str) -> Tensor:
        """Return the covariance (d, d) of the rows of a space over the shared tokens."""
        if space not in self._kernels:
            rows = self.rows(space)
            self._kernels[space] = cross_kernel(rows, rows, (self.ids, self.ids))
        return self._kernels[space]

    @cached_property
    def _kernels(self) -> dict[str, Tensor]:
        return {}

    def vectors(self, layer: int, role: str, frame: str) -> tuple[str, Tensor]:
        """Return the space and all vectors (n, d) of a role, scaled to variance one over the shared tokens."""
        return self._cached_vectors(layer, role, frame)

    def lists(self, layer: int, role: str, frame: str) -> Lists:
        """Return the list of each vector of a role."""
        if (layer, role, frame) not in self._lists:
            space, vectors = self.vectors(layer, role, frame)
            self._lists[layer, role, frame] = lists_of(vectors, self.rows(space), self.ids, self.mean(space))
        return self._lists[layer, role, frame]

    def mean(self, space: str) -> Tensor:
        """Return the mean (d,) of the rows of a space over the shared tokens."""
        if space not in self._means:
            self._means[space] = self.rows(space)[self.ids].mean(0)
        return self._means[space]

    @property
    def kept(self) -> int:
        """The number of sets of vectors that are cached."""
        return max(4, KEPT // (4 * max(self.model.dims.neurons, self.model.dims.d) * self.model.dims.d))

    @cached_property
    def _lists(self) -> dict[tuple[int, str, str], Lists]:
        return {}

    @cached_property
    def _means(self) -> dict[str, Tensor]:
        return {}

    @cached_property
    def _cached_vectors(self) -> Callable[[int, str, str], tuple[str, Tensor]]:
        return lru_cache(self.kept)(self._compute_vectors)

    def _compute_vectors(self, layer: int, role: str, frame: str) -> tuple[str, Tensor]:
        stored = vector_set(self.model, layer, role)
        space = stored.space(frame)
        folded = self.frames.folded(stored, frame)
        return space, unit(folded, self.kernel(space))

    def head_maps(self, layer: int, kind: str) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
        """Return both sides of the head maps of a layer, scaled so that each map has Frobenius norm one.

        They are those of `Frames.head_map` without the terms that are the same for every token, which centring over
        the shared tokens removes, and without the norms of queries, keys and latents.

        Args:
            layer: The layer.
            kind: ``qk`` or ``vo``.

        Returns:
            For each side its space, and its vectors (heads · d_h, d), head by head.
        """
        return self._cached_head_maps(layer, kind)

    @cached_property
    def _cached_head_maps(self) -> Callable[[int, str], tuple[tuple[str, Tensor], tuple[str, Tensor]]]:
        return lru_cache(self.kept)(self._compute_head_maps)

    def _compute_head_maps(self, layer: int, map_role: str) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
        right_frame = self.frames.right_frame(map_role, "token")
        left = self._head_side(layer, map_role[0], "token", self.frames.usual_offset(map_role, "token"))
        right = self._head_side(layer, map_role[1], right_frame, 0)
        dims, grams = self.model.dims.at(layer), []
        for space, vectors in (left, right):
            by_head = vectors.view(dims.heads, -1, vectors.shape[1])
            grams.append(by_head @ self.kernel(space) @ by_head.transpose(1, 2))
        norms = (grams[0] * grams[1]).sum((1, 2)).clamp_min(0).sqrt()
        scale = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms)).repeat_interleave(dims.width(map_role))
        return (left[0], left[1] * scale[:, None]), right

    def _head_side(self, layer: int, role: str, frame: str, offset: int) -> tuple[str, Tensor]:
        heads, width = self.model.dims.at(layer).heads, self.model.dims.at(layer).width(role)
        vectors = torch.cat([self.model.head(role, layer, head) for head in range(heads)])
        folded = self.frames.fold(vectors, frame, side_of(role), "attn_norm", layer)
        if offset and self.model.dims.rope:  # what a distance adds is no column of a token
            columns = folded.view(heads, width, -1).transpose(1, 2)
            turned = rotate(columns, offset, self.frames.frequencies(layer, offset))
            folded = turned.transpose(1, 2).reshape(folded.shape)
        if role == "q" and (factors := lengthening(self.model, layer)) is not None:
            folded = folded * factors.repeat(heads)[:, None]
        bare = side_of(role) == "read" and is_bare(self.model, layer, role)
        return space_of(frame, side_of(role), layer, bare), folded


@dataclass(frozen=True, eq=False, repr=False)
class Pair(ShortRepr):
    """A pair of models and the tokens that they share.

    Attributes:
        first: The first model.
        second: The second model.
        shared: The shared tokens; in a `null` they have wrong partners.
    """

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

    @property
    def lens_frames(self) -> tuple[str, ...]:
        """The frames that both models have a lens for."""
        return tuple(frame for frame in LENS_FRAMES if all(frame in half.frames.lens_frames for half in self.halves))

    @property
    def lenses(self) -> tuple[LensMaps, ...]:
        """The lenses of both models; none if they have no frame in common."""
        return tuple(half.frames.lens for half in self.halves if half.frames.lens is not None and self.lens_frames)

    @property
    def lens_words(self) -> tuple[str, ...]:
        """The lenses in words."""
        return tuple(lens.facts.words for lens in self.lenses)

    def frames(self, side: Side) -> tuple[str, ...]:
        """Return the frames in which vectors of a side are compared: that of the lenses, or the usual ones."""
        frame = "seen" if side == "read" else "effect"
        return (frame,) if frame in self.lens_frames else default_frames(side)

    def null(self, seed: int) -> "Pair":
        """Return the same models with wrong partners for their tokens (`Shared.shuffled`)."""
        return Pair(self.first, self.second, self.shared.shuffled(seed))

    def cross(self, space: str, other: str) -> Tensor:
        """Return the kernel (d₁, d₂) between a space of the first model and one of the second."""
        if (space, other) not in self._kernels:
            rows = self.first.rows(space), self.second.rows(other)
            self._kernels[space, other] = cross_kernel(*rows, self.shared.pairs)
        return self._kernels[space, other]

    @cached_property
    def _kernels(self) -> dict[tuple[str, str], Tensor]:
        return {}

    def agreement(self, view: View, layers: tuple[int, int]) -> Tensor:
        """Return how far every two vectors agree: the mean of the scores that each gives the other's list.

        The score of a list is that of `token_lists.carried`: 1 for the same vector.

        Args:
            view: The role of each model, and the frame.
            layers: The layer of the first model, and that of the second.

        Returns:
            Agreement, (n₁, n₂).
        """
        (role, other), frame = view.roles, view.frame
        space, x = self.first.vectors(layers[0], role, frame)
        other_space, y = self.second.vectors(layers[1], other, frame)
        first_images = self._images[0](layers[0], role, frame, other_space)
        second_images = self._images[1](layers[1], other, frame, space)
        return torch.addmm(first_images @ y.T, x, second_images.T, beta=0.5, alpha=0.5)

    @cached_property
    def _images(self) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        """For each side the cached `_image`, a function of layer, role, frame and the space of the other side."""
        first, second = (lru_cache(half.kept)(partial(self._image, side)) for side, half in enumerate(self.halves))
        return first, second

    def _image(self, side: int, layer: int, role: str, frame: str, space: str) -> Tensor:
        """Return the vectors that represent the lists of one side in a space of the other."""
        source, target = self.halves[side], self.halves[1 - side]
        lists = source.lists(layer, role, frame)
        translated = Lists(self.shared.partners[side][lists.ids].to(target.ids.device), lists.z)
        return carried(translated, target.rows(space), target.mean(space))

    def correlations(self, view: View, layers: tuple[int, int]) -> Tensor:
        """Return correlations (n₁, n₂) over all shared tokens: the paper's measure, to compare with `agreement`."""
        space, x = self.first.vectors(layers[0], view.roles[0], view.frame)
        other_space, y = self.second.vectors(layers[1], view.roles[1], view.frame)
        return x @ self.cross(space, other_space) @ y.T

    def neuron_scores(self, views: tuple[View, ...], layers: tuple[int, int]) -> Tensor:
        """Return scores (n₁, n₂) of all neurons of two layers: the mean of their agreement over the views."""
        total, flipping = torch.zeros(()), torch.zeros(())
        for view in views:
            scores = self.agreement(view, layers)
            total, flipping = (total, flipping + scores) if view.flips else (total + scores, flipping)
        return (total + flipping.abs()) / len(views)

    def head_cosines(self, kind: str, layers: tuple[int, int]) -> Tensor:
        """Return the cosines between the head maps of two layers, centred over the shared tokens on both sides.

        Args:
            kind: ``qk`` or ``vo``.
            layers: The layer of the first model, and that of the second.

        Returns:
            Cosines, (h₁, h₂), over query heads: those that share keys have maps of their own.
        """
        sides = zip(self.first.head_maps(layers[0], kind), self.second.head_maps(layers[1], kind), strict=True)
        left, right = (x @ self.cross(space, other_space) @ y.T for (space, x), (other_space, y) in sides)
        heads = [model.dims.at(layer).heads for model, layer in zip(self.models, layers, strict=True)]
        return head_products(left, right, (heads[0], heads[1]))


@waiting("opening two models")
def pair_of(first: ModelLike, second: ModelLike, lenses: tuple[LensChoice, LensChoice] = LENSES) -> Pair:
    """Pair two models.

    Args:
        first: The first model, or its name.
        second: The second model, or its name.
        lenses: The lens of each, as for `paired_lenses.paired_lens`. A frame is compared through them if both have it.

    Returns:
        The pair.

    Raises:
        BadOption: If they share too few tokens, or one has layers without attention or an MLP.
        BadLens: If a lens belongs to another model, or cannot be read.
        CannotRun: If the layers of one differ in ways that an alignment does not know.

    Example:
        >>> import zeropass as zp
        >>> pair = zp.pair_of("models/first", "models/second")
        >>> len(pair.shared), pair.shared.identical
        (4095, True)
    """
    first, second = open_model(first), open_model(second)
    for model in (first, second):
        model.require_alike_layers("an alignment")
        if lacking := model.dims.no_attention or model.dims.no_mlp:
            raise BadOption(
                f"{model.name}: layer {lacking[0]} lacks attention or an MLP; models can be aligned if all of their "
                "layers have both."
            )
    shared = shared_tokens(first, second)
    frames = [Frames(model, paired_lens(model, lens)) for model, lens in zip((first, second), lenses, strict=True)]
    return Pair(Half(frames[0], shared.first), Half(frames[1], shared.second), shared)


def neuron_views(pair: Pair) -> tuple[View, ...]:
    """Return the views in which neurons of two models are compared: every role, in every frame of its side.

    Where only one of the models has gates, they are compared with the keys of the other.
    """
    first, second = (model.family.ff_roles for model in pair.models)
    return tuple(
        View(roles, frame, flips=roles[0] in ("up", "value") and "gate" in first)
        for roles in _role_pairs(first, second)
        for frame in pair.frames(side_of(roles[0]))
    )


def _role_pairs(first: tuple[str, ...], second: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if first == second:
        yield from zip(first, second, strict=True)
    else:
        yield ("key" if "key" in first else "gate"), ("key" if "key" in second else "gate")
        yield "value", "value"
