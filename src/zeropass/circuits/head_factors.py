"""The heads of a layer by their factors: what each reads with its queries, keys and values, and what it writes.

A head is two maps of the stream, ``W_Q W_Kᵀ`` and ``W_V W_O``, of rank d_h. How much of what one head writes another
reads depends on d_h rows of each alone (`LayerHeads.writes`, `LayerHeads.reads`), so nothing here is d x d.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from zeropass.arch.frame_names import Frame
from zeropass.arch.roles import side_of
from zeropass.circuits.results import INPUTS
from zeropass.errors import CannotRun
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.positions import qk_norm_at, turned_gain

__all__ = ["LayerHeads", "head_addresses", "layer_heads", "require_wiring"]


@dataclass(frozen=True, eq=False)
class LayerHeads:
    """The folded vectors of all query heads of a layer, (heads, d_h, d) each.

    Attributes:
        layer: The layer.
        q: The q columns.
        k: The k columns of the group of each head.
        v: The v columns of the group of each head.
        o: The o rows.
    """

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor

    @property
    def writes(self) -> Tensor:
        """Rows A (heads, d_h, d) with ``AᵀA = MᵀM`` for the map ``M = W_V W_O``: what a head writes, and how much."""
        return _root(self.v) @ self.o

    @property
    def reads(self) -> Tensor:
        """Rows B (3, heads, d_h, d) of the inputs q, k and v: ``BᵀB = M Mᵀ`` for the map M behind that input.

        The map behind a query is ``W_Q W_Kᵀ``, behind a key ``W_K W_Qᵀ``, behind a value ``W_V W_O``. Where values are
        narrower than keys, or wider, rows of zeros fill the place.
        """
        rows = _root(self.k) @ self.q, _root(self.q) @ self.k, _root(self.o) @ self.v
        width = max(each.shape[-2] for each in rows)
        return torch.stack([functional.pad(each, (0, 0, 0, width - each.shape[-2])) for each in rows])


def _root(rows: Tensor) -> Tensor:
    """Return the symmetric root of the Gram matrices ``R Rᵀ`` (…, d_h, d_h) of rows (…, d_h, d)."""
    wide = rows.double()
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
    return root.to(rows.dtype)


def layer_heads(frames: Frames, layer: int, reads: Frame = "token", writes: Frame = "output") -> LayerHeads:
    """Read the heads of a layer.

    Args:
        frames: The frames, which fold the norms.
        layer: A layer with attention.
        reads: The frame of what the heads read: ``token``, or ``seen`` for vectors that meet the rows of tokens.
        writes: The frame of what they write: ``output``, or ``effect`` for vectors as they reach the end.
    """
    model, dims = frames.model, frames.model.dims.at(layer)

    def rows(role: str) -> Tensor:
        side = side_of(role)
        frame = reads if side == "read" else writes
        folded = frames.fold(model.matrix(role, layer), frame, side, "attn_norm", layer)
        heads = folded.reshape(-1, dims.width(role), model.dims.d)
        if role in ("q", "k") and (norm := qk_norm_at(model, layer)):
            gain = model.vector(f"{role}_norm", layer)
            shape = (1, -1, 1) if norm == "head" else (len(heads), -1, 1)
            heads = heads if gain is None else heads * gain.reshape(shape)
        return heads.repeat_interleave(dims.heads // len(heads), 0)

    return LayerHeads(layer, *(rows(role) for role in ("q", "k", "v", "o")))


def head_addresses(model: Model, layer: int) -> list[str]:
    """Return the addresses of the query heads of a layer."""
    return [f"L{layer}.attn.{head}" for head in range(model.dims.at(layer).heads)]


def require_wiring(model: Model) -> None:
    """Raise CannotRun, with the reason, for a model whose parameters are not wired by products of their vectors alone.

    What one block writes must reach the next as it is, and a head must be two linear maps, up to a factor that depends
    on the token alone.
    """
    model.require_alike_layers("the wiring of parameters")
    family, layout = model.family, model.layout
    reasons = {
        "the stream itself is normed behind each block": family.stream_normed,
        "some heads attend to an encoder": family.crosses,
        "queries, keys or values are made of a latent": any(layout.latent_of(role) for role in INPUTS),
        "queries and keys are centred before they meet": family.qk_norm and family.qk_norm_kind == "layer",
        "gains behind the rotation, or rules for long texts, weigh a part of each head": any(
            turned_gain(model, layer) is not None for layer in model.dims.attending
        ),
        "each value is normed": family.value_normed,
        "heads have output gates": family.gated,
        "queries, keys and values are clipped": model.dims.clip is not None,
    }
    if present := [reason for reason, holds in reasons.items() if holds]:
        raise CannotRun(f"{model.name}: its wiring is no matter of products of vectors alone: {'; '.join(present)}.")
    if not model.dims.attending:
        raise CannotRun(f"{model.name} has no attention, and wiring is that of heads.")
