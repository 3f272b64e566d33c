"""A hash of the values of a model, whatever file holds them. Measurements of the same weights are found by it."""

import hashlib
from collections.abc import Iterator

from torch import Tensor

from zeropass.errors import BadWeights
from zeropass.model.model import Model

__all__ = ["values_sha256"]

ROWS, TOKENS = 4, 32
"""The numbers of sampled rows: in the middle of each matrix, and at the beginning of each table of tokens.

Files of one model may keep different numbers of rows without a token at the end of a table.
"""


def values_sha256(model: Model) -> str | None:
    """Return the SHA-256 of a fixed sample of the canonical values in float32: some rows of every matrix, every gain.

    It is the same for files of any format, naming and order that hold the same numbers, and differs if a number in a
    sampled row is rounded otherwise. It is None if a sampled tensor is missing or cannot be read.
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
    for role, layer in [(role, n) for n in range(model.dims.layers) for role in model.matrices(n)]:
        total = model.rows(role, layer)
        start = max(total - ROWS, 0) // 2
        yield f"{role} {layer}", model.matrix(role, layer, start, min(start + ROWS, total))
    norms = [what for what in ("attn_norm", "ff_norm", "mixer_norm") if model.has(what)]
    for what, layer in [*((what, layer) for what in norms for layer in range(model.dims.layers)), ("final_norm", 0)]:
        if (gain := model.vector(what, layer)) is not None:
            yield f"{what} {layer}", gain
