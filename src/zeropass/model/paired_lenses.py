"""The lenses of two models that are compared or joined, in which tokens that both have stand for the same."""

from pathlib import Path

from zeropass.model.lens_maps import LensMaps, chosen_lens
from zeropass.model.model import Model

__all__ = ["LENSES", "LensChoice", "paired_lens"]

LensChoice = str | Path | LensMaps | None
"""A lens as `lens_maps.chosen_lens` takes it."""

LENSES: tuple[LensChoice, LensChoice] = ("auto", "auto")
"""The lenses by default: those that are kept for the weights of either model."""


def paired_lens(model: Model, lens: LensChoice) -> LensMaps | None:
    """Return the lens of one of two models that a user asks for: see `lens_maps.chosen_lens`.

    ``auto`` finds none for an encoder: lenses gain nothing between two of them (docs/alignment.md, "Real models").
    """
    return chosen_lens(model, lens if lens != "auto" or model.family.causal else None)
