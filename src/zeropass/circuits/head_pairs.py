"""The composition of all pairs of heads: what an earlier head writes and a later one reads by its q, k or v.

A layer at a time: what earlier heads write travels along the stream, and meets the rows that the heads of the layer
read with. Only d_h rows a head are kept; the products are (heads d_h) x (heads d_h) for two layers at a time.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.circuits.composition import basis, concentration, shares, under_rotation, unit
from zeropass.circuits.flow import Flow, stations
from zeropass.circuits.head_factors import LayerHeads, head_addresses, layer_heads
from zeropass.circuits.results import INPUTS, PairTable
from zeropass.model.frames import Frames

__all__ = ["FEWEST", "centred", "pair_table", "travelling"]

FEWEST = 8
"""The fewest pairs of two layers among which one is said to stand out."""

Floats = npt.NDArray[np.float32]


def travelling(
    frames: Frames, flow: Flow, written: Callable[[LayerHeads], Tensor]
) -> Iterator[tuple[int, LayerHeads, dict[int, Tensor]]]:
    """Yield for each layer with attention its heads, and what the heads of earlier layers wrote as it arrives there.

    Args:
        frames: The frames.
        flow: The way from layer to layer.
        written: The rows that the heads of a layer write, (heads, w, d).

    Yields:
        The layer, its heads and, by earlier layer, the rows as the heads meet them.
    """
    model, attention = frames.model, set(frames.model.dims.attending)
    rows: dict[int, Tensor] = {}
    for station in stations(model):
        layer, sites = station
        heads = layer_heads(frames, layer) if "attn" in sites and layer in attention else None
        if heads is not None:
            yield layer, heads, {at: centred(frames, x) for at, x in rows.items()}
        rows = flow.passed(rows, station)
        if heads is not None:
            rows[layer] = written(heads)


def centred(frames: Frames, rows: Tensor) -> Tensor:
    """Return written rows (…, d) as a reader meets them: less their mean where the norm takes it away."""
    return rows - rows.mean(-1, keepdim=True) if frames.model.family.norm == "layer" else rows


def dimensions(frames: Frames) -> int:
    """Return the number of dimensions in which what is written meets what reads."""
    return frames.model.dims.d - (frames.model.family.norm == "layer")


def pair_table(frames: Frames, flow: Flow, progress: Progress) -> PairTable:
    """Return the composition of all pairs of heads along one way, with nulls."""
    layers = frames.model.dims.attending
    counts = [len(head_addresses(frames.model, layer)) for layer in layers]
    starts = dict(zip(layers, np.cumsum([0, *counts]).tolist(), strict=False))
    shape = len(INPUTS), sum(counts), sum(counts)
    table = PairTable(flow.name, *(np.full(shape, np.nan, np.float32) for _ in range(6)))
    for step, (layer, heads, rows) in enumerate(travelling(frames, flow, lambda heads: heads.writes)):
        progress(f"pairs of heads, {flow.name}", step, len(layers))
        reads, d = _Side(heads.reads), dimensions(frames)
        for earlier, written in rows.items():
            parts = _compared(_Side(written), reads, d)
            at = np.s_[
                :, starts[earlier] : starts[earlier] + len(written), starts[layer] : starts[layer] + len(heads.q)
            ]
            for whole, part in zip(table.arrays, parts, strict=True):
                whole[at] = part.transpose(0, 1).cpu().numpy()
    return table


class _Side:
    """Maps of one side: unit rows, and a basis of what they span."""

    def __init__(self, rows: Tensor) -> None:
        self.unit = unit(rows)
        self.concentration = concentration(self.unit)
        self.basis, self.rank = basis(rows)


def _compared(writes: _Side, reads: _Side, d: int) -> tuple[Tensor, ...]:
    """Return scores, their z and z among these pairs, overlaps, their means under rotation and z; (n, 3, m) each."""
    share = shares(writes.unit, reads.unit)
    score = share.sqrt()
    ranks = writes.rank[:, None, None].float(), reads.rank.float()
    kernel, least = shares(writes.basis, reads.basis), torch.minimum(*ranks).clamp_min(1)
    own, other = writes.concentration[:, None, None], reads.concentration
    size = (ranks[0] * ranks[1]).clamp_min(1)
    return (
        score,
        _z(share, *under_rotation(own, other, d)),
        _robust(score),
        kernel / least,
        size / d / least,
        _z(kernel / size, *under_rotation(1 / ranks[0].clamp_min(1), 1 / ranks[1].clamp_min(1), d)),
    )


def _z(values: Tensor, mean: float, deviation: Tensor) -> Tensor:
    """Return z, and 0 where the null has no spread: a map that fills the stream is the same however it is turned."""
    return torch.where(deviation > 1e-12, (values - mean) / deviation.clamp_min(1e-12), torch.zeros_like(values))


def _robust(scores: Tensor) -> Tensor:
    """Return the robust z of scores (n, 3, m) among the pairs of the same input; NaN where these are few or alike."""
    each = scores.transpose(0, 1).flatten(1)
    distance = each - each.median(1, keepdim=True).values
    spread = 1.4826 * distance.abs().median(1, keepdim=True).values
    z = torch.where(spread > 0, distance / spread, torch.full_like(distance, torch.nan))
    z = z if each.shape[1] >= FEWEST else torch.full_like(z, torch.nan)
    return z.reshape(scores.shape[1], scores.shape[0], scores.shape[2]).transpose(0, 1)
