"""A test of whether two answers are the same: equal ids, and scores that differ by rounding alone."""

from collections.abc import Sequence
from dataclasses import dataclass

ROUNDING = 1e-5
"""Scores may differ by this share of their list's largest, from fp32 sums in another order or scaling to z and back."""

List = tuple[Sequence[int], Sequence[float]]
"""Ids and scores, best first."""


class Differs(Exception):
    """Two answers differ by more than rounding."""


@dataclass(frozen=True)
class Agreement:
    """The agreement of two answers.

    Attributes:
        lists: The number of lists.
        ordered: The number of lists in the same order.
        same: The number of lists with the same ids.
        difference: The largest difference of scores, as a share of a list's best.
    """

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
    """Compare answers list by list; raise Differs where ids or scores differ by more than rounding explains.

    Equal scores may come in any order, and any id whose score equals the last one may be listed.
    """
    if len(ours) != len(theirs):
        raise Differs(f"{len(theirs)} lists and not {len(ours)}")
    differences = [_difference(number, *pair, rounding) for number, pair in enumerate(zip(ours, theirs, strict=True))]
    pairs = [(our_ids[0], their_ids[0]) for our_ids, their_ids in zip(ours, theirs, strict=True)]
    return Agreement(
        len(ours),
        sum(list(our_ids) == list(their_ids) for our_ids, their_ids in pairs),
        sum(set(our_ids) == set(their_ids) for our_ids, their_ids in pairs),
        max(differences, default=0.0),
    )


def _difference(number: int, ours: List, theirs: List, rounding: float) -> float:
    """Return the largest difference of two lists' scores, by rank and by id, as a share of the best score."""
    (ids, scores), (other_ids, other_scores) = ours, theirs
    if len(ids) != len(other_ids) or len(set(other_ids)) != len(other_ids):
        raise Differs(f"list {number} has {len(set(other_ids))} ids and not {len(ids)}")
    size = max(map(abs, scores), default=0.0) or 1.0
    our_scores, their_scores = dict(zip(ids, scores, strict=True)), dict(zip(other_ids, other_scores, strict=True))
    # An id that only one list has must be as good as the last id of the other list.
    by_id = [abs(our_scores.get(i, scores[-1]) - their_scores.get(i, other_scores[-1])) for i in {*ids, *other_ids}]
    by_rank = [abs(a - b) for a, b in zip(scores, other_scores, strict=True)]
    worst = max((*by_id, *by_rank), default=0.0) / size
    if not worst <= rounding:
        raise Differs(f"list {number} differs by {worst:.1e} of its best score; rounding explains {rounding:.0e}")
    return worst
