"""Where kernels are launched and what they share between launches: devices, streams, workspaces."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from .environment import interpreted

# Programs of one launch that a grid-stride kernel starts where there are no multiprocessors.
INTERPRETER_PROGRAMS = 3

_interpreter = threading.RLock()
_workspaces: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """The interpreter patches Triton's module while a kernel runs: one thread at a time."""
    with _interpreter:
        yield


def launching(tensor: Tensor) -> AbstractContextManager[object]:
    """Context of a launch on the device of `tensor`; Triton launches on the current one."""
    if interpreted():
        return _one_at_a_time()
    if tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def strides(crops: Tensor | None) -> tuple[int, int, int]:
    """Strides in elements over B, V, D; zeros for a tensor that is not there."""
    if crops is None:
        return 0, 0, 0
    image, row, step = crops.stride()
    return image, row, step


def gradient_rows(gradient: Tensor, crops: Tensor) -> tuple[Tensor, int, int]:
    """(buffer, strides over B and V); for one not asked for, `crops` as a stand-in of its dtype."""
    if gradient.numel() == 0:
        return crops, 0, 0
    return gradient, gradient.stride(0), gradient.stride(1)


def unit_steps(*tensors: Tensor | None) -> bool:
    """Whether every tensor is dense over D; a single column is, whatever its stride says."""
    return all(t is None or t.stride(-1) == 1 or t.shape[-1] == 1 for t in tensors)


def alignment(*tensors: Tensor) -> int:
    """Bytes, at most 16, to a multiple of which every row of every non-empty [B, V, D] begins."""
    bits = 16
    for tensor in tensors:
        if tensor.numel():
            bits |= tensor.data_ptr()
            for size, stride in zip(tensor.shape[:2], tensor.stride()[:2], strict=True):
                if size > 1:
                    bits |= stride * tensor.element_size()
    return bits & -bits


@functools.cache
def multiprocessors(device: int | None) -> int:
    """Of the device of that index; a constant stands in for it under the interpreter."""
    if interpreted():
        return INTERPRETER_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count


def reduction_workspace(like: Tensor, images: int, groups: int) -> tuple[Tensor, Tensor]:
    """(partials [≥ 3·(images + groups)] fp32, counters [≥ 1 + groups] int32, zeros).

    Kept per device and stream: launches on one stream follow each other, and each leaves the
    counters at zero. A captured graph may run beside later work on any stream: it gets its own,
    with a memset of the counters inside the graph. Called within `launching(like)`.
    """
    if interpreted():
        key = -1, 0
    elif torch.cuda.is_current_stream_capturing():
        return _new_workspace(like, images + groups, groups)
    else:
        key = like.device.index, torch.cuda.current_stream().cuda_stream
    workspace = _workspaces.get(key)
    if workspace is None or workspace[0].numel() < 3 * (images + groups):
        # Powers of two: a batch that is a little larger does not allocate again.
        size = 1 << (images + groups - 1).bit_length()
        workspace = _new_workspace(like, size, size)
        _workspaces[key] = workspace
    return workspace


def _new_workspace(like: Tensor, partials: int, groups: int) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(3 * partials, dtype=torch.float32, device=like.device),
        torch.zeros(1 + groups, dtype=torch.int32, device=like.device),
    )
