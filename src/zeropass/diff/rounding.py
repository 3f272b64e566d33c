"""Tell rows that changed from rows that were only stored in another type."""

import torch
from torch import Tensor

from zeropass.checkpoints.storing import storing_error
from zeropass.diff.tensor_rows import TensorRows
from zeropass.diff.verdict import FAR_LESS

__all__ = ["moved_rows"]

ALL_ROUNDED, IN_A_ROW = 0.999, 0.01
"""Rows are rounded copies if at least the first share of all their numbers is what rounding the other model's gives.

Of one row at most the second share, or two numbers, may be otherwise, since ways to quantise differ in ties."""

STEPS = 3.0
"""The largest distance of such a number from the other, in largest rounding errors of its row: about a grid step."""

NOISE = 2.0**-22
"""A difference that the order of a sum can make, relative to the largest number of a row: two steps of float32."""

SAMPLE = 16
"""The number of rows that are judged first, since quantising takes longer than anything else here."""


def moved_rows(before: TensorRows, after: TensorRows, old: Tensor, new: Tensor) -> tuple[Tensor, bool]:
    """Tell which rows changed by more than rounding.

    Rows are rounded if storing those of one model in the type of the other gives the other's.

    Args:
        before: The tensor of the base.
        after: The tensor of the other model.
        old: Some rows of the base, (n, m).
        new: The same rows of the other model, (n, m).

    Returns:
        True for each row that changed by more than rounding, (n,), and whether any other row is rounded.
    """
    differ = (old != new).any(1)
    if not bool(differ.any()):
        return differ, False
    copies = [_copies_in(before, old, new), _copies_in(after, new, old)]
    rounded = differ & max(copies, key=lambda flags: int(flags.sum()))
    return differ & ~rounded, bool(rounded.any())


def _copies_in(tensor: TensorRows, narrow: Tensor, wide: Tensor) -> Tensor:
    """Tell which rows of ``narrow``, (n,), equal those of ``wide``, as they are or stored in the type of ``tensor``.

    The rows of a matrix that its file stores transposed are judged together.
    """
    if tensor.turned:
        return _copies(tensor, narrow.T, wide.T).all().expand(len(narrow))
    return _copies(tensor, narrow, wide)


def _copies(tensor: TensorRows, narrow: Tensor, wide: Tensor) -> Tensor:
    """Do the same as `_copies_in` for rows laid out as in the file."""
    equal = (narrow == wide).all(1)
    unequal = (~equal).nonzero()[:, 0]
    if not len(unequal):
        return equal
    usual = storing_error(tensor.kind)
    if usual is not None and float((narrow - wide).norm()) < FAR_LESS * usual * float(wide.norm()):
        return equal  # The other model was made from this very file, and its small change would vanish if stored again.
    sample = unequal[:: max(len(unequal) // SAMPLE, 1)]
    if not bool(_judged(tensor, narrow[sample], wide[sample])[0].any()):
        return equal
    copies, same = _judged(tensor, narrow[unequal], wide[unequal])
    if bool(copies.any()) and float(same[copies].float().mean()) >= ALL_ROUNDED:
        equal[unequal[copies]] = True
    return equal


def _judged(tensor: TensorRows, narrow: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
    """Tell which rows are rounded copies, (n,), and which numbers are what rounding the other's gives, (n, m)."""
    stored = tensor.as_stored(wide)
    if stored is None:
        nowhere = torch.zeros_like(narrow, dtype=torch.bool)
        return nowhere[:, 0], nowhere
    noise = NOISE * wide.abs().amax(1, keepdim=True)
    same = (narrow - stored).abs() <= noise
    step = torch.maximum(STEPS * (stored - wide).abs().amax(1, keepdim=True), noise)
    few = (~same).sum(1) <= max(2, int(IN_A_ROW * narrow.shape[1]))
    return ((narrow - wide).abs() <= step).all(1) & few, same
