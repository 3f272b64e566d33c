"""Exact top pairs: the k largest entries of a factored map, without computing most of them (design.md §3).

The factors are turned so that their norms fall steeply (the product stays the same), rows are sorted by norm and
cut into tiles, and tiles are visited by falling bound ``max‖a‖ max‖b‖`` until the bound is under the running
k-th best score. A visited tile is multiplied in int8; what the quantisation error leaves possible is rescored.
Every inequality carries its rounding error, bounded in the worst case and never estimated. With M and N
the float32 matrices that turn the factors, and hats for what is multiplied:

    a·b  <=  â·b̂ + ‖aM - â‖ ‖bN‖ + ‖â‖ ‖bN - b̂‖ + ‖M Nᵀ - I‖ ‖a‖ ‖b‖

The answer does not depend on tiles, threads, device or turning: what is reported is ``Factored.entries``.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zeropass.numerics.compiled import numba_tiles
from zeropass.numerics.factored import Factored
from zeropass.numerics.quantize import full_precision, spectral_bound, to_int8
from zeropass.numerics.tiles import PANEL, Products, Ways, products_for

_FASTEST: Ways = numba_tiles.fastest_products if numba_tiles is not None else products_for

Triple = tuple[Tensor, Tensor, Tensor]
Falling = npt.NDArray[np.float64]

CPU_TILE, GPU_TILE = (4096, 1 << 21), (1 << 15, 1 << 26)
"""Rows of a block, and scores held at once: 8 MB, which stay in the cache, or 256 MB."""
CORNER = 512
"""Rows of either side whose products give the first threshold."""
SAMPLE = 2048
"""Rows looked at, about, to choose how to turn the factors; any choice is exact."""
BATCH = 1 << 16
"""Candidates that are scored at once, if not k."""
RIDGE = 1e-6
"""Share of the mean energy added to every direction, so that a missing one does not blow up the turning."""
TINY = 1e-17
"""Added to norms: covers squares lost to underflow (rows are scaled to a largest entry of about one)."""


@dataclass(frozen=True)
class TopPairs:
    """The k best pairs, best first; equal scores by smaller left id, then smaller right id.

    left, right: (k,) int64 row ids. scores: (k,) float32, see ``Factored.entries``.
    kth: the last score (infinite when there is no pair). bound: no pair outside the visited tiles has a better
    score than this; infinite when all were visited. complete: kth beats the bound, so that these are the best k.
    visited: visited share of the unmasked pairs.
    """

    left: Tensor
    right: Tensor
    scores: Tensor
    kth: float
    bound: float
    complete: bool
    visited: float


def top_pairs(
    product: Factored,
    k: int,
    *,
    left_mask: Tensor | None = None,
    right_mask: Tensor | None = None,
    largest: bool = True,
    ways: Ways = _FASTEST,
) -> TopPairs:
    """Return exactly the k largest (or smallest) entries of ``product`` over rows whose mask is True.

    Without masks every row counts: of a head map also the tokens that lists hide (special, hardly trained, no text).
    `Lens.view` gives the mask of a view, with which these are the pairs of `Lens.explain`.

    ways: how tiles are multiplied; the answer is the same.
    All pairs are returned when there are fewer than k. A float32 product of finite numbers is expected.
    Raises ValueError for k < 0, other numbers, a mask of another length, NaN or infinite factors, or a
    best score beyond float32.
    """
    _check(product, k)
    signed = product if largest else Factored(-product.left, product.right)
    masks = _mask(product.left, left_mask, "left"), _mask(product.right, right_mask, "right")
    with full_precision():
        search = _Search(signed, k, masks, ways)
        if search.k:
            search.run()
    return search.result(1.0 if largest else -1.0)


def _check(product: Factored, k: int) -> None:
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
    """Matrices M and N (float32) with ``M Nᵀ`` near the identity up to a power of two, and what rounding costs.

    scale: a turned score times this is the score. error: bounds ‖computed row - exact row‖ / ‖computed row‖ for
    ``a M`` and ``b N``, plus ‖M Nᵀ - I‖ ‖a‖ ‖b‖ / (‖aM‖ ‖bN‖), plus the error of a float32 product of two rows.
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
    """Return the exponent that brings the largest entry near one. Raises ValueError for NaN or infinite entries."""
    if not matrix.numel():
        return 0
    low, high = (float(x) for x in torch.aminmax(matrix))
    peak = max(-low, high)
    if not math.isfinite(peak):
        raise ValueError("A factor holds NaN or infinite values; top pairs are defined for finite numbers only.")
    # Clamped: the power itself must fit float32.
    return max(-100, min(100, math.frexp(peak)[1])) if peak else 0


def _gram(matrix: Tensor, mask: Tensor, power: int) -> Tensor:
    """Return the Gram matrix of a sample of the unmasked rows, scaled, in float64 and well away from singular."""
    some = slice(None, None, max(1, len(matrix) // SAMPLE))
    rows = matrix[some][mask[some]].double() * 2.0**-power
    gram = rows.T @ rows
    mean = float(gram.trace()) / max(len(gram), 1)
    # A side of zeros is as good as any other: take the identity. 1e-12: rows outside the sample must not overflow.
    gram.diagonal().add_(max(RIDGE * mean, 1e-12) if mean > 0 else 1.0)
    return gram


def _balance(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return M and N, ``M Nᵀ = I``, for which ``Mᵀ left M = Nᵀ right N`` is diagonal (left, right: Grams)."""
    r_left, r_right = torch.linalg.cholesky(left).mT, torch.linalg.cholesky(right).mT
    u, values, vt = torch.linalg.svd(r_left @ r_right.T)
    root = values.sqrt()
    m = torch.linalg.solve_triangular(r_left, u * root, upper=True)
    return m, torch.linalg.solve_triangular(r_right, vt.T * root, upper=True)


def _rounded(m: Tensor, n: Tensor, powers: list[int]) -> _Turn:
    """Round M and N to float32 and bound what that and float32 products with them cost."""
    left, right = ((x * 2.0**-power).float() for x, power in zip((m, n), powers, strict=True))
    # Exact: float64 holds what float32 was scaled by a power of two.
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

    start: place of the first row on its side. rows: (b, r), as `Products` takes them. scale, gap, size (bound of the
    norm of what is multiplied): (b,) float64 on the left, one number on the right, where a tile needs one threshold.
    falling: (b,) the rows' norm bounds, negated, to search in.
    """

    start: int
    rows: Any
    falling: Falling
    scale: Tensor
    gap: Tensor
    size: Tensor


@dataclass(frozen=True)
class _Side:
    """Rows of one side that can matter, by falling norm, in blocks that begin small and grow.

    matrix: (V, r) and turn: (r, r), as given; ids: (n,) its rows by falling norm. norms: (n,) float64 upper bounds
    of the exact turned norms; falling: the same, negated, in NumPy. edges: where blocks begin, and n.
    each: one int8 scale and error a row, or one a block.
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
        """Return a block, made when first asked for; scratch is (2, rows or more, r)."""
        if which not in self.blocks:
            part = slice(self.edges[which], self.edges[which + 1])
            norms = self.norms[part]
            spare, rows = scratch[:, : len(norms)]
            torch.index_select(self.matrix, 0, self.ids[part], out=spare)
            torch.mm(spare, self.turn, out=rows)
            make = to_int8 if products.int8 else _plain
            kept, scale, lost = make(rows, spare, self.each)
            gap = lost.double() * 1.001 + norms * error + TINY
            size, scale = norms + gap, scale.double()
            if not self.each:
                scale, gap, size = scale[0], gap.amax(), size.amax()
            made = products.left(kept) if self.each else products.right(kept)
            self.blocks[which] = _Block(part.start, made, self.falling[part], scale, gap, size)
        return self.blocks[which]


def _plain(rows: Tensor, _spare: Tensor, _each: bool) -> Triple:
    """Return float32 rows as they are, with scales of one and nothing lost."""
    return rows.clone(), torch.ones_like(rows[:, 0]), torch.zeros_like(rows[:, 0])


def _norms(matrix: Tensor, turn: Tensor, scratch: Tensor) -> Tensor:
    """Return float32 norms of turned rows, which are not kept: fresh memory costs more than turning some again."""
    out = torch.empty(len(matrix), dtype=torch.float32, device=matrix.device)
    for start in range(0, len(matrix), len(scratch)):
        rows = matrix[start : start + len(scratch)]
        turned = torch.mm(rows, turn, out=scratch[: len(rows)])
        torch.linalg.vector_norm(turned, dim=1, out=out[start : start + len(rows)])
    return out


def _mask(matrix: Tensor, mask: Tensor | None, name: str) -> Tensor:
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
    """The running best k of a search, the threshold they set, and what was left unvisited.

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
        """Visit tiles by falling bound until no tile that is left can hold a pair of the best k."""
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
        peaks = [self.upper(float(some.amax())) for some in norms]
        left, right = (
            self.sort(some, self.floor / other if self.floor > 0 else 0.0, other)
            for some, other in zip(norms, reversed(peaks), strict=True)
        )
        return _Side(matrices[0], turns[0], *left, each=True), _Side(matrices[1], turns[1], *right, each=False)

    def upper(self, norm: float) -> float:
        """Return a bound of the exact norm of a row from that of the rounded one."""
        return norm * (1 + self.turn.error) + TINY

    def seed(self, left: Tensor, right: Tensor) -> None:
        """Set a first threshold: the k-th best score where norms are largest. Any k pairs give a sound one."""
        m, n = _corner(self.k, int((left >= 0).sum()), int((right >= 0).sum()))
        i, j = left.topk(m).indices, right.topk(n).indices
        a, b = self.product.left[i] @ self.turn.left, self.product.right[j] @ self.turn.right
        best = torch.mm(a, b.T).flatten().topk(self.k).indices
        self.raise_floor(float(self.product.entries(i[best // n], j[best % n]).amin()))

    def sort(self, norms: Tensor, least: float, other: float) -> tuple[Tensor, Tensor, Falling, list[int]]:
        """Return ids, norm bounds (twice) and edges of the rows whose norm suffices beside one of norm ``other``."""
        # A little under least: the comparison is in float32.
        enough = norms >= max(0.0, (least - TINY) / (1 + self.turn.error) * (1 - 1e-6))
        longest = float(norms.masked_fill(enough, -1.0).amax())
        if longest >= 0:
            self.skip(self.upper(longest) * other)
        ids = enough.nonzero()[:, 0]
        # The bits of floats from zero up sort as integers do, and torch sorts integers ten times as fast.
        order = (2**31 - 1 - norms[ids].view(torch.int32)).argsort(stable=True)
        kept = norms[ids[order]]
        bounds = kept.double() * (1 + self.turn.error) + TINY
        edges = sorted({*(e for e in (0, 64, 512) if e < len(ids)), *range(0, len(ids), self.step), len(ids)})
        return ids[order], bounds, (-bounds).cpu().numpy(), edges

    def raise_floor(self, score: float) -> None:
        """Let only pairs through that may reach ``score``, which was rounded to float32 (and perhaps subnormal)."""
        low = score - abs(score) * 2.0**-23 - 2.0**-148
        self.floor = max(self.floor, low / self.turn.scale)

    def skip(self, bound: float) -> None:
        """Record that pairs of this bound are left out (a negative one: there are none)."""
        if bound >= 0:
            self.bound = max(self.bound, bound)

    def visit(self, which: int, other: int) -> None:
        """Go down the staircase of a tile: multiply each panel with the rows whose norms suffice beside its first."""
        a = self.left.block(which, self.turn.error, self.products, self.scratch)
        b = self.right.block(other, self.turn.error, self.products, self.scratch)
        starts, panel = b.falling[::PANEL], 0
        while panel < len(starts):
            # Both are negated norms. A threshold that is not above zero lets all rows through.
            least = self.floor / starts if self.floor > 0 else np.zeros_like(starts)
            heights = np.searchsorted(a.falling, least, side="right")
            after = self.multiply(a, b, heights, panel) if heights[panel] else len(starts)
            short = np.flatnonzero(heights[panel:after] < len(a.falling)) + panel
            if len(short):
                self.skip(float((a.falling[heights[short]] * starts[short]).max()))
            panel = after

    def multiply(self, a: _Block, b: _Block, heights: npt.NDArray[np.int64], panel: int) -> int:
        """Multiply panels with as many rows as their heights say, from one on; note pairs that may suffice.

        Returns the first panel that was left: the threshold may have risen.
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
        """Note candidates; score them once they are as many as are wanted."""
        self.pending.append((i, j))
        self.waiting += len(i)
        if self.waiting >= self.k:
            self.settle()

    def settle(self) -> None:
        """Score the noted candidates exactly, keep the best k and raise the threshold."""
        if self.pending:
            i, j = (torch.cat(ids) for ids in zip(*self.pending, strict=True))
            # In parts: where nearly all pairs tie, a tile can bring millions.
            for some in (slice(x, x + self.batch) for x in range(0, len(i), self.batch)):
                self.best = _best(self.best, (i[some], j[some], self.product.entries(i[some], j[some])), self.k)
            self.pending, self.waiting = [], 0
        if len(self.best[2]) == self.k:
            self.raise_floor(float(self.best[2][-1]))

    def result(self, sign: float) -> TopPairs:
        """Return the answer and its certificate in the units of the question."""
        left, right, scores = self.best
        if not bool(scores.isfinite().all()):
            raise ValueError("A score is beyond the range of float32; the factors should be scaled down.")
        kth = float(scores[-1]) if len(scores) else math.inf
        bound = self.bound * self.turn.scale
        complete = len(scores) == self.k and bound < kth
        visited = self.visited / self.total if self.total else 1.0
        # Adding zero turns a negative zero into a plain one.
        return TopPairs(left, right, scores * sign + 0.0, kth * sign, bound * sign, complete, visited)


def _corner(k: int, rows: int, columns: int) -> tuple[int, int]:
    """Return the sides of a corner of a rows x columns matrix with at least k entries."""
    m = min(rows, max(CORNER, math.isqrt(k) + 1))
    n = min(columns, max(CORNER, -(-k // m)))
    return min(rows, max(m, -(-k // n))), n


def _best(old: Triple, new: Triple, k: int) -> Triple:
    """Return the k best of both: by falling score, then left id, then right id."""
    i, j, scores = (torch.cat(pair) for pair in zip(old, new, strict=True))
    order = j.argsort(stable=True)
    order = order[i[order].argsort(stable=True)]
    order = order[scores[order].argsort(stable=True, descending=True)][:k]
    return i[order], j[order], scores[order]
