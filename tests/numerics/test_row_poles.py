"""The k-th most extreme scores of rows: those of the full product."""

import pytest
import torch

from zeropass.numerics.factored import Factored
from zeropass.numerics.row_poles import row_poles


@pytest.mark.parametrize(("rows", "columns", "k"), [(3, 5, 5), (70, 1000, 10), (65, 64 * 12, 1), (2, 64 * 11 + 3, 10)])
@pytest.mark.parametrize("whole", [False, True])
def test_the_poles_of_rows_are_those_of_the_full_product(rows: int, columns: int, k: int, whole: bool) -> None:
    draw = torch.Generator().manual_seed(rows)
    left, right = torch.randn(rows, 4, generator=draw), torch.randn(columns, 4, generator=draw)
    if whole:  # many scores are equal
        left, right = left.round(), right.round()
    some = torch.randint(0, columns, (7,), generator=draw)
    poles, full = row_poles(Factored(left, right), k, some), left @ right.T
    ordered = full.sort(1).values
    assert torch.allclose(poles.some, full[:, some], atol=1e-6)
    assert torch.allclose(poles.high, ordered[:, -k], atol=1e-6)
    assert torch.allclose(poles.low, ordered[:, k - 1], atol=1e-6)


def test_the_score_that_is_the_kth_equals_it_exactly() -> None:
    draw = torch.Generator().manual_seed(0)
    product = Factored(torch.randn(40, 16, generator=draw), torch.randn(900, 16, generator=draw))
    poles = row_poles(product, 10, torch.arange(900))
    assert ((poles.some >= poles.high[:, None]).sum(1) == 10).all()
    assert ((poles.some <= poles.low[:, None]).sum(1) == 10).all()


@pytest.mark.parametrize("k", [0, 6])
def test_a_rank_beyond_the_columns_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="5 columns"):
        row_poles(Factored(torch.ones(2, 3), torch.ones(5, 3)), k, torch.arange(2))
