"""The relation of two models: equal, equal but for rounding, one made of the other, or trained apart."""

from collections.abc import Iterable
from typing import Any

from zeropass.checkpoints.storing import storing_error
from zeropass.diff.changes import Comparison
from zeropass.diff.results import Constant, Relation, TensorChange
from zeropass.diff.tensors import missing
from zeropass.model.adapted import Adapted
from zeropass.model.model import Model

__all__ = ["UNRELATED", "facts_of", "relation_of"]

UNRELATED = 0.1
"""The mean cosine below which the matrices of two models are no more alike than those of models trained apart.

docs/audit.md has the measurements."""


def relation_of(
    pair: Comparison,
    cosine: float,
    roundings: Iterable[bool],
    tables: Iterable[TensorChange],
    constants: Iterable[Constant],
) -> Relation:
    """Return the relation of two models; an adapter is a change of its base, however large.

    Args:
        pair: The models.
        cosine: The cosine of before and after, averaged over the matrices of blocks; it does not count for an adapter.
        roundings: For each matrix of a block that differs, whether it does so by rounding alone.
        tables: The other tensors that differ.
        constants: The constants of the configuration that differ.
    """
    if not isinstance(pair.tuned, Adapted) and cosine < UNRELATED:
        return "unrelated"
    states = {table.state for table in tables if table.read or table.state in ("changed", "replaced")}
    states |= {"rounded" if rounding else "changed" for rounding in roundings}
    other_tokens = missing(pair.tuned, pair.base) or missing(pair.base, pair.tuned) or _renumbered(pair)
    if states - {"rounded"} or tuple(constants) or other_tokens:
        return "changed"
    return "rounded" if states else "equal"


def _renumbered(pair: Comparison) -> bool:
    """Tell whether any id stands for different tokens in the two models."""
    return any(a != b for a, b in zip(pair.base.vocab.pieces, pair.tuned.vocab.pieces, strict=False) if a and b)


def facts_of(model: Model) -> dict[str, Any]:
    """Return the name and hash of a model, the types that store its blocks, and the largest of their errors."""
    types = sorted(
        {model.stored_type(role, layer) for layer in range(model.dims.layers) for role in model.matrices(layer)}
    )
    errors = [error for dtype in types if (error := storing_error(dtype)) is not None]
    return {
        "name": model.name,
        "sha256": model.fingerprint,
        "types": types,
        "storing_error": max(errors, default=None),
    }
