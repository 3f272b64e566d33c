"""What kind of change it is: a few words, a topic, or nothing in particular; and what that rests on. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zeropass._io.short_repr import ShortRepr
from zeropass.records.parameters import Token

__all__ = ["LEAD", "MARGIN", "TENTH", "Answer", "Finding", "Place", "Standout", "found", "unjudged"]

Answer = Literal["nothing", "topic", "narrow", "unjudged"]
"""The kinds of change that are told apart."""

MARGIN, LEAD = 1.5, 0.65
"""Thresholds in units of what chance reaches on the base: of the highest excess, and of its lead over the tenth.

They were set on the even-numbered fine-tunes of `reproduce/fleet.py` of two bases; docs/audit.md has the odd-numbered
ones and other bases."""

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
        z: The robust z of the log effect over the shown tokens.
        excess: For what is written, that z less the z in the effect of the base's own matrices; else None.
        places: The matrices with most of the effect, the first the largest.
    """

    token: Token
    z: float
    excess: float | None = None
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, repr=False)
class Finding(ShortRepr):
    """What kind of change it is, and what that rests on.

    Attributes:
        answer: ``narrow``: few words stand out in what it writes, far above the rest; ``topic``: words stand out, but
            no few of them; ``nothing``: none does more than in ordinary training; ``unjudged``: it cannot be told.
        reason: Why it cannot be told.
        excess: The highest excess of a word in what the change writes.
        lead: The excess of the first word less that of the tenth.
        chance: The highest excess of a word in a random change of the base, the median of the draws.
        draws: The number of random changes.
        threshold: The excess from which words stand out.
        lead_threshold: The lead from which few words stand out.
    """

    answer: Answer
    reason: str = ""
    excess: float = 0.0
    lead: float = 0.0
    chance: float = 0.0
    draws: int = 0
    threshold: float = 0.0
    lead_threshold: float = 0.0


def found(excesses: Sequence[float], chance: float, draws: int) -> Finding:
    """Return what kind of change it is.

    Args:
        excesses: The highest excesses of words, falling.
        chance: The highest excess of a word in a random change of the base, the median of the draws.
        draws: The number of random changes.
    """
    first = excesses[0]
    lead = first - excesses[min(TENTH, len(excesses)) - 1]
    threshold, lead_threshold = MARGIN * chance, LEAD * chance
    answer: Answer = "nothing"
    if first >= threshold:
        answer = "narrow" if lead >= lead_threshold else "topic"
    return Finding(
        answer=answer,
        excess=first,
        lead=lead,
        chance=chance,
        draws=draws,
        threshold=threshold,
        lead_threshold=lead_threshold,
    )


def unjudged(reason: str) -> Finding:
    """Return the finding of a change whose kind cannot be told."""
    return Finding(answer="unjudged", reason=reason)
