"""The record of a stitch and the verdict on it: plain data, without torch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from zeropass._io.short_repr import ShortRepr
from zeropass.records.panels import AsFigure, Bars
from zeropass.records.tabular import AsTable, Row, Several, plain_fields

__all__ = ["Stitch", "Try", "Verdict", "judged"]

KEPT = 0.5
"""The least share of the classifier's advantage over shuffled tokens that a trusted stitch keeps."""


@dataclass(frozen=True, repr=False)
class Try(ShortRepr):
    """One way to make the classifier, with measures of its quality that need no labels.

    All measures but ``fit`` are taken on the texts; without texts they are None.

    Attributes:
        keep: The number of lower blocks of the other model.
        take: The number of upper blocks of the classifier; in a transplant, of layers that take over a change.
        kernel: The kernel of the translation.
        frame: The frame of the translation.
        strength: The factor of a transplanted change.
        fit: The share of held-out tokens that the translation carries to themselves (`Bridge.fit`).
        expected: The accuracy of the answers according to the classifier's own probabilities.
        agreement: The share of texts on which the classifier gives the same answer.
        confidence: The mean probability of the answers.
        consensus: The mean agreement with everything that was tried.
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


@dataclass(frozen=True, repr=False)
class Verdict(ShortRepr):
    """The verdict on a stitch.

    Attributes:
        trusted: Whether to trust it; None if it could not be checked.
        text: A sentence for the user.
        expected: The expected accuracy of the stitch.
        own: The expected accuracy of the classifier itself.
        null: The mean expected accuracy of the same stitch with shuffled tokens.
        null_best: The best expected accuracy with shuffled tokens.
        kept: (expected − null) / (own − null).
    """

    trusted: bool | None
    text: str
    expected: float | None = None
    own: float | None = None
    null: float | None = None
    null_best: float | None = None
    kept: float | None = None


@dataclass(frozen=True, repr=False)
class Stitch(Several[Try], ShortRepr, AsTable, AsFigure):
    """The record of a finished ``stitch`` or ``transplant``: a sequence of what was tried.

    Attributes:
        kind: ``stitch`` or ``transplant``.
        classifier: Facts about the classifier.
        onto: Facts about the other model.
        shared: The number of shared tokens, and the sizes of both vocabularies.
        choice: The way that was chosen.
        tries: Everything that was tried, the best first.
        verdict: The verdict on it.
        texts: The number of texts.
        notes: Sentences for the user.
        labels: The names of the labels.
        layers: Layers of the classifier, each with the layer of the other model that took over its change (transplant).
        lenses: The lenses of the frame ``seen``, in words: of the classifier, and of the other model.

    Example:
        >>> import zeropass as zp
        >>> tuned = zp.adapt(zp.open_model("models/first"), "models/tunes/reviews")
        >>> _, record = zp.stitch_models(tuned, zp.open_model("models/second"), keep=2, take=2)
        >>> record.choice.keep, record.choice.take, record.shared["tokens"]
        (2, 2, 4095)
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
    lenses: tuple[str, ...] = ()

    _ITEMS = "tries"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for everything that was tried."""
        yield from map(plain_fields, self.tries)

    def panel(self) -> Bars:
        """Return everything that was tried, by its expected accuracy or, without texts, by its fit on tokens."""
        measured = all(attempt.expected is not None for attempt in self.tries)
        values = [attempt.expected if measured else attempt.fit for attempt in self.tries]
        references = {"the classifier itself": self.verdict.own, "shuffled tokens": self.verdict.null}
        lines = {name: value for name, value in references.items() if measured and value is not None}
        return Bars(
            title=f"{self.kind.capitalize()}: {len(self.tries)} tried",
            notes=(f"dashed: {', '.join(f'{name} {value:.2f}' for name, value in lines.items())}",) if lines else (),
            x="expected accuracy" if measured else "held-out tokens carried to themselves",
            right=[(_in_short(attempt), value or 0.0) for attempt, value in zip(self.tries, values, strict=True)],
            lines=tuple(lines.values()),
        )

    def to_json(self) -> dict[str, Any]:
        """Return a dict that json.dumps takes as it is."""
        return asdict(self)


def _in_short(attempt: Try) -> str:
    """Return the settings of a try."""
    strength = "" if attempt.strength is None else f", strength {attempt.strength:g}"
    return f"keep {attempt.keep}, take {attempt.take}, {attempt.kernel}, {attempt.frame}{strength}"


def judged(expected: float, own: float, nulls: tuple[float, ...]) -> Verdict:
    """Return the verdict on a stitch.

    Args:
        expected: The expected accuracy of the stitch.
        own: The expected accuracy of the classifier itself.
        nulls: The expected accuracies of the same stitch with shuffled tokens.
    """
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
    return Verdict(trusted=trusted, text=text, expected=expected, own=own, null=null, null_best=best, kept=kept)
