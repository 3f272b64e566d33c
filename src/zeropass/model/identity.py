"""Which values a model holds, whatever file holds them: what a measurement of the same weights is found by."""

import hashlib
from collections.abc import Iterator

from torch import Tensor

from zeropass.errors import BadWeights
from zeropass.model.model import Model

__all__ = ["values_sha256"]

ROWS, TOKENS = 4, 32
"""Rows in the middle of each matrix, and tokens at the beginning of each table, that are looked at.

Files of one model may differ in how many rows without a token they keep at the end of a table.
"""


def values_sha256(model: Model) -> str | None:
    """Return the SHA-256 of a fixed sample of the canonical values in float32: some rows of every matrix, every gain.

    Files of any format, naming and order that hold the same numbers have the same; a number of a sampled row that is
    rounded otherwise makes another. None where a tensor of the sample is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for name, values in _sample(model):
            digest.update(f"{name} {tuple(values.shape)} ".encode())
            digest.update(values.float().cpu().contiguous().numpy().tobytes())
    except BadWeights:
        return None
    return digest.hexdigest()


def _sample(model: Model) -> Iterator[tuple[str, Tensor]]:
    tables = ["embedding"] if model.dims.tied or not model.has("unembedding") else ["embedding", "unembedding"]
    for what in tables:
        yield what, model.matrix(what, 0, 0, min(TOKENS, model.dims.vocab))
    for role, layer in ((role, layer) for layer in range(model.dims.layers) for role in model.family.vector_roles):
        total = model.rows(role, layer)
        start = max(total - ROWS, 0) // 2
        yield f"{role} {layer}", model.matrix(role, layer, start, min(start + ROWS, total))
    norms = [what for what in ("attn_norm", "ff_norm") if model.has(what)]
    for what, layer in [*((what, layer) for what in norms for layer in range(model.dims.layers)), ("final_norm", 0)]:
        if (gain := model.vector(what, layer)) is not None:
            yield f"{what} {layer}", gain
