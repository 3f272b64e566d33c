"""The most telling parts of a comparison: directions by how far their words stand out, words that came and went."""

from collections.abc import Iterator
from dataclasses import dataclass

from zeropass.diff.results import ChangeDirection, Diff, MatrixChange, ParameterChange
from zeropass.records.parameters import PairRecord, Record, VectorRecord

__all__ = ["TELLING", "Exchange", "exchange", "ranked", "telling"]

TELLING = 1.5
"""A direction is telling if a word of it stands out so many times as far as in random directions."""

WORDS = 5
"""The number of first words, or pairs, of a list that are compared with all of the other."""


@dataclass(frozen=True)
class Exchange:
    """The words of a list that came and went with a change.

    Attributes:
        role: The role of the list.
        verb: The verb of the list: sees, is about to say, writes; nothing for the pairs of a head.
        sign: The pole, + or −; nothing for the pairs of a head.
        came: First words of the list after that are not in the list before.
        went: First words of the list before that are not in the list after.
    """

    role: str
    verb: str
    sign: str
    came: tuple[str, ...]
    went: tuple[str, ...]


def ranked(difference: Diff) -> list[tuple[MatrixChange, ChangeDirection]]:
    """Return all directions of a change, each with its matrix, the most telling first."""
    each = [(matrix, direction) for matrix in difference.matrices for direction in matrix.directions]
    return sorted(each, key=lambda pair: -pair[1].telling)


def telling(difference: Diff) -> list[tuple[MatrixChange, ChangeDirection]]:
    """Return the directions in which a word stands out `TELLING` times as far as chance, the most telling first."""
    return [pair for pair in ranked(difference) if pair[1].z >= TELLING * pair[1].chance > 0]


def exchange(change: ParameterChange) -> Exchange | None:
    """Return what came and went in the list with the most new words; None if no list has any that stand out."""
    best: Exchange | None = None
    for before, after in zip(change.before, change.after, strict=False):
        for each in _exchanges(before, after):
            if each.came and (best is None or len(each.came) > len(best.came)):
                best = each
    return best


def _exchanges(before: Record, after: Record) -> Iterator[Exchange]:
    """Yield what came and went in each pole of a list, or in the pairs of a head; nothing for a faint list."""
    if isinstance(before, PairRecord) and isinstance(after, PairRecord):
        lists = ([f"{pair.left.token}→{pair.right.token}" for pair in record.pairs] for record in (before, after))
        came, went = _differing(*lists)
        yield Exchange(role=after.role, verb="", sign="", came=came, went=went)
    if not isinstance(before, VectorRecord) or not isinstance(after, VectorRecord) or after.faint:
        return
    for sign, old, new in (("+", before.top, after.top), ("−", before.bottom, after.bottom)):
        came, went = _differing([token.token for token in old], [token.token for token in new])
        yield Exchange(role=after.role, verb=after.verb, sign=sign, came=came, went=went)


def _differing(before: list[str], after: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the first entries of the list after that the other lacks, and those of the list before."""
    came = tuple(entry for entry in after[:WORDS] if entry not in before)
    went = tuple(entry for entry in before[:WORDS] if entry not in after)
    return came, went
