"""What the backends that launch kernels share: the current device, and memory kept for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


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


class Workspaces(Generic[T]):
    """Buffers that launches share, one per device and stream.

    Launches on one stream follow each other, so each may rely on what the one before left behind. A
    captured graph may run beside later work on any stream: it gets buffers of its own, whose
    initialisation is part of the graph.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int | None, int], T] = {}

    def take(self, like: Tensor, fits: Callable[[T], bool], make: Callable[[], T]) -> T:
        """Those for the current stream of the device of `like`; called within `on_device_of`."""
        if like.is_cuda and torch.cuda.is_current_stream_capturing():
            return make()
        key = like.device.index, current_stream(like)
        kept = self._kept.get(key)
        if kept is None or not fits(kept):
            kept = self._kept[key] = make()
        return kept
