"""What the benchmarks take from logo_kernels beside its public names, in one place."""

from __future__ import annotations

from torch import Tensor

from logo_kernels.backends import AUTO, BACKENDS, backend_for
from logo_kernels.backends.extension import extension, reason

__all__ = ["AUTO", "extension", "leave_out", "reason", "serving"]


def serving(operation: str, *tensors: Tensor, backend: str = AUTO) -> str:
    """The backend that serves a call; RuntimeError where a named one does not."""
    first, dtypes = tensors[0], tuple(tensor.dtype for tensor in tensors)
    bound = operation in ("cosine", "similarity")  # by the number of an image's rows
    rows = sum(tensor.size(1) for tensor in tensors) if bound else 0
    return backend_for(backend, (operation, first.device, dtypes, rows, first.size(2))).name


def leave_out(backend: str, why: str) -> None:
    """From now on in this process it can be neither chosen nor named."""
    BACKENDS[backend].missing = lambda: why  # type: ignore[method-assign]
