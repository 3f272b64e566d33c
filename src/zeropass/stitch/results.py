"""What a stitch is and how far to believe it: plain data and its JSON. No torch."""

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Stitch", "Try", "Verdict", "judged"]

KEPT = 0.5
"""A stitch is believed if it keeps at least so much of what the classifier itself has above shuffled tokens."""


@dataclass(frozen=True)
class Try:
    """One way to make the classifier, and what tells its worth without labels.

    ``fit``: share of held-out tokens that the translation carries to themselves (`Bridge.fit`). On texts, where there
    are some: ``expected`` is the accuracy that the classifier's own probabilities give these answers, ``agreement`` the
    share of texts on which both say the same, ``confidence`` the mean probability of what is said, ``consensus`` the
    mean agreement with all that was tried. ``strength`` is what a transplanted change was multiplied by.
    """

    keep: int
    take: int
    kernel: str
    frame: str
    strength: float | None = None
    fit: float | None = None
    expected: float | None = None
    agreement: float | None = None
    confidence: float | None = None
    consensus: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether to believe it. ``trusted`` is None where it could not be checked.

    ``own``: what the classifier itself is expected to have; ``null`` and ``null_best``: mean and best of the same
    stitch with shuffled tokens; ``kept``: (expected − null) / (own − null).
    """

    trusted: bool | None
    text: str
    expected: float | None = None
    own: float | None = None
    null: float | None = None
    null_best: float | None = None
    kept: float | None = None


@dataclass(frozen=True)
class Stitch:
    """A finished ``stitch`` or ``transplant``: of what, how, what else was tried, and the verdict.

    ``layers`` are those of the classifier, and those of the other model that took over their change (transplant).
    """

    kind: str
    classifier: dict[str, Any]
    onto: dict[str, Any]
    shared: dict[str, Any]
    choice: Try
    tries: tuple[Try, ...]
    verdict: Verdict
    texts: int = 0
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    layers: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A dict that json.dumps takes as it is."""
        return asdict(self)


def judged(expected: float, own: float, nulls: tuple[float, ...]) -> Verdict:
    """The verdict on a stitch from what it, the classifier and stitches with shuffled tokens are expected to have."""
    null, best = sum(nulls) / len(nulls), max(nulls)
    kept = (expected - null) / (own - null) if own > null else 0.0
    numbers = f"expected accuracy {expected:.2f} on texts like these, the classifier itself {own:.2f} (its own account)"
    if expected <= best:
        trusted, text = False, f"Do not trust this one: {numbers}, and shuffled tokens give up to {best:.2f}."
    elif kept < KEPT:
        trusted = False
        text = f"Do not trust this one: {numbers}; it keeps {kept:.0%} of what that has above shuffled tokens."
    else:
        trusted = True
        text = f"{numbers[0].upper()}{numbers[1:]}, shuffled tokens {null:.2f}: it keeps {kept:.0%} of the difference."
    return Verdict(trusted, text, expected, own, null, best, kept)
