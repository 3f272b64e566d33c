"""Directions of the residual stream that are no parameters: probes, steering vectors, features of a dictionary."""

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from zeropass.arch.frame_names import default_frames
from zeropass.arch.roles import OUTSIDE, ROUTER, Side, norm_of, side_of, site_of
from zeropass.checkpoints.vector_files import read_vectors
from zeropass.errors import BadAddress, BadOption
from zeropass.model.model import Model
from zeropass.model.vectors import VectorSet

__all__ = ["Where", "as_directions", "direction_set", "parameters_at"]

Where = Literal["attn", "ff", "block", "mid"]
"""The place of a direction: at attention or at the MLP of a layer, in the stream that enters it, or between the two."""

_PLACES = get_args(Where)
_BARE = ("block", "mid")
"""The places in the stream itself, where no norm lies between it and the direction."""

_LONGEST = 1e18
"""The length from which on scores of a direction may be beyond float32."""

_LONE = "direction"
"""The role of directions before the first layer or behind the last, where no vectors of a layer are like them."""


def as_directions(model: Model, vectors: Any) -> Tensor:
    """Return directions as a table (n, d) in float32, on the device of a model.

    Args:
        model: The model.
        vectors: One vector (d,) or several (n, d): a tensor, an array of NumPy, lists of numbers, or the file of one
            (`vector_files.read_vectors`).

    Raises:
        BadModel: If a file is missing or damaged.
        BadOption: If they are not numbers, have another width, or one is zero, not finite or beyond `_LONGEST`.
    """
    name = "Directions"
    if isinstance(vectors, str | Path):
        name, vectors = str(vectors), read_vectors(str(vectors))
    try:
        table = torch.as_tensor(vectors)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadOption(f"Directions are tensors, arrays or lists of numbers: {str(error).splitlines()[0]}.") from error
    width = model.dims.d
    if table.is_complex() or table.dtype == torch.bool or table.ndim not in (1, 2) or table.shape[-1] != width:
        raise BadOption(
            f"{name}: those of {model.name} have the shape ({width},) or (n, {width}); "
            f"these are {table.dtype} {tuple(table.shape)}."
        )
    table = table.detach().reshape(-1, width).float().to(model.device)
    if not len(table):
        raise BadOption(f"{name}: there is none in an empty table.")
    lengths = table.double().norm(dim=1)
    wrong = ~((lengths > 0) & (lengths < _LONGEST))
    if wrong.any():
        at = int(wrong.nonzero()[0])
        raise BadOption(f"{name}: direction {at} is zero, not finite or too long ({float(lengths[at]):.3g}).")
    return table


def direction_set(model: Model, directions: Tensor, layer: int, side: Side, at: Where) -> VectorSet:
    """Return directions as a set of vectors that a frame folds as it folds parameters.

    The set has the layer and role of the parameters that read or write at the same place: random directions and
    distinctive lists are those of these.

    Args:
        model: The model.
        directions: The directions, (n, d).
        layer: The layer.
        side: Whether they read the stream or write to it.
        at: ``attn`` or ``ff``: they read what this half of the layer reads, behind its norm, or write as it writes.
            ``block``: they read the stream that enters the layer, or are added to it; the layer behind the last is the
            end of the stream. ``mid``: the same between attention and MLP.

    Raises:
        BadAddress: If there is no such layer.
        BadOption: If there is no such side or place.
    """
    if side not in ("read", "write") or at not in _PLACES:
        known = ", ".join(_PLACES)
        raise BadOption(f"A direction of side {side!r} at {at!r}: sides are read and write, places {known}.")
    layers = model.dims.layers
    if at == "block" and layer == layers:
        pass  # the end of the stream
    elif not 0 <= layer < layers:
        raise BadAddress(f"Layer {layer} is out of range: {model.name} has layers 0 to {layers - 1}.")
    of_layer, role = parameters_at(model, layer, side, at)
    return VectorSet(
        layer=of_layer,
        role=role,
        side=side,
        addresses=(),  # a direction is no parameter
        vectors=directions,
        norm=None if at in _BARE else norm_of(role),
        frames=default_frames(side),
        reads_at=layer,
    )


def parameters_at(model: Model, layer: int, side: Side, at: Where) -> tuple[int, str]:
    """Return the layer and role of the parameters that read or write at the place of a direction."""
    if side == "write":
        # What enters a layer is passed on as what the MLP before it wrote.
        before = layer - 1 if at == "block" else layer
        return (OUTSIDE, _LONE) if before < 0 else (before, _like(model, before, "write", at in ("attn", "mid")))
    if layer == model.dims.layers:
        return OUTSIDE, _LONE
    return layer, _like(model, layer, "read", at == "attn")


def _like(model: Model, layer: int, side: Side, mixing: bool) -> str:
    """Return the role of a layer on a side: of its attention (``mixing``) or its MLP, where a hybrid's layer has it."""
    roles = [role for role in model.matrices(layer) if side_of(role) == side and role != ROUTER]
    return next((role for role in roles if (site_of(role) != "ff") == mixing), roles[0])
