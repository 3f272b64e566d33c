"""A simulated second device, on which code that mixes devices fails as it does on a GPU.

Inside `elsewhere()` a tensor created on ``ELSEWHERE`` is computed on the CPU but reports ``ELSEWHERE`` as its device.
An operation on tensors of two devices raises an error, with the same exceptions to that rule as in torch. NumPy cannot
read such a tensor, and a random generator of the CPU cannot fill it. Results equal those of the CPU bit for bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from zeropass.numerics import top_k

ELSEWHERE = torch.device("lazy", 0)
"""A device that every PyTorch knows by name, but for which our builds have no kernels, so nothing runs unnoticed."""

_aten = torch.ops.aten
_MATMUL = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
_CARRIES = {_aten.copy_.default}
"""Operations that take tensors of two devices by design."""
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
"""Operations whose indices, always the second argument, may also be on the CPU."""


class Shell(Tensor):
    """A tensor that reports the simulated device and holds a tensor of the CPU."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "Shell":
        shell: Shell = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
        )
        shell.held = held
        return shell

    held: Tensor

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.held!r} elsewhere"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a tensor that is elsewhere, out of `elsewhere()`")


class _Checked(TorchDispatchMode):
    """A mode in which every operation is `checked`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return checked(func, args, kwargs or {})


def checked(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute an operation on the CPU; raise RuntimeError for one that torch would refuse on a GPU."""
    devices = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.device)]
    there = devices[0].type == ELSEWHERE.type if devices else _refuse_mixed(func, args, kwargs)
    if devices and there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the processor for a tensor elsewhere")
    if there and torch.Tag.inplace_view in func.tags:
        raise NotImplementedError(f"{func} would reshape a tensor behind its shell")
    shells: dict[int, Shell] = {}

    def bare(value: Any) -> Any:
        if isinstance(value, Shell):
            shells[id(value.held)] = value
            return value.held
        elsewhere = isinstance(value, torch.device) and value.type == ELSEWHERE.type
        return torch.device("cpu") if elsewhere else value

    result = func(*pytree.tree_map(bare, args), **pytree.tree_map(bare, kwargs))

    def dressed(value: Tensor) -> Tensor:
        if there and id(value) in shells:  # written in place or into ``out``: return the same tensor
            return shells[id(value)]
        value = value.clone() if devices else value  # a transfer must copy, but on the CPU alone it may do nothing
        return Shell(value.resolve_conj()) if there else value  # a shell cannot mark itself as a conjugate

    return pytree.tree_map_only(Tensor, dressed, result)


def _refuse_mixed(func: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether an operation's tensors are elsewhere; raise torch's RuntimeError if only some of them are."""
    if func in _CARRIES:
        return isinstance(args[0], Shell)
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = any(isinstance(x, Shell) for x in tensors)
    if func in _INDEXED and isinstance(args[0], Shell):
        tensors = [args[0], *args[2:3]]
    here = [x for x in tensors if not isinstance(x, Shell) and not (x.ndim == 0 and _takes_numbers(func))]
    if there and here:
        shapes = ", ".join(f"{tuple(x.shape)} {'elsewhere' if isinstance(x, Shell) else 'here'}" for x in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {shapes}")
    return there


def _takes_numbers(func: Any) -> bool:
    """Tell whether an operation accepts a tensor without dimensions on the CPU as a number, whatever the device."""
    return torch.Tag.pointwise in func.tags or func in _INDEXED


class _Python(TorchFunctionMode):
    """A mode that rewrites operations which `_Checked` cannot intercept as ones that it can."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device"):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func in _MATMUL:  # matmul reshapes its result in place
            return checked(_aten.matmul.default, args, kwargs)
        if func is Tensor.tolist and isinstance(args[0], Shell):
            return args[0].cpu().tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = pytree.tree_map_only(list, torch.tensor, args, is_leaf=lambda x: isinstance(x, list))
        return func(*args, **kwargs)


def multiply_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make surveys multiply float16 on any device, as they do on a GPU."""
    monkeypatch.setattr(top_k, "_quantizes", lambda _: False)
    monkeypatch.setattr(top_k, "_rounds", lambda _: True)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Yield the second device, which exists while the context lasts."""
    with _Python(), _Checked():
        yield ELSEWHERE
