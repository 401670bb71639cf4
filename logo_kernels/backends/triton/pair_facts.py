"""What the sums of batch norm become, from those of programs: the second of two launches.

Corrections and gradients of parameters, as backends/pairs.py has them; or the sums themselves.
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .pair_moments import COLUMNS, PARTS
from .pair_tiles import columns_of, shaped, vector
from .tiles import power_of_two


@triton.jit(do_not_specialize=["parts"])
def combine_sums_kernel(
    parts_ptr,  # [parts, 2, H] fp32
    norm_ptr,  # [4, H] fp32
    last_ptr,  # w₃ [H] fp32, read where OUTPUT
    facts_ptr,  # [5, H] fp32, where OUTPUT [6, H]
    values,  # that the statistics are of, a float
    parts,
    OUTPUT: tl.constexpr, BATCH: tl.constexpr,
    H: tl.constexpr, PARTS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    column = columns_of(tl.program_id(0), BLOCK_H)
    first = tl.zeros([BLOCK_H], tl.float32)
    second = tl.zeros([BLOCK_H], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        place = parts_ptr + part[:, None].to(tl.int64) * (2 * H) + column[None, :]
        mask = shaped(part < parts, column, 2, H, BLOCK_H)
        first += tl.sum(tl.load(place, mask, other=0.0), 0)
        second += tl.sum(tl.load(place + H, mask, other=0.0), 0)
    scale = vector(norm_ptr, 1, column, H, BLOCK_H)
    inverse = vector(norm_ptr, 3, column, H, BLOCK_H)
    to, mask = facts_ptr + column, column < H
    if OUTPUT:
        bias = vector(norm_ptr, 2, column, H, BLOCK_H)
        tl.store(to + 5 * H, second * scale + first * bias, mask)
        last = vector(last_ptr, 0, column, H, BLOCK_H)
        first *= last
        second *= last
    if BATCH:
        tl.store(to, first / values, mask)
        tl.store(to + H, second * inverse * inverse / values, mask)
        tl.store(to + 4 * H, scale * (first - first), mask)  # 0, or NaN
    else:
        tl.store(to, tl.zeros([BLOCK_H], tl.float32), mask)
        tl.store(to + H, tl.zeros([BLOCK_H], tl.float32), mask)
        tl.store(to + 4 * H, scale * first, mask)
    tl.store(to + 2 * H, second * inverse, mask)
    tl.store(to + 3 * H, first, mask)


def facts(parts: Tensor, norm: Tensor, last: Tensor | None, batch: bool, values: int) -> Tensor:
    """[5, H], or [6, H'] with w₃ given; called within `launching`."""
    count, _, width = parts.shape
    made = parts.new_empty(5 if last is None else 6, width)
    combine_sums_kernel[(triton.cdiv(width, COLUMNS),)](
        parts, norm, norm if last is None else last, made, float(values), count,
        OUTPUT=last is not None, BATCH=batch,
        H=width, PARTS=min(PARTS, power_of_two(count)), BLOCK_H=COLUMNS, num_warps=8,
    )  # fmt: skip
    return made
