"""Say which compiled kernels this machine has. Where one is None torch does the same, and finds the same."""

try:
    from zeropass.numerics import numba_tiles, numba_top_k
except (ImportError, RuntimeError):  # numba is an extra; it says RuntimeError if it may write what it compiles nowhere
    numba_tiles = numba_top_k = None  # type: ignore[assignment]

try:
    from zeropass.numerics import triton_kernels
except ImportError:  # Triton comes with PyTorch for GPUs, on Linux
    triton_kernels = None  # type: ignore[assignment, unused-ignore]

__all__ = ["numba_tiles", "numba_top_k", "triton_kernels"]
