"""What plans have to know of a device."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from .environment import interpreted
from .launch import INTERPRETER_PROGRAMS


class Facts(NamedTuple):
    multiprocessors: int
    major: int  # the first number of the compute capability
    shared: int  # bytes that a program may have


@functools.cache
def facts_of(device: int | None) -> Facts:
    """Of the device of that index; constants stand in for it under the interpreter."""
    if interpreted():
        return Facts(INTERPRETER_PROGRAMS, 9, 227 << 10)
    properties = torch.cuda.get_device_properties(device)
    return Facts(
        properties.multi_processor_count,
        properties.major,
        properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
    )
