"""Frames: what "the token a" means inside the residual stream (design.md §2).

A frame gives the rows (V, d) that stand for the tokens, and says how a parameter's vectors are folded
before they meet these rows. Everything is computed from the weights alone.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional

from zeropass.arch.spec import (
    FRAMES,
    MEMORY,
    ROUTER,
    USUAL_OFFSET,
    Rope,
    Side,
    base_role,
    norm_of,
    reads_memory,
    side_of,
    sides_of,
    space_of,
)
from zeropass.errors import BadModel, BadOption
from zeropass.model.model import Model
from zeropass.numerics.factored import Factored
from zeropass.numerics.projection import apply_norm, fold_read, fold_write, normed, rotate
from zeropass.numerics.statistics import Moments, blocks, moments

__all__ = ["Frames", "Lengths", "Rows"]

_TOKENS = 512
"""Rows that are made at once: the first block holds some times as many activations of all its neurons."""

_SPACES = ("embedded", "token", "output.read", "output.write", "paper.read", "paper.write")
"""The spaces that every model has; a decoder that reads an encoder has its ``memory`` as well."""

_FOLDED = (*FRAMES, "embedded")
"""What `Frames.fold` takes for a frame: layer 0 reads the embedded tokens as later layers read the ``token`` frame."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows (V, d) that stand for the tokens in one space, and their moments over the tokens in use."""

    space: str
    matrix: Tensor
    moments: Moments


@dataclass(frozen=True, eq=False)
class Lengths:
    """Root mean squares of q or k over all heads: for each row (n, 1), and for the mean row (1, 1)."""

    each: Tensor
    of_mean: Tensor


@dataclass(frozen=True, eq=False)
class Frames:
    """The spaces of one model, computed when first asked for and kept."""

    model: Model

    def of(self, model: Model) -> "Frames":
        """The same rows for other parameters of the same stream, such as those of a fine-tune."""
        found = Frames(model)
        found.__dict__["_kept"] = self._kept
        return found

    @cached_property
    def _kept(self) -> dict[str, Rows]:
        return {}

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the spaces that this model has: those that `space_of` gives for its parameters."""
        return (*_SPACES, "memory") if self.model.family.crosses else _SPACES

    def rows(self, space: str) -> Rows:
        """Return the rows and moments of a space of `spaces`, computed when first asked for, then kept.

        Raises BadOption, with the names that there are, for another name; so do `matrix`, `blocks` and `release`.
        """
        self._require(space)
        if space not in self._kept:
            self._kept[space] = self._computed(space)
        return self._kept[space]

    def _computed(self, space: str) -> Rows:
        matrix = self.matrix(space)
        return Rows(space, matrix, moments(matrix, self.used))

    def matrix(self, space: str) -> Tensor:
        """The rows (V, d) of a space alone, made anew; `rows` keeps them, with their moments."""
        self._require(space)
        matrix = torch.empty(self.model.dims.vocab, self.model.dims.d, device=self.model.device)
        for part, rows in self.blocks(space):
            matrix[part] = rows
        return matrix

    def blocks(self, space: str) -> Iterator[tuple[slice, Tensor]]:
        """The rows of a space, a block of tokens after the other: nothing as long as the vocabulary is made."""
        self._require(space)
        make = self._maker(space)
        return ((part, make(part)) for part in blocks(self.model.dims.vocab, _TOKENS))

    def _require(self, space: str) -> None:
        if space not in self.spaces:
            raise BadOption(f"There is no space {space!r} of {self.model.name}; it has {', '.join(self.spaces)}.")

    @cached_property
    def used(self) -> Tensor:
        """Which tokens (V,) are in use: the others have no text, and no part in any moments."""
        return torch.from_numpy(self.model.vocab.used).to(self.model.device)

    def release(self, space: str) -> None:
        """Forget a space's rows (113 MB each for SmolLM2)."""
        self._require(space)
        self._kept.pop(space, None)

    def fold(self, vectors: Tensor, frame: str, side: Side, norm: str | None, layer: int) -> Tensor:
        """Canonical vectors (n, d) as the frame reads them; ``norm`` names the norm that they meet, if any.

        A pre-norm model norms what is read, a post-norm one (BERT) what was written; a norm behind a block (Gemma 2,
        OLMo 2) scales what it writes. ``paper`` folds nothing. Raises BadOption for another frame or side.
        """
        model = self.model
        if frame not in _FOLDED or side not in ("read", "write"):
            known = ", ".join(_FOLDED)
            raise BadOption(
                f"There is no frame {frame!r} of a side {side!r}: frames are {known}, sides read and write."
            )
        if frame == "paper" or norm is None:
            return vectors
        if side == "read":
            bare = model.family.reads_bare(norm, layer)
            return vectors if bare else fold_read(vectors, model.vector(norm, layer), model.family.norm)
        after = norm if model.family.stream_normed else f"{norm.removesuffix('_norm')}_post_norm"
        return fold_write(vectors, model.vector(after, layer), model.family.norm) if model.has(after) else vectors

    def constant(self, layer: int, role: str, start: int = 0, stop: int | None = None) -> Tensor | None:
        """What rows of q or k hold whatever the token, (rows,): the norm's shift through them, and their bias."""
        shift = self.model.vector(f"{norm_of(role)}_bias", layer) if self.model.family.reads_normed else None
        found = None if shift is None else self.model.matrix(role, layer, start, stop) @ shift
        bias = self.model.vector(f"{role}_bias", layer)
        if bias is None:
            return found
        return bias[start:stop] if found is None else found + bias[start:stop]

    def head_constant(self, layer: int, head: int, role: str = "q") -> Tensor | None:
        """`constant` of one head, (d_h,)."""
        start, width = self.model.kv_head(role, head) * self.model.dims.head_dim, self.model.dims.head_dim
        return self.constant(layer, role, start, start + width)

    def head_map(self, layer: int, head: int, kind: str, frame: str = "token", offset: int = 0) -> Factored:
        """``qk`` (token a, as query, attends to token b) or ``vo`` (attending to a promotes b), as V x d_h factors.

        Query side: with biases, turned by the RoPE offset (query ``offset`` positions after the key); key
        side: minus its mean over keys, which softmax cannot see. Biases add the same to every token in ``vo`` and
        are parameters of their own. ``paper`` leaves all of that out: ``E W_Q W_Kᵀ Eᵀ``, ``E W_V W_O Eᵀ``.
        """
        if kind != "qk" and offset:
            raise BadOption(f"An offset between positions changes qk only; {kind} does not depend on it.")
        left_role, right_role = sides_of(kind)
        left, _ = self._head_scores(layer, head, left_role, frame)
        right, mean = self._head_scores(layer, head, right_role, self.right_frame(kind, frame))
        if base_role(kind) == "qk":
            rows = self.rows(space_of(frame, "read", layer))
            lengths = [self._kept_lengths(layer, role, rows) for role in "qk"] if frame != "paper" else [None, None]
            left = self.as_query(left, layer, head, frame, offset, lengths[0], left_role)
            right = self.as_key(right, mean, layer, head, frame, lengths[1], right_role)
        return Factored(left, right)

    def carried(self, attended: float = 1.0) -> Tensor:
        """Tokens as they leave block 0 alone, (V, d): y = e + Attn₀(e), x = y + MLP₀(y) (design.md §2, token frame).

        ``attended`` is the weight of a token's attention to itself: one, for a token that nothing stands before. The
        states are not yet normed for a reader.
        """
        block = _FirstBlock(self.model, self._norm, attended)
        out = torch.empty(self.model.dims.vocab, self.model.dims.d, device=self.model.device)
        for part in blocks(out.shape[0], _TOKENS):
            out[part] = block(self._embedded(part))
        return out

    @staticmethod
    def right_frame(kind: str, frame: str) -> str:
        """The frame of a head map's second side: what ``vo`` promotes is always something said."""
        return "output" if base_role(kind) == "vo" and frame != "paper" else frame

    def as_query(
        self,
        scores: Tensor,
        layer: int,
        head: int,
        frame: str,
        offset: int = 0,
        lengths: "Lengths | None" = None,
        role: str = "q",
    ) -> Tensor:
        """Scores (V, d_h) of a head's q columns made into the query side of ``qk``: see `head_map`.

        ``lengths`` are `lengths` of the same rows, where the model norms all heads as one.
        """
        scores = self._state(scores, layer, head, role, frame, None if lengths is None else lengths.each)
        return rotate(scores, offset, self.frequencies(layer)) if offset else scores

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
        """Scores (V, d_h) of a head's k columns, of mean (d_h,), made into the key side of ``qk``: see `head_map`.

        What is the same for every key is taken off, for softmax cannot see it: the key of the mean row.
        """
        if frame == "paper":
            return scores
        if not self._bends:
            return scores - mean
        each, of_mean = (None, None) if lengths is None else (lengths.each, lengths.of_mean)
        zero = self._state(mean[None], layer, head, role, frame, of_mean)
        return self._state(scores, layer, head, role, frame, each) - zero

    def lengths(self, layer: int, role: str, rows: Tensor, mean: Tensor, centred: bool = False) -> "Lengths | None":
        """Of q or k over all heads, the root mean square for each of the rows (n, d), and for their mean row (d,).

        ``centred``: the rows come without their mean. None where the model does not norm all heads as one.
        """
        if self.model.family.qk_norm != "whole":
            return None
        folded = self.fold(self.model.matrix(role, layer), "token", "read", "attn_norm", layer)
        constant = self.constant(layer, role)

        def length(x: Tensor) -> Tensor:
            x = x @ folded.T
            x = x if constant is None else x + constant
            return (x.square().mean(-1, keepdim=True) + self.model.dims.eps).sqrt()

        mean = mean.to(rows)
        shift = mean if centred else torch.zeros_like(mean)
        each = [length(part + shift) for part in torch.split(rows, 4096)]
        return Lengths(torch.cat(each), length(mean[None]))

    def position_bias(self, head: int, offsets: Tensor) -> Tensor | None:
        """What is added to the attention logits of a head of any layer, for queries so many positions after their keys.

        Offsets of any shape; None where nothing is added.
        ALiBi (Press et al. 2022): a slope of the head's own times the distance; T5: a number for each bucket of
        distances (Raffel et al. 2020, §2.1). It changes no order among keys at one distance.
        """
        dims, family = self.model.dims, self.model.family
        if family.alibi:
            slope = _alibi_slopes(dims.heads)[head]
            return -slope * offsets * (dims.attention_scale if family.alibi == "scaled" else 1.0)
        if not self.model.has("relative"):
            return None
        table = self.model.relative
        return table[_buckets(offsets, len(table), family.causal), head]

    @property
    def _bends(self) -> bool:
        """Whether queries and keys go through something that is not linear."""
        return bool(self.model.family.qk_norm) or self.model.dims.clip is not None

    def _state(
        self, scores: Tensor, layer: int, head: int, role: str, frame: str, lengths: Tensor | None = None
    ) -> Tensor:
        """Scores (n, d_h) as the query or key that meets the other: with its constant, normed where it is."""
        if frame == "paper":
            return scores
        constant, model = self.head_constant(layer, head, role), self.model
        scores = scores if constant is None else scores + constant
        if model.family.qk_norm:
            gain, width = model.vector(f"{role}_norm", layer), model.dims.head_dim
            if model.family.qk_norm == "head":
                scores = apply_norm(scores, "rms", model.dims.eps, gain, None)
            else:
                start = model.kv_head(role, head) * width
                scores = scores / lengths if lengths is not None else scores
                scores = scores if gain is None else scores * gain[start : start + width]
        clip = model.dims.clip
        return scores if clip is None else scores.clamp(-clip, clip)

    def _kept_lengths(self, layer: int, role: str, rows: Rows) -> "Lengths | None":
        """`lengths`, kept for the heads of one layer."""
        key = layer, role, rows.space
        if key not in self._lengths:
            if len(self._lengths) > 1:
                self._lengths.clear()
            self._lengths[key] = self.lengths(layer, role, rows.matrix, rows.moments.mean)
        return self._lengths[key]

    @cached_property
    def _lengths(self) -> dict[tuple[int, str, str], "Lengths | None"]:
        return {}

    def usual_offset(self, kind: str, frame: str) -> int:
        """The distance at which a head map is shown unasked: `USUAL_OFFSET` for ``qk`` where positions are rotary.

        0 for ``vo``, for the formulas of the paper, and where the rotation is not known.
        """
        rope = self.model.dims.rope
        if kind != "qk" or frame == "paper":
            return 0
        known = rope is not None and (self.model.rope_factors is not None or rope.kind in _KNOWN_ROPE)
        return USUAL_OFFSET if known else 0

    def frequencies(self, layer: int = 0) -> Tensor:
        """Rotary frequencies (r/2,) in radians a position, of a layer; raises BadOption where the model has no RoPE."""
        dims = self.model.dims
        rope = (dims.local_rope if layer in dims.local else None) or dims.rope
        if rope is None:
            raise BadOption(f"{self.model.name} has no rotary positions: only offset 0 has a meaning.")
        plain = rope.theta ** (-torch.arange(0, dims.rotary, 2, dtype=torch.float64) / dims.rotary)
        factors = self.model.rope_factors
        scaled = plain / factors.double().cpu() if factors is not None else _rescaled(plain, rope)
        return scaled.float().to(self.model.device)

    def _head_scores(self, layer: int, head: int, role: str, frame: str) -> tuple[Tensor, Tensor]:
        """Scores (V, d_h) of a head's vectors, and their means (d_h,) over the tokens in use."""
        side = side_of(role)
        vectors = self.fold(self.model.head(role, layer, head), frame, side, norm_of(role), layer)
        rows = self.rows(space_of(frame, side, MEMORY if reads_memory(role) else layer))
        return rows.matrix @ vectors.T, rows.moments.of_scores(vectors)[0]

    def _maker(self, space: str) -> Callable[[slice], Tensor]:
        """What makes the rows of a space for any slice of tokens."""
        model, (frame, _, side) = self.model, space.partition(".")
        if frame == "paper":
            return partial(model.tokens, "embedding" if side == "read" else model.says)
        if frame == "embedded":
            bare = model.family.reads_bare("attn_norm", 0)
            return self._embedded if bare else lambda part: self._as_read(self._embedded(part))
        if frame == "token":
            block = _FirstBlock(model, self._norm)
            return lambda part: self._as_read(block(self._embedded(part)))
        if frame == "memory":  # what cross attention reads: the encoder's tokens, normed as they leave it
            return Frames(model.memory)._maker("token")
        if side == "write":
            mean = self._mean_said()
            return lambda part: self._said(part) - mean
        return lambda part: normed(self._said(part), model.family.norm, model.dims.eps)

    def _said(self, part: slice) -> Tensor:
        """``U ⊙ γ_f``: the rows through which a state becomes logits (norm folding, design.md §2)."""
        model, said = self.model, self.model.tokens(self.model.says, part)
        if model.family.stream_normed:
            return said
        return fold_read(said, model.vector("final_norm"), model.family.norm)

    def _mean_said(self) -> Tensor:
        """The mean (d,) of `_said` over the tokens in use, which softmax cannot see."""
        total = torch.zeros(self.model.dims.d, dtype=torch.float64, device=self.model.device)
        for part in blocks(self.model.dims.vocab, _TOKENS):
            total += self._said(part)[self.used[part]].double().sum(0)
        return (total / int(self.used.sum())).float()

    def _embedded(self, part: slice) -> Tensor:
        """What enters block 0 for each token of a slice: e_a, scaled, or normed with its type, as the family does."""
        model = self.model
        if not model.has("embed_norm"):
            return model.tokens("embedding", part) * model.dims.embed_scale
        narrow = model.has("embed_projection")
        e = model.matrix("embedding", 0, part.start, part.stop) if narrow else model.tokens("embedding", part)
        e = e * model.dims.embed_scale
        e = e + model.matrix("types", 0, 0, 1) if model.has("types") else e
        x = apply_norm(e, model.family.norm, model.dims.eps, *self._norm("embed_norm", 0))
        if not narrow:
            return x
        bias = model.vector("embed_projection_bias")
        x = x @ model.matrix("embed_projection").T
        return x if bias is None else x + bias

    def _as_read(self, x: Tensor) -> Tensor:
        """A state as the next block reads it, its gain aside (that is folded into the parameters)."""
        family = self.model.family
        return normed(x, family.norm, self.model.dims.eps) if family.reads_normed else x

    def _norm(self, name: str, layer: int) -> tuple[Tensor | None, Tensor | None]:
        return self.model.vector(name, layer), self.model.vector(f"{name}_bias", layer)


class _FirstBlock:
    """Block 0 on single tokens: each attends only to itself, with weight one."""

    def __init__(
        self,
        model: Model,
        norm: Callable[[str, int], tuple[Tensor | None, Tensor | None]],
        attended: float = 1.0,
    ) -> None:
        if model.dims.activation not in _ACTIVATIONS:
            known = ", ".join(sorted(_ACTIVATIONS))
            raise BadModel(f"{model.files.path}: activation {model.dims.activation!r} is not one of {known}.")
        self.model = model
        self.norms = {name: norm(f"{name}_norm", 0) for name in ("attn", "cross", "ff", "attn_post", "ff_post")}
        roles = ("v", "o", *model.family.ff_roles, *((ROUTER,) if model.family.routed else ()))
        self.parts = {role: model.matrix(role) for role in roles}
        self.bias = {role: model.vector(f"{role}_bias") for role in self.parts}
        self.act = _ACTIVATIONS[model.dims.activation]
        self.attended = attended

    def __call__(self, x: Tensor) -> Tensor:
        family = self.model.family
        if family.parallel:
            return x + self._added(x, "attn", self._attend) + self._added(x, "ff", self._feed)
        for site, inner in (("attn", self._attend), ("ff", self._feed)):
            x = self._normed(x + inner(x), site) if family.stream_normed else x + self._added(x, site, inner)
            if site == "attn" and family.crosses and family.stream_normed:
                x = self._normed(x, "cross")  # what cross attention adds depends on the encoder's text; the norm stays
        return x

    def _added(self, x: Tensor, site: str, inner: Callable[[Tensor], Tensor]) -> Tensor:
        """What one half of a block adds to the stream: read through its norm, written through the norm behind it."""
        bare = self.model.family.reads_bare(f"{site}_norm", 0)
        y = inner(x if bare else self._normed(x, site))
        return self._normed(y, f"{site}_post") if self.model.has(f"{site}_post_norm") else y

    def _normed(self, x: Tensor, site: str) -> Tensor:
        return apply_norm(x, self.model.family.norm, self.model.dims.eps, *self.norms[site])

    def _attend(self, x: Tensor) -> Tensor:
        dims = self.model.dims
        v = self._linear(x, "v")
        v = v if dims.clip is None else v.clamp(-dims.clip, dims.clip)
        v = v.reshape(-1, dims.kv_heads, dims.head_dim)
        return self.attended * self._written(v.repeat_interleave(dims.group, 1).flatten(1), "o")

    def _feed(self, x: Tensor) -> Tensor:
        active = self._active(x)
        if ROUTER in self.parts:
            active = active * self._routed(x).repeat_interleave(self.model.dims.expert_neurons, 1)
        return self._written(active, "value")

    def _active(self, x: Tensor) -> Tensor:
        """Activations (n, neurons)."""
        if "gate" in self.parts:
            return self.act(self._linear(x, "gate")) * self._linear(x, "up")
        return self.act(self._linear(x, "key"))

    def _routed(self, x: Tensor) -> Tensor:
        """Weight (n, experts) of each expert for each token; zero where it is not used."""
        chances = self._linear(x, ROUTER).softmax(1)
        best, at = chances.topk(self.model.dims.experts_used, 1)
        best = best / best.sum(1, keepdim=True) if self.model.dims.router_normed else best
        return torch.zeros_like(chances).scatter(1, at, best)

    def _linear(self, x: Tensor, role: str) -> Tensor:
        y, bias = x @ self.parts[role].T, self.bias[role]
        return y if bias is None else y + bias

    def _written(self, x: Tensor, role: str) -> Tensor:
        y, bias = x @ self.parts[role], self.bias[role]
        return y if bias is None else y + bias


def _alibi_slopes(heads: int) -> list[float]:
    """A slope for each head: a geometric series; for a number that is no power of two, with every other one of the next
    (Press et al. 2022, §3 and their code).
    """
    whole = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    return slopes + [2 ** (-4 * (2 * i + 1) / whole) for i in range(heads - whole)]


def _buckets(offsets: Tensor, count: int, causal: bool, farthest: int = 128) -> Tensor:
    """T5's bucket of each distance: exact near by, then in logarithmic steps up to ``farthest``."""
    near = offsets
    found = torch.zeros_like(offsets)
    if causal:
        near = offsets.clamp_min(0)
    else:
        count //= 2
        found = (offsets < 0).long() * count  # a key behind the query
        near = offsets.abs()
    exact = count // 2
    far = (near.clamp_min(1).float() / exact).log() / math.log(farthest / exact) * (count - exact)
    return found + torch.where(near < exact, near, (exact + far.long()).clamp_max(count - 1))


_KNOWN_ROPE = ("default", "linear", "llama3")


def _rescaled(frequencies: Tensor, rope: Rope) -> Tensor:
    """Frequencies under the model's scaling rule; one that is not known is refused, not ignored."""
    if rope.kind == "default":
        return frequencies
    factor = rope.options.get("factor", 1.0)
    if rope.kind == "linear":
        return frequencies / factor
    if rope.kind != "llama3":
        raise BadOption(f"RoPE scaling {rope.kind!r} is not known ({', '.join(_KNOWN_ROPE)}): only offset 0 is exact.")
    # Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between blended.
    low, high = rope.options["low_freq_factor"], rope.options["high_freq_factor"]
    turns = rope.options["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (blend + (1 - blend) / factor)
