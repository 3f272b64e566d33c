"""The pairs of a head map that a token is in, over all tokens of the other side: exact, not taken from a list."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zeropass.arch.spec import check_count
from zeropass.errors import BadOption
from zeropass.lens import Lens, pair_record
from zeropass.numerics.factored import Factored
from zeropass.numerics.top_pairs import TopPairs
from zeropass.records.parameters import PairRecord
from zeropass.tokens.vocabulary import View

__all__ = ["pairs_with"]


def pairs_with(
    lens: Lens,
    address: str,
    product: Factored,
    offset: int,
    *,
    left: Sequence[int] = (),
    right: Sequence[int] = (),
    tokens: View | None = None,
    k: int = 50,
) -> PairRecord:
    """The k best pairs of a head map whose left (or right) token is among some; of both, those that fit both.

    address: of the map (``L10.attn.3.qk``). product: the map in the token frame, as `Lens.head_map` gives it at an
    ``offset``. left, right: token ids; tokens that the view hides may be asked for, they only never answer.
    Raises BadOption where neither side is given, or a token is not in the vocabulary.
    """
    check_count(k)
    if not left and not right:
        raise BadOption(f"{address}: a filter needs a token, on the left or on the right.")
    view = lens.view(tokens or lens.tokens)
    size = len(view.mask)
    if wrong := [i for i in (*left, *right) if not 0 <= i < size]:
        raise BadOption(f"There is no token {wrong[0]}; the vocabulary has 0 to {size - 1}.")
    rows = torch.tensor(sorted(set(left)), device=view.ids.device) if left else view.ids
    columns = torch.tensor(sorted(set(right)), device=view.ids.device) if right else view.ids
    found = _best(product, rows, columns, k)
    place, _, role = address.rpartition(".")
    return pair_record(lens.model.vocab, place, role, offset, "token", found, view.hidden)


def _best(product: Factored, rows: Tensor, columns: Tensor, k: int) -> TopPairs:
    """The k best of all pairs of some rows and columns; of equal scores the smaller ids first."""
    scores = (product.left[rows] @ product.right[columns].T).flatten()
    k = min(k, len(scores))
    best, order = scores.sort(descending=True, stable=True)
    best, order = best[:k], order[:k]
    kth = float(best[-1]) if k else float("inf")
    # Every pair was looked at: nothing is left that a bound could be about.
    return TopPairs(rows[order // len(columns)], columns[order % len(columns)], best, kth, float("inf"), True, 1.0)
