"""Sums over the programs of one launch: the last to arrive adds them up, in a fixed order."""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def arrives_last(counter, expected):
    """Whether this program is the last of `expected` ones; leaves the counter at zero.

    Release: all that this program has stored is visible before its ticket. Acquire: the last
    program sees all that the others have stored.
    """
    tl.debug_barrier()
    ticket = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    last = ticket == expected - 1
    if last:
        tl.store(counter, 0)  # ready for the next launch on this stream
    return last


@triton.jit
def sum_in_order(values, count, CHUNK: tl.constexpr):
    """The sum of `count` numbers that programs have stored; the same numbers give the same sum."""
    total = tl.zeros([CHUNK], tl.float32)
    for start in range(0, count, CHUNK):
        index = start + tl.arange(0, CHUNK)
        # From L2, where other multiprocessors wrote them.
        total += tl.load(values + index, index < count, other=0.0, cache_modifier=".cg")
    return tl.sum(total, 0)
