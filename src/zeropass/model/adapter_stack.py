"""Several adapters on one base: the weighted sum of their changes, where the changes can be summed.

LoRA (without DoRA) and AdaLoRA add a product to a matrix and a vector to a bias, whatever else is added. What replaces
or scales a parameter has no sum with another change.
"""

from collections.abc import Sequence

import torch

from zeropass.checkpoints.adapter_changes import Added, Change, Computed, LowRank, OfExperts, Rows, Scaled
from zeropass.checkpoints.adapter_methods import Adapter
from zeropass.errors import BadModel
from zeropass.model.adapter_fit import Fitted, Place

__all__ = ["stacked"]

_REASONS: dict[type, str] = {
    LowRank: "DoRA sets lengths that hold for its own change alone",
    Scaled: "IA3 multiplies",
    Rows: "trained tokens replace rows",
    Computed: "PEFT computes its method from the base alone",
    OfExperts: "changes of single experts are read of one adapter alone",
}
"""The reasons not to sum a change with others."""


def stacked(fits: Sequence[Fitted], adapters: Sequence[Adapter], weights: Sequence[float]) -> Fitted:
    """Return the weighted sum of the changes of several adapters, or one adapter as it is.

    Args:
        fits: The changes of each adapter, by place.
        adapters: The adapters, for messages.
        weights: The factor of each.

    Raises:
        BadModel: For an adapter whose changes cannot be summed or weighted.
    """
    if len(fits) == 1 and weights[0] == 1:
        return fits[0]
    terms: dict[Place, list[tuple[float, Change]]] = {}
    for fitted, adapter, weight in zip(fits, adapters, weights, strict=True):
        if fitted.replaced:
            what, _ = next(iter(fitted.replaced))
            raise _refusal(adapter, f"it brings {what} whole, which takes the place of the base's")
        for place, change in fitted.changed.items():
            if not _is_sum(change):
                raise _refusal(adapter, f"{_REASONS[type(change)]} ({place[0]})")
            terms.setdefault(place, []).append((weight, change))
    return Fitted(
        changed={place: _summed(parts) for place, parts in terms.items()},
        replaced={},
        tied=all(fitted.tied for fitted in fits),
        notes=tuple(dict.fromkeys(note for fitted in fits for note in fitted.notes)),
    )


def _refusal(adapter: Adapter, reason: str) -> BadModel:
    return BadModel(f"{adapter.folder} has no weighted sum with other adapters: {reason}. Put it on the model alone.")


def _is_sum(change: Change) -> bool:
    """Tell whether a change adds something that does not depend on what is there."""
    return isinstance(change, Added) or (isinstance(change, LowRank) and change.magnitude is None)


def _summed(parts: Sequence[tuple[float, Change]]) -> Change:
    """Return the weighted sum of changes of one parameter: of factors, side by side."""
    products = [(weight * part.scale, part) for weight, part in parts if isinstance(part, LowRank)]
    if not products:
        return Added(torch.stack([weight * part.shift for weight, part in parts if isinstance(part, Added)]).sum(0))
    up = torch.cat([scale * part.up for scale, part in products], dim=1)
    return LowRank(up, torch.cat([part.down for _, part in products]), 1.0)
