"""What the benchmarks take from logo_kernels beside its public names, in one place."""

from __future__ import annotations

from torch import Tensor

from logo_kernels.backends import AUTO, BACKENDS, resolve
from logo_kernels.backends.extension import extension, problem

__all__ = ["AUTO", "extension", "leave_out", "problem", "serving"]

WORDS = {"affinity": "pair_mlp"}  # of `resolve`, where it has another than the benchmarks


def serving(operation: str, *tensors: Tensor, backend: str = AUTO) -> str:
    """The backend that serves a call; RuntimeError where a named one does not."""
    return resolve(backend, WORDS.get(operation, operation), *tensors).name


def leave_out(backend: str, reason: str) -> None:
    """From now on in this process it can be neither chosen nor named."""
    BACKENDS[backend].missing = lambda: reason  # type: ignore[method-assign]
