"""Mean and variance from those that programs found of their parts: the second of two launches.

A launch of its own: here as many programs read the parts as there are groups of 8 columns, where
the last program of the first launch would have to read all of them alone.
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .pair_tiles import columns_of, merge, moments_across, shaped
from .tiles import power_of_two

COLUMNS = 8  # a sector of 32 bytes of each row
PARTS = 1024  # at once; there are seldom more


@triton.jit(do_not_specialize=["parts", "work", "span"])
def combine_moments_kernel(
    parts_ptr,  # [parts, 2, H] fp32: mean, Σ (v − mean)²
    moments_ptr,  # [2, H] fp32
    parts,
    work, span,  # part k is of values k·span·EACH .. (k + 1)·span·EACH, of work·EACH
    EACH: tl.constexpr, H: tl.constexpr, PARTS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    column = columns_of(tl.program_id(0), BLOCK_H)
    mean = tl.zeros([1, BLOCK_H], tl.float32)
    square = tl.zeros([1, BLOCK_H], tl.float32)
    count = tl.zeros([1], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        place = parts_ptr + part[:, None].to(tl.int64) * (2 * H) + column[None, :]
        mask = shaped(part < parts, column, 2, H, BLOCK_H)
        part_mean = tl.load(place, mask, other=0.0)
        part_square = tl.load(place + H, mask, other=0.0)
        left = work - tl.minimum(part, parts).to(tl.int64) * span
        part_count = tl.maximum(tl.minimum(left, span), 0).to(tl.float32)
        whole, squares = moments_across(part_mean, part_square / EACH, part_count)
        mean, square, count = merge(
            mean, square, count, whole[None, :], squares[None, :],
            tl.expand_dims(tl.sum(part_count, 0), 0),
        )  # fmt: skip
    mask = (column < H)[None, :]
    tl.store(moments_ptr + column[None, :], mean, mask)
    tl.store(moments_ptr + H + column[None, :], square / count[:, None], mask)


def combined(parts: Tensor, work: int, span: int, each: int) -> Tensor:
    """[2, H] mean and biased variance; called within `launching`."""
    count, _, width = parts.shape
    moments = parts.new_empty(2, width)
    combine_moments_kernel[(triton.cdiv(width, COLUMNS),)](
        parts, moments, count, work, span,
        EACH=each, H=width, PARTS=min(PARTS, power_of_two(count)), BLOCK_H=COLUMNS, num_warps=8,
    )  # fmt: skip
    return moments
