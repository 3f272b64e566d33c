"""Quantised weights in safetensors files, read as the numbers that the model computes with."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from zeropass.checkpoints.base import Bools, Float32
from zeropass.checkpoints.checked import CheckedSource
from zeropass.checkpoints.quantisation_methods import METHODS, Method, Storage
from zeropass.checkpoints.quantised_parts import Packed, Parts
from zeropass.checkpoints.safetensors import SafetensorsSource

__all__ = ["SEPARATE", "QuantisedSource", "dequantised", "with_settings"]

SEPARATE = "hf_quant_config.json"
"""The file in which ModelOpt keeps the settings, where config.json has none."""


class QuantisedSource(CheckedSource):
    """The tensors of safetensors files, in which quantised weights are matrices like any other.

    Args:
        source: The stored tensors.
        packed: The quantised weights by name.
        weights: The names of the weights that a stored tensor is a part of; none for one that is left out.
    """

    def __init__(
        self, source: SafetensorsSource, packed: Mapping[str, Packed], weights: Mapping[str, Collection[str]]
    ) -> None:
        self.path: str = source.path
        self._source, self._packed = source, packed
        self._names = list(dict.fromkeys(weight for name in source.names() for weight in weights.get(name, (name,))))

    def names(self) -> list[str]:
        """Return the names of all tensors; a quantised weight stands where the first of its parts does."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, rows first."""
        return self._packed[name].shape if name in self._packed else self._source.shape(name)

    def dtype(self, name: str) -> str:
        """Return the name of the stored type (``NF4``, ``FP8``, ``INT4`` … of quantised weights)."""
        return self._packed[name].kind if name in self._packed else self._source.dtype(name)

    def rows(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        columns: slice | None = None,
        spare: Bools | None = None,
    ) -> Float32:
        """Return rows of a tensor (`TensorSource.rows`)."""
        read = super().rows if name in self._packed else self._source.rows
        return read(name, start, stop, columns, spare)

    def _read(self, name: str, rows: slice, columns: slice) -> Float32:
        weight = self._packed[name]
        columns = slice(*columns.indices(weight.shape[1]))
        if rows.start == rows.stop or columns.start == columns.stop:
            return np.empty((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        return np.ascontiguousarray(weight.decode(rows, columns).numpy())


def with_settings(config: Mapping[str, Any], separate: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a configuration with the settings of its quantisation in the usual place, ``quantization_config``.

    Args:
        config: The content of config.json.
        separate: The content of `SEPARATE`, if there is such a file.
    """
    usual, of_mlx = config.get("quantization_config"), config.get("quantization")
    of_modelopt = None if separate is None else separate.get("quantization")
    if isinstance(of_mlx, Mapping) and usual in (None, of_mlx):
        others = {key: value for key, value in config.items() if key != "quantization"}
        return {**others, "quantization_config": {**of_mlx, "quant_method": "mlx"}}
    if isinstance(of_modelopt, Mapping) and usual is None:
        return {**config, "quantization_config": {**of_modelopt, "quant_method": "modelopt"}}
    return dict(config)


def dequantised(
    source: SafetensorsSource, config: Mapping[str, Any], place: str
) -> SafetensorsSource | QuantisedSource:
    """Return a source that reads quantised weights, or the same one if it has none that are known.

    Args:
        source: The stored tensors.
        config: The content of config.json.
        place: The folder, for messages.

    Raises:
        BadModel: For a setting that is not known.
        BadWeights: For parts of a weight that do not fit each other.
    """
    stored = frozenset(source.names())
    settings = config.get("quantization_config")
    if settings is None and any(name.endswith(".W_q") for name in stored):
        settings = {"quant_method": "hqq"}  # its own form has no settings, and each weight says how it is stored
    if not isinstance(settings, Mapping) or (method := METHODS.get(str(settings.get("quant_method")))) is None:
        return source
    weights = list(_weights(source, stored, settings, method))
    if not weights:
        return source
    method.check(settings, place)
    packed: dict[str, Packed] = {}
    unread = re.compile(rf".*\.{method.unread}" if method.unread else "")
    names: dict[str, Collection[str]] = {name: () for name in stored if unread.fullmatch(name)}
    for storage, parts in weights:
        plain = parts.stem + parts.weight
        if plain in stored and plain not in parts.names.values():
            raise parts.error(f"it is stored both quantised and as {source.dtype(plain)}")
        opened = _named(f"{parts.stem}{parts.weight}", storage.open(parts))
        packed |= opened
        names |= dict.fromkeys(parts.names.values(), opened)
    return QuantisedSource(source, packed, names)


def _named(name: str, weight: Packed | tuple[Packed, ...]) -> dict[str, Packed]:
    """Return a weight by its name; those of all experts by that of their stack, as `Stacked` names them."""
    return {f"{name}[{i}]": part for i, part in enumerate(weight)} if isinstance(weight, tuple) else {name: weight}


def _weights(
    source: SafetensorsSource, stored: frozenset[str], settings: Mapping[str, Any], method: Method
) -> Iterator[tuple[Storage, Parts]]:
    """Yield the stored parts of each quantised weight."""
    taken: set[str] = set()
    for storage in method.storages:
        for name in source.names():
            stem, mark, rest = name.rpartition(f".{storage.mark}")
            if mark and storage.mark + rest in storage.parts and name not in taken:
                names = {part: f"{stem}.{part}" for part in storage.parts if f"{stem}.{part}" in stored}
                taken.update(names.values())
                yield storage, Parts(source, f"{stem}.", names, settings, storage.weight)
