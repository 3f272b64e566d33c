"""The Triton kernels find what torch finds. The tests run on a GPU, or slowly anywhere in Triton's interpreter.

For the interpreter, run ``TRITON_INTERPRET=1 python -m pytest tests/numerics/test_triton_kernels.py`` with triton 3.6
and a NumPy older than 2.4.
"""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from zeropass.numerics import half, top_k
from zeropass.numerics.statistics import moments
from zeropass.numerics.token_index import TokenIndex

pytest.importorskip("triton", reason="Triton is not installed")
if not torch.cuda.is_available() and not os.environ.get("TRITON_INTERPRET"):
    pytest.skip("there is no GPU, and TRITON_INTERPRET is not set", allow_module_level=True)

from zeropass.numerics import triton_kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks so small that few numbers need several, and make the device multiply float16."""
    for name, size in (("GROUP", 16), ("_WIDE", 256), ("_TILE", 16), ("_DEPTH", 32)):
        monkeypatch.setattr(triton_kernels, name, size)
    monkeypatch.setattr(half, "_FIRST", 64)
    monkeypatch.setattr(top_k, "_quantizes", lambda _: False)
    monkeypatch.setattr(top_k, "_rounds", lambda _: True)


def drawn(vocab: int, d: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw rows of unequal norms, and vectors."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(vocab, d, generator=g) * (0.4 * torch.randn(vocab, 1, generator=g)).exp()
    return rows.to(DEVICE), torch.randn(n, d, generator=g).to(DEVICE)


def surveyed(rows: Tensor, vectors: Tensor, k: int, size: int) -> tuple[top_k.Survey, tuple[Tensor, ...]]:
    """Return a survey that starts at id 5, and the ranked lists of the tokens."""
    ready, index = (
        top_k.prepare_rows(rows - rows.mean(0), moments(rows).covariance),
        TokenIndex(len(rows), size, DEVICE),
    )
    return top_k.survey(vectors, ready, k, 2 * torch.arange(len(rows), device=DEVICE), index, 5), index.ranked()


def both(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> tuple[Any, Any, int]:
    """Return what Triton and torch find, and the number of calls of the former."""
    calls = []
    kept = half.kept
    with monkeypatch.context() as patch:
        patch.setattr(half, "kept", lambda *given: (calls.append(1), kept(*given))[1])
        by_triton = surveyed(*arguments)
    with monkeypatch.context() as patch:
        patch.setattr(half, "triton_kernels", None)
        return by_triton, surveyed(*arguments), len(calls)


@pytest.mark.parametrize(
    ("vocab", "d", "n", "k", "size"), [(900, 24, 150, 5, 5), (1000, 70, 130, 7, 3), (600, 5, 140, 3, 40)]
)
def test_triton_finds_what_torch_finds(
    monkeypatch: pytest.MonkeyPatch, vocab: int, d: int, n: int, k: int, size: int
) -> None:
    rows, vectors = drawn(vocab, d, n)
    vectors[70] = 0  # all its scores are equal
    (found, lists), (expected, expected_lists), calls = both(monkeypatch, rows, vectors, k, size)
    assert calls
    for name in ("top", "bottom"):
        torch.testing.assert_close(getattr(found.extremes, name), getattr(expected.extremes, name), rtol=0, atol=1e-4)
        ids = getattr(found.extremes, f"{name}_ids"), getattr(expected.extremes, f"{name}_ids")
        assert torch.equal(*ids)
    torch.testing.assert_close(found.kurtosis, expected.kurtosis, rtol=1e-2, atol=1e-2)
    assert torch.equal(lists[0], expected_lists[0])
    assert torch.equal(lists[1], expected_lists[1])
    torch.testing.assert_close(lists[2], expected_lists[2], rtol=0, atol=1e-4)


def test_more_matches_than_expected_need_the_full_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger vectors, which come later, replace all that the tokens have kept so far."""
    rows, vectors = drawn(700, 16, 160)
    vectors[:96] *= 0.01
    sizes: list[int] = []
    best = half._best_of_all
    monkeypatch.setattr(half, "_best_of_all", lambda z, k: (sizes.append(len(z)), best(z, k))[1])
    (found, lists), (expected, expected_lists), _ = both(monkeypatch, rows, vectors, 4, 4)
    assert sizes
    assert torch.equal(found.extremes.top_ids, expected.extremes.top_ids)
    assert torch.equal(found.extremes.bottom_ids, expected.extremes.bottom_ids)
    assert torch.equal(lists[1], expected_lists[1])


def test_bounds_hold() -> None:
    """The ends of groups bound the exact scores; the choice contains all that reaches floors and limits."""
    rows, vectors = drawn(500, 40, 20, seed=3)
    rough = half.product(half.to_half(vectors), half.to_half(rows))
    exact = (vectors.double() @ rows.double().T) / rough.unit
    off = rough.errors[:, None] * rough.sizes + rough.scores.float().abs() * half._ROUNDING + half._TINY
    assert bool(((exact - rough.scores.double()).abs() <= off).all())
    bounds = rough.errors, rough.sizes
    high, low, sums = triton_kernels.ends(rough.scores, *bounds, half._ROUNDING, half._TINY)
    for group in range(high.shape[1]):
        part = exact[:, 16 * group : 16 * group + 16]
        assert bool((high[:, group] <= part.amax(1)).all())
        assert bool((low[:, group] >= part.amin(1)).all())
    powers = torch.stack([(rough.scores.double() ** p).sum(1) for p in (1, 2, 3, 4)])
    torch.testing.assert_close(sums.double(), powers, rtol=1e-3, atol=1e-2 * float(powers[3].amax()) ** 0.25)
    floors = torch.stack((exact.quantile(0.98, dim=1), exact.quantile(0.02, dim=1))).float()
    limits = exact.abs().quantile(0.97, dim=0).float()
    places, filled = triton_kernels.chosen(rough.scores, *bounds, floors, limits, half._ROUNDING, half._TINY, 500)
    wanted = (exact >= floors[0, :, None]) | (exact <= floors[1, :, None]) | (exact.abs() >= limits)
    z = triton_kernels.dots(vectors, rows, places, filled)
    for row, count in enumerate(filled.tolist()):
        at = places[row, :count].long()
        assert len(at.unique()) == count < 500
        assert set(wanted[row].nonzero()[:, 0].tolist()) <= set(at.tolist())
        torch.testing.assert_close(z[row, :count].double(), exact[row, at] * rough.unit, rtol=1e-4, atol=1e-4)
