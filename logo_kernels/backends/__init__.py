"""The backends by name, and the choice among them."""

from __future__ import annotations

import functools

import torch

from .cpu import CpuBackend
from .cuda import CudaBackend
from .protocol import Backend, CosineResult, PairWeights, Problem
from .reference import ReferenceBackend
from .triton import TritonBackend

__all__ = [
    "AUTO",
    "BACKENDS",
    "Backend",
    "CosineResult",
    "PairWeights",
    "Problem",
    "choose",
    "resolve",
]

AUTO = "auto"

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (ReferenceBackend(), CpuBackend(), TritonBackend(), CudaBackend())
}

# Fastest first. A device that is not listed is served by the reference alone.
PREFERENCE = {
    "cpu": ("cpu", "reference"),
    "cuda": ("cuda", "triton", "reference"),
}


def choose(name: str, problem: Problem, backends: dict[str, Backend]) -> Backend:
    """The backend that serves `problem`; a pure function of its arguments.

    "auto" takes the first in the order of `PREFERENCE` that is there and does not refuse. A named
    backend serves or raises RuntimeError with its reason.
    """
    if name != AUTO:
        backend = backends[name]
        reason = backend.missing() or backend.refuses(problem)
        if reason is not None:
            raise RuntimeError(
                f"backend {name!r} cannot serve this call: {reason}. "
                f"backend='auto' falls back to one that can."
            )
        return backend
    for candidate in PREFERENCE.get(problem.device, ("reference",)):
        backend = backends[candidate]
        if backend.missing() is None and backend.refuses(problem) is None:
            return backend
    raise AssertionError("the reference backend refuses nothing")


def resolve(name: str, operation: str, *tensors: torch.Tensor | None) -> Backend:
    """`choose` for the tensors of a call; the first one is always there."""
    first = tensors[0]
    assert first is not None
    dtypes, crops = [], 0
    for tensor in tensors:
        if tensor is not None:
            dtypes.append(tensor.dtype)
            crops += tensor.shape[1]
    if operation in ("info_nce", "pair_mlp"):
        crops = 0  # how many rows an image has binds no kernel here
    device, index = first.device.type, first.device.index or 0
    return _choose(name, operation, device, tuple(dtypes), crops, first.shape[2], index)


@functools.lru_cache(maxsize=1024)  # a training loop asks the same question at every step
def _choose(
    name: str,
    operation: str,
    device: str,
    dtypes: tuple[torch.dtype, ...],
    crops: int,
    dim: int,
    index: int,
) -> Backend:
    problem = Problem(operation, device, frozenset(dtypes), crops, dim, index)
    return choose(name, problem, BACKENDS)
