"""Adapters whose change PEFT's own layers compute, one matrix at a time, without the model.

PEFT receives a skeleton, that is modules with the right names and shapes but no numbers, and the adapter's tensors. A
module has its matrix only while PEFT changes it.
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
except ImportError as _error:
    raise MissingExtra("PEFT has to compute it, which needs an extra: pip install 'zeropass[run]'.") from _error

__all__ = ["Computer"]

Shape = tuple[int, int]


class Computer:
    """A computation of the matrices that an adapter changes, by PEFT.

    Args:
        adapter: An adapter of a method of `COMPUTED`.
        shapes: The shape (out, in) of each module that it changes, and whether the module has a bias.

    Raises:
        BadModel: For settings that PEFT rejects.
        BadWeights: For tensors that do not fit the modules.
    """

    def __init__(self, adapter: Adapter, shapes: Mapping[str, tuple[Shape, bool]]) -> None:
        self.adapter = adapter
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._model = peft.PeftModel(_skeleton(shapes), self._config(shapes))
                self._load()  # tensors that all modules share may be absent: PEFT draws them again from a seed
                self._model.eval()
        except BadModel:
            raise
        except Exception as error:  # PEFT has no exception of its own for these failures
            raise self._error(error) from error

    def matrix(self, module: str, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return a module's matrix and bias after the change.

        Args:
            module: The name of the module.
            weight: The matrix before the change, (out, in).
            bias: The bias before the change, (out,); None if the module has none.

        Returns:
            The new matrix (out, in) and the new bias (out,), which is None if ``bias`` is.

        Raises:
            BadModel: If PEFT cannot compute the change.
        """
        layer: Any = self._model.get_base_model().get_submodule(module)
        linear: Any = layer.get_base_layer()
        empty = linear.weight, linear.bias
        try:
            linear.weight = nn.Parameter(weight.detach().cpu().clone(), requires_grad=False)
            if bias is not None:
                linear.bias = nn.Parameter(bias.detach().cpu().clone(), requires_grad=False)
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                layer.merge(safe_merge=True)
            after = linear.weight.data, None if linear.bias is None else linear.bias.data
        except Exception as error:
            raise self._error(error) from error
        finally:
            layer.merged_adapters.clear()
            linear.weight, linear.bias = empty
        return after[0].to(weight.device), None if bias is None or after[1] is None else after[1].to(weight.device)

    def _error(self, error: Exception) -> BadModel:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return BadModel(f"{self.adapter.folder}: PEFT {peft.__version__} cannot compute this adapter: {reason}")

    def _config(self, shapes: Mapping[str, tuple[Shape, bool]]) -> Any:
        settings = self.adapter.settings
        options = {key: settings.values[key] for key in COMPUTED[settings.method][1] if key in settings.values}
        # Every size is that of some tensor; a larger one would only make PEFT allocate memory.
        stored = [tensor.shape for tensors in self.adapter.computed.values() for tensor in tensors.values()]
        largest = max(size for shape in (*stored, *(shape for shape, _ in shapes.values())) for size in shape)
        for key in options:
            sizes = settings.patterns(key).values() if key.endswith("_pattern") else [options[key]]
            if key not in _ANY_NUMBER and any(isinstance(size, int) and size > largest for size in sizes):
                raise BadWeights(f"{settings.path}: {key} is {options[key]}; no tensor of the adapter is that large.")
        method: Any = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(settings.method)]
        return method(**options, target_modules=list(shapes))

    def _load(self) -> None:
        tensors = {
            ".".join(part for part in ("base_model.model" if module else "base_model", module, name) if part): tensor
            for module, parts in self.adapter.computed.items()
            for name, tensor in parts.items()
        }
        result: Any = peft.set_peft_model_state_dict(self._model, tensors)
        prefix, shared = COMPUTED[self.adapter.settings.method][0], self.adapter.computed.get("", {})
        # Keys without the prefix belong to the base, and PEFT lists the shared tensors under every module.
        matches = {name: re.search(rf"\.({prefix}[^.]*)", name) for name in result.missing_keys}
        missing = [name for name, match in matches.items() if match and match[1] not in shared]
        odd = [*missing, *result.unexpected_keys]
        if odd:
            raise BadWeights(f"{self.adapter.place}: tensors are missing or not known to PEFT: {', '.join(odd[:3])}.")


_ANY_NUMBER = ("projection_prng_key", "random_loc_seed", "scaling", "alpha", "alpha_pattern", "randlora_alpha")
"""Settings whose numbers are not sizes."""


def _skeleton(shapes: Mapping[str, tuple[Shape, bool]]) -> nn.Module:
    """Build modules that have the given names and shapes but hold no numbers."""
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
