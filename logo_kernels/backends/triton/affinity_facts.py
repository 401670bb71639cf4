"""Facts of a layer's gradient from the sums of all programs: the second of two launches.

Facts [5, H] are the two rows of the correction, by which the statistics take part in the gradient,
then the gradients to the norm's weight, to its bias, and to a bias added before the norm. After the
second product, [6, H] ends with the gradient to w₃.
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .affinity_moments import COLUMNS, PARTS
from .affinity_rows import columns_of, shaped, vector
from .tiles import next_power_of_two


@triton.jit(do_not_specialize=["parts"])
def affinity_facts_kernel(
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


def combine_facts(
    parts: Tensor,  # [programs, 2, H] fp32: sums
    norm: Tensor,
    last: Tensor | None,  # w₃ [H], after the second product
    batch: bool,  # whether the statistics are the batch's
    values: int,  # that the statistics are of
    to: Tensor,
) -> None:
    """Fills facts [5, H], or [6, H] with w₃ given. Called within `launching`."""
    count, _, width = parts.shape
    affinity_facts_kernel[(triton.cdiv(width, COLUMNS),)](
        parts, norm, norm if last is None else last, to, float(values), count,
        OUTPUT=last is not None, BATCH=batch,
        H=width, PARTS=min(PARTS, next_power_of_two(count)), BLOCK_H=COLUMNS, num_warps=8,
    )  # fmt: skip
