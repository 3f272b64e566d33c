"""Adapters whose change PEFT itself computes: from its own layers, one matrix at a time, without the model.

PEFT is given a skeleton, modules of the right names and shapes that hold no numbers, and the adapter's tensors; a
module gets its matrix only while PEFT changes it.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zeropass.checkpoints.adapter_methods import Adapter
from zeropass.checkpoints.adapter_settings import COMPUTED
from zeropass.errors import BadModel, BadWeights, MissingExtra

try:
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
except ImportError as error:
    raise MissingExtra("PEFT has to compute it, which needs an extra: pip install 'zeropass[run]'.") from error

__all__ = ["Computer"]

Shape = tuple[int, int]


class Computer:
    """Changes matrices as an adapter of PEFT does.

    Args:
        adapter: of a method of `COMPUTED`.
        shapes: (out, in) of each module that it changes, and whether the module has a bias.

    Raises BadModel for settings that PEFT refuses, BadWeights for tensors that do not fit the modules.
    """

    def __init__(self, adapter: Adapter, shapes: Mapping[str, tuple[Shape, bool]]) -> None:
        self.adapter = adapter
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._model = peft.PeftModel(_skeleton(shapes), self._config(shapes))
                self._load()  # what all modules share need not be in the file: PEFT draws it again from a seed
                self._model.eval()
        except BadModel:
            raise
        except Exception as error:  # PEFT has no error of its own for any of it
            raise self._refused(error) from error

    def matrix(self, module: str, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return what a module's matrix (out, in) and its bias (out,) become."""
        layer: Any = self._model.get_base_model().get_submodule(module)
        plain: Any = layer.get_base_layer()
        empty = plain.weight, plain.bias
        try:
            plain.weight = nn.Parameter(weight.detach().cpu().clone(), requires_grad=False)
            if bias is not None:
                plain.bias = nn.Parameter(bias.detach().cpu().clone(), requires_grad=False)
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                layer.merge(safe_merge=True)
            after = plain.weight.data, None if plain.bias is None else plain.bias.data
        except Exception as error:
            raise self._refused(error) from error
        finally:
            layer.merged_adapters.clear()
            plain.weight, plain.bias = empty
        return after[0].to(weight.device), None if bias is None or after[1] is None else after[1].to(weight.device)

    def _refused(self, error: Exception) -> BadModel:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return BadModel(f"{self.adapter.path}: PEFT {peft.__version__} cannot compute this adapter: {reason}")

    def _config(self, shapes: Mapping[str, tuple[Shape, bool]]) -> Any:
        settings = self.adapter.settings
        given = {key: settings.values[key] for key in COMPUTED[settings.method][1] if key in settings.values}
        # A size is that of some tensor: one beyond all of them would only take memory.
        tensors = [tensor.shape for own in self.adapter.computed.values() for tensor in own.values()]
        largest = max(size for shape in (*tensors, *(shape for shape, _ in shapes.values())) for size in shape)
        for key in given:
            sizes = settings.patterns(key).values() if key.endswith("_pattern") else [given[key]]
            if key not in _ANY_NUMBER and any(isinstance(size, int) and size > largest for size in sizes):
                raise BadWeights(f"{settings.path}: {key} is {given[key]}; no tensor of the adapter is that large.")
        method: Any = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(settings.method)]
        return method(**given, target_modules=list(shapes))

    def _load(self) -> None:
        tensors = {
            ".".join(part for part in ("base_model.model" if module else "base_model", module, name) if part): tensor
            for module, own in self.adapter.computed.items()
            for name, tensor in own.items()
        }
        result: Any = peft.set_peft_model_state_dict(self._model, tensors)
        prefix, shared = COMPUTED[self.adapter.settings.method][0], self.adapter.computed.get("", {})
        # What is no part of the adapter is the base's, and every module also shows what all of them share.
        own = {name: re.search(rf"\.({prefix}[^.]*)", name) for name in result.missing_keys}
        missing = [name for name, part in own.items() if part and part[1] not in shared]
        odd = [*missing, *result.unexpected_keys]
        if odd:
            raise BadWeights(
                f"{self.adapter.files[1]}: tensors are missing or not known to PEFT: {', '.join(odd[:3])}."
            )


_ANY_NUMBER = ("projection_prng_key", "random_loc_seed", "scaling", "alpha", "alpha_pattern", "randlora_alpha")
"""Numbers that are not the size of anything."""


def _skeleton(shapes: Mapping[str, tuple[Shape, bool]]) -> nn.Module:
    root = nn.Module()
    for module, ((out, inside), biased) in shapes.items():
        *path, last = module.split(".")
        parent = root
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        linear = nn.Linear(inside, out, bias=biased, device="meta")
        linear.weight = nn.Parameter(torch.zeros(1).expand(out, inside), requires_grad=False)
        if biased:
            linear.bias = nn.Parameter(torch.zeros(1).expand(out), requires_grad=False)
        parent.add_module(last, linear)
    return root
