"""How the kernels of InfoNCE read rows of queries, positives and negatives; and τ."""

# Upper case marks compile-time constants in kernels; a branch on one is no expression.
# ruff: noqa: N803, SIM108, SIM300
# mypy: allow-untyped-defs, allow-untyped-globals

from __future__ import annotations

import math

import triton
import triton.language as tl

from .numbers import INTERPRETED, inverse_norm, scale_towards_one, widen

LOG2_E = tl.constexpr(math.log2(math.e))
# The factor by which unit queries are raised in fp16, whose normal numbers end at 2^-14.
RAISED = tl.constexpr(1024.0)
# log2 of 65000, near the end of fp16, less 5: 1/‖n‖ of rows that are not rescaled ends at 2^5.
ROOM = tl.constexpr(math.log2(65000.0) - 5)


@triton.jit
def value_of(temperature, ON_DEVICE: tl.constexpr):
    """τ, which is a number, or a pointer to one; NaN there unless it is positive."""
    if ON_DEVICE:
        tau = tl.load(temperature)
        tau = tl.where(tau > 0, tau, float("nan"))
    else:
        tau = tl.full([], temperature, tl.float32)
    return tau


@triton.jit
def steepness_of(tau):
    """log2(e)/τ as a factor of cosines' differences, which leaves 0 and −inf what they are.

    Those that would tell a greater one apart are less than errors of the cosines; where it is less,
    all powers are one.
    """
    scale = tl.div_rn(tl.full([], LOG2_E, tl.float32), tau)
    return tl.minimum(tl.maximum(scale, 2.0**-40), 2.0**127)


@triton.jit
def column_scale_of(tau, OP: tl.constexpr, RUNNING: tl.constexpr):
    """The factor of 1/‖n‖ in a column: log2(e)/τ, or 1 where RUNNING subtracts cosines before they
    are multiplied by it; over RAISED if OP, the dtype of the negatives, is fp16."""
    scale = tl.full([], 1.0, tl.float32) if RUNNING else steepness_of(tau)
    if OP == tl.float16:
        scale = scale / RAISED
    return scale


@triton.jit
def loss_unit(tau):
    """The power of two by which losses, as large as 2/τ, are multiplied before they are summed."""
    return tl.where(tau < 2.0**-60, 2.0**-64, 1.0)


@triton.jit
def lift_of(column_scale, OP: tl.constexpr, RUNNING: tl.constexpr):
    """The integer e for which probabilities are raised by 2^e: see info_nce_pass.py.

    In fp16 the largest weight, of the largest probability and a norm of 2^-5, comes to lie between
    32,500 and 65,000.
    """
    if OP == tl.float16:
        bound = tl.log2(column_scale)
        if not RUNNING:
            bound += column_scale * RAISED
        room = ROOM - bound
        lift = room.to(tl.int32).to(tl.float32)
        lift = tl.where(lift > room, lift - 1.0, lift)  # rounded down, not towards zero
    else:
        lift = tl.full([], 0.0, tl.float32)
    return lift


@triton.jit
def load_negatives(
    negatives_ptr, start, k, row_stride, column_stride, first_column,
    D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, LAYOUT: tl.constexpr,
    ALL_THERE: tl.constexpr,
):  # fmt: skip
    """Rows start.. and columns first_column.. as [BLOCK_K, BLOCK_D]; zeros beyond the ends.

    ALL_THERE: no row is beyond K. LAYOUT "dense": contiguous, with strides that are constants,
    which saves registers; "wide": offsets inside a tile take 64 bits; "strided": they take 32.
    """
    row = tl.arange(0, BLOCK_K)
    column = first_column + tl.arange(0, BLOCK_D)
    inside = tl.full([BLOCK_K, 1], 1, tl.int1) if ALL_THERE else (start + row < k)[:, None]
    if D % BLOCK_D != 0:
        inside = inside & (column < D)[None, :]
    if LAYOUT == "dense":
        base = negatives_ptr + tl.full([], start, tl.int64) * D
        pointers = base + (row[:, None] * D + column[None, :])
    else:
        base = negatives_ptr + tl.full([], start, tl.int64) * row_stride
        if LAYOUT == "wide":
            row = row.to(tl.int64)
            column = column.to(tl.int64)
        pointers = base + row[:, None] * row_stride + column[None, :] * column_stride
    if ALL_THERE and D % BLOCK_D == 0:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, inside, 0.0)
    if INTERPRETED:
        tile = widen(tile)
    return tile


@triton.jit
def query_rows(
    x_ptr, x_image, x_crop, x_step,  # global crops and their strides
    y_ptr, y_image, y_crop, y_step,  # local crops
    row, crops, globals_,  # query n = image·crops + crop
    ALIGN: tl.constexpr,
):  # fmt: skip
    """Pointers to queries `row`, and their steps over D."""
    image = (row // crops).to(tl.int64)
    crop = row % crops
    is_global = crop < globals_
    x_rows = x_ptr + image * x_image + crop.to(tl.int64) * x_crop
    y_rows = y_ptr + image * y_image + (crop - globals_).to(tl.int64) * y_crop
    # Triton's alignment analysis ends at a choice between pointers; without it loads are scalar.
    pointers = tl.multiple_of(tl.where(is_global, x_rows, y_rows), ALIGN)
    return pointers, tl.where(is_global, x_step, y_step).to(tl.int64)


@triton.jit
def positive_rows(t_ptr, t_image, t_crop, t_step, row, crops, p, ALIGN: tl.constexpr):
    """Pointers to positive p of the image of each query, and its step over D."""
    offset = (row // crops).to(tl.int64) * t_image + tl.full([], p, tl.int64) * t_crop
    return tl.multiple_of(t_ptr + offset, ALIGN), (row * 0 + t_step).to(tl.int64)


@triton.jit
def load_columns(
    pointers, steps, inside, first,
    D: tl.constexpr, BLOCK_D: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Columns first.. of rows, [ROWS, BLOCK_D] in fp32; zeros beyond D and where not `inside`."""
    column = first + tl.arange(0, BLOCK_D)
    if UNIT:
        places = pointers[:, None] + column[None, :]
    else:
        places = pointers[:, None] + column[None, :].to(tl.int64) * steps[:, None]
    mask = inside[:, None]
    if D % BLOCK_D != 0:
        mask = mask & (column < D)[None, :]
    return widen(tl.load(places, mask, other=0.0))


@triton.jit
def unit_scales(
    pointers, steps, inside,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """(factor, inverse, zero): x̂ = (x·factor)·inverse for rows of any finite norm.

    The product factor·inverse may not be representable. A zero row has an inverse of 0.
    """
    largest = tl.zeros([ROWS], tl.float32)
    for first in range(0, D, BLOCK_D):
        tile = load_columns(pointers, steps, inside, first, D, BLOCK_D, UNIT)
        largest = tl.maximum(largest, tl.max(tl.abs(tile), 1))
    factor = scale_towards_one(largest)
    squared = tl.zeros([ROWS], tl.float32)
    for first in range(0, D, BLOCK_D):
        tile = load_columns(pointers, steps, inside, first, D, BLOCK_D, UNIT) * factor[:, None]
        squared += tl.sum(tile * tile, 1)
    return factor, inverse_norm(squared), squared == 0.0
