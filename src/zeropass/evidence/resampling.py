"""Nulls, intervals and effect sizes, the same for every measure.

Of the three nulls (`results.NULLS`), ``permuted`` and ``rotated`` give the vectors wrong lists, and ``noise`` compares
random vectors with their own lists. Intervals are percentile bootstraps (Efron 1979) of the mean over items.
"""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from zeropass.evidence.results import Null, Result

__all__ = ["among", "correlation", "overlap", "partner", "ranks", "rotation", "spearman", "summarised"]

RESAMPLES = 1000
LEVEL = 0.95


def summarised(
    measure: str,
    layer: int,
    role: str,
    frame: str,
    target: str,
    metric: str,
    values: Tensor,
    nulls: Mapping[str, Tensor],
) -> Result:
    """Return the result of some items, with its interval and nulls; items that are not finite are left out.

    Args:
        measure: The measure.
        layer: The layer.
        role: The role, or a pair of roles.
        frame: The frame of the lists.
        target: The target of the comparison.
        metric: The metric of the items.
        values: The items, (n,).
        nulls: The items under each null, any number of them.
    """
    items = _finite(values)
    means = _resampled(items, 0)
    low, high = _interval(means)
    return Result(
        measure=measure,
        layer=layer,
        role=role,
        frame=frame,
        target=target,
        metric=metric,
        n=len(items),
        value=_mean(items),
        std=_std(items),
        low=low,
        high=high,
        nulls=tuple(_null(name, items, means, _finite(other)) for name, other in nulls.items() if len(_finite(other))),
    )


def _null(name: str, items: Tensor, means: Tensor, null_items: Tensor) -> Null:
    """Return a null from its items, and the items of the result with their resampled means."""
    null_means = _resampled(null_items, 1)
    low, high = _interval(null_means)
    gap_low, gap_high = _interval(means - null_means)
    pooled = ((items.var(correction=0) + null_items.var(correction=0)) / 2).sqrt() if len(items) else torch.tensor(0.0)
    gap = _mean(items) - _mean(null_items)
    effect = gap / float(pooled) if float(pooled) > 0 else None
    return Null(
        name=name,
        mean=_mean(null_items),
        std=_std(null_items),
        low=low,
        high=high,
        n=len(null_items),
        gap_low=gap_low,
        gap_high=gap_high,
        effect=effect,
    )


def _finite(values: Tensor) -> Tensor:
    """Return the finite values, flat."""
    flat = values.double().flatten().cpu()
    return flat[flat.isfinite()]


def _mean(items: Tensor) -> float:
    return float(items.mean()) if len(items) else 0.0


def _std(items: Tensor) -> float:
    return float(items.std(correction=0)) if len(items) else 0.0


def _resampled(items: Tensor, seed: int) -> Tensor:
    """Return the means (RESAMPLES,) of items drawn with replacement."""
    return _weights(len(items), seed) @ items if len(items) else torch.zeros(RESAMPLES, dtype=torch.float64)


@lru_cache(maxsize=64)
def _weights(n: int, seed: int) -> Tensor:
    """Return how often each of n items is drawn, as shares (RESAMPLES, n); results of one size use the same draws."""
    drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(RESAMPLES, n, dtype=torch.float64).scatter_add_(
        1, drawn, torch.full((RESAMPLES, n), 1 / n, dtype=torch.float64)
    )


def _interval(means: Tensor) -> tuple[float, float]:
    """Return the percentile interval of resampled means."""
    edges = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = means.quantile(edges).tolist()
    return low, high


def partner(values: Tensor, dim: int = -1) -> Tensor:
    """Replace each item of a dimension by the one half-way round: never itself if there are two or more."""
    return values.roll(max(values.shape[dim] // 2, 1), dim)


def rotation(d: int, seed: int) -> Tensor:
    """Draw a rotation (d, d) of the stream, uniform over the orthogonal group (QR of a Gaussian, signs fixed)."""
    gaussian = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    turn: Tensor = (q * r.diagonal().sign()).float()
    return turn


def ranks(values: Tensor, dim: int = 0) -> Tensor:
    """Return the ranks 0, 1, … along a dimension, float32; ties rank by position (real scores have none)."""
    order = values.argsort(dim)
    places = torch.arange(values.shape[dim], dtype=torch.float32, device=values.device)
    shape = [1] * values.ndim
    shape[dim] = -1
    ranked = torch.empty_like(values, dtype=torch.float32)
    ranked.scatter_(dim, order, places.view(shape).expand_as(order))
    return ranked


def correlation(x: Tensor, y: Tensor, dim: int = 0) -> Tensor:
    """Return the Pearson correlations along a dimension; NaN where either tensor is constant."""
    x, y = (v.double() - v.double().mean(dim, keepdim=True) for v in (x, y))
    return (x * y).sum(dim) / (x.square().sum(dim) * y.square().sum(dim)).sqrt()


def spearman(x: Tensor, y: Tensor, dim: int = 0) -> Tensor:
    """Return the Spearman rank correlations along a dimension."""
    return correlation(ranks(x, dim), ranks(y, dim), dim)


def among(ids: Tensor, others: Tensor) -> Tensor:
    """Tell which ids (…, k) are among the others (…, m) of the same row; (…, k) bool."""
    return (ids[..., :, None] == others[..., None, :]).any(-1)


def overlap(x: Tensor, y: Tensor, k: int, dim: int = 0) -> Tensor:
    """Return the share of the top k along a dimension that two tensors have in common."""
    k = min(k, x.shape[dim])
    in_top = torch.zeros_like(x, dtype=torch.bool).scatter_(dim, x.topk(k, dim).indices, True)
    return in_top.gather(dim, y.topk(k, dim).indices).double().mean(dim)
