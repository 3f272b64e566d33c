"""The kind of a change: a few words, a topic, or nothing in particular; and the numbers that it rests on. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zeropass._io.short_repr import ShortRepr
from zeropass.diff.thresholds import Thresholds
from zeropass.records.parameters import Token

__all__ = ["LEAD", "MARGIN", "TENTH", "Answer", "Finding", "Place", "Standout", "judged", "unjudged"]

Answer = Literal["nothing", "topic", "narrow", "unjudged"]
"""The kinds of change that are told apart."""

MARGIN, LEAD = 2.3, 1.2
"""Thresholds in units of the highest excess that chance reaches on the base: of the first word, and of its lead.

They were set on the even-numbered fine-tunes of `reproduce/fleet.py` of two bases; docs/audit.md has the odd-numbered
ones, and another base."""

TENTH = 10
"""The place of the word that the first one's lead is measured from."""


@dataclass(frozen=True, repr=False)
class Place(ShortRepr):
    """A matrix, and its share of the effect of all matrices of its side on a token; all have equal parts on average."""

    layer: int
    role: str
    share: float


@dataclass(frozen=True, repr=False)
class Standout(ShortRepr):
    """A token that a change concerns more than others.

    Attributes:
        token: The token.
        z: The robust z, over the shown tokens, of the length that the change gives to the token.
        excess: For what is written, that of its length relative to what the base's own matrices give; else None.
        places: The matrices with most of the effect, the first the largest.
    """

    token: Token
    z: float
    excess: float | None = None
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, repr=False)
class Finding(ShortRepr):
    """The kind of a change, and the numbers that it rests on.

    Attributes:
        answer: ``narrow``: few words stand out in what it writes, far above the rest; ``topic``: many do; ``nothing``:
            none does more than in ordinary training; ``unjudged``: it cannot be told.
        reason: Why it cannot be told, or why nothing need be.
        excess: The highest excess of a word in what the change writes.
        lead: The excess of the first word less that of the tenth.
        chance: The highest excess of a word in a random change of the base, the median of the draws.
        draws: The number of random changes.
        threshold: The excess of the first word from which many words are said to stand out.
        lead_threshold: The lead of the first word from which few words are said to stand out.
        benign: The number of benign changes of the base that the thresholds rest on; 0 for random ones alone.
        through: ``o`` if no matrix that writes changed, and it is judged by what its values write through the base's
            output matrices; else empty.
    """

    answer: Answer
    reason: str = ""
    excess: float = 0.0
    lead: float = 0.0
    chance: float = 0.0
    draws: int = 0
    threshold: float = 0.0
    lead_threshold: float = 0.0
    benign: int = 0
    through: str = ""


def judged(
    excesses: Sequence[float],
    chance: float,
    draws: int,
    benign: Thresholds | None = None,
    random_lead: float = 0.0,
) -> Finding:
    """Return the kind of a change.

    Args:
        excesses: The highest excesses of words, falling.
        chance: The highest excess of a word in a random change of the base, the median of the draws.
        draws: The number of random changes.
        benign: The excesses and leads that benign changes of the base reach: thresholds are where these end, but not
            below chance.
        random_lead: The lead of the first word over the tenth in a random change, the median of the draws.
    """
    first = excesses[0]
    lead = first - excesses[min(TENTH, len(excesses)) - 1]
    threshold, lead_threshold = MARGIN * chance, LEAD * chance
    if benign is not None:
        threshold, lead_threshold = max(benign.excess, chance), max(benign.lead, random_lead)
    answer: Answer = "narrow" if lead >= lead_threshold else "topic" if first >= threshold else "nothing"
    return Finding(
        answer=answer,
        excess=first,
        lead=lead,
        chance=chance,
        draws=draws,
        threshold=threshold,
        lead_threshold=lead_threshold,
        benign=0 if benign is None else len(benign.changes),
    )


def unjudged(reason: str) -> Finding:
    """Return the finding of a change whose kind cannot be told."""
    return Finding(answer="unjudged", reason=reason)
