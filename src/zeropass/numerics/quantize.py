"""Quantization of float32 rows to int8, and bounds of the rounding of float32 products."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["full_precision", "spectral_bound", "to_int8"]


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep torch from multiplying float32 in TF32 or bfloat16, which no error bound here allows for.

    All threads share the setting: where several need it, enter this context once around all of them.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def to_int8(rows: Tensor, spare: Tensor, each: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize rows to int8.

    Args:
        rows: Rows (n, d), float32; overwritten.
        spare: Scratch of the same shape; overwritten.
        each: True for one step per row, False for one step for all.

    Returns:
        Rows (n, d) int8, the step (n,) between two whole numbers, and the norm (n,) of what rounding loses.
    """
    peak = torch.abs(rows, out=spare).amax(1, keepdim=True)
    step = (peak if each else peak.amax().expand_as(peak)).div(127).clamp_min(1e-30)
    torch.div(rows, step, out=spare).round_()
    quantized = spare.to(torch.int8)
    return quantized, step[:, 0], torch.linalg.vector_norm(rows.addcmul_(spare, step, value=-1), dim=1)


def spectral_bound(matrix: Tensor) -> float:
    """Return an upper bound of the spectral norm of the matrix of absolute values, and so of the matrix."""
    sizes = matrix.abs().double()
    return min(float(sizes.norm()), math.sqrt(float(sizes.sum(0).amax() * sizes.sum(1).amax())))
