"""The compiled kernels that this machine has. Where one is None, torch does its work with the same results.

They are loaded when they are first asked for: numba takes a quarter of a second, which a command that searches no pairs
need not pay.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    numba_kernels: Any
    triton_kernels: Any

__all__ = ["numba_kernels", "triton_kernels"]


def __getattr__(name: str) -> Any:
    """Load the kernels of a name; None if this machine cannot have them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        kernels = import_module(f"zeropass.numerics.{name}")
    # Both are extras: numba also raises RuntimeError if it has no folder for its cache.
    except (ImportError, RuntimeError):
        kernels = None
    globals()[name] = kernels
    return kernels
