"""What every launch needs: its device, strides and alignment of rows, workspaces of its stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from ..devices import Zeros, on_device_of
from .environment import interpreted
from .tiles import next_power_of_two

# Kept for a stream at the least: enough for all batches but the largest.
COUNTERS = 1024

_interpreter = threading.RLock()
_counters = Zeros(torch.int32)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """The interpreter patches Triton's module while a kernel runs: one thread at a time."""
    with _interpreter:
        yield


def launching(tensor: Tensor) -> AbstractContextManager[object]:
    """Context of a launch on the device of `tensor`; Triton launches on the current one."""
    if interpreted():
        return _one_at_a_time()
    return on_device_of(tensor)


def strides(crops: Tensor) -> tuple[int, int, int]:
    """Strides in elements over B, V, D."""
    image, row, step = crops.stride()
    return image, row, step


def gradient_rows(gradient: Tensor | None, crops: Tensor) -> tuple[Tensor, int, int]:
    """(buffer, strides over B and V); `crops`, of its dtype, stands in for one not asked for."""
    if gradient is None:
        return crops, 0, 0
    return gradient, gradient.stride(0), gradient.stride(1)


def unit_steps(*tensors: Tensor) -> bool:
    """Whether every tensor is dense over D; a single column is, whatever its stride says."""
    return all(t.stride(-1) == 1 or t.shape[-1] == 1 for t in tensors)


def alignment(*tensors: Tensor | None) -> int:
    """Bytes, at most 16, to a multiple of which every row of every given [B, V, D] begins."""
    bits = 16
    for tensor in tensors:
        if tensor is not None and tensor.numel():
            bits |= tensor.data_ptr()
            for size, stride in zip(tensor.shape[:2], tensor.stride()[:2], strict=True):
                if size > 1:
                    bits |= stride * tensor.element_size()
    return bits & -bits


def reduction_workspace(like: Tensor, images: int, groups: int) -> tuple[Tensor, Tensor]:
    """(partials [3·(images + groups)] fp32, counters [≥ 1 + groups] int32, zeros).

    Each launch leaves the counters at zero. Called within `launching(like)`.
    """
    partials = torch.empty(3 * (images + groups), dtype=torch.float32, device=like.device)
    return partials, _counters.take(like, max(COUNTERS, next_power_of_two(1 + groups)))
