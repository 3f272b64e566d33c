"""Positions: rows that are added to the embedding, and rotations and biases by which attention tells distances.

docs/theory.md §3.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from zeropass.arch.dimensions import ROPE_RULES, Rope
from zeropass.errors import BadOption
from zeropass.model.model import Model
from zeropass.numerics.projection import apply_norm, sinusoids

__all__ = [
    "adds_positions",
    "distance_rows",
    "distance_vectors",
    "frequencies",
    "growth",
    "lengthening",
    "longest_text",
    "position_bias",
    "position_rows",
    "qk_norm_at",
    "turned_gain",
]


def adds_positions(model: Model) -> bool:
    """Tell whether positions are rows that are added to the embedding, stored or computed."""
    return bool(model.family.sinusoids) or model.has("positions")


def position_rows(model: Model, start: int, stop: int) -> Tensor:
    """Return what a model adds to the embedding at positions ``start:stop``, (stop − start, embed)."""
    first, last = (model.family.first_position + position for position in (start, stop))
    if not model.family.sinusoids:
        return model.matrix("positions", 0, first, last)
    return sinusoids(model.family.sinusoids, first, last, model.dims.d).to(model.device)


def longest_text(model: Model) -> int | None:
    """Return the length up to which texts are modelled: what positions or an indexer are enough for; None for any."""
    if model.family.sinusoids or not model.has("positions"):
        return model.dims.longest or model.dims.indexed_keys
    return model.rows("positions") - model.family.first_position


def frequencies(model: Model, layer: int = 0, reach: int = 0) -> Tensor:
    """Return the rotary frequencies (r/2,) of a layer in radians per position; zeros in a layer that rotates nothing.

    Args:
        model: The model.
        layer: The layer.
        reach: The last position of a text, or a distance between two of its positions, which stands for the shortest
            text that has it: longrope and the dynamic rule turn all positions of a text by its length.

    Raises:
        BadOption: If the model has no RoPE, or scales it by a rule that is not known for such a text.
    """
    dims = model.dims.at(layer)
    rope = dims.rope_at(layer)
    if rope is None:
        raise BadOption(f"{model.name} has no rotary positions: only offset 0 has a meaning.")
    if layer in dims.unrotated:
        return torch.zeros(dims.rotary // 2, device=model.device)
    plain = rope.theta ** (-torch.arange(0, dims.rotary, 2, dtype=torch.float64) / dims.rotary)
    factors = model.rope_factors if rope is dims.rope else None  # not for layers with positions of their own
    scaled = _rescaled(plain if factors is None else plain / factors.double().cpu(), rope, reach)
    return (-scaled if model.family.turned_back else scaled).float().to(model.device)


def qk_norm_at(model: Model, layer: int) -> Literal["", "head", "whole"]:
    """Return how a layer norms queries and keys, as `Family.qk_norm` says it."""
    bare = model.family.qk_norm_rotated and layer in model.dims.unrotated
    return "" if bare else model.family.qk_norm


def turned_gain(model: Model, layer: int) -> Tensor | None:
    """Return what multiplies the products of turned queries and keys, (d_h,); None where nothing does.

    Gains behind the rotation do not commute with it: attention then depends on both positions, not on their distance
    alone. Head maps have the key at position 0.
    """
    gains = [model.vector(f"{role}_norm", layer) for role in "qk"] if model.family.qk_norm_behind else []
    present = [gain for gain in (*gains, lengthening(model, layer)) if gain is not None]
    return torch.stack(present).prod(0) if present else None


def lengthening(model: Model, layer: int) -> Tensor | None:
    """Return the factors (d_h,) of the products of queries and keys of which a rule lengthens the rotated part only.

    None where it lengthens nothing, or all alike (`Dimensions.scale_at`).
    """
    dims = model.dims.at(layer)
    factor = dims.lengthening_at(layer)
    if factor == 1 or dims.rotary == dims.head_dim:
        return None
    return torch.where(torch.arange(dims.head_dim) < dims.rotary, factor, 1.0).to(model.device)


def growth(model: Model, layer: int, at: Tensor) -> Tensor | None:
    """Return the factor of queries at positions (t,), (t, 1); None where a layer has none."""
    grows = model.dims.growth
    if grows is None or (grows.unrotated and layer not in model.dims.unrotated):
        return None
    return 1 + grows.rate * torch.log1p(torch.floor((at[:, None] + grows.first) / grows.length))


def position_bias(model: Model, head: int, offsets: Tensor, layer: int = 0) -> Tensor | None:
    """Return the bias that positions add to the attention logits of a head.

    ALiBi (Press et al. 2022) adds the head's slope times the distance; T5 adds a number for each bucket of distances
    (Raffel et al. 2020, §2.1). Neither changes the order of keys at one distance, so head maps leave them out.

    Args:
        model: The model.
        head: The query head.
        offsets: Positions from the key to the query, of any shape.
        layer: The layer, in a model whose layers have biases of their own.

    Returns:
        The biases, shaped like ``offsets``; None if the model adds none.
    """
    dims, family = model.dims, model.family
    if family.alibi:
        slope = _alibi_slopes(dims.at(layer).heads)[head]
        return -slope * offsets * (dims.attention_scale if family.alibi == "scaled" else 1.0)
    if not model.has("relative"):
        return None
    table = model.relative(layer)
    return table[_buckets(offsets, len(table), family.causal), head]


def distance_vectors(model: Model, role: str, layer: int) -> Tensor | None:
    """Return the vectors of distances that meet keys, as queries do, or that meet queries, as keys do.

    They are rows of a table, seen by projections of their own or those of tokens (DeBERTa, He et al. 2021, §3.1).

    Args:
        model: The model.
        role: ``q`` for those that meet keys, ``k`` for those that meet queries.
        layer: The layer.

    Returns:
        The vectors, (heads, rows, d_h), with a row for each distance (`distance_rows`); None if the model has none.
    """
    if not model.has("distances"):
        return None
    rows = model.matrix("distances")
    if model.has("distances_norm"):
        gain, shift = model.vector("distances_norm"), model.vector("distances_norm_bias")
        rows = apply_norm(rows, model.family.norm, model.dims.eps, gain, shift)
    name = f"distance_{role}" if model.has(f"distance_{role}") else role
    vectors, bias = rows @ model.matrix(name, layer).T, model.vector(f"{name}_bias", layer)
    vectors = vectors if bias is None else vectors + bias
    return vectors.reshape(len(rows), -1, model.dims.at(layer).head_dim).transpose(0, 1)


def distance_rows(model: Model, offsets: Tensor) -> Tensor:
    """Return the row of the table of distances for each offset from a key to its query, of any shape.

    With buckets, half of them are exact on either side, and the others grow with the logarithm of the distance
    (``make_log_bucket_position`` of transformers' DeBERTa-v2).
    """
    reach, buckets = model.dims.distance_reach, model.dims.distance_buckets
    if buckets:
        half = buckets // 2
        far = offsets.abs().clamp_min(half).float()
        steps = (far / half).log() / torch.tensor((reach - 1) / half).log() * (half - 1)
        offsets = torch.where(offsets.abs() <= half, offsets, offsets.sign() * (steps.ceil() + half).long())
    span = buckets or reach
    return (offsets + span).clamp(0, 2 * span - 1)


def _alibi_slopes(heads: int) -> list[float]:
    """Return a slope for each head (Press et al. 2022, §3 and their code).

    They are a geometric series; if the number of heads is no power of two, every other slope of the next one follows.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]


def _buckets(offsets: Tensor, count: int, causal: bool, farthest: int = 128) -> Tensor:
    """Return T5's bucket of each distance: one for each short distance, then logarithmic steps up to ``farthest``."""
    distances = offsets
    first = torch.zeros_like(offsets)
    if causal:
        distances = offsets.clamp_min(0)
    else:
        count //= 2
        first = (offsets < 0).long() * count  # a key after the query
        distances = offsets.abs()
    exact = count // 2
    far = (distances.clamp_min(1).float() / exact).log() / math.log(farthest / exact) * (count - exact)
    return first + torch.where(distances < exact, distances, (exact + far.long()).clamp_max(count - 1))


def _rescaled(frequencies: Tensor, rope: Rope, reach: int = 0) -> Tensor:
    """Return frequencies under the model's scaling rule, and refuse a rule that is not known instead of ignoring it."""
    if rope.kind == "default":
        return frequencies
    if not rope.known:
        raise BadOption(f"RoPE scaling {rope.kind!r} is not known ({', '.join(ROPE_RULES)}): only offset 0 is exact.")
    factor = rope.options.get("factor", 1.0)
    if rope.kind == "linear":
        return frequencies / factor
    if rope.kind == "proportional":  # the fastest ones turn, the others do not
        turning = int(rope.options["partial_rotary_factor"] * len(frequencies))
        return torch.where(torch.arange(len(frequencies)) < turning, frequencies / factor, 0.0)
    if rope.kind == "yarn":
        return _yarn(frequencies, rope)
    if rope.window is not None:
        beyond = (reach + 1) / rope.window
        return (
            _longrope(frequencies, rope, beyond > 1)
            if rope.kind == "longrope"
            else _dynamic(frequencies, factor, beyond)
        )
    # Llama 3.1 divides the frequencies of long wavelengths by the factor, keeps short ones and blends those between.
    low, high = rope.options["low_freq_factor"], rope.options["high_freq_factor"]
    turns = rope.options["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (blend + (1 - blend) / factor)


def _yarn(frequencies: Tensor, rope: Rope) -> Tensor:
    """Return frequencies divided by the factor, but for those that turn often over the original length.

    The share of the original ones falls in a line from ``beta_fast`` turns to ``beta_slow`` (Peng et al. 2023, §3.2).
    """
    options, count = rope.options, len(frequencies)
    length = options["original_max_position_embeddings"]

    def place(turns: float) -> float:
        """Return the number of the frequency that turns so often."""
        return count * math.log(length / (turns * 2 * math.pi)) / math.log(rope.theta)

    fast, slow = place(options["beta_fast"]), place(options["beta_slow"])
    if options["truncate"]:
        fast, slow = math.floor(fast), math.ceil(slow)
    # The ends may have changed places where a head is narrow; the line between them is what the model was trained with.
    fast, slow = max(fast, 0), min(slow, 2 * count - 1)
    share = 1 - ((torch.arange(count) - fast) / (slow - fast or 1e-3)).clamp(0, 1)
    return frequencies * (share + (1 - share) / options["factor"])


def _longrope(frequencies: Tensor, rope: Rope, beyond: bool) -> Tensor:
    """Return frequencies divided by the numbers for texts beyond the original length, or for others."""
    divisors = rope.long if beyond else rope.short
    if not divisors:
        raise BadOption(
            f"The rotary positions of texts of more than {rope.window:,.0f} tokens are not known (longrope)."
        )
    return frequencies / torch.tensor(divisors, dtype=torch.float64)


def _dynamic(frequencies: Tensor, factor: float, beyond: float) -> Tensor:
    """Return frequencies of a base that grows with the text, so that the lowest one falls as that of linear scaling.

    This is NTK-aware scaling by the length of the text (``_compute_dynamic_ntk_parameters`` of transformers 5.24).

    Args:
        frequencies: The frequencies, (r/2,).
        factor: The factor of the rule.
        beyond: The length of the text, in multiples of the longest that is not rescaled.
    """
    stretch = factor * max(beyond, 1.0) - (factor - 1)
    return frequencies * stretch ** -(torch.arange(len(frequencies)) / (len(frequencies) - 1))
