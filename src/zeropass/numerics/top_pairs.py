"""Exact top pairs: the k largest entries of a factored map, without computing most of them (docs/theory.md §3).

The factors are turned so that their norms fall steeply, which leaves the product unchanged. Rows are sorted by norm and
cut into tiles, and tiles are visited by falling bound ``max‖a‖ max‖b‖`` until the bound is below the running
k-th best score. A visited tile is multiplied in int8; pairs that may suffice despite the quantization error are
rescored. Every inequality carries its rounding error, bounded in the worst case and never estimated. With M and N
the float32 matrices that turn the factors, and hats for the quantized rows that are multiplied:

    a·b  <=  â·b̂ + ‖aM - â‖ ‖bN‖ + ‖â‖ ‖bN - b̂‖ + ‖M Nᵀ - I‖ ‖a‖ ‖b‖

The result does not depend on tiles, threads, device or turning: reported scores are those of ``Factored.entries``.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zeropass.numerics import compiled
from zeropass.numerics.factored import Factored
from zeropass.numerics.quantize import full_precision, spectral_bound, to_int8
from zeropass.numerics.tiles import PANEL, Products, Ways, products_for

Triple = tuple[Tensor, Tensor, Tensor]
Falling = npt.NDArray[np.float64]

CPU_TILE, GPU_TILE = (4096, 1 << 21), (1 << 15, 1 << 26)
"""The number of rows of a block, and of scores held at once: 8 MB, which stay in the cache, or 256 MB."""
CORNER = 512
"""The number of rows of either side whose products give the first threshold."""
SAMPLE = 2048
"""The approximate number of rows from which the turn of the factors is chosen; any choice is exact."""
BATCH = 1 << 16
"""The number of candidates that are scored at once, unless k is larger."""
RIDGE = 1e-6
"""The share of the mean energy added to every direction, so that a missing one does not blow up the turn."""
TINY = 1e-17
"""A number added to norms for squares lost to underflow (rows are scaled to a largest entry of about one)."""


@dataclass(frozen=True, repr=False)
class TopPairs:
    """The k best pairs, best first; equal scores by smaller left id, then smaller right id.

    Attributes:
        left: Row ids on the left, (k,) int64.
        right: Row ids on the right, (k,) int64.
        scores: Scores (k,) float32, see ``Factored.entries``.
        kth: The last score; infinite if there is no pair.
        bound: No pair outside the visited tiles has a better score than this; infinite if all were visited.
        complete: True if kth beats the bound, which certifies that these are the best k.
        visited: The visited share of the unmasked pairs.

    Example:
        >>> import zeropass as zp
        >>> pairs = zp.top_pairs(zp.load("models/first").head_map("L1.attn.0.vo"), 5)
        >>> len(pairs.scores), pairs.complete
        (5, True)
    """

    left: Tensor
    right: Tensor
    scores: Tensor
    kth: float
    bound: float
    complete: bool
    visited: float

    def __repr__(self) -> str:
        proof = "complete" if self.complete else "incomplete"
        return f"TopPairs({len(self.scores)} pairs, from {self.kth:.4g} up, bound {self.bound:.4g}, {proof})"


def top_pairs(
    product: Factored,
    k: int,
    *,
    left_mask: Tensor | None = None,
    right_mask: Tensor | None = None,
    largest: bool = True,
    ways: Ways | None = None,
) -> TopPairs:
    """Return exactly the k largest (or smallest) entries of ``product`` over rows whose mask is True.

    Without masks every row counts: for a head map also the tokens that lists hide (special, under-trained, no text).
    `Lens.view` gives the mask of a view, with which these are the pairs of `Lens.explain`.

    Args:
        product: A float32 product (m, n) of finite numbers.
        k: The number of pairs; all are returned if there are fewer.
        left_mask: The rows on the left that count, (m,) bool.
        right_mask: The rows on the right that count, (n,) bool.
        largest: True for the largest entries, False for the smallest.
        ways: Chooses how tiles are multiplied, the fastest way if not given; the result is the same.

    Returns:
        The pairs with their certificate.

    Raises:
        ValueError: k is negative, the factors are not finite float32 numbers, a mask has another length or type, or a
            best score is beyond float32.

    Example:
        >>> import torch
        >>> import zeropass as zp
        >>> best = zp.top_pairs(zp.Factored(torch.eye(4), 2 * torch.eye(4)), 2)
        >>> best.left.tolist(), best.right.tolist(), best.scores.tolist(), best.complete
        ([0, 1], [0, 1], [2.0, 2.0], True)
    """
    _check(product, k)
    signed = product if largest else Factored(-product.left, product.right)
    masks = _mask(product.left, left_mask, "left"), _mask(product.right, right_mask, "right")
    with full_precision():
        search = _Search(signed, k, masks, ways or _fastest())
        if search.k:
            search.run()
    return search.result(1.0 if largest else -1.0)


def _fastest() -> Ways:
    """Return the fastest way to multiply tiles that this machine has."""
    kernels = compiled.numba_kernels
    return products_for if kernels is None else kernels.fastest_products


def _check(product: Factored, k: int) -> None:
    """Raise ValueError for a negative k, or factors that are not float32 or have no columns."""
    if k < 0:
        raise ValueError(f"k is {k}; it should be 0 or more.")
    if product.left.dtype != torch.float32 or not product.left.shape[1]:
        raise ValueError(
            f"The factors are {product.left.dtype} with {product.left.shape[1]} columns; top pairs are defined "
            "for torch.float32 with one column or more."
        )


# --- Turning the factors ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Turn:
    """Matrices M and N (float32) with ``M Nᵀ`` close to the identity up to a power of two, and a bound of rounding.

    Attributes:
        left: M, (r, r).
        right: N, (r, r).
        scale: A turned score times this is the score.
        error: A bound of ‖computed row - exact row‖ / ‖computed row‖ for ``a M`` and ``b N``, plus
            ‖M Nᵀ - I‖ ‖a‖ ‖b‖ / (‖aM‖ ‖bN‖), plus the error of a float32 product of two rows.
    """

    left: Tensor
    right: Tensor
    scale: float
    error: float


def _turn(product: Factored, masks: tuple[Tensor, Tensor]) -> _Turn:
    """Choose the balancing turn from a sample of the unmasked rows; no turn if its rounding would cost too much."""
    sides = product.left, product.right
    powers = [_power(matrix) for matrix in sides]
    grams = [_gram(*side) for side in zip(sides, masks, powers, strict=True)]
    eye = torch.eye(product.left.shape[1], dtype=torch.float64, device=product.left.device)
    for m, n in (_balance(*grams), (eye, eye)):
        turn = _rounded(m, n, powers)
        if turn.error < 0.05:
            break
    return turn


def _power(matrix: Tensor) -> int:
    """Return the exponent that scales the largest entry to about one; raise ValueError for NaN or infinite entries."""
    if not matrix.numel():
        return 0
    low, high = (float(x) for x in torch.aminmax(matrix))
    peak = max(-low, high)
    if not math.isfinite(peak):
        raise ValueError("A factor holds NaN or infinite values; top pairs are defined for finite numbers only.")
    # It is clamped because the power itself must fit float32.
    return max(-100, min(100, math.frexp(peak)[1])) if peak else 0


def _gram(matrix: Tensor, mask: Tensor, power: int) -> Tensor:
    """Return the Gram matrix of a sample of the unmasked rows, scaled, in float64 and well away from singular."""
    sample = slice(None, None, max(1, len(matrix) // SAMPLE))
    rows = matrix[sample][mask[sample]].double() * 2.0**-power
    gram = rows.T @ rows
    mean = float(gram.trace()) / max(len(gram), 1)
    # For a side of zeros any turn will do: take the identity. 1e-12: rows outside the sample must not overflow.
    gram.diagonal().add_(max(RIDGE * mean, 1e-12) if mean > 0 else 1.0)
    return gram


def _balance(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return M and N, ``M Nᵀ = I``, for which ``Mᵀ left M = Nᵀ right N`` is diagonal; left and right are Grams."""
    r_left, r_right = torch.linalg.cholesky(left).mT, torch.linalg.cholesky(right).mT
    u, values, vt = torch.linalg.svd(r_left @ r_right.T)
    root = values.sqrt()
    m = torch.linalg.solve_triangular(r_left, u * root, upper=True)
    return m, torch.linalg.solve_triangular(r_right, vt.T * root, upper=True)


def _rounded(m: Tensor, n: Tensor, powers: list[int]) -> _Turn:
    """Round M and N to float32, and bound the error of this and of float32 products with them."""
    left, right = ((x * 2.0**-power).float() for x, power in zip((m, n), powers, strict=True))
    # This is exact: float64 holds a float32 number times any of these powers of two.
    m, n = (x.double() * 2.0**power for x, power in zip((left, right), powers, strict=True))
    drift = float((m @ n.T - torch.eye(len(m), dtype=m.dtype, device=m.device)).norm()) + 1e-12
    if drift > 0.5:
        return _Turn(left, right, 1.0, math.inf)
    # ‖a‖ <= ‖M⁻¹‖ ‖aM‖ and M⁻¹ = Nᵀ (M Nᵀ)⁻¹; rounding of aM is at most unit * |a| |M|, entry by entry.
    condition = spectral_bound(m) * spectral_bound(n) / (1 - drift)
    unit = len(m) * 2.0**-24 * 1.01
    row = unit * condition
    error = row / (1 - row) + 2 * drift * condition**2 + 4 * unit + 2.0**-20 if row < 0.5 else math.inf
    return _Turn(left, right, 2.0 ** sum(powers), error)


# --- Sorted rows and their tiles -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """Rows of one side as they are multiplied: ``rows * scale`` is within ``gap`` of the exact turned rows.

    scale, gap and size are (b,) float64 on the left; on the right, where a tile needs one threshold, one number each.

    Attributes:
        start: The place of the first row on its side.
        rows: Rows (b, r), as `Products` prepared them.
        falling: The rows' norm bounds, negated for searching, (b,).
        scale: The factor of the rows.
        gap: The largest distance from the exact turned rows.
        size: A bound of the norms of the rows times the scale.
    """

    start: int
    rows: Any
    falling: Falling
    scale: Tensor
    gap: Tensor
    size: Tensor


@dataclass(frozen=True)
class _Side:
    """The rows of one side that can matter, by falling norm, in blocks that begin small and grow.

    Attributes:
        matrix: The factor, (V, r).
        turn: Its turn, (r, r).
        ids: The rows that can matter, by falling norm, (n,).
        norms: Upper bounds of their exact turned norms, (n,) float64.
        falling: The same, negated, in NumPy.
        edges: Where blocks begin, and n.
        each: True for one int8 scale and error per row, False for one per block.
        blocks: The blocks made so far.
    """

    matrix: Tensor
    turn: Tensor
    ids: Tensor
    norms: Tensor
    falling: Falling
    edges: list[int]
    each: bool
    blocks: dict[int, _Block] = field(default_factory=dict)

    def block(self, which: int, error: float, products: Products, scratch: Tensor) -> _Block:
        """Return a block, made at its first use; scratch is (2, rows or more, r)."""
        if which not in self.blocks:
            part = slice(self.edges[which], self.edges[which + 1])
            norms = self.norms[part]
            spare, rows = scratch[:, : len(norms)]
            torch.index_select(self.matrix, 0, self.ids[part], out=spare)
            torch.mm(spare, self.turn, out=rows)
            convert = to_int8 if products.int8 else _plain
            converted, scale, lost = convert(rows, spare, self.each)
            gap = lost.double() * 1.001 + norms * error + TINY
            size, scale = norms + gap, scale.double()
            if not self.each:
                scale, gap, size = scale[0], gap.amax(), size.amax()
            prepared = products.left(converted) if self.each else products.right(converted)
            self.blocks[which] = _Block(part.start, prepared, self.falling[part], scale, gap, size)
        return self.blocks[which]


def _plain(rows: Tensor, _spare: Tensor, _each: bool) -> Triple:
    """Return float32 rows as they are, with scales of one and nothing lost."""
    return rows.clone(), torch.ones_like(rows[:, 0]), torch.zeros_like(rows[:, 0])


def _norms(matrix: Tensor, turn: Tensor, scratch: Tensor) -> Tensor:
    """Return float32 norms of turned rows; the rows are not kept, as new memory costs more than turning some again."""
    out = torch.empty(len(matrix), dtype=torch.float32, device=matrix.device)
    for start in range(0, len(matrix), len(scratch)):
        rows = matrix[start : start + len(scratch)]
        turned = torch.mm(rows, turn, out=scratch[: len(rows)])
        torch.linalg.vector_norm(turned, dim=1, out=out[start : start + len(rows)])
    return out


def _mask(matrix: Tensor, mask: Tensor | None, name: str) -> Tensor:
    """Return a mask of the rows on their device; raise ValueError for one of another type or length."""
    if mask is None:
        return torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    if mask.shape != (len(matrix),) or mask.dtype != torch.bool:
        raise ValueError(
            f"The {name} mask is {mask.dtype} of shape {tuple(mask.shape)}; it should be bool, one for "
            f"each of the {len(matrix)} rows."
        )
    return mask.to(matrix.device)


def _drop_spare_zeros(matrix: Tensor, norms: Tensor, k: int) -> None:
    """Mask rows of zeros after the first k, in place: all their pairs tie, and smaller ids come first."""
    suspects = (norms == 0).nonzero()[:, 0]
    if len(suspects) > k:
        zeros = suspects[(matrix[suspects] == 0).all(1)]
        norms[zeros[k:]] = -1.0


# --- The search ------------------------------------------------------------------------------------------


class _Search:
    """The running best k of a search, the threshold that they set, and the bound of unvisited pairs.

    Thresholds and bounds are in turned units (scores over ``turn.scale``) until they are reported.
    """

    def __init__(self, product: Factored, k: int, masks: tuple[Tensor, Tensor], ways: Ways) -> None:
        self.product, self.masks = product, masks
        self.turn = _turn(product, masks)
        self.total = int(masks[0].sum()) * int(masks[1].sum())
        self.k = min(k, self.total)
        self.device = product.left.device
        self.ways = ways
        self.step, self.area = CPU_TILE if self.device.type == "cpu" else GPU_TILE
        rows = min(self.step, max(product.shape))
        self.scratch = torch.empty(2, rows, product.left.shape[1], device=self.device)
        self.floor = self.bound = -math.inf
        self.visited = 0
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        self.best: Triple = none, none, torch.empty(0, dtype=torch.float32, device=self.device)
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.waiting, self.batch = 0, max(self.k, BATCH)

    def run(self) -> None:
        """Visit tiles by falling bound until none that remains can hold a pair of the best k."""
        self.left, self.right = self.sides()
        tops, starts = (side.norms[side.edges[:-1]] for side in (self.left, self.right))
        bounds, order = (tops[:, None] * starts).flatten().sort(descending=True, stable=True)
        most, area = min(self.step, len(self.left.ids)), min(self.area, len(self.left.ids) * len(self.right.ids))
        self.products = self.ways(self.product.left.shape[1], self.device, most, area)
        for bound, place in zip(bounds.tolist(), order.tolist(), strict=True):
            if bound < self.floor:
                self.skip(bound)
                break
            self.visit(*divmod(place, len(starts)))
        self.settle()

    def sides(self) -> tuple[_Side, _Side]:
        """Set a first threshold and sort the rows that can reach it with the longest row of the other side."""
        matrices, turns = (self.product.left, self.product.right), (self.turn.left, self.turn.right)
        norms = []
        for matrix, turn, mask in zip(matrices, turns, self.masks, strict=True):
            norms.append(_norms(matrix, turn, self.scratch[0]).masked_fill_(~mask, -1.0))
            _drop_spare_zeros(matrix, norms[-1], self.k)
        if self.k < self.total:
            self.seed(*norms)
        peaks = [self.upper(float(side_norms.amax())) for side_norms in norms]
        left, right = (
            self.sort(side_norms, self.floor / other_peak if self.floor > 0 else 0.0, other_peak)
            for side_norms, other_peak in zip(norms, reversed(peaks), strict=True)
        )
        return _Side(matrices[0], turns[0], *left, each=True), _Side(matrices[1], turns[1], *right, each=False)

    def upper(self, norm: float) -> float:
        """Return an upper bound of the exact norm of a row from that of the rounded row."""
        return norm * (1 + self.turn.error) + TINY

    def seed(self, left: Tensor, right: Tensor) -> None:
        """Set a first threshold: the k-th best score where norms are largest; that of any k pairs is valid."""
        m, n = _corner(self.k, int((left >= 0).sum()), int((right >= 0).sum()))
        i, j = left.topk(m).indices, right.topk(n).indices
        a, b = self.product.left[i] @ self.turn.left, self.product.right[j] @ self.turn.right
        best = torch.mm(a, b.T).flatten().topk(self.k).indices
        self.raise_floor(float(self.product.entries(i[best // n], j[best % n]).amin()))

    def sort(self, norms: Tensor, least: float, other: float) -> tuple[Tensor, Tensor, Falling, list[int]]:
        """Return ids, norm bounds (twice) and edges of the rows whose norm is at least ``least``.

        Those left out meet rows on the other side of norm ``other`` at most.
        """
        # The limit is slightly below least, because the comparison is in float32.
        enough = norms >= max(0.0, (least - TINY) / (1 + self.turn.error) * (1 - 1e-6))
        longest = float(norms.masked_fill(enough, -1.0).amax())
        if longest >= 0:
            self.skip(self.upper(longest) * other)
        ids = enough.nonzero()[:, 0]
        # The bits of floats from zero up sort as integers do, and torch sorts integers ten times as fast.
        order = (2**31 - 1 - norms[ids].view(torch.int32)).argsort(stable=True)
        sorted_norms = norms[ids[order]]
        bounds = sorted_norms.double() * (1 + self.turn.error) + TINY
        edges = sorted({*(e for e in (0, 64, 512) if e < len(ids)), *range(0, len(ids), self.step), len(ids)})
        return ids[order], bounds, (-bounds).cpu().numpy(), edges

    def raise_floor(self, score: float) -> None:
        """Admit only pairs that may reach ``score``, which was rounded to float32 (and may be subnormal)."""
        low = score - abs(score) * 2.0**-23 - 2.0**-148
        self.floor = max(self.floor, low / self.turn.scale)

    def skip(self, bound: float) -> None:
        """Record that pairs of this bound are left out; a negative bound means that there are none."""
        if bound >= 0:
            self.bound = max(self.bound, bound)

    def visit(self, which: int, other: int) -> None:
        """Search a tile panel by panel: multiply each with the rows whose norms suffice for its first row."""
        a = self.left.block(which, self.turn.error, self.products, self.scratch)
        b = self.right.block(other, self.turn.error, self.products, self.scratch)
        starts, panel = b.falling[::PANEL], 0
        while panel < len(starts):
            # Both are negated norms. A threshold of zero or less admits all rows.
            least = self.floor / starts if self.floor > 0 else np.zeros_like(starts)
            heights = np.searchsorted(a.falling, least, side="right")
            after = self.multiply(a, b, heights, panel) if heights[panel] else len(starts)
            partial = np.flatnonzero(heights[panel:after] < len(a.falling)) + panel
            if len(partial):
                self.skip(float((a.falling[heights[partial]] * starts[partial]).max()))
            panel = after

    def multiply(self, a: _Block, b: _Block, heights: npt.NDArray[np.int64], panel: int) -> int:
        """Multiply panels, beginning with one, with the rows within their heights, and record pairs that may suffice.

        Returns:
            The first panel that is left: the threshold may have risen.
        """
        slack = a.gap * -b.falling[0] + a.size * b.gap
        after, rows, columns = self.products.reaching(
            a.rows, b.rows, heights, (self.floor - slack) / (a.scale * b.scale), panel
        )
        widths = np.minimum(PANEL, len(b.falling) - PANEL * np.arange(panel, after))
        self.visited += int(heights[panel:after] @ widths)
        if len(rows):
            self.offer(self.left.ids[a.start + rows], self.right.ids[b.start + columns])
        return after

    def offer(self, i: Tensor, j: Tensor) -> None:
        """Record candidates, and score them once there are k or more."""
        self.pending.append((i, j))
        self.waiting += len(i)
        if self.waiting >= self.k:
            self.settle()

    def settle(self) -> None:
        """Score the recorded candidates exactly, keep the best k and raise the threshold."""
        if self.pending:
            i, j = (torch.cat(ids) for ids in zip(*self.pending, strict=True))
            # In parts: where nearly all pairs tie, a tile can bring millions.
            for part in (slice(start, start + self.batch) for start in range(0, len(i), self.batch)):
                self.best = _best(self.best, (i[part], j[part], self.product.entries(i[part], j[part])), self.k)
            self.pending, self.waiting = [], 0
        if len(self.best[2]) == self.k:
            self.raise_floor(float(self.best[2][-1]))

    def result(self, sign: float) -> TopPairs:
        """Return the pairs and their certificate in the units of the given product."""
        left, right, scores = self.best
        if not bool(scores.isfinite().all()):
            raise ValueError("A score is beyond the range of float32; the factors should be scaled down.")
        kth = float(scores[-1]) if len(scores) else math.inf
        bound = self.bound * self.turn.scale
        complete = len(scores) == self.k and bound < kth
        visited = self.visited / self.total if self.total else 1.0
        # Adding zero turns a negative zero into a positive one.
        return TopPairs(
            left=left,
            right=right,
            scores=scores * sign + 0.0,
            kth=kth * sign,
            bound=bound * sign,
            complete=complete,
            visited=visited,
        )


def _corner(k: int, rows: int, columns: int) -> tuple[int, int]:
    """Return the sides of a corner of a rows x columns matrix with at least k entries."""
    m = min(rows, max(CORNER, math.isqrt(k) + 1))
    n = min(columns, max(CORNER, -(-k // m)))
    return min(rows, max(m, -(-k // n))), n


def _best(old: Triple, new: Triple, k: int) -> Triple:
    """Return the k best pairs of both, by falling score, then left id, then right id."""
    i, j, scores = (torch.cat(pair) for pair in zip(old, new, strict=True))
    order = j.argsort(stable=True)
    order = order[i[order].argsort(stable=True)]
    order = order[scores[order].argsort(stable=True, descending=True)][:k]
    return i[order], j[order], scores[order]
