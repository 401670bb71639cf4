"""What plans have to know of a GPU; constants stand in for it under the interpreter."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from .environment import interpreted

# Multiprocessors under the interpreter: few, so that its programs walk over several tiles.
INTERPRETER_PROGRAMS = 3


class Gpu(NamedTuple):
    multiprocessors: int
    major: int  # the first number of the compute capability
    shared: int  # bytes of shared memory that a program may have


@functools.cache
def gpu_of(index: int | None) -> Gpu:
    """The GPU of that index among torch's."""
    if interpreted():
        return Gpu(INTERPRETER_PROGRAMS, 9, 227 << 10)
    properties = torch.cuda.get_device_properties(index)
    return Gpu(
        properties.multi_processor_count,
        properties.major,
        properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
    )


@functools.cache
def multiprocessors(index: int | None) -> int:
    """Of the GPU of that index; asks nothing else of it, which an older torch might not know."""
    if interpreted():
        return INTERPRETER_PROGRAMS
    return torch.cuda.get_device_properties(index).multi_processor_count
