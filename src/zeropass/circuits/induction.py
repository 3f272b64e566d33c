"""Induction heads from the weights: a head that attends to the previous token, and one that reads it by its keys.

A head a that attends to the previous token writes, at each place, what that token is. A later head b whose keys read
this, and whose queries match it with the token at their own place, attends to what followed the same token before
(Elhage et al. 2021; Olsson et al. 2022). Both are told from weights: the first by the attention that its layer gives to
tokens drawn at random, the second by the map from tokens to tokens that the two heads make together,

    M(t, t′) = n_t W_Q,b W_K,bᵀ (n_t′ W_V,a W_O,a)ᵀ,

whose diagonal is large if the same token is matched. M is V x V and never made: its trace and its norm come from
products of d_h x d_h matrices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.arch.frame_names import Frame, space_of
from zeropass.circuits.flow import Flow
from zeropass.circuits.head_factors import head_addresses, layer_heads
from zeropass.circuits.head_pairs import travelling
from zeropass.circuits.results import InductionHead
from zeropass.errors import CannotRun
from zeropass.model.blocks import Block
from zeropass.model.frames import Frames
from zeropass.model.generate import random_tokens
from zeropass.model.positions import adds_positions
from zeropass.numerics.statistics import blocks

__all__ = ["WRITERS", "Diagonals", "induction", "previous_weights", "require_offsets"]

WRITERS = 32
"""The heads with the most attention to the previous token that are taken for writers."""

_TEXTS, _TOKENS = 8, 64
"""Texts of random tokens, and tokens of each."""


def require_offsets(frames: Frames) -> None:
    """Raise CannotRun for a model whose heads do not know distances from their own weights, or look ahead."""
    model = frames.model
    if adds_positions(model):
        raise CannotRun(
            f"{model.name} adds positions to the embedding: which heads attend to the previous token does not follow "
            "from the weights of a head alone, as it does with rotary positions or biases of distances."
        )
    if not model.family.causal:
        raise CannotRun(f"{model.name} sees the tokens that follow: it needs no induction to know them.")


def previous_weights(frames: Frames, layer: int, seed: int = 0) -> Tensor:
    """Return the mean attention of each head of a layer to the previous token, (heads,), in texts of random tokens.

    The layer's attention is computed from rows that stand for the tokens, not from states of a running model.

    Args:
        frames: The frames: with a lens the rows are those of `seen`, else the ``token`` frame's.
        layer: The layer.
        seed: The seed of the tokens.
    """
    block, frame = Block(frames.model, layer), frames.map_frame
    ids = random_tokens(frames.model, _TEXTS * _TOKENS, seed)
    rows = frames.rows(space_of(frame, "read", layer)).matrix[ids].reshape(_TEXTS, _TOKENS, -1)
    at = torch.arange(_TOKENS, device=rows.device)
    sides = {}
    for role in ("q", "k"):
        folded = frames.fold(frames.model.matrix(role, layer), frame, "read", "attn_norm", layer)
        constant = frames.constant(layer, role, frame=frame)
        columns = rows @ folded.T
        sides[role] = block.heads(block.bounded(columns if constant is None else columns + constant, role), role)
    weights = block.weights(block.turned_queries(sides["q"], at), block.turned(sides["k"], at), at)
    return weights.diagonal(-1, -2, -1)[..., 1:].mean((0, 2))


@dataclass(frozen=True, eq=False)
class Diagonals:
    """Means of the diagonals of maps from tokens to tokens, in standard deviations of all entries.

    Rows are centred, so that a map of shuffled tokens has the mean 0 and, for V tokens, the deviation 1/√(V − 1).

    Attributes:
        frames: The frames.
    """

    frames: Frames

    @property
    def deviation(self) -> float:
        """The standard deviation of the mean under shuffled tokens."""
        return float((int(self.frames.used.sum()) - 1) ** -0.5)

    def gram(self, first: str, second: str) -> Tensor:
        """Return the mean product of centred rows of two spaces, (d, d), over the tokens in use."""
        key = first, second
        if key not in self._grams:
            self._grams[key] = self._computed(first, second)
        return self._grams[key]

    @cached_property
    def _grams(self) -> dict[tuple[str, str], Tensor]:
        return {}

    def _computed(self, first: str, second: str) -> Tensor:
        rows, others = self.frames.rows(first), self.frames.rows(second)
        total = torch.zeros_like(rows.moments.covariance)
        for part in blocks(len(rows.matrix)):
            used = self.frames.used[part]
            left, right = (space.matrix[part][used].double() - space.moments.mean for space in (rows, others))
            total.addmm_(left.T, right)
        return (total / rows.moments.count).float()

    def of(self, left: Tensor, right: Tensor, spaces: tuple[str, str]) -> Tensor:
        """Return the mean diagonals of maps ``X Lᵀ R Yᵀ`` between the rows X and Y of two spaces.

        Args:
            left: Vectors L that meet X, (…, r, d).
            right: Vectors R that meet Y, (…, r, d).
            spaces: The names of the two spaces.
        """
        cross = (left @ self.gram(*spaces) * right).sum((-1, -2))
        sides = [x @ self.gram(space, space) @ x.mT for x, space in zip((left, right), spaces, strict=True)]
        size = (sides[0] * sides[1]).sum((-1, -2)).clamp_min(0).sqrt()
        return torch.where(size > 0, cross / size, torch.zeros_like(cross))


def induction(frames: Frames, progress: Progress) -> Iterator[InductionHead]:
    """Yield each head that may do induction, with the earlier head that makes it most likely.

    What the earlier head writes is met as it is: through the flow the same heads are named (docs/circuits.md).
    """
    layers = frames.model.dims.attending
    weights = {layer: previous_weights(frames, layer) for layer in layers}
    chosen, diagonals = _chosen(weights), Diagonals(frames)
    reads = frames.map_frame
    writes: Frame = "effect" if reads == "seen" else "output"
    writers: list[_Writer] = []
    for step, (layer, heads, rows) in enumerate(travelling(frames, Flow(frames.model, None), lambda heads: heads.o)):
        progress("induction", step, len(layers))
        space, seen = space_of(reads, "read", layer), layer_heads(frames, layer, reads, writes)
        copying = diagonals.of(seen.v, seen.o, (space, "output.write"))
        matches = [
            diagonals.of(seen.q, heads.k @ rows[w.layer][w.head].T @ w.values, (space, w.space)) for w in writers
        ]
        if matches:
            match = torch.stack(matches)
            score = match * torch.tensor([w.attention for w in writers], device=match.device)[:, None]
            for reader, writer in enumerate(score.argmax(0).tolist()):
                yield InductionHead(
                    head=head_addresses(frames.model, layer)[reader],
                    previous=head_addresses(frames.model, writers[writer].layer)[writers[writer].head],
                    attention=writers[writer].attention,
                    match=float(match[writer, reader]),
                    copying=float(copying[reader]),
                    deviation=diagonals.deviation,
                    score=float(score[writer, reader]),
                )
        writers += [
            _Writer(layer, head, float(weights[layer][head]), space, seen.v[head]) for head in chosen.get(layer, ())
        ]


@dataclass(frozen=True, eq=False)
class _Writer:
    """A head that attends to the previous token, with its values as vectors that meet the rows of a space."""

    layer: int
    head: int
    attention: float
    space: str
    values: Tensor


def _chosen(weights: dict[int, Tensor]) -> dict[int, list[int]]:
    """Return the heads, by layer, that attend most to the previous token."""
    ordered = sorted(((float(w), layer, head) for layer, each in weights.items() for head, w in enumerate(each)))
    chosen: dict[int, list[int]] = {}
    for _, layer, head in reversed(ordered[-WRITERS:]):
        chosen.setdefault(layer, []).append(head)
    return chosen
