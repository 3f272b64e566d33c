"""The words that a change of values writes through the base's own output matrices.

A LoRA on q and v, PEFT's default for many families, changes no matrix that writes to the residual stream. But what its
values read is written by the output matrix of each head: for the change ΔV of a head's values (d_h, d), the vectors
(ΔV ΔVᵀ)^½ W_O have the Gram matrix of all that it can write. They are compared with those of the base's own values.
"""

import torch
from torch import Tensor

from zeropass.arch.dimensions import Dimensions
from zeropass.diff.changes import Change, Comparison
from zeropass.diff.effects import Effects
from zeropass.model.frames import Frames

__all__ = ["head_vectors", "through_values"]


def through_values(pair: Comparison, frames: Frames) -> Effects:
    """Return the effect of what heads write of their values' change, and of the base's own values there.

    The changes are read a second time, for a model that changes no matrix that writes.
    """
    base, effects = pair.base, Effects(frames, through="o")
    for layer in range(base.dims.layers):
        if not {"v", "o"} <= set(base.matrices(layer)) or not pair.touched("v", layer):
            continue
        dims, values, output = base.dims.at(layer), base.matrix("v", layer), base.matrix("o", layer)
        change = Change(layer=layer, role="v", added=pair.added("v", layer), before=0.0)
        rows = effects.rows("o", layer)
        if effects.change.add(rows, effects.folded(head_vectors(change.dense, output, dims), "o", layer)):
            effects.add_base("o", layer, head_vectors(values, output, dims))
    effects.close()
    return effects


def head_vectors(values: Tensor, output: Tensor, dims: Dimensions) -> Tensor:
    """Return what the heads of a layer write of their values.

    Args:
        values: The values, or their change, (key-value heads x d_h, d).
        output: The output matrix, (heads x d_h, d).
        dims: The sizes of the layer.

    Returns:
        Vectors (heads x d_h, d) that have the Gram matrix of V_hᵀ O_h, summed over heads h.
    """
    heads = values.double().reshape(-1, dims.width("v"), values.shape[1])
    sizes, directions = torch.linalg.eigh(heads @ heads.transpose(1, 2))
    roots = sizes.clamp_min(0).sqrt()[..., None] * directions.transpose(1, 2)
    outputs = output.reshape(-1, dims.width("o"), output.shape[1])
    each: Tensor = roots.repeat_interleave(dims.group, 0).float() @ outputs
    return each.flatten(0, 1)
