"""Canonical parameters applied to a state, and models with a changed record, for tests."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from zeropass.arch.layout import Stored
from zeropass.arch.roles import norm_of
from zeropass.checkpoints.base import Bools, Float32, TensorSource
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.vectors import bias_roles, vector_set
from zeropass.numerics.projection import normed


def read(model: Model, role: str, layer: int, x: Tensor) -> Tensor:
    """Return what the vectors of a role read from the stream: folded vectors, the norm's shift and the bias.

    Through a latent, it is divided as the norm of the latent does it.
    """
    vectors, frames, norm = model.matrix(role, layer), Frames(model), norm_of(role)
    if not model.family.reads_bare(norm, layer):
        x = normed(x, model.family.norm, model.dims.eps)
    scores = x @ frames.fold(vectors, "token", "read", norm, layer).T
    shift = model.vector(f"{norm}_bias", layer) if model.family.reads_normed else None
    bias = model.vector(f"{role}_bias", layer)
    scores = scores if shift is None else scores + vectors @ shift
    scores = scores if bias is None else scores + bias
    if not model.layout.latent_of(role):
        return scores
    lengths = frames.lengths(layer, role, x.flatten(0, -2), torch.zeros(model.dims.d))
    assert lengths is not None
    heads = scores.unflatten(-1, (-1, model.dims.at(layer).width(role)))
    return frames.per_latent(heads, role, lengths.each.reshape(*x.shape[:-1], 1, 1)).flatten(-2)


def bias_of(model: Model, role: str, layer: int) -> Tensor | float:
    """Return the sum of the vectors of a bias set, or 0 if the model has none."""
    return vector_set(model, layer, role).vectors.sum(0) if role in bias_roles(model) else 0.0


def split(x: Tensor, model: Model, layer: int = 0) -> Tensor:
    """Reshape values (…, heads d_h) of a layer to (…, heads, d_h)."""
    return x.unflatten(-1, (-1, model.dims.at(layer).width("v")))


def with_tensors(model: Model, **changed: Stored) -> Model:
    """Return the same model with some entries of its record changed."""
    return replace(model, layout=replace(model.layout, tensors={**model.layout.tensors, **changed}))


@dataclass(frozen=True, eq=False)
class KeptSource:
    """A source that reads each part of a tensor once, and answers the same request again from memory."""

    source: TensorSource
    parts: dict[Hashable, Float32] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def rows(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        columns: slice | None = None,
        spare: Bools | None = None,
    ) -> Float32:
        """Return rows of a tensor, as its source does (`TensorSource.rows`)."""
        key = (name, start, stop, columns and (columns.start, columns.stop), None if spare is None else spare.tobytes())
        if key not in self.parts:
            self.parts[key] = self.source.rows(name, start, stop, columns, spare)
        return self.parts[key].copy()


def kept(model: Model) -> Model:
    """Return the model with a source that reads each part of a tensor once."""
    return replace(model, files=replace(model.files, source=KeptSource(model.source)))
