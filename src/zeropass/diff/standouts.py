"""The tokens that stand out in the effects of a change, and the kind of change that they make it."""

import math

import torch
from torch import Tensor

from zeropass.diff.effects import DRAWS, Effects
from zeropass.diff.findings import TENTH, Finding, Standout, judged, unjudged
from zeropass.diff.thresholds import Thresholds
from zeropass.records.parameters import Token
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["finding_of", "standouts"]


def standouts(
    effects: Effects, side: str, ids: Tensor, chosen: Tensor, vocab: Vocabulary, most: int
) -> tuple[Standout, ...]:
    """Return the tokens that stand out most on a side: in what is written by their excess, else by their z.

    Args:
        effects: The effects of the change.
        side: ``sees`` or ``writes``; there are none on a side that the change does not act on.
        ids: The tokens that are shown, (n,).
        chosen: Those of them that may be listed, (n,).
        vocab: The vocabulary.
        most: The largest number of tokens.
    """
    if side not in effects.change.totals or not bool(chosen.any()):
        return ()
    z = effects.z(side, ids)
    excess = effects.excess(ids) if side == "writes" else None
    order = z if excess is None else excess
    places = order.masked_fill(~chosen, -math.inf).topk(min(most, int(chosen.sum()))).indices.tolist()
    return tuple(
        Standout(
            token=Token(int(ids[place]), vocab.label(int(ids[place]))),
            z=float(z[place]),
            excess=None if excess is None else float(excess[place]),
        )
        for place in places
    )


def finding_of(
    effects: Effects, ids: Tensor, words: Tensor, benign: Thresholds | None = None, chance: Tensor | None = None
) -> Finding:
    """Return what kind of change it is, from the words that stand out in what it writes.

    Args:
        effects: The effects of the change.
        ids: The tokens that are shown, (n,).
        words: Those of them that are whole words, (n,).
        benign: What benign changes of the base reach, if that is known.
        chance: The excess of these tokens in random changes of the base, (`DRAWS`, n); that of ``effects`` if None.
    """
    if "writes" not in effects.change.totals:
        return unjudged("it changes no matrix that writes to the residual stream")
    drawn = _highest((effects.chance(ids) if chance is None else chance)[:, words])
    return judged(
        _highest(effects.excess(ids)[words]).tolist(),
        float(drawn[:, 0].median()),
        DRAWS,
        benign,
        float((drawn[:, 0] - drawn[:, -1]).median()),
    )


def _highest(excess: Tensor) -> Tensor:
    """Return the highest excesses, as many as the finding needs, falling, (…, n)."""
    return torch.topk(excess, min(TENTH, excess.shape[-1])).values
