"""Frames: the meaning of "the token a" in the residual stream (docs/theory.md §7).

A frame gives the rows (V, d) that stand for the tokens, and says how a parameter's vectors are folded before they meet
these rows. Everything is computed from the weights alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from zeropass._io.short_repr import ShortRepr
from zeropass.arch.frame_names import ALL_FRAMES, BARE, LENS_FRAMES, RELATIVE, USUAL_OFFSET, Frame, lens_map, space_of
from zeropass.arch.roles import (
    MEMORY,
    OUTSIDE,
    Side,
    Site,
    base_role,
    norm_of,
    reads_memory,
    side_of,
    sides_of,
    site_of,
)
from zeropass.errors import BadOption
from zeropass.model.address import canonical_role
from zeropass.model.blocks import Block, in_streams, model_input
from zeropass.model.lens_maps import LensMaps, chosen_lens
from zeropass.model.model import Model
from zeropass.model.positions import distance_rows, distance_vectors, frequencies, qk_norm_at, turned_gain
from zeropass.model.streams import active
from zeropass.model.vectors import VectorSet, is_bare, vector_set
from zeropass.numerics.factored import Factored
from zeropass.numerics.projection import apply_norm, fold_read, fold_write, normed, rotate
from zeropass.numerics.statistics import Moments, blocks, moments, relative_factors, standardised
from zeropass.tokens.undertrained import Judgement

__all__ = ["Frames", "Lengths", "Rows"]

_TOKENS = 512
"""The number of rows made at once; the first block holds several arrays of all its neurons' activations for them."""

_SPACES = ("embedded", "token", "output.read", "output.write", "paper.read", "paper.write")
"""The spaces of every model; a decoder that reads an encoder also has ``memory``."""

_BARE = (f"embedded.{BARE}", f"token.{BARE}")
"""The rows that are not normed, of a model in which some vectors meet a norm and others do not."""

_FOLDED = (*ALL_FRAMES, "embedded")
"""The frames of `Frames.fold`: layer 0 reads the embedded tokens as later layers read the ``token`` frame."""


@dataclass(frozen=True, eq=False, repr=False)
class Rows(ShortRepr):
    """The rows that stand for the tokens in one space.

    Attributes:
        space: The name of the space.
        matrix: The rows, (V, d).
        moments: Their moments over the tokens in use.
    """

    space: str
    matrix: Tensor
    moments: Moments


@dataclass(frozen=True, eq=False, repr=False)
class Lengths(ShortRepr):
    """Root mean squares of q or k over all heads.

    Attributes:
        each: That of each row, (n, 1).
        of_mean: That of the mean row, (1, 1).
    """

    each: Tensor
    of_mean: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Frames(ShortRepr):
    """The spaces of one model, computed when first asked for and kept.

    Example:
        >>> import zeropass as zp
        >>> frames = zp.Frames(zp.open_model("models/first"))
        >>> frames.rows("token").matrix.shape
        torch.Size([4096, 192])
        >>> frames.head_map(1, 0, "qk").left.shape
        torch.Size([4096, 32])
    """

    model: Model
    lens: LensMaps | None = None
    _kept: dict[str, Rows] = field(default_factory=dict, repr=False)
    _origin: "Frames | None" = field(default=None, repr=False)

    @classmethod
    def through(cls, model: Model, lens: str | Path | LensMaps | None) -> "Frames":
        """Return frames with the lens that a user asks for: see `lens_maps.chosen_lens`."""
        return cls(model, chosen_lens(model, lens))

    def of(self, model: Model) -> "Frames":
        """Return frames with the same rows for other parameters of the same stream, such as those of a fine-tune.

        The same tokens are under-trained.
        """
        return Frames(model, self.lens, self._kept, self)

    @cached_property
    def spaces(self) -> tuple[str, ...]:
        """The names of the spaces of this model: those that `space_of` gives for its parameters."""
        model = self.model
        roles = ((layer, role) for layer in range(model.dims.layers) for role in model.matrices(layer))
        bare = any(side_of(role) == "read" and is_bare(model, layer, role) for layer, role in roles)
        return (*_SPACES, *(_BARE if bare else ()), *(("memory",) if model.family.reads_text else ()))

    def rows(self, space: str) -> Rows:
        """Return the rows and moments of a space, computed when first asked for, then kept.

        Raises:
            BadOption: If the space is not one of `spaces`, as in `matrix`, `blocks` and `release`; lists the names.
        """
        self._require(space)
        if self._origin is not None:
            return self._origin.rows(space)
        if space not in self._kept:
            self._kept[space] = self._computed(space)
        return self._kept[space]

    def some_rows(self, space: str, ids: Tensor) -> Tensor:
        """Return the rows of some tokens, (n, d); those of a space that is not kept are computed alone."""
        self._require(space)
        if space in self._kept:
            return self._kept[space].matrix[ids]
        make = self._maker(space)
        return torch.cat([make(slice(i, i + 1)) for i in ids.tolist()])

    def _computed(self, space: str) -> Rows:
        matrix = self.matrix(space)
        return Rows(space, matrix, moments(matrix, self.used))

    def matrix(self, space: str) -> Tensor:
        """Compute the rows (V, d) of a space anew, without moments; `rows` keeps both."""
        self._require(space)
        matrix = torch.empty(self.model.dims.vocab, self.model.dims.d, device=self.model.device)
        for part, rows in self.blocks(space):
            matrix[part] = rows
        return matrix

    def blocks(self, space: str) -> Iterator[tuple[slice, Tensor]]:
        """Compute the rows of a space by blocks of tokens, so that nothing is as long as the vocabulary."""
        self._require(space)
        make = self._maker(space)
        return ((part, make(part)) for part in blocks(self.model.dims.vocab, _TOKENS))

    def _require(self, space: str) -> None:
        if space not in self.spaces:
            raise BadOption(f"There is no space {space!r} of {self.model.name}; it has {', '.join(self.spaces)}.")

    @cached_property
    def used(self) -> Tensor:
        """The mask (V,) of the tokens in use; the others have no text, and no part in any moments."""
        return torch.from_numpy(self.model.vocab.used).to(self.model.device)

    @property
    def judgement(self) -> Judgement:
        """The under-trained tokens: `Model.judgement`."""
        return self.model.judgement if self._origin is None else self._origin.judgement

    def remembered(self, _name: str, compute: Callable[[], float | None]) -> float | None:
        """Return a number that depends on the model and the lens alone; here it is computed each time."""
        return compute()

    def release(self, space: str) -> None:
        """Drop the rows of a space (113 MB each for SmolLM2)."""
        self._require(space)
        self._kept.pop(space, None)

    def folded(self, vectors: VectorSet, frame: str) -> Tensor:
        """Return the vectors of a set folded for a frame, (n, d): see `fold`."""
        return self.fold(vectors.vectors, frame, vectors.side, vectors.norm, vectors.layer, vectors.site)

    def factors(self, layer: int, role: str, frame: str) -> Tensor | None:
        """Return what a frame multiplies each token's score by, (V,); None for a frame that leaves scores as they are.

        In the frame ``distinctive`` it is one over the root mean square of the token's z among all vectors of the layer
        and role (docs/theory.md §9).
        """
        if frame not in RELATIVE:
            return None
        key = layer, role
        if key not in self._factors:
            self._factors.clear()
            self._factors[key] = self._relative_factors(layer, role, frame)
        return self._factors[key]

    def _relative_factors(self, layer: int, role: str, frame: str) -> Tensor:
        vectors = vector_set(self.model, layer, role)
        folded = self.folded(vectors, RELATIVE[frame])
        rows = self.rows(vectors.space(frame))
        std = rows.moments.of_scores(folded)[1]
        return relative_factors(rows.matrix, standardised(folded, std))

    @cached_property
    def _factors(self) -> dict[tuple[int, str], Tensor]:
        return {}

    def fold(
        self, vectors: Tensor, frame: str, side: Side, norm: str | None, layer: int, site: Site | None = None
    ) -> Tensor:
        """Fold a norm into vectors, as a frame reads them.

        A pre-norm model norms what is read, a post-norm one (BERT) what was written; a norm after a block (Gemma 2,
        OLMo 2) scales what the block writes. ``paper`` folds nothing (docs/theory.md §5). In the frames of a lens its
        map is folded in as well (§9).

        Args:
            vectors: Canonical vectors, (n, d).
            frame: The frame.
            side: ``read`` or ``write``.
            norm: The norm that the vectors meet, if any.
            layer: The layer of the norm.
            site: The part of the block that the vectors belong to; that of the norm if not given.

        Returns:
            The folded vectors, (n, d).

        Raises:
            BadOption: If there is no such frame or side.
        """
        if frame not in _FOLDED or side not in ("read", "write"):
            known = ", ".join(_FOLDED)
            raise BadOption(
                f"There is no frame {frame!r} of a side {side!r}: frames are {known}, sides read and write."
            )
        folded = vectors if frame == "paper" or norm is None else self._with_norm(vectors, side, norm, layer)
        if side == "write" and frame != "paper" and layer != OUTSIDE and self._scalars is not None:
            # What is no parameter of the layer but a direction behind its MLP is written behind its factor.
            first = layer + 1 if norm is None and site == "ff" else layer
            folded = folded * self._scalars[first : layer + 1 if frame in LENS_FRAMES else None].prod()
        if frame not in LENS_FRAMES:
            return folded
        return self._with_lens(folded, frame, side, site or site_of(norm or ""), layer)

    @cached_property
    def _scalars(self) -> Tensor | None:
        """The factors (layers,) of the stream as it leaves each layer; None where it leaves as it is."""
        each = (self.model.vector("layer_scalar", layer) for layer in range(self.model.dims.layers))
        present = [scalar for scalar in each if scalar is not None]
        return torch.cat(present) if present else None

    def _with_norm(self, vectors: Tensor, side: Side, norm: str, layer: int) -> Tensor:
        model = self.model
        if side == "read":
            gain = model.vector(f"{site_of(norm)}_gain", layer)  # without a norm
            vectors = vectors if gain is None else vectors * gain
            bare = model.family.reads_bare(norm, layer)
            return vectors if bare else fold_read(vectors, model.vector(norm, layer), model.family.norm)
        if (scale := model.dims.written_scale(site_of(norm))) != 1:
            vectors = scale * vectors
        after = norm if model.family.stream_normed else f"{norm.removesuffix('_norm')}_post_norm"
        gain = model.vector(after, layer)  # which some layers may lack, as those without experts
        return vectors if gain is None else fold_write(vectors, gain, model.family.norm)

    def _with_lens(self, vectors: Tensor, frame: str, side: Side, site: Site, layer: int) -> Tensor:
        lens = self.require_lens(frame)
        if side != ("read" if frame == "seen" else "write"):
            raise BadOption(f"The frame {frame} is for what {'reads' if frame == 'seen' else 'writes'}.")
        name = lens_map(side, site, layer, self.model.dims.layers)
        if not name:
            return vectors
        return vectors @ (lens.map(name).T if side == "read" else lens.map(name))

    @property
    def lens_frames(self) -> tuple[str, ...]:
        """The frames that the lens has maps for; none without a lens."""
        return () if self.lens is None else self.lens.frames

    def require_lens(self, frame: str) -> LensMaps:
        """Return the lens; raise BadOption, which names the frame that needs it, if there is none that has it."""
        if self.lens is None:
            raise BadOption(
                f"The frame {frame} needs a lens of the model: `zeropass calibrate {self.model.name}` makes one."
            )
        if frame not in self.lens_frames:
            raise BadOption(
                f"The {self.lens.facts.words} has the frame {', '.join(self.lens_frames)} only; {frame} needs a lens "
                f"that `zeropass calibrate {self.model.name}` makes."
            )
        return self.lens

    def constant(
        self, layer: int, role: str, start: int = 0, stop: int | None = None, frame: str = "token"
    ) -> Tensor | None:
        """Return the part of rows of q or k that no token changes, (rows,).

        It is the norm's shift through them, their bias and, in the frame ``seen``, what all states share.
        """
        model, norm = self.model, norm_of(role)
        parts = []
        if model.family.reads_normed and (shift := model.vector(f"{norm}_bias", layer)) is not None:
            parts.append(model.matrix(role, layer, start, stop) @ shift)
        if (bias := model.vector(f"{role}_bias", layer)) is not None:
            parts.append(bias[start:stop])
        if frame == "seen" and (seen := self.require_lens(frame).seen(layer)) is not None:
            parts.append(self.fold(model.matrix(role, layer, start, stop), "token", "read", norm, layer) @ seen[1])
        return torch.stack(parts).sum(0) if parts else None

    def head_constant(self, layer: int, head: int, role: str = "q", frame: str = "token") -> Tensor | None:
        """Return `constant` of one head, (d_h,)."""
        width = self.model.dims.at(layer).width(role)
        start = self.model.kv_head(role, head, layer) * width
        return self.constant(layer, role, start, start + width, frame)

    def head_map(self, layer: int, head: int, kind: str, frame: str = "token", offset: int | None = None) -> Factored:
        """Return a map of a head between tokens, as V x d_h factors (docs/theory.md §3).

        The query side of ``qk`` includes biases and is turned by the RoPE offset, or has the vector of the distance
        added. From the key side its mean over keys, which softmax cannot see, is subtracted. Biases of ``vo`` add the
        same to every token and are parameters of their own. What a model divides a token's queries, keys or values by,
        it is divided by. Heads that attend to keys and values of an earlier layer have them there: both sides then meet
        the streams of their own layers. ``paper`` leaves all of that out: ``E W_Q W_Kᵀ Eᵀ``, ``E W_V W_O Eᵀ``.

        Args:
            layer: The layer.
            head: The query head.
            kind: ``qk`` (token a, as query, attends to token b), ``vo`` or ``ov`` (attending to a promotes b), or one
                of these with the prefix ``cross_``.
            frame: The frame.
            offset: The number of positions from the key to the query, for ``qk`` only; `usual_offset` if None.

        Returns:
            The factors of the map.

        Raises:
            BadOption: If ``vo`` gets an offset, or if `frequencies` cannot give the rotation.
        """
        kind = canonical_role(kind)
        offset = self.usual_offset(kind, frame) if offset is None else offset
        if kind != "qk" and offset:
            raise BadOption(f"An offset between positions changes qk only; {kind} does not depend on it.")
        left_role, right_role = sides_of(kind)
        left_layer, right_layer = (self.model.layer_of(role, layer) for role in (left_role, right_role))
        left, _ = self._head_scores(left_layer, head, left_role, frame)
        right, mean = self._head_scores(right_layer, head, right_role, self.right_frame(kind, frame))
        if base_role(kind) == "qk":
            lengths = [self._kept_lengths(at, role, frame) for at, role in ((left_layer, "q"), (right_layer, "k"))]
            left = self.as_query(left, left_layer, head, frame, offset, lengths[0], left_role)
            right = self.as_key(right, mean, right_layer, head, frame, lengths[1], right_role)
        else:
            lengths_of_values = self._kept_lengths(left_layer, left_role, frame)
            left = self.as_value(left, left_layer, head, frame, lengths_of_values, left_role)
        return Factored(left, right)

    def carried(self, attended: float = 1.0) -> Tensor:
        """Return the tokens as they leave block 0 alone: y = e + Attn₀(e), x = y + MLP₀(y) (docs/theory.md §7).

        Of several streams it is the active one.

        Args:
            attended: The weight of a token's attention to itself; one if no token precedes it.

        Returns:
            The states (V, d), not yet normed for a reader.
        """
        block = Block(self.model, 0)
        out = torch.empty(self.model.dims.vocab, self.model.dims.d, device=self.model.device)
        for part in blocks(out.shape[0], _TOKENS):
            states = block.alone(self._embedded(part), attended, ids=_ids(part))
            out[part] = active(states, self.model.dims.d)
        return out

    @property
    def map_frame(self) -> Frame:
        """The frame in which head maps are read by default."""
        return "seen" if "seen" in self.lens_frames else "token"

    @staticmethod
    def right_frame(kind: str, frame: str) -> str:
        """Return the frame of a head map's second side: ``vo`` promotes tokens of the output."""
        if base_role(kind) != "vo" or frame == "paper":
            return frame
        return "effect" if frame in LENS_FRAMES else "output"

    def as_query(
        self,
        scores: Tensor,
        layer: int,
        head: int,
        frame: str,
        offset: int,
        lengths: "Lengths | None" = None,
        role: str = "q",
    ) -> Tensor:
        """Turn scores of a head's q columns into the query side of ``qk``: see `head_map`.

        Args:
            scores: The scores, (V, d_h).
            layer: The layer.
            head: The query head.
            frame: The frame.
            offset: The number of positions from the key to the query.
            lengths: `lengths` of the same rows, where the model norms all heads as one.
            role: The role of the columns.

        Returns:
            The query side, (V, d_h).
        """
        scores = self._state(scores, layer, head, role, frame, None if lengths is None else lengths.each)
        if frame != "paper" and (vectors := self._distances(base_role(role), layer)) is not None:
            return scores + vectors[head, distance_rows(self.model, torch.tensor(offset))]
        turned = rotate(scores, offset, self.frequencies(layer, abs(offset))) if offset else scores
        gain = None if frame == "paper" else turned_gain(self.model, layer)
        return turned if gain is None else turned * gain

    @cached_property
    def _distances(self) -> Callable[[str, int], Tensor | None]:
        """The vectors of distances of a role, kept for the heads of one layer."""
        return lru_cache(2)(partial(distance_vectors, self.model))

    def as_key(
        self,
        scores: Tensor,
        mean: Tensor,
        layer: int,
        head: int,
        frame: str,
        lengths: "Lengths | None" = None,
        role: str = "k",
    ) -> Tensor:
        """Turn scores of a head's k columns into the key side of ``qk``: see `head_map`.

        The key of the mean row is subtracted: it is the same for every key, so softmax cannot see it.

        Args:
            scores: The scores, (V, d_h).
            mean: Their mean, (d_h,).
            layer: The layer.
            head: The query head.
            frame: The frame.
            lengths: `lengths` of the same rows, where the model norms all heads as one.
            role: The role of the columns.

        Returns:
            The key side, (V, d_h).
        """
        if frame == "paper":
            return scores
        if not self._nonlinear:
            return scores - mean
        each, of_mean = (None, None) if lengths is None else (lengths.each, lengths.of_mean)
        zero = self._state(mean[None], layer, head, role, frame, of_mean)
        return self._state(scores, layer, head, role, frame, each) - zero

    def as_value(
        self, scores: Tensor, layer: int, head: int, frame: str, lengths: "Lengths | None", role: str = "v"
    ) -> Tensor:
        """Turn scores (V, d_h) of a head's v columns into the first side of ``vo``: see `head_map`."""
        scores = scores if lengths is None else self.per_latent(scores, role, lengths.each)
        if not self.model.family.value_normed or frame == "paper":
            return scores
        constant = self.head_constant(layer, head, role, frame)
        values = scores if constant is None else scores + constant
        return scores * torch.rsqrt(values.square().mean(-1, keepdim=True) + self.model.dims.eps)

    def per_latent(self, scores: Tensor, role: str, lengths: Tensor) -> Tensor:
        """Divide queries, keys or values (…, d_h) by the lengths (…, 1) of the latent that they are made of.

        The rotary part of a key is not made of it. Without a latent they stay as they are.
        """
        if not self.model.layout.latent_of(role):
            return scores
        if role != "k":
            return scores / lengths
        rotary = self.model.dims.rotary
        return torch.cat((scores[..., :rotary], scores[..., rotary:] / lengths), -1)

    def lengths(
        self, layer: int, role: str, rows: Tensor, mean: Tensor, centred: bool = False, frame: str = "token"
    ) -> "Lengths | None":
        """Return root mean squares over all that a model norms as one: q or k of all heads, or a latent.

        Args:
            layer: The layer.
            role: ``q``, ``k`` or ``v``.
            rows: Rows that stand for tokens, (n, d).
            mean: Their mean, (d,).
            centred: True if the mean is already subtracted from the rows.
            frame: The frame, which may be that of a lens.

        Returns:
            The root mean squares; None where nothing is normed as one, and for the formulas of the paper.
        """
        what, dims = self._normed_as_one(role, frame), self.model.dims
        if not what:
            return None
        eps = dims.eps if what == role else dims.latent_eps
        folded = self.fold(self.model.matrix(what, layer), frame, "read", "attn_norm", layer)
        constant = self.constant(layer, what, frame=frame)

        def length(x: Tensor) -> Tensor:
            x = x @ folded.T
            x = x if constant is None else x + constant
            return (x.square().mean(-1, keepdim=True) + eps).sqrt()

        mean = mean.to(rows)
        shift = mean if centred else torch.zeros_like(mean)
        each = [length(part + shift) for part in torch.split(rows, 4096)]
        return Lengths(torch.cat(each), length(mean[None]))

    def _normed_as_one(self, role: str, frame: str) -> str:
        """Return the canonical matrix whose products with a state are normed as one: all heads of q or k, or a latent.

        It is empty where there is none, and for the formulas of the paper, which norm nothing.
        """
        if frame == "paper":
            return ""
        whole = role if self.model.family.qk_norm == "whole" and role in ("q", "k") else ""
        return self.model.layout.latent_of(role) or whole

    @property
    def _nonlinear(self) -> bool:
        """True if queries and keys go through something nonlinear."""
        model = self.model
        return bool(model.family.qk_norm or model.layout.latent_of("k")) or model.dims.clip is not None

    def _state(
        self, scores: Tensor, layer: int, head: int, role: str, frame: str, lengths: Tensor | None = None
    ) -> Tensor:
        """Return scores (n, d_h) as the query or key that meets the other: with its constant, normed and clipped."""
        if frame == "paper":
            return scores
        constant, model = self.head_constant(layer, head, role, frame), self.model
        scores = scores if constant is None else scores + constant
        scores = scores if lengths is None else self.per_latent(scores, role, lengths)
        if norm := qk_norm_at(model, layer):
            gain, width = model.vector(f"{role}_norm", layer), model.dims.at(layer).head_dim
            gain = None if model.family.qk_norm_behind else gain
            if norm == "head":
                shift = model.vector(f"{role}_norm_bias", layer)
                scores = apply_norm(scores, model.family.qk_norm_kind, model.dims.eps, gain, shift)
            else:
                start = model.kv_head(role, head, layer) * width
                scores = scores / lengths if lengths is not None else scores
                scores = scores if gain is None else scores * gain[start : start + width]
        clip = model.dims.clip
        return scores if clip is None else scores.clamp(-clip, clip)

    def _kept_lengths(self, layer: int, role: str, frame: str) -> "Lengths | None":
        """Return `lengths` of the rows of a frame, kept for the heads of one layer."""
        if not self._normed_as_one(role, frame):
            return None
        key = layer, role, frame
        if key not in self._lengths:
            if len(self._lengths) > 2:
                self._lengths.clear()
            rows = self.rows(space_of(frame, "read", layer, is_bare(self.model, layer, role)))
            self._lengths[key] = self.lengths(layer, role, rows.matrix, rows.moments.mean, frame=frame)
        return self._lengths[key]

    @cached_property
    def _lengths(self) -> dict[tuple[int, str, str], "Lengths | None"]:
        return {}

    def usual_offset(self, kind: str, frame: str) -> int:
        """Return the default distance of a head map: `USUAL_OFFSET` for ``qk`` where it changes what meets a key.

        It is 0 for ``vo``, for the formulas of the paper, and where the rotation is not known.
        """
        rope = self.model.dims.rope
        if kind != "qk" or frame == "paper":
            return 0
        return USUAL_OFFSET if (rope is not None and rope.known) or self.model.has("distances") else 0

    def frequencies(self, layer: int = 0, reach: int = 0) -> Tensor:
        """Return `positions.frequencies` of the model."""
        return frequencies(self.model, layer, reach)

    def _head_scores(self, layer: int, head: int, role: str, frame: str) -> tuple[Tensor, Tensor]:
        """Return the scores (V, d_h) of a head's vectors, and their means (d_h,) over the tokens in use."""
        side = side_of(role)
        vectors = self.fold(self.model.head(role, layer, head), frame, side, norm_of(role), layer)
        bare = side == "read" and is_bare(self.model, layer, role)
        rows = self.rows(space_of(frame, side, MEMORY if reads_memory(role) else layer, bare))
        return rows.matrix @ vectors.T, rows.moments.of_scores(vectors)[0]

    def _maker(self, space: str) -> Callable[[slice], Tensor]:
        """Return the function that computes the rows of a space for a slice of tokens."""
        model, (frame, _, side) = self.model, space.partition(".")
        read = self.as_read if side != BARE else _as_it_is
        if frame == "paper":
            return partial(model.tokens, "embedding" if side == "read" else model.logit_table)
        if frame == "embedded":
            block = Block(model, 0)
            return lambda part: read(block.entering(self._embedded(part)))
        if frame == "token":
            block, d = Block(model, 0), model.dims.d
            return lambda part: read(active(block.alone(self._embedded(part), ids=_ids(part)), d))
        if frame == "memory":  # cross attention reads the encoder's tokens, normed as they leave it
            return Frames(model.memory)._maker("token")
        if side == "write":
            mean = self._output_mean()
            return lambda part: self._output_rows(part) - mean
        return lambda part: normed(self._output_rows(part), model.family.norm, model.dims.eps)

    def _output_rows(self, part: slice) -> Tensor:
        """Return ``U ⊙ γ_f``, the rows through which a state becomes logits (docs/theory.md §1)."""
        model, rows = self.model, self.model.tokens(self.model.logit_table, part)
        if model.family.stream_normed:
            return rows
        return fold_read(rows, model.vector("final_norm"), model.family.norm)

    def _output_mean(self) -> Tensor:
        """Return the mean (d,) of `_output_rows` over the tokens in use, which softmax cannot see."""
        total = torch.zeros(self.model.dims.d, dtype=torch.float64, device=self.model.device)
        for part in blocks(self.model.dims.vocab, _TOKENS):
            total += self._output_rows(part)[self.used[part]].double().sum(0)
        return (total / int(self.used.sum())).float()

    def _embedded(self, part: slice) -> Tensor:
        """Return the input of block 0 for a slice of tokens, without positions; several streams side by side."""
        model = self.model
        narrow = model.has("embed_projection")
        rows = model.matrix("embedding", 0, part.start, part.stop) if narrow else model.tokens("embedding", part)
        return in_streams(model, model_input(model, rows))

    def as_read(self, x: Tensor) -> Tensor:
        """Return a state as the next block reads it, without the gain, which is folded into the parameters."""
        family = self.model.family
        return normed(x, family.norm, self.model.dims.eps) if family.reads_normed else x


def _as_it_is(x: Tensor) -> Tensor:
    """Return a state as it is read where no norm stands."""
    return x


def _ids(part: slice) -> Tensor:
    """Return the ids of a slice of tokens."""
    return torch.arange(part.start, part.stop)
