"""The backends by name, and the choice among them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .cpu import CpuBackend
from .cuda import CudaBackend
from .preference import AHEAD, order
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
    "preferring",
    "remembered",
    "resolve",
]

AUTO = "auto"

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (ReferenceBackend(), CpuBackend(), TritonBackend(), CudaBackend())
}


def choose(name: str, problem: Problem, backends: dict[str, Backend]) -> Backend:
    """The backend that serves `problem`; a pure function of its arguments.

    "auto" takes the first in the order of preference.py that is there and does not refuse. A named
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
    for candidate in order(problem):
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
            crops += tensor.size(1)
    if operation in ("info_nce", "pair_mlp"):
        crops = 0  # how many rows an image has binds no kernel here
    return remembered(name, operation, first.device, tuple(dtypes), crops, first.size(2))


@functools.lru_cache(maxsize=1024)  # a training loop asks the same question at every step
def remembered(
    name: str,
    operation: str,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    crops: int,
    dim: int,
) -> Backend:
    """`choose` for these facts; the device is one, since those of a machine may differ."""
    index = device.index or 0
    problem = Problem(operation, device.type, frozenset(dtypes), crops, dim, index)
    return choose(name, problem, BACKENDS)


@contextmanager
def preferring(name: str) -> Iterator[None]:
    """Within it, "auto" takes the backend `name` wherever that serves."""
    AHEAD.append(name)
    remembered.cache_clear()
    try:
        yield
    finally:
        AHEAD.pop()
        remembered.cache_clear()
