"""Proofs: how far the forward pass that a record describes is from that of transformers on the same files. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from zeropass.records.panels import AsFigure, Curve, Curves
from zeropass.records.parameters import AsJson
from zeropass.records.tabular import Row, Several, plain_fields

__all__ = ["Compared", "Proof", "Unproven"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, repr=False)
class Compared(AsJson):
    """One part of a forward pass beside that of transformers, from the same states.

    Attributes:
        part: ``embedding``, ``block 3``, ``logits``.
        layer: The layer; None outside the blocks.
        error: The distance from what transformers gives, relative to what the part adds to the stream (to the logits
            without their mean), for the token at which it is largest beside its tolerance.
        tolerance: The largest error that rounding explains at this token.
        tokens: The number of tokens that were compared.
        differs: The first activation of a part that differs which transformers does not have; empty if it agrees.
    """

    part: str
    layer: int | None
    error: float
    tolerance: float
    tokens: int
    differs: str = ""

    @property
    def agrees(self) -> bool:
        """True if the error is explained by rounding."""
        return self.error <= self.tolerance

    def table_rows(self) -> Iterator[Row]:
        """Yield the row of this part."""
        yield {**plain_fields(self), "agrees": self.agrees}


@dataclass(frozen=True, repr=False)
class Unproven(AsJson):
    """A parameter that is not proven in some layers, and why.

    Attributes:
        parameter: Its canonical name.
        layers: The layers; empty for what all layers share.
        reason: Why it is not proven.
    """

    parameter: str
    layers: tuple[int, ...]
    reason: str

    @property
    def words(self) -> str:
        """The parameter, its layers and the reason, as text: ``k_bias of layers 0 to 29: it is 0``."""
        return f"{self.parameter}{_of_layers(self.layers)}: {self.reason}"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each layer."""
        for layer in self.layers or (None,):
            yield {"parameter": self.parameter, "layer": layer, "reason": self.reason}


@dataclass(frozen=True, repr=False)
class Proof(Several[Compared], AsJson, AsFigure):
    """The parts of a model's forward pass compared with transformers: a sequence of them.

    Attributes:
        model: Facts about the model: name, family, bytes and SHA-256 of its weights, and the key of its record.
        method: How it was proven: versions, date, device, texts, tokens and seed, and the basis of the tolerance.
        parts: Every part, in the order of the pass.
        unproven: The parameters that are not proven although the parts agree.
        limits: Sentences on what the pass does not show.

    Example:
        >>> import zeropass as zp
        >>> proof = zp.prove("models/first", tokens=32, keep=False)
        >>> proof.proven, [part.part for part in proof][:2]
        (True, ['embedding', 'block 0'])
    """

    model: dict[str, Any]
    method: dict[str, Any]
    parts: tuple[Compared, ...]
    unproven: tuple[Unproven, ...] = ()
    limits: tuple[str, ...] = field(default=())

    _ITEMS = "parts"

    @property
    def proven(self) -> bool:
        """True if every part agrees with transformers."""
        return all(part.agrees for part in self.parts)

    @property
    def words(self) -> str:
        """The outcome in a line."""
        judge = f"transformers {self.method['transformers']}"
        first = next((part for part in self.parts if not part.agrees), None)
        if first is not None:
            at = f", at its {first.differs}" if first.differs else ""
            numbers = f"error {first.error:.1g}, and rounding explains {first.tolerance:.1g}"
            return f"DIFFERS from {judge}: {first.part} is the first that does{at} ({numbers})"
        worst = max(self.parts, key=lambda part: part.error)
        largest = f"largest error {worst.error:.1g} in {worst.part}, where rounding explains {worst.tolerance:.1g}"
        return f"proven against {judge}: {self._extent} ({largest})"

    @property
    def _extent(self) -> str:
        blocks = sum(part.layer is not None for part in self.parts)
        names = [part.part for part in self.parts if part.layer is None]
        return ", ".join([*names[:1], f"{blocks} block{'s' * (blocks != 1)}", *names[1:]])

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each part."""
        for part in self.parts:
            yield from part.table_rows()

    def panel(self) -> Curves:
        """Return the error and the tolerance of each block, hollow where the error is larger."""
        blocks = [part for part in self.parts if part.layer is not None]
        at = [part.layer for part in blocks if part.layer is not None]
        hollow = [not part.agrees for part in blocks]
        return Curves(
            title="Distance from transformers",
            notes=(self.words,),
            x="layer",
            y="relative error",
            curves=[
                Curve(name="error", x=at, y=[part.error for part in blocks], hollow=hollow),
                Curve(name="tolerance", x=at, y=[part.tolerance for part in blocks], null=True),
            ],
        )

    def to_json(self) -> dict[str, Any]:
        """Return a dict that json.dumps accepts."""
        return {"schema": SCHEMA_VERSION, "proven": self.proven, "words": self.words, **super().to_json()}


def _of_layers(layers: tuple[int, ...]) -> str:
    """Return layers as text; those in a row by their ends."""
    if not layers:
        return ""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f" of layer{'s' * (len(layers) > 1)} {', '.join(parts)}"
