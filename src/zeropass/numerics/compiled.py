"""The compiled kernels that this machine has. Where one is None, torch does its work with the same results."""

try:
    from zeropass.numerics import numba_kernels
except (ImportError, RuntimeError):  # numba is an extra; it raises RuntimeError if it has no folder for its cache
    numba_kernels = None  # type: ignore[assignment]

try:
    from zeropass.numerics import triton_kernels
except ImportError:  # Triton comes with the GPU builds of PyTorch on Linux
    triton_kernels = None  # type: ignore[assignment, unused-ignore]

__all__ = ["numba_kernels", "triton_kernels"]
