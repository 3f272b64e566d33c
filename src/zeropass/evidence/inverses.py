"""Inverses: how well inner products survive the way into the vocabulary and back (Dar et al. 2023, appendix A).

``⟨x, y⟩ = ⟨x Eᵀ, y E′⟩`` for a right inverse E′ of Eᵀ, (V, d) here. A person sees only the strongest k tokens of each
side, so both are cut to those; the correlation of the true products with the cut ones says how much is left.
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
"""Tokens that are kept of each side; the whole vocabulary is added."""

VECTORS = 64


def inverses(spaces: Spaces, activations: Activations | None, settings: Settings, tell: Progress) -> list[Result]:
    """Results by kind of vector (``value``, ``state``, ``noise``), inverse and k: one item a vector x, over all y.

    The null ``permuted`` shuffles the tokens of one side. Without a running model there are no states.
    """
    rows, found = spaces.frames.model.embedding, []
    kinds = dict(_kinds(spaces, activations, settings))
    used = {"transpose": rows, "pseudo-inverse": pseudo_inverse(rows)}
    order = torch.randperm(len(rows), generator=settings.generator(31))
    kept = (*(k for k in KEPT if k < len(rows)), len(rows))
    for number, (kind, (x, y)) in enumerate(kinds.items()):
        left = x @ rows.T
        for name, inverse in used.items():
            right = y @ inverse.T
            for k in kept:
                own, wrong = keep_k(left, k), keep_k(right, k)
                values = _survival(x, y, own, wrong)
                null = _survival(x, y, own, wrong[:, order])
                target = f"{name}, k={k}"
                found.append(
                    summarised(
                        "inverses", EVERY_LAYER, kind, "paper", target, "correlation", values, {"permuted": null}
                    )
                )
        tell("inverses", number + 1, len(kinds))
    return found


def _survival(x: Tensor, y: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """For each x the correlation, over all y, of ⟨x, y⟩ with the product of their projections, (n,)."""
    return correlation(x @ y.T, left @ right.T, 1)


def _kinds(
    spaces: Spaces, activations: Activations | None, settings: Settings
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Two samples (64, d) of each kind of vector: FF values of all layers, hidden states of all layers, noise."""
    model, generator = spaces.frames.model, settings.generator(30)
    each = -(-2 * VECTORS // model.dims.layers)
    values = []
    for layer in range(model.dims.layers):
        at = torch.randperm(model.dims.neurons, generator=generator)[:each]
        values.append(model.matrix("value", layer)[at])
    yield "value", _halves(torch.cat(values), generator)
    if activations is not None:
        every = torch.cat([activations.kept["state", layer] for layer in range(model.dims.layers)])
        # Of unit length: else the few largest states would be all that a correlation sees.
        yield "state", _halves(every / every.norm(dim=1, keepdim=True), generator)
    yield "noise", _halves(torch.randn(2 * VECTORS, model.dims.d, generator=generator), generator)


def _halves(vectors: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    chosen = vectors[torch.randperm(len(vectors), generator=generator)[: 2 * VECTORS]]
    half = len(chosen) // 2
    return chosen[:half], chosen[half : 2 * half]
