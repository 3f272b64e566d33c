"""The bias that positions add to attention logits: the ground truth for families with ALiBi and for T5.

zeropass itself has no use for it, since it does not change the order of keys at one distance.
"""

import math

import torch
from torch import Tensor

from zeropass.model.model import Model


def position_bias(model: Model, head: int, offsets: Tensor) -> Tensor | None:
    """Return the bias that positions add to the attention logits of a head, in any layer.

    ALiBi (Press et al. 2022) adds the head's slope times the distance; T5 adds a number for each bucket of distances
    (Raffel et al. 2020, §2.1).

    Args:
        model: The model.
        head: The query head.
        offsets: Positions from the key to the query, of any shape.

    Returns:
        The biases, shaped like ``offsets``; None if the model adds none.
    """
    dims, family = model.dims, model.family
    if family.alibi:
        slope = _alibi_slopes(dims.heads)[head]
        return -slope * offsets * (dims.attention_scale if family.alibi == "scaled" else 1.0)
    if not model.has("relative"):
        return None
    table = model.relative
    return table[_buckets(offsets, len(table), family.causal), head]


def _alibi_slopes(heads: int) -> list[float]:
    """Return a slope for each head (Press et al. 2022, §3 and their code).

    They are a geometric series; if the number of heads is no power of two, every other slope of the next one follows.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]


def _buckets(offsets: Tensor, count: int, causal: bool, farthest: int = 128) -> Tensor:
    """Return T5's bucket of each distance: one for each short distance, then logarithmic steps up to ``farthest``."""
    distances = offsets
    first = torch.zeros_like(offsets)
    if causal:
        distances = offsets.clamp_min(0)
    else:
        count //= 2
        first = (offsets < 0).long() * count  # a key after the query
        distances = offsets.abs()
    exact = count // 2
    far = (distances.clamp_min(1).float() / exact).log() / math.log(farthest / exact) * (count - exact)
    return first + torch.where(distances < exact, distances, (exact + far.long()).clamp_max(count - 1))
