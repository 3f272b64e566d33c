"""The best lists for a weighted sum of the z of some tokens, from what an index holds of each token. No torch.

For each token an index has the lists in which its z is largest, in absolute value. In a list that it lacks, z is at
most the smallest that it has, so sums have bounds, and only those are computed that may be among the best. This is the
threshold algorithm of Fagin, Lotem and Naor, "Optimal aggregation algorithms for middleware" (PODS 2001).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Entries", "best_sums"]

_ROUNDING = 1e-4
"""The share by which a bound is raised: z in the index and z computed anew differ by rounding."""


@dataclass(frozen=True)
class Entries:
    """The part of an index about one token in one type of list.

    Attributes:
        zs: z by list id.
        rest: The largest absolute z that any other list may have.
    """

    zs: Mapping[int, float]
    rest: float


def best_sums(
    entries: Mapping[int, Entries],
    weights: Mapping[int, float],
    k: int,
    allowed: Callable[[int], bool],
    compute: Callable[[int], float],
) -> list[tuple[int, float]] | None:
    """Return the k lists with the largest absolute sums, or None if the index does not tell which they are.

    Args:
        entries: The part of the index about each token.
        weights: The weight of each token.
        k: How many lists.
        allowed: Tells whether a list, by its id, is searched.
        compute: Returns the sum of a list.

    Returns:
        (list id, sum), by falling absolute sum.
    """
    unseen = _raised(sum(abs(weight) * entries[token].rest for token, weight in weights.items()), weights)
    known: dict[int, float] = {}  # the sums that the index tells
    most: dict[int, float] = {}  # the largest absolute values of the others
    for i in dict.fromkeys(i for token in weights for i in entries[token].zs):
        if allowed(i):
            total = sum(weight * entries[token].zs.get(i, 0.0) for token, weight in weights.items())
            slack = sum(abs(weight) * entries[t].rest for t, weight in weights.items() if i not in entries[t].zs)
            (most if slack else known)[i] = abs(total) + _raised(slack, weights) if slack else total
    if unseen and _last_of(k, [*map(abs, known.values()), *most.values()]) < unseen:
        return None  # and nothing was computed
    for i in sorted(most, key=lambda i: -most[i]):
        if most[i] < _last_of(k, [*map(abs, known.values())]):
            break
        known[i] = compute(i)
    if unseen and _last_of(k, [*map(abs, known.values())]) < unseen:
        return None
    return sorted(known.items(), key=lambda entry: (-abs(entry[1]), entry[0]))[:k]


def _raised(bound: float, weights: Mapping[int, float]) -> float:
    """Return a bound with room for rounding; the z of a single token need none, because none are computed."""
    return bound * (1 + _ROUNDING) if len(weights) > 1 else bound


def _last_of(k: int, sizes: Sequence[float]) -> float:
    """Return the k-th largest size; zero if there are fewer."""
    return sorted(sizes, reverse=True)[k - 1] if len(sizes) >= k else 0.0
