"""Products kept as their two factors: the form of every head map (docs/theory.md §3).

A head map is V x V, 9.7 GB for 49,152 tokens; its factors are V x 64. No function here multiplies them out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass.numerics.statistics import gram

CHUNK = 8192
"""The number of pairs whose rows are gathered at once: ``entries`` needs about 10 MB of scratch at 64 columns."""


@dataclass(frozen=True)
class Directions:
    """The leading singular triplets of a product: ``left * values @ right.T`` is its best approximation.

    Attributes:
        values: Singular values in falling order, (k,).
        left: Left directions, (m, k): orthonormal columns, zero where the value is zero. The entry of the largest size
            in each column is positive (`one_sign`).
        right: Right directions, (n, k), with the signs that belong to the left ones.
        close: True where the value is too close to a neighbour for its direction to mean anything alone, (k,) bool.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    close: Tensor


@dataclass(frozen=True, repr=False)
class Factored:
    """The product ``left @ right.T``, never materialised.

    Attributes:
        left: The left factor, (m, r), floating.
        right: The right factor, (n, r), of the same type and on the same device.

    Raises:
        ValueError: The factors are no matrices of the same width, floating type and device.

    Example:
        >>> import torch
        >>> import zeropass as zp
        >>> product = zp.Factored(torch.eye(3), 2 * torch.eye(3))
        >>> product.entries(torch.tensor([0, 1]), torch.tensor([0, 2]))
        tensor([2., 0.])
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        """Raise ValueError for factors that are not two real matrices of the same width."""
        left, right = self.left, self.right
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
            raise ValueError(
                f"The factors have shapes {tuple(left.shape)} and {tuple(right.shape)}; "
                "they should be (m, r) and (n, r) with the same r."
            )
        if not (left.is_floating_point() and left.dtype == right.dtype and left.device == right.device):
            raise ValueError(
                f"The factors are {left.dtype} on {left.device} and {right.dtype} on {right.device}; "
                "they should be of one floating type on one device."
            )

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"Factored({rows} x {columns}, rank {self.left.shape[1]}, {self.left.dtype} on {self.left.device})"

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of the product."""
        return self.left.shape[0], self.right.shape[0]

    def reduced(self) -> "Factored":
        """Return the same product, to float32 rounding, without the columns of directions that it lacks.

        The new factors are balanced (docs/theory.md §3): both Gram matrices are the diagonal matrix of the product's
        singular values, which fall. They are computed from the Gram matrices of the old ones (float64), which is
        several times as fast as a QR decomposition. Directions below 1e-6 of a factor's norm are dropped: a Gram
        matrix holds few of their digits.
        """
        sides = []
        for factor in (self.left, self.right):
            values, vectors = torch.linalg.eigh(gram(factor))
            present = values > 1e-12 * values[-1:].clamp_min(torch.finfo(torch.float64).tiny)
            sides.append((values[present].sqrt(), vectors[:, present]))
        (left_sizes, left), (right_sizes, right) = sides
        u, values, vt = torch.linalg.svd(left_sizes[:, None] * (left.T @ right) * right_sizes, full_matrices=False)
        present = values > 1e-9 * values[:1]
        present[:1] = True  # a product needs at least one column
        root = values[present].sqrt()
        turns = (left / left_sizes) @ u[:, present] * root, (right / right_sizes) @ vt.T[:, present] * root
        return Factored(_turned(self.left, turns[0]), _turned(self.right, turns[1]))

    def svd(self, k: int | None = None) -> Directions:
        """Return the k largest singular values of the product with their directions, or all of them for None."""
        left, values, right = self._svd()
        close = close_values(values)
        # A value that is only rounding has no direction: zero is better than noise.
        signs = one_sign(left) * (values > 0)
        parts = (values, left * signs, right * signs)
        values, left, right = (part[..., :k].to(self.left.dtype) for part in parts)
        return Directions(values, left, right, close[:k])

    def entries(self, i: Tensor, j: Tensor) -> Tensor:
        """Return the entries at (i[x], j[x]) as float32: float64 dot products, rounded once.

        Products of float32 numbers are exact in float64, and the sum runs over one fixed tree. So an entry has the
        same bits in any batch, on any device and with any number of threads.
        """
        out = torch.empty(i.shape[0], dtype=torch.float32, device=self.left.device)
        for start in range(0, i.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            out[part] = _row_dots(self.left[i[part]].double(), self.right[j[part]].double())
        return out

    def inner(self, other: "Factored") -> float:
        """Return the inner product ``tr((A1ᵀ A2)(B2ᵀ B1))`` of two maps of one shape in float64 (docs/theory.md §3)."""
        if self.shape != other.shape:
            raise ValueError(
                f"Maps of shape {self.shape} and {other.shape} have no inner product; shapes should agree."
            )
        lefts = self.left.double().T @ other.left.double()
        rights = self.right.double().T @ other.right.double()
        return float((lefts * rights).sum())

    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return left directions, singular values and right directions in float64; values below rounding are zero."""
        q_left, r_left = torch.linalg.qr(self.left.double())
        q_right, r_right = torch.linalg.qr(self.right.double())
        u, values, vt = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
        # The rank is known only up to the rounding of the factors; this is its usual bound.
        floor = 1e-15 * max(self.left.shape[1], 1) * (r_left.norm() * r_right.norm())
        values = torch.where(values > floor, values, torch.zeros_like(values))
        return q_left @ u, values, q_right @ vt.T


def _turned(factor: Tensor, turn: Tensor) -> Tensor:
    """Return ``factor @ turn``, computed in float64 block by block and rounded once."""
    return torch.cat([(part.double() @ turn).to(factor.dtype) for part in torch.split(factor, CHUNK)])


def one_sign(columns: Tensor, tie: float = 1e-3) -> Tensor:
    """Return the sign that makes the entry of the largest size in each column positive.

    A singular value decomposition fixes its directions up to a sign, which differs between libraries and devices.
    Entries within ``tie`` of the largest count as equally large, and the first of them decides. So the place of two
    entries of opposite sign and equal size decides, not their rounding.

    Args:
        columns: Directions, (m, k).
        tie: The largest relative difference of two sizes that count as equal.

    Returns:
        Signs 1 or -1, (k,).
    """
    sizes = columns.abs()
    if not len(columns):
        return columns.new_ones(columns.shape[1])
    first = (sizes >= (1 - tie) * sizes.amax(0)).to(torch.uint8).argmax(0)
    deciding = columns.gather(0, first[None])[0]
    return torch.where(deciding < 0, -1.0, 1.0).to(columns)


def close_values(values: Tensor, gap: float = 0.05) -> Tensor:
    """Tell which singular values lie within ``gap`` of a neighbour, relative to the larger of the two.

    By Wedin's theorem an error of size ε in the map turns a singular direction by about ε over the distance to
    the next value. Weights stored in 8 or fewer bits err by around 1% of a singular value. With the next value 5% away
    that turns the direction by up to 0.2 (11 degrees); with a closer one the two directions mix freely, and only
    the plane they span means anything.

    Args:
        values: All singular values, falling: without its true neighbour the last one cannot be judged.
        gap: The smallest relative distance that separates two values.

    Returns:
        True for each close value; zero values have no direction and count as close.
    """
    crowded = values[:-1] - values[1:] < gap * values[:-1]
    close = values <= 0
    close[:-1] |= crowded
    close[1:] |= crowded
    return close


def _row_dots(left: Tensor, right: Tensor) -> Tensor:
    """Return row-wise dot products, summed over a fixed binary tree."""
    terms = left * right
    while (width := terms.shape[1]) > 1:
        half = width // 2
        folded = terms[:, :half] + terms[:, half : 2 * half]
        if width % 2:
            folded[:, 0] += terms[:, -1]
        terms = folded
    return terms.sum(1)  # one column, or none when r is 0
