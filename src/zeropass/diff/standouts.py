"""The tokens that stand out in the effects of a change, and the kind of change that they make it."""

import math
from dataclasses import replace

from torch import Tensor

from zeropass.diff.effects import Effects
from zeropass.diff.findings import TENTH, Finding, Standout, judged, unjudged
from zeropass.diff.random_changes import DRAWS, RandomChanges
from zeropass.diff.thresholds import Thresholds
from zeropass.records.parameters import Token
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["finding_of", "standouts"]

UNJUDGED_VALUES = "it changes no matrix that writes, and words that heads write of its values are no evidence"
"""The reason why a change of values whose words do not stand out is not judged; docs/audit.md has the measurements."""


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


def finding_of(effects: Effects, random: RandomChanges, benign: Thresholds | None = None) -> Finding:
    """Return what kind of change it is, from the words that stand out in what it writes.

    Args:
        effects: The effects of the change.
        random: Random changes of the base, with the tokens that are shown.
        benign: What benign changes of the base reach, if that is known.
    """
    if "writes" not in effects.change.totals:
        return unjudged("it changes no matrix that writes to the residual stream, and no values")
    if effects.through:  # of ordinary LoRAs of q and v of SmolLM2, one in six would be narrow (docs/audit.md)
        return replace(unjudged(UNJUDGED_VALUES), through=effects.through)
    excess = effects.excess(random.ids)[random.words]
    highest = excess.topk(min(TENTH, len(excess))).values.tolist()
    return judged(highest, random.chance, DRAWS, benign, random.lead)
