"""Rows of float32 as whole numbers of eight bits, and what float32 products with a matrix round away."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["full_precision", "spectral_bound", "to_int8"]


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep torch from multiplying float32 in TF32 or bfloat16, which no error bound allows for.

    The setting is that of all threads: where several need it, it is made around all of them.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def to_int8(rows: Tensor, spare: Tensor, each: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (n, d) as int8, the step (n,) that one stands for, and the norm (n,) of what is lost.

    each: one step a row, or one for all. Destroys rows, and spare, which is of their shape.
    """
    peak = torch.abs(rows, out=spare).amax(1, keepdim=True)
    step = (peak if each else peak.amax().expand_as(peak)).div(127).clamp_min(1e-30)
    torch.div(rows, step, out=spare).round_()
    whole = spare.to(torch.int8)
    return whole, step[:, 0], torch.linalg.vector_norm(rows.addcmul_(spare, step, value=-1), dim=1)


def spectral_bound(matrix: Tensor) -> float:
    """An upper bound of the spectral norm of the matrix of absolute values, and so of the matrix."""
    sizes = matrix.abs().double()
    return min(float(sizes.norm()), math.sqrt(float(sizes.sum(0).amax() * sizes.sum(1).amax())))
