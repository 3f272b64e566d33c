"""A second device that every machine has: code that mixes devices fails on it as on a GPU, without one.

Inside `elsewhere()` a tensor asked for on ``ELSEWHERE`` computes on the processor, but it says that it lies there, and
an operation on tensors of two devices is an error, with torch's own exceptions from that rule. NumPy cannot look at it,
and a random generator of the processor does not fill it. The numbers are those of the processor, to the bit.
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
"""A device that every PyTorch knows by name and for which none of ours has kernels: nothing passes by unseen."""

_aten = torch.ops.aten
_MATMUL = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
_CARRIES = {_aten.copy_.default}
"""Operations that take tensors of two devices, because that is what they are for."""
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
"""Operations whose indices, always the second argument, may also lie on the processor."""


class Shell(Tensor):
    """A tensor that says it is elsewhere; what it holds lies on the processor."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "Shell":
        made: Shell = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
        )
        made.held = held
        return made

    held: Tensor

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.held!r} elsewhere"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a tensor that is elsewhere, out of `elsewhere()`")


class _Checked(TorchDispatchMode):
    """Every operation is `checked`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return checked(func, args, kwargs or {})


def checked(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute what is elsewhere on the processor; RuntimeError for what torch would refuse on a GPU."""
    asked = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.device)]
    there = asked[0].type == ELSEWHERE.type if asked else _refuse_mixed(func, args, kwargs)
    if asked and there and kwargs.get("generator") is not None:
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

    found = func(*pytree.tree_map(bare, args), **pytree.tree_map(bare, kwargs))

    def dressed(value: Tensor) -> Tensor:
        if there and id(value) in shells:  # written in place, or into ``out``: the tensor that it was
            return shells[id(value)]
        value = value.clone() if asked else value  # carried, which here alone may have been nothing to do
        return Shell(value.resolve_conj()) if there else value  # a shell does not tell that it is a conjugate

    return pytree.tree_map_only(Tensor, dressed, found)


def _refuse_mixed(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation's tensors are elsewhere; RuntimeError, as of torch, where only some of them are."""
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
    """Whether an operation takes a tensor without dimensions on the processor for a number, wherever the others are."""
    return torch.Tag.pointwise in func.tags or func in _INDEXED


class _Python(TorchFunctionMode):
    """What torch does below the reach of `_Checked`, said in operations that it sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device"):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func in _MATMUL:  # which reshapes its result in place
            return checked(_aten.matmul.default, args, kwargs)
        if func is Tensor.tolist and isinstance(args[0], Shell):
            return args[0].cpu().tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = pytree.tree_map_only(list, torch.tensor, args, is_leaf=lambda x: isinstance(x, list))
        return func(*args, **kwargs)


def multiply_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have surveys multiply float16 on any device, as they do on a GPU."""
    monkeypatch.setattr(top_k, "_quantizes", lambda _: False)
    monkeypatch.setattr(top_k, "_rounds", lambda _: True)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """The second device, while it is there."""
    with _Python(), _Checked():
        yield ELSEWHERE
