"""Frames: what "the token a" means inside the residual stream (design.md §2).

A frame gives the rows (V, d) that stand for the tokens, and says how a parameter's vectors are folded
before they meet these rows. Everything is computed from the weights alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from zeropass.arch.spec import USUAL_OFFSET, Rope, Side, side_of, space_of
from zeropass.errors import BadModel, BadOption
from zeropass.factored import Factored
from zeropass.model import Model
from zeropass.projection import apply_norm, fold_read, fold_write, normed, rotate
from zeropass.statistics import Moments, blocks, moments

__all__ = ["Frames", "Rows"]

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

    def rows(self, space: str) -> Rows:
        """Rows and moments of a space, as `space_of` names it."""
        if space not in self._kept:
            matrix = self.matrix(space)
            self._kept[space] = Rows(space, matrix, moments(matrix, self._used))
        return self._kept[space]

    def matrix(self, space: str) -> Tensor:
        """The rows (V, d) of a space alone, made anew; `rows` keeps them, with their moments."""
        matrix = self._make(space)
        return matrix - matrix[self._used].mean(0) if space == "output.write" else matrix

    @cached_property
    def _used(self) -> Tensor:
        return torch.from_numpy(self.model.vocab.used).to(self.model.device)

    def release(self, space: str) -> None:
        """Forget a space's rows (113 MB each for SmolLM2)."""
        self._kept.pop(space, None)

    def fold(self, vectors: Tensor, frame: str, side: Side, norm: str | None, layer: int) -> Tensor:
        """Canonical vectors (n, d) as the frame reads them; ``norm`` names the norm that they meet, if any.

        A pre-norm model norms what is read; a post-norm one (BERT) what was written. ``paper`` folds nothing.
        """
        pre = self.model.family.norm_place == "pre"
        if frame == "paper" or norm is None or pre != (side == "read"):
            return vectors
        fold = fold_read if pre else fold_write
        return fold(vectors, self.model.vector(norm, layer), self.model.family.norm)

    def head_constant(self, layer: int, head: int, role: str = "q") -> Tensor | None:
        """What a head's query (or key) holds whatever the token, (d_h,): the norm's shift through W_Q, and the bias."""
        shift = None if self.model.family.norm_place == "post" else self.model.vector("attn_norm_bias", layer)
        width = self.model.dims.head_dim
        constant = None if shift is None else self.model.head(role, layer, head) @ shift
        bias = self.model.vector(f"{role}_bias", layer)
        if bias is None:
            return constant
        start = self.model.kv_head(role, head) * width
        own = bias[start : start + width]
        return own if constant is None else own + constant

    def head_map(self, layer: int, head: int, kind: str, frame: str = "token", offset: int = 0) -> Factored:
        """``qk`` (token a, as query, attends to token b) or ``vo`` (attending to a promotes b), as V x d_h factors.

        Query side: with biases, turned by the RoPE offset (query ``offset`` positions after the key); key
        side: minus its mean over keys, which softmax cannot see. Biases add the same to every token in ``vo`` and
        are parameters of their own. ``paper`` leaves all of that out: ``E W_Q W_Kᵀ Eᵀ``, ``E W_V W_O Eᵀ``.
        """
        if kind == "vo" and offset:
            raise BadOption("An offset between positions changes qk only; vo does not depend on it.")
        left_role, right_role = kind[0], kind[1]
        left, _ = self._head_scores(layer, head, left_role, frame)
        right, mean = self._head_scores(layer, head, right_role, self.right_frame(kind, frame))
        if kind == "qk":
            left = self.as_query(left, layer, head, frame, offset)
            right = right if frame == "paper" else right - mean
        return Factored(left, right)

    def carried(self, attended: float = 1.0) -> Tensor:
        """Tokens as they leave block 0 alone, (V, d): y = e + Attn₀(e), x = y + MLP₀(y) (design.md §2, token frame).

        ``attended`` is the weight of a token's attention to itself: one, for a token that nothing stands before. The
        states are not yet normed for a reader.
        """
        block = _FirstBlock(self.model, self._norm, attended)
        out = torch.empty_like(self.model.embedding)
        for part in blocks(out.shape[0], 4096):
            out[part] = block(self._embedded(part))
        return out

    @staticmethod
    def right_frame(kind: str, frame: str) -> str:
        """The frame of a head map's second side: what ``vo`` promotes is always something said."""
        return "output" if kind == "vo" and frame != "paper" else frame

    def as_query(self, scores: Tensor, layer: int, head: int, frame: str, offset: int = 0) -> Tensor:
        """Scores (V, d_h) of a head's q columns made into the query side of ``qk``: see `head_map`."""
        constant = None if frame == "paper" else self.head_constant(layer, head)
        scores = scores if constant is None else scores + constant
        return rotate(scores, offset, self.frequencies) if offset else scores

    def usual_offset(self, kind: str, frame: str) -> int:
        """The distance at which a head map is shown unasked: `USUAL_OFFSET` for ``qk`` where positions are rotary.

        0 for ``vo``, for the formulas of the paper, and where the rotation is not known.
        """
        rope = self.model.dims.rope
        if kind != "qk" or frame == "paper":
            return 0
        known = rope is not None and (self.model.rope_factors is not None or rope.kind in _KNOWN_ROPE)
        return USUAL_OFFSET if known else 0

    @cached_property
    def frequencies(self) -> Tensor:
        """Rotary frequencies (r/2,) in radians a position; raises BadOption where the model has no RoPE."""
        rope = self.model.dims.rope
        if rope is None:
            raise BadOption(f"{self.model.name} has no rotary positions: only offset 0 has a meaning.")
        plain = rope.theta ** (
            -torch.arange(0, self.model.dims.head_dim, 2, dtype=torch.float64) / self.model.dims.head_dim
        )
        factors = self.model.rope_factors
        scaled = plain / factors.double().cpu() if factors is not None else _rescaled(plain, rope)
        return scaled.float().to(self.model.device)

    def _head_scores(self, layer: int, head: int, role: str, frame: str) -> tuple[Tensor, Tensor]:
        """Scores (V, d_h) of a head's vectors, and their means (d_h,) over the tokens in use."""
        side = side_of(role)
        vectors = self.fold(self.model.head(role, layer, head), frame, side, "attn_norm", layer)
        rows = self.rows(space_of(frame, side, layer))
        return rows.matrix @ vectors.T, rows.moments.of_scores(vectors)[0]

    def _make(self, space: str) -> Tensor:
        frame, _, side = space.partition(".")
        if frame == "paper":
            return self.model.embedding if side == "read" else self.model.unembedding
        if frame == "embedded":
            return self._as_read(self._embedded(slice(None)))
        if frame == "token":
            return self._each_as_read(self.carried())
        said = self._said()
        return said if side == "write" else normed(said, self.model.family.norm, self.model.dims.eps)

    def _said(self) -> Tensor:
        """``U ⊙ γ_f``: the rows through which a state becomes logits (norm folding, design.md §2)."""
        gain = self.model.vector("final_norm")
        return (
            fold_read(self.model.unembedding, gain, self.model.family.norm)
            if gain is not None
            else self.model.unembedding
        )

    def _embedded(self, part: slice) -> Tensor:
        """What enters block 0 for each token of a slice: e_a, normed with its type where the family does so."""
        e, model = self.model.embedding[part], self.model
        if model.family.norm_place == "pre":
            return e
        types = model.matrix("types", 0, 0, 1) if model.has("types") else torch.zeros_like(e[:1])
        return apply_norm(e + types, model.family.norm, model.dims.eps, *self._norm("embed_norm", 0))

    def _as_read(self, x: Tensor) -> Tensor:
        """A state as the next block reads it, its gain aside (that is folded into the parameters)."""
        pre = self.model.family.norm_place == "pre"
        return normed(x, self.model.family.norm, self.model.dims.eps) if pre else x

    def _each_as_read(self, states: Tensor) -> Tensor:
        """`_as_read` in place, block by block: a second table of rows would not fit beside the first."""
        for part in blocks(states.shape[0], 4096):
            states[part] = self._as_read(states[part])
        return states

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
        self.model, self.norms = model, {site: norm(f"{site}_norm", 0) for site in ("attn", "ff")}
        self.parts = {role: model.matrix(role) for role in ("v", "o", *model.family.ff_roles)}
        self.bias = {role: model.vector(f"{role}_bias") for role in self.parts}
        self.act = _ACTIVATIONS[model.dims.activation]
        self.attended = attended

    def __call__(self, x: Tensor) -> Tensor:
        for site, inner in (("attn", self._attend), ("ff", self._feed)):
            if self.model.family.norm_place == "pre":
                x = x + inner(self._normed(x, site))
            else:
                x = self._normed(x + inner(x), site)
        return x

    def _normed(self, x: Tensor, site: str) -> Tensor:
        return apply_norm(x, self.model.family.norm, self.model.dims.eps, *self.norms[site])

    def _attend(self, x: Tensor) -> Tensor:
        dims = self.model.dims
        v = self._linear(x, "v").reshape(-1, dims.kv_heads, dims.head_dim)
        return self.attended * self._written(v.repeat_interleave(dims.group, 1).flatten(1), "o")

    def _feed(self, x: Tensor) -> Tensor:
        if "gate" in self.parts:
            return self._written(self.act(self._linear(x, "gate")) * self._linear(x, "up"), "value")
        return self._written(self.act(self._linear(x, "key")), "value")

    def _linear(self, x: Tensor, role: str) -> Tensor:
        y, bias = x @ self.parts[role].T, self.bias[role]
        return y if bias is None else y + bias

    def _written(self, x: Tensor, role: str) -> Tensor:
        y, bias = x @ self.parts[role], self.bias[role]
        return y if bias is None else y + bias


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
