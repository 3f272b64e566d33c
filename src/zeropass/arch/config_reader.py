"""The values of a configuration by canonical names, each checked; none is guessed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from zeropass.arch.layout import Layout
from zeropass.arch.spec import Family
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.errors import BadModel

LAYER_ALLOWANCE = 200
"""The number of layers that a file with few tensors may still claim: ALBERT's layers share theirs."""

_COUNT_ALLOWANCE = 10**6
"""The largest number of layers that a configuration may count."""

_SCALES = {"mlp_scales": 2, "mixer_scales": 5}
"""Lists of factors: of the gates of an MLP and of what it writes, and of the parts of the inputs of Mamba 2."""


def looked_up(config: Mapping[str, Any], key: str) -> Any:
    """Return a value of the configuration, None if it is absent; ``a.b`` looks inside an object."""
    if key in config:
        return config[key]
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


class ConfigReader:
    """A reader of values by canonical names: from the configuration, or as the layout or the family fixes them."""

    def __init__(self, files: ModelFiles, family: Family, layout: Layout) -> None:
        rope = layout.defaults.get("rope")
        if rope and not any(files.config.get(key) for key in ("rope_parameters", "rope_scaling")):
            files = replace(files, config={**files.config, "rope_parameters": rope})
        self.files: ModelFiles = files
        self.family: Family = family
        self.layout: Layout = layout

    def keys(self, name: str) -> str:
        """Return the keys that are tried for a name, for messages."""
        return " / ".join(self.layout.config.get(name, (name,)))

    def value(self, name: str) -> Any:
        """Return the first value that the configuration has, or the one that the layout or the family implies."""
        keys = self.layout.config.get(name, ())
        for key in keys:
            if (value := looked_up(self.files.config, key)) is not None:
                return value
        if name in self.layout.defaults and not any(key in self.files.config for key in keys):
            return self.layout.defaults[name]
        return self.layout.constants.get(name, self.family.config.get(name))

    def size(self, name: str) -> int | None:
        """Return a positive whole number; None if there is none."""
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, list):
            value = self._of_each(name, value)
        return self.positive(name, value)

    def positive(self, name: str, value: object) -> int:
        """Return a value as a whole number; raise BadModel where it is no positive one."""
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadModel(f"{self.files.place}: {self.keys(name)} is {value!r}; it must be a positive whole number.")
        return value

    def _of_each(self, name: str, values: list[Any]) -> Any:
        """Return the size that a list states for all layers; the list where they differ.

        Of a hybrid a zero stands for a layer without such a part. Layers that share keys and values may have wider MLPs
        (`layer_types.sharing_is_wider`).
        """
        if f"each_{name}" in self.layout.config:  # `head_sizes.sizes_by_layer` reads them one by one
            values = values[:1]
        elif name == "neurons" and "sharing" in self.layout.config:
            values = values[: len(values) - self.count("sharing")]
        values = [value for value in values if value or not self.family.layer_types]
        return values[0] if values and values == values[:1] * len(values) else values

    def unless_minus_one(self, name: str) -> int | None:
        """Return a positive whole number; None if there is none, which -1 also stands for."""
        return None if self.value(name) == -1 else self.size(name)

    def number(self, name: str) -> float | None:
        """Return a positive number; None if there is none."""
        value = self.value(name)
        return None if value is None else positive_number(self.files, self.keys(name), value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of positive numbers, as many as `_SCALES` says; an empty one if there is none."""
        values = self.value(name)
        if values is None:
            return ()
        if not isinstance(values, Sequence) or len(values) != _SCALES[name]:
            raise BadModel(
                f"{self.files.place}: {self.keys(name)} is {values!r}; it must have {_SCALES[name]} numbers."
            )
        return tuple(positive_number(self.files, self.keys(name), value) for value in values)

    def count(self, name: str) -> int:
        """Return a whole number that is not negative; 0 if there is none."""
        value = self.value(name) or 0
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _COUNT_ALLOWANCE:
            raise BadModel(f"{self.files.place}: {self.keys(name)} is {value!r}; it must be a whole number.")
        return value


def object_at(files: ModelFiles, key: str) -> Mapping[str, Any]:
    """Return an object of the configuration, an empty one if it is absent; raise BadModel for anything else."""
    value = files.config.get(key) or {}
    if not isinstance(value, Mapping):
        raise BadModel(f"{files.place}: {key} must be an object, not {value!r}.")
    return value


def positive_number(files: ModelFiles, key: str, value: object) -> float:
    """Return a value as a number; raise BadModel, which names its key, where it is no positive one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BadModel(f"{files.place}: {key} is {value!r}; it must be a positive number.")
    return float(value)
