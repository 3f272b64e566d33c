"""Whether two ways gave the same answer: the same ids, and scores that differ by rounding alone."""

from collections.abc import Sequence
from dataclasses import dataclass

ROUNDING = 1e-5
"""Scores may differ by this share of their list's largest: fp32 sums in another order, or scaled to z and back."""

List = tuple[Sequence[int], Sequence[float]]
"""Ids and scores, best first."""


class Differs(Exception):
    """Two answers differ by more than rounding."""


@dataclass(frozen=True)
class Agreement:
    """How far two answers agree: lists in all, those in the same order, those of the same ids, largest difference."""

    lists: int
    ordered: int
    same: int
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.ordered:,} of {self.lists:,} lists in the same order, {self.same:,} of the same ids; "
            f"scores differ by at most {self.difference:.1e} of a list's best"
        )


def agreement(ours: Sequence[List], theirs: Sequence[List], rounding: float = ROUNDING) -> Agreement:
    """Compare answers list by list; Differs where ranks, ids or scores differ by more than rounding explains.

    Equal scores may come in any order, and any of those at a list's end may be the one that is listed.
    """
    if len(ours) != len(theirs):
        raise Differs(f"{len(theirs)} lists and not {len(ours)}")
    differences = [_difference(number, *pair, rounding) for number, pair in enumerate(zip(ours, theirs, strict=True))]
    pairs = [(mine[0], other[0]) for mine, other in zip(ours, theirs, strict=True)]
    return Agreement(
        len(ours),
        sum(list(mine) == list(other) for mine, other in pairs),
        sum(set(mine) == set(other) for mine, other in pairs),
        max(differences, default=0.0),
    )


def _difference(number: int, ours: List, theirs: List, rounding: float) -> float:
    """The largest difference of two lists' scores, by rank and by id, as a share of the best score."""
    (ids, scores), (other_ids, others) = ours, theirs
    if len(ids) != len(other_ids) or len(set(other_ids)) != len(other_ids):
        raise Differs(f"list {number} has {len(set(other_ids))} ids and not {len(ids)}")
    size = max(map(abs, scores), default=0.0) or 1.0
    own, other = dict(zip(ids, scores, strict=True)), dict(zip(other_ids, others, strict=True))
    # An id that only one list has must be as good as the end of the other one.
    by_id = [abs(own.get(i, scores[-1]) - other.get(i, others[-1])) for i in {*ids, *other_ids}]
    by_rank = [abs(a - b) for a, b in zip(scores, others, strict=True)]
    worst = max((*by_id, *by_rank), default=0.0) / size
    if not worst <= rounding:
        raise Differs(f"list {number} differs by {worst:.1e} of its best score; rounding explains {rounding:.0e}")
    return worst
