"""Adapters of PEFT in memory: read as an adapter on its base, or merged into the weights a module at a time.

Where one adapter is active and nothing is merged, an adapter in memory has the tensors and settings that PEFT would
save. Otherwise (several adapters, adapters that are merged already) the weights are what the model computes with: each
module is copied when it is read, and PEFT merges the copy. The model itself is never changed.
"""

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from zeropass.checkpoints.adapter_files import CONFIG, adapter_files
from zeropass.checkpoints.adapter_methods import Adapter, read_adapter
from zeropass.checkpoints.adapter_settings import Settings
from zeropass.checkpoints.state_dict import StateDictSource
from zeropass.checkpoints.torch_modules import name_of, package_of, tensors_of
from zeropass.errors import BadModel, BadWeights, MissingExtra

try:
    from peft import get_peft_model_state_dict
except ImportError as _error:
    raise MissingExtra("An adapter in memory is PEFT's, which is in an extra: pip install 'zeropass[run]'.") from _error

__all__ = ["MergedSource", "PeftModules"]


@dataclass(frozen=True, eq=False)
class PeftModules:
    """The adapters in a model in memory.

    Attributes:
        model: A model of PEFT, or one of transformers with adapters.

    Raises:
        BadModel: If the adapters change no weights, or in a way that is not known.
    """

    model: Any

    def __post_init__(self) -> None:
        """Raise BadModel for adapters that are not read."""
        for name in self.active:
            self.settings(name)
        if not self.layers:
            methods = ", ".join(sorted({_plain(config.peft_type) for config in self.model.peft_config.values()}))
            raise BadModel(f"{self.name}: its adapter ({methods}) changes no weights that could be read.")

    @property
    def name(self) -> str:
        """The name of the base."""
        return name_of(self.base)

    @property
    def base(self) -> nn.Module:
        """The model of transformers that holds the adapters."""
        base: nn.Module = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return base

    @cached_property
    def layers(self) -> dict[str, Any]:
        """The modules that PEFT put in the place of others, by path in the base; outer ones only."""
        return dict(_outermost(self.base))

    @cached_property
    def active(self) -> tuple[str, ...]:
        """The names of the adapters that take part in the forward pass."""
        names = [name for layer in self.layers.values() if not _is_off(layer) for name in _active(layer)]
        return tuple(name for name in dict.fromkeys(names) if name in self.model.peft_config)

    @property
    def adapter(self) -> Adapter | None:
        """The adapter, if the model is its base with one adapter on it; else None, and `merged` has the weights."""
        states = {(_is_off(layer), _is_merged(layer)) for layer in self.layers.values()}
        if len(self.active) != 1 or states != {(False, False)}:
            return None
        (name,) = self.active
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = get_peft_model_state_dict(self.model, adapter_name=name, save_embedding_layers=False)
        source = StateDictSource(f"{self.name}: adapter {name}", tensors, apart=tensors)
        return read_adapter(adapter_files(name, None, self.settings(name), source))

    def settings(self, name: str) -> Settings:
        """Return the checked settings of an adapter; raise BadModel for one that is not read.

        An initialisation that changes the base is none here: the base in memory is the changed one.
        """
        values = json.loads(json.dumps(self.model.peft_config[name].to_dict(), default=_plain))
        values |= {"init_lora_weights": None, "base_model_name_or_path": None}
        return Settings(f"{self.name}: {CONFIG} of {name}", values)

    @property
    def merged(self) -> "MergedSource":
        """The weights with all active adapters in them."""
        return MergedSource(self.name, tensors_of(self.base), self.layers)


class MergedSource(StateDictSource):
    """The tensors of a model with adapters, as it computes with them; a module is merged when it is read.

    Args:
        place: The name of the model, for messages.
        state: The tensors of the base by name.
        layers: The modules that PEFT put in the place of others, by path.

    Raises:
        BadModel: For modules of which it is not known how they are merged.
    """

    def __init__(self, place: str, state: Mapping[str, object], layers: Mapping[str, Any]) -> None:
        self._layer_of = {
            f"{path}.{name}": (layer, name)
            for path, layer in layers.items()
            for name in _parameters(place, path, layer)
        }
        super().__init__(place, state, apart=self._layer_of)
        if lost := sorted(self._layer_of.keys() - state.keys()):
            raise BadModel(f"{place}: {lost[0]} has another name in files, so its merged values are not read.")
        self._merge = lru_cache(maxsize=1)(_merged)

    def _values(self, name: str) -> Tensor:
        layer, parameter = self._layer_of.get(name, (None, ""))
        if layer is None:
            return super()._values(name)
        try:
            values: Tensor = getattr(self._merge(layer), parameter)
        except Exception as error:  # PEFT has no exception of its own for these failures
            raise BadWeights(f"{self.path}: PEFT cannot merge {name}: {error}") from error
        return values


def _outermost(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, inner in module.named_children():
        place = f"{path}.{name}" if path else name
        if package_of(inner) == "peft":
            yield place, inner
        else:
            yield from _outermost(inner, place)


def _active(layer: Any) -> list[str]:
    return list(layer.active_adapters)


def _is_off(layer: Any) -> bool:
    return bool(layer.disable_adapters)


def _is_merged(layer: Any) -> bool:
    return bool(getattr(layer, "merged_adapters", ()))


def _parameters(place: str, path: str, layer: Any) -> tuple[str, ...]:
    """Return the names of the parameters of a module that adapters change."""
    inner = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer.original_module
    if any(package_of(part) == "peft" for part in inner.modules()):
        raise BadModel(f"{place}: {path} has adapters inside adapters, which are not read merged.")
    return tuple(name for name, _ in inner.named_parameters())


def _merged(layer: Any) -> Any:
    """Return the module that computes what a module with adapters computes, without changing that one."""
    if hasattr(layer, "modules_to_save"):
        return (
            layer.original_module if _is_off(layer) or not _active(layer) else layer.modules_to_save[_active(layer)[0]]
        )
    if _is_off(layer) and _is_merged(layer):
        raise ValueError("its adapters are merged and switched off at once")
    if _is_off(layer) or _is_merged(layer):
        return layer.get_base_layer()
    merged = copy.deepcopy(layer)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        merged.merge(safe_merge=True, adapter_names=_active(layer))
    return merged.get_base_layer()


def _plain(value: Any) -> Any:
    """Return a value of PEFT's settings as JSON has it."""
    return sorted(value) if isinstance(value, set) else str(getattr(value, "value", value))
