"""What the backends that launch kernels share: the current device, and memory kept for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the device of `tensor` the current one, where it is a GPU and not current already."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def current_stream(tensor: Tensor) -> int:
    """The handle of the current stream of the device of `tensor`; 0 on the CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def place(tensor: Tensor) -> tuple[int, int]:
    """(device, stream) that a launch goes to."""
    return tensor.device.index or 0, current_stream(tensor)


class Zeros:
    """Small buffers that launches find as zeros and leave as zeros, so that none clears them first.

    Launches on one stream follow each other and share one. A captured graph may run beside later
    work on any stream: it gets a buffer of its own, cleared within the graph.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._kept: dict[tuple[int | None, int, int], Tensor] = {}

    def take(self, like: Tensor, size: int) -> Tensor:
        """[size] for the current stream of the device of `like`; called within `on_device_of`.

        Each size that is ever asked for is kept.
        """
        make = partial(torch.zeros, size, dtype=self._dtype, device=like.device)
        if like.is_cuda and torch.cuda.is_current_stream_capturing():
            return make()
        key = like.device.index, current_stream(like), size
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = _from_the_default_pool(make) if like.is_cuda else make()
        return kept


def _from_the_default_pool(make: Callable[[], Tensor]) -> Tensor:
    """A tensor that may be kept, made in a thread of its own.

    Before torch.compile captures a graph, it runs the step once with this thread's allocations
    taken from the graph's pool, and fails if any is still there afterwards; likewise a
    torch.cuda.MemPool of the caller's could not be given back.
    """
    device = torch.cuda.current_device()

    def made() -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.device(device):
            tensor = make()
            return tensor, torch.cuda.current_stream().record_event()

    with ThreadPoolExecutor(1) as thread:
        tensor, ready = thread.submit(made).result()
    torch.cuda.current_stream().wait_event(ready)
    return tensor
