"""All ways to find the products that reach a floor, compared with the full product."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zeropass.numerics import numba_kernels, tiles
from zeropass.numerics.numba_kernels import fastest_products
from zeropass.numerics.tiles import PANEL, Heights, Products

CPU = torch.device("cpu")


def ways(width: int, rows: int) -> list[Products]:
    """Return the compiled loop, if this processor has one, and torch's products of int8 and float32."""
    compiled = fastest_products(width, CPU, rows, 1)
    buffers = [torch.empty(rows * PANEL + 320, dtype=kind) for kind in (torch.int32, torch.float32)]
    return [compiled, *map(tiles._Torch, buffers if width >= 8 else buffers[1:])]


def all_found(way: Products, left: Tensor, right: Tensor, heights: Heights, floors: Tensor) -> set[tuple[int, int]]:
    """Return the pairs within the heights, from as many calls as needed."""
    operands = [rows if way.int8 else rows.float() for rows in (left, right)]
    a, b, panel, pairs_found = way.left(operands[0]), way.right(operands[1]), 0, set()
    while panel < len(heights) and heights[panel]:
        after, rows, columns = way.reaching(a, b, heights, floors, panel)
        assert after > panel
        assert bool(((columns >= panel * PANEL) & (columns < after * PANEL)).all())
        pairs = list(zip(rows.tolist(), columns.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
        pairs_found |= {(i, j) for i, j in pairs if i < heights[j // PANEL]}
        panel = after
    return pairs_found


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 300), st.integers(1, 40), st.integers(0, 10**6), st.floats(0, 1))
def test_each_way_finds_what_the_full_product_has(m: int, n: int, width: int, seed: int, share: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    left, right = (torch.randint(-127, 128, (rows, width), generator=draw, dtype=torch.int8) for rows in (m, n))
    product = left.double() @ right.double().T
    floors = product.quantile(share, dim=1) + torch.randint(-1, 2, (m,), generator=draw) / 2
    heights = torch.randint(0, m + 1, (-(-n // PANEL),), generator=draw).sort(descending=True).values.numpy()
    met = torch.arange(m)[:, None] < torch.from_numpy(heights.repeat(PANEL)[:n])
    want = {(i, j) for i, j in ((product >= floors[:, None]) & met).nonzero().tolist()}
    for way in ways(width, m):
        assert all_found(way, left, right, heights, floors) == want


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_products_fit(sign: int) -> None:
    """The widest rows of the largest integers do not overflow; all products or none reach an infinite floor."""
    width = numba_kernels._WIDEST
    left, right = torch.full((3, width), 127, dtype=torch.int8), torch.full((70, width), sign * 127, dtype=torch.int8)
    score = sign * 127.0 * 127 * width
    for way in [way for way in ways(width, 3) if way.int8]:
        for floor, count in ((-torch.inf, 210), (score, 210), (score + 1, 0), (torch.inf, 0)):
            floors = torch.full((3,), floor, dtype=torch.float64)
            assert len(all_found(way, left, right, np.array([3, 3]), floors)) == count


def test_a_full_buffer_of_pairs_ends_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_kernels, "_ROOM", 1)
    left, right = torch.ones(5, 8, dtype=torch.int8), torch.ones(3 * PANEL, 8, dtype=torch.int8)
    for way in ways(8, 5):
        pairs = all_found(way, left, right, np.full(3, 5), torch.zeros(5, dtype=torch.float64))
        assert len(pairs) == 5 * 3 * PANEL


def test_the_compiled_loop_needs_the_instruction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_kernels, "_VNNI", False)
    assert isinstance(fastest_products(64, CPU, 4, 100), tiles._Torch)
    monkeypatch.setattr(numba_kernels, "_VNNI", True)
    assert isinstance(fastest_products(64, CPU, 4, 100), numba_kernels._Compiled)
    assert isinstance(fastest_products(numba_kernels._WIDEST + 1, CPU, 4, 100), tiles._Torch)
