"""Which rows of a stored tensor are the rows of a canonical one: every split and reordering, by name (`Stored`)."""

import torch
from torch import Tensor

from zeropass.arch.spec import Dimensions, Stored, base_role

__all__ = ["canonical_shape", "expected_shape", "row_count", "row_index"]


def row_index(stored: Stored, what: str, dims: Dimensions) -> Tensor | None:
    """The row of the stored tensor for each canonical row, (rows,); None where they are the same.

    Of a tensor with experts, the rows of one of them.
    """
    stem = base_role(what).removesuffix("_bias")
    count = _own_rows(stem, dims)
    if stored.fused:
        found = _fused(stored, stem, dims)
    elif stored.part != (0, 1):
        found = torch.arange(count) + stored.part[0] * count
    else:
        found = None
    if not stored.paired_rows:
        return found
    halves = _halves(count, dims)
    return halves if found is None else found[halves]


def row_count(stored: Stored, what: str, dims: Dimensions) -> int:
    """Rows that the stored tensor (of one expert) has, this canonical one's and those of all it is fused with."""
    if stored.fused:
        return (dims.heads + 2 * dims.kv_heads) * dims.head_dim
    return _own_rows(base_role(what).removesuffix("_bias"), dims) * stored.part[1]


def canonical_shape(what: str, dims: Dimensions) -> tuple[int | None, ...]:
    """Shape of a canonical tensor, None where any size will do; of one with experts, all of them."""
    if what in ("embedding", "unembedding"):
        return (dims.vocab, dims.embed if what == "embedding" else dims.d)
    if what == "embed_projection":
        return (dims.d, dims.embed)
    if what in ("positions", "types"):
        return (None, dims.embed)
    if what in ("embed_norm", "embed_norm_bias"):
        return (dims.embed,)
    if what == "rope_factors":
        return (dims.rotary // 2,)
    if what == "unembedding_bias":
        return (dims.vocab,)
    if what == "relative":
        return (None, dims.heads)
    if what in ("q_norm", "k_norm"):
        return (None,)
    stem = base_role(what).removesuffix("_bias")
    if stem in _SIZED:
        rows = _own_rows(stem, dims) * (dims.experts if stem in _ROUTED else 1)
        if base_role(what) == stem:
            return (rows, dims.d)
        return (dims.d,) if stem in ("o", "value") else (rows,)
    return (dims.d,)


def expected_shape(stored: Stored, what: str, dims: Dimensions) -> tuple[int | None, ...]:
    """Shape of a stored tensor by its record, None where any size will do."""
    canonical = canonical_shape(what, dims)
    if base_role(what).removesuffix("_bias") in _SIZED and not (
        what.endswith("_bias") and stored.whole and not stored.paired_rows
    ):
        canonical = (row_count(stored, what, dims), *canonical[1:])
    return tuple(reversed(canonical)) if stored.transpose else canonical


_ROUTED = ("gate", "up", "key", "value")
_SIZED = (*_ROUTED, "q", "k", "v", "o", "router")


def _own_rows(stem: str, dims: Dimensions) -> int:
    """Canonical rows of a role, of one expert."""
    if stem in _ROUTED:
        return dims.expert_neurons
    if stem == "router":
        return dims.experts
    return (dims.heads if stem in ("q", "o") else dims.kv_heads) * dims.head_dim


def _fused(stored: Stored, stem: str, dims: Dimensions) -> Tensor:
    heads, width = dims.heads + 2 * dims.kv_heads, dims.head_dim
    every = torch.arange(heads * width).reshape(heads, width)
    if stored.fused == "stacked":
        own = dict(zip("qkv", torch.split(every, [dims.heads, dims.kv_heads, dims.kv_heads]), strict=True))[stem]
    else:
        grouped = every.reshape(dims.kv_heads, dims.group + 2, width)
        own = dict(zip("qkv", torch.split(grouped, [dims.group, 1, 1], 1), strict=True))[stem]
    return own.reshape(-1)


def _halves(count: int, dims: Dimensions) -> Tensor:
    """Rotary rows of each head from neighbours (x_2i, x_2i+1) back to halves; the rows behind them stay."""
    width, turned = dims.head_dim, dims.rotary
    one = torch.cat((torch.arange(turned).reshape(-1, 2).T.reshape(-1), torch.arange(turned, width)))
    return (torch.arange(0, count, width)[:, None] + one).reshape(-1)
