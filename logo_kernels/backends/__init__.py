"""The backends by name, and the choice among them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from .cpu import CpuBackend
from .cuda import CudaBackend
from .preference import AHEAD, order
from .protocol import Backend, Key, Request
from .reference import ReferenceBackend
from .triton import TritonBackend

__all__ = [
    "AUTO",
    "BACKENDS",
    "Backend",
    "Key",
    "Request",
    "backend_for",
    "choose",
    "preferring",
]

AUTO = "auto"

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (ReferenceBackend(), CpuBackend(), TritonBackend(), CudaBackend())
}


def choose(name: str, request: Request, backends: dict[str, Backend]) -> Backend:
    """The backend that serves `request`; a pure function of its arguments.

    "auto" takes the first in the order of preference.py that is there and does not refuse. A named
    backend serves or raises RuntimeError with its reason.
    """
    if name != AUTO:
        backend = backends[name]
        reason = backend.missing() or backend.refuses(request)
        if reason is not None:
            raise RuntimeError(
                f"backend {name!r} cannot serve this call: {reason}. "
                f"backend='auto' falls back to one that can."
            )
        return backend
    for candidate in order(request):
        backend = backends[candidate]
        if backend.missing() is None and backend.refuses(request) is None:
            return backend
    raise AssertionError("the reference backend refuses nothing")


@functools.lru_cache(maxsize=1024)  # a training loop asks the same question at every step
def backend_for(name: str, key: Key) -> Backend:
    """`choose` for the facts of a call; the device is one, since a machine's may differ."""
    operation, device, dtypes, crops, dim = key
    index = device.index or 0
    request = Request(operation, device.type, frozenset(dtypes), crops, dim, index)
    return choose(name, request, BACKENDS)


@contextmanager
def preferring(name: str) -> Iterator[None]:
    """Within it, "auto" takes the backend `name` wherever that serves."""
    AHEAD.append(name)
    backend_for.cache_clear()
    try:
        yield
    finally:
        AHEAD.pop()
        backend_for.cache_clear()
