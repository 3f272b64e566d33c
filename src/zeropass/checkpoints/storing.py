"""The numbers that storing a matrix in a quantised type leaves of it, for types whose quantiser is known."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from zeropass.checkpoints.base import FLOATS, Float32
from zeropass.checkpoints.bitsandbytes_weights import nearest
from zeropass.checkpoints.gguf import requantised

__all__ = ["stored_as", "storing_error"]

BLOCK = 64
"""The numbers of a block of NF4 and FP4, if nobody chose another."""

SMALLEST = 1e-30
"""The smallest of the largest numbers of a row, so that zeros can be divided by theirs."""


def stored_as(values: Float32, kind: str) -> Float32 | None:
    """Return a matrix after it was stored in a quantised type; None where no quantiser fits.

    Types of several quantisers are stored as the simplest of them does: in blocks of 64 with scales in float32 (NF4,
    FP4), and with one scale a row (INT8, FP8).

    Args:
        values: The matrix, (rows, columns), as its file holds it.
        kind: The name of the type (``Q4_1``, ``NF4`` …).
    """
    wide = torch.from_numpy(values)
    if kind in ("NF4", "FP4"):
        if values.shape[1] % BLOCK:
            return None
        return _scaled(wide.view(-1, BLOCK), 1.0, lambda unit: nearest(unit, kind.lower())).view(wide.shape).numpy()
    if kind == "INT8":
        return _scaled(wide, 127.0, torch.round).numpy()
    if kind == "FP8":
        return _scaled(wide, 448.0, lambda unit: unit.to(torch.float8_e4m3fn).float()).numpy()
    return requantised(values, kind)


def _scaled(rows: Tensor, most: float, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Round rows whose largest numbers are scaled to ``most``, and scale them back."""
    largest = rows.abs().amax(1, keepdim=True).clamp(min=SMALLEST)
    return rounded(rows * (most / largest)) * (largest / most)  # in this order, in which bitsandbytes rounds ties


@lru_cache
def storing_error(kind: str) -> float | None:
    """Return the relative error of storing normally distributed numbers in a type; None if it is not known."""
    if kind in FLOATS:
        return None
    values = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    stored = stored_as(values, kind)
    return None if stored is None else float(np.linalg.norm(stored - values) / np.linalg.norm(values))
