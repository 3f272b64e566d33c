"""Tells what storing numbers in another type does to them from a change, row by row."""

import torch
from torch import Tensor

from zeropass.checkpoints.gguf import storing_error
from zeropass.diff.tensor_rows import Held
from zeropass.diff.verdict import FAR_LESS

__all__ = ["moved_rows"]

ALL_ROUNDED, IN_A_ROW = 0.999, 0.01
"""Rows are rounded copies if so many of their numbers are what rounding the other's gives; of one row at most so many
(or two) may not be: ways to quantise differ in ties."""

STEPS = 3.0
"""A number that is not may lie so many of the row's largest rounding errors from the other: about a step of its grid.
"""

NOISE = 2.0**-22
"""Over the largest number of a row, two steps of float32: no more than the order of a sum makes."""

SOME = 16
"""Rows that are looked at first: quantising anew takes longer than all else."""


def moved_rows(before: Held, after: Held, old: Tensor, new: Tensor) -> tuple[Tensor, bool]:
    """Which of the rows (n, m) of two tensors changed by more than rounding, (n,), and whether others are rounded.

    Rows are rounded if storing one model's in the type of the other gives the other's.
    """
    differ = (old != new).any(1)
    if not bool(differ.any()):
        return differ, False
    copies = [_copies_in(before, old, new), _copies_in(after, new, old)]
    rounded = differ & max(copies, key=lambda flags: int(flags.sum()))
    return differ & ~rounded, bool(rounded.any())


def _copies_in(held: Held, narrow: Tensor, wide: Tensor) -> Tensor:
    """Which rows of ``narrow`` are equal to, or what storing in its type makes of, those of ``wide``, (n,).

    A matrix that lies the other way round in its file is judged as a whole.
    """
    if held.turned:
        return _copies(held, narrow.T, wide.T).all().expand(len(narrow))
    return _copies(held, narrow, wide)


def _copies(held: Held, narrow: Tensor, wide: Tensor) -> Tensor:
    """`_copies_in` of rows that lie as in the file."""
    equal = (narrow == wide).all(1)
    picked = (~equal).nonzero()[:, 0]
    if not len(picked):
        return equal
    usual = storing_error(held.kind)
    if usual is not None and float((narrow - wide).norm()) < FAR_LESS * usual * float(wide.norm()):
        return equal  # the other began from this very file: what moved is too small to be seen once it is stored again
    some = picked[:: max(len(picked) // SOME, 1)]
    if not bool(_judged(held, narrow[some], wide[some])[0].any()):
        return equal
    copies, same = _judged(held, narrow[picked], wide[picked])
    if bool(copies.any()) and float(same[copies].float().mean()) >= ALL_ROUNDED:
        equal[picked[copies]] = True
    return equal


def _judged(held: Held, narrow: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows are rounded copies (n,), and which numbers are what rounding the other's gives (n, m)."""
    stored = held.as_stored(wide)
    if stored is None:
        none = torch.zeros_like(narrow, dtype=torch.bool)
        return none[:, 0], none
    noise = NOISE * wide.abs().amax(1, keepdim=True)
    same = (narrow - stored).abs() <= noise
    step = torch.maximum(STEPS * (stored - wide).abs().amax(1, keepdim=True), noise)
    few = (~same).sum(1) <= max(2, int(IN_A_ROW * narrow.shape[1]))
    return ((narrow - wide).abs() <= step).all(1) & few, same
