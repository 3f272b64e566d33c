"""Inverses of the embedding: how well they preserve inner products in the vocabulary (Dar et al. 2023, appendix A).

``⟨x, y⟩ = ⟨x Eᵀ, y E′⟩`` for a right inverse E′ of Eᵀ, (V, d) here. A reader sees only the k strongest tokens of each
side, so both sides are cut to those. The correlation of the true products with the cut ones says how much is left.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.evidence.activations import Activations, Settings
from zeropass.evidence.compared_frames import Spaces
from zeropass.evidence.resampling import correlation, summarised
from zeropass.evidence.results import EVERY_LAYER, Result
from zeropass.numerics.projection import keep_k, pseudo_inverse

__all__ = ["KEPT", "inverses"]

KEPT = (10, 30, 100, 300, 1_000, 3_000, 10_000, 15_000, 30_000)
"""The numbers of tokens kept on each side; the size of the vocabulary is added to them."""

VECTORS = 64


def inverses(spaces: Spaces, activations: Activations | None, settings: Settings, tell: Progress) -> list[Result]:
    """Return the results by kind of vector (``value``, ``state``, ``noise``), inverse and k.

    Each vector x is one item: its correlation over all vectors y. The null ``permuted`` shuffles the tokens of one
    side. Without a running model there are no states.

    Args:
        spaces: The rows of every frame.
        activations: The activations on the text; None without a running model.
        settings: The extent of the measurement.
        tell: Reports progress.
    """
    rows, results = spaces.frames.model.embedding, []
    samples = dict(_samples(spaces, activations, settings))
    right_inverses = {"transpose": rows, "pseudo-inverse": pseudo_inverse(rows)}
    order = torch.randperm(len(rows), generator=settings.generator(31))
    sizes = (*(k for k in KEPT if k < len(rows)), len(rows))
    for number, (role, (x, y)) in enumerate(samples.items()):
        left = x @ rows.T
        for name, inverse in right_inverses.items():
            right = y @ inverse.T
            for k in sizes:
                left_k, right_k = keep_k(left, k), keep_k(right, k)
                values = _survival(x, y, left_k, right_k)
                null = _survival(x, y, left_k, right_k[:, order])
                target = f"{name}, k={k}"
                results.append(
                    summarised(
                        "inverses", EVERY_LAYER, role, "paper", target, "correlation", values, {"permuted": null}
                    )
                )
        tell("inverses", number + 1, len(samples))
    return results


def _survival(x: Tensor, y: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return, for each x, the correlation over all y of ⟨x, y⟩ with the product of their projections, (n,)."""
    return correlation(x @ y.T, left @ right.T, 1)


def _samples(
    spaces: Spaces, activations: Activations | None, settings: Settings
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Yield two samples (64, d) of each kind of vector: FF values and hidden states of all layers, and noise."""
    model, generator = spaces.frames.model, settings.generator(30)
    per_layer = -(-2 * VECTORS // model.dims.layers)
    values = []
    for layer in (layer for layer in range(model.dims.layers) if model.dims.has_site("ff", layer)):
        at = torch.randperm(model.rows("value", layer), generator=generator)[:per_layer]
        values.append(model.matrix("value", layer)[at])
    yield "value", _halves(torch.cat(values), generator)
    if activations is not None:
        states = torch.cat([activations.kept["state", layer] for layer in range(model.dims.layers)])
        # States are scaled to unit length, or the few largest would determine the correlation alone.
        yield "state", _halves(states / states.norm(dim=1, keepdim=True), generator)
    yield "noise", _halves(torch.randn(2 * VECTORS, model.dims.d, generator=generator), generator)


def _halves(vectors: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw two samples of the same size without common vectors."""
    chosen = vectors[torch.randperm(len(vectors), generator=generator)[: 2 * VECTORS]]
    half = len(chosen) // 2
    return chosen[:half], chosen[half : 2 * half]
