"""The weights of compressed-tensors: what ``config_groups`` says of them, and how they are then read."""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from zeropass._io.typed_json import from_json
from zeropass.checkpoints import packed_integers as integers
from zeropass.checkpoints.float_blocks import FloatBlocks, mxfp4, nvfp4
from zeropass.checkpoints.quantised_parts import Parts
from zeropass.checkpoints.scaled_weights import Scaled, scaled

__all__ = ["FORMATS", "PACKED", "compressed", "packed"]

Layout = Literal[
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
]
FORMATS = get_args(Layout)
PACKED = (*integers.PACKED, "weight_global_scale")


@dataclass(frozen=True)
class _Weights:
    """The scheme of a group's weights; settings of the observers that made the scales change nothing here."""

    num_bits: Literal[2, 4, 8]
    type: Literal["int", "float"]
    symmetric: bool = True
    strategy: Literal["tensor", "channel", "group", "block", "tensor_group"] = "tensor"
    group_size: int | None = None
    block_structure: tuple[int, int] | None = None
    dynamic: Literal[False] = False
    actorder: Literal["weight", "static", "group", False] | None = None
    observer: Any = None
    observer_kwargs: Any = None
    scale_dtype: Any = None
    zp_dtype: Any = None

    @property
    def block(self) -> tuple[int, int] | None:
        """The rows and columns that have one scale; None for a scale a row, or for all."""
        if self.strategy == "group":
            return 1, self.group_size or 0
        return (self.block_structure or (0, 0)) if self.strategy == "block" else None


@dataclass(frozen=True)
class _Group:
    """A group of modules that are quantised alike."""

    weights: _Weights
    targets: Any = None
    input_activations: Any = None
    output_activations: Any = None
    format: Layout | None = None


@dataclass(frozen=True)
class _Groups:
    """All groups by name."""

    groups: dict[str, _Group]


def packed(parts: Parts) -> integers.RowsPacked | FloatBlocks:
    """Return a weight of packed numbers; raise BadWeights if its parts do not fit each other or the scheme."""
    scheme = _scheme(parts)
    floats = (scheme.type, scheme.num_bits, scheme.symmetric, scheme.strategy, scheme.group_size)
    if floats == ("float", 4, True, "tensor_group", 16):
        return nvfp4(parts, "weight_packed", "weight_global_scale", divides=True)
    if floats == ("float", 4, True, "group", 32):
        return mxfp4(parts, "weight_packed")
    if scheme.type != "int" or scheme.strategy not in ("group", "channel"):
        raise parts.error(f"it is packed, but config_groups says {scheme.type} with the strategy {scheme.strategy}")
    if scheme.actorder == "group":
        parts.shape("weight_g_idx", 1)
    size = scheme.group_size if scheme.strategy == "group" else None
    return integers.row_packed(parts, scheme.num_bits, size, scheme.symmetric)


def compressed(parts: Parts) -> Scaled:
    """Return a weight of 8 bits; raise BadWeights if its parts do not fit each other or the scheme."""
    scheme = _scheme(parts)
    if scheme.num_bits != 8:
        raise parts.error(f"it is not packed, but config_groups says that it has {scheme.num_bits} bits")
    if not scheme.symmetric and "weight_zero_point" not in parts:
        raise parts.error("symmetric is false, but it lacks weight_zero_point")
    return scaled(parts, "weight_scale", scheme.block, ("F8_E4M3",) if scheme.type == "float" else ("I8",))


def _scheme(parts: Parts) -> _Weights:
    """Return the scheme of all weights; raise BadWeights for settings that are not known, and for several schemes."""
    try:
        groups = from_json(_Groups, {"groups": parts.settings["config_groups"]}, "quantization_config").groups
    except ValueError as error:
        raise parts.error(f"{error}, so that it is not known how it is stored") from error
    schemes = {_stated(group.weights) for group in groups.values()}
    if len(schemes) != 1:
        raise parts.error(f"config_groups has {len(schemes)} schemes of weights; only one can be read")
    (scheme,) = schemes
    if scheme.block is not None and min(scheme.block) < 1:
        raise parts.error(f"config_groups has the strategy {scheme.strategy} with blocks of {scheme.block}")
    return scheme


def _stated(scheme: _Weights) -> _Weights:
    """Return a scheme without the settings of observers."""
    return replace(scheme, observer=None, observer_kwargs=None, scale_dtype=None, zp_dtype=None)
