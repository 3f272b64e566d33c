"""The matrices that write a word most, or whose reading of it changed most."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zeropass.arch.roles import side_of
from zeropass.diff.changes import Change, Comparison
from zeropass.diff.effects import Effects
from zeropass.diff.findings import Place, Standout
from zeropass.diff.watched_words import effects as effects_on

__all__ = ["placed"]

PLACES = 3
"""The number of matrices that are named for a word."""


def placed(
    pair: Comparison, effects: Effects, usual: dict[tuple[int, str], float], sides: Mapping[str, Sequence[Standout]]
) -> dict[str, tuple[Standout, ...]]:
    """Return tokens that stand out with the matrices that have most of the change's effect on them.

    The changes are read a second time, since the tokens are known only after the first.

    Args:
        pair: The models.
        effects: The effects of the change.
        usual: The mean effect of each changed matrix on all tokens, by layer and role.
        sides: The tokens by the side of the matrices, ``read`` or ``write``.
    """
    ids = {
        side: torch.tensor([standout.token.id for standout in tokens], device=pair.base.device)
        for side, tokens in sides.items()
    }
    shares: dict[str, list[tuple[int, str, Tensor]]] = {side: [] for side in sides}
    for (layer, role), mean in usual.items():
        side = side_of(role)
        if mean > 0 and len(ids[side]):
            change = Change(layer=layer, role=role, added=pair.added(role, layer), before=0.0)
            folded, rows = effects.folded(change.root, role, layer), effects.some_rows(role, layer, ids[side])
            shares[side].append((layer, role, effects_on(rows, folded) / mean))
    return {side: tuple(_with_places(tokens, shares[side])) for side, tokens in sides.items()}


def _with_places(tokens: Sequence[Standout], parts: Sequence[tuple[int, str, Tensor]]) -> list[Standout]:
    """Return tokens with the matrices that have most of the effect on each, from the effects (n,) of all matrices."""
    if not parts:
        return list(tokens)
    each = torch.stack([effect for _, _, effect in parts])
    shares = each / each.sum(0).clamp_min(torch.finfo(each.dtype).tiny)
    best = shares.topk(min(PLACES, len(parts)), dim=0)
    return [
        replace(
            token,
            places=tuple(
                Place(layer=parts[i][0], role=parts[i][1], share=share)
                for i, share in zip(best.indices[:, n].tolist(), best.values[:, n].tolist(), strict=True)
            ),
        )
        for n, token in enumerate(tokens)
    ]
