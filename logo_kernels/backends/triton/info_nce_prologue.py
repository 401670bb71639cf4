"""InfoNCE, before the pass over the negatives: all that the pass needs of each row by itself.

One launch. Its first programs make unit queries as operands, and the cosines of their positives;
the others read the negatives once, for their norms.

Queries and positives are few: each row is first multiplied by the power of two that brings its
largest magnitude to about one, whatever its norm. Negatives are many: they are squared as they are.
Only those with a squared norm outside LOW.. HIGH are done again with such a factor, which then goes
to the pass.
"""

# Upper case marks compile-time constants in kernels; a branch on one is no expression.
# ruff: noqa: N803, SIM300
# mypy: allow-untyped-defs, allow-untyped-globals

from __future__ import annotations

import triton
import triton.language as tl

from .info_nce_plan import TWO_HALVES
from .info_nce_rows import (
    RAISED,
    column_scale_of,
    load_columns,
    load_negatives,
    positive_rows,
    query_rows,
    unit_scales,
    value_of,
)
from .numbers import HIGH, LOW, inverse_norm, narrow, scale_towards_one, widen

TWO_HALVES_ = tl.constexpr(TWO_HALVES)
# Rows with squared norms between LOW and HIGH, and zero rows, are operands as they are. In fp16 the
# limits are closer to one, since 1/‖n‖ is a factor of its operands.
LOW_FP16_OPERAND = tl.constexpr(2.0**-10)
HIGH_FP16_OPERAND = tl.constexpr(2.0**18)


@triton.jit
def negatives_tile(
    negatives_ptr, start, k, image_stride, row_stride, column_stride, first, of_image,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """Negatives start.. and columns first.. as [ROWS, BLOCK_D] in fp32; zeros beyond the ends.

    LAYOUT: one of `load_negatives`; or "images": each has `of_image` rows, at any distance.
    """
    if LAYOUT == "images":
        row = start + tl.arange(0, ROWS)
        offset = (row // of_image).to(tl.int64) * image_stride
        offset += (row % of_image).to(tl.int64) * row_stride
        column = first + tl.arange(0, BLOCK_D)
        mask = (row < k)[:, None]
        if D % BLOCK_D != 0:
            mask = mask & (column < D)[None, :]
        places = negatives_ptr + offset[:, None] + column[None, :].to(tl.int64) * column_stride
        tile = tl.load(places, mask, 0.0)
    else:
        tile = load_negatives(
            negatives_ptr, start, k, row_stride, column_stride, first,
            D, ROWS, BLOCK_D, LAYOUT, False,
        )  # fmt: skip
    return widen(tile)


@triton.jit
def norms(
    index, negatives_ptr, image_stride, row_stride, column_stride, dense_ptr,
    scales_ptr, k, padded, of_image, column_scale,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, LAYOUT: tl.constexpr,
    OP: tl.constexpr,
):  # fmt: skip
    """Writes columns, factors and flag of negatives index·ROWS..; if LAYOUT is "images", a copy."""
    start = index * ROWS
    row = start + tl.arange(0, ROWS)
    squared = tl.zeros([ROWS], tl.float32)
    for first in range(0, D, BLOCK_D):
        tile = negatives_tile(
            negatives_ptr, start, k, image_stride, row_stride, column_stride, first, of_image,
            D, ROWS, BLOCK_D, LAYOUT,
        )  # fmt: skip
        squared += tl.sum(tile * tile, 1)
        if LAYOUT == "images":
            column = first + tl.arange(0, BLOCK_D)
            mask = (row < k)[:, None]
            if D % BLOCK_D != 0:
                mask = mask & (column < D)[None, :]
            places = dense_ptr + row.to(tl.int64)[:, None] * D + column[None, :]
            tl.store(places, narrow(tile, OP), mask)
    if OP == tl.float16:
        inside = (squared >= LOW_FP16_OPERAND) & (squared <= HIGH_FP16_OPERAND)
    else:
        inside = (squared >= LOW) & (squared <= HIGH)
    inside = inside | (row >= k)
    factor = tl.full([ROWS], 1.0, tl.float32)
    extreme = tl.min(inside.to(tl.int32), 0) == 0
    if extreme:
        largest = tl.zeros([ROWS], tl.float32)
        for first in range(0, D, BLOCK_D):
            tile = negatives_tile(
                negatives_ptr, start, k, image_stride, row_stride, column_stride, first, of_image,
                D, ROWS, BLOCK_D, LAYOUT,
            )  # fmt: skip
            largest = tl.maximum(largest, tl.max(tl.abs(tile), 1))
        # A zero row stays one whatever it is multiplied by.
        ordinary = inside | (largest == 0.0)
        factor = tl.where(ordinary, 1.0, scale_towards_one(largest))
        extreme = tl.min(ordinary.to(tl.int32), 0) == 0
        again = tl.zeros([ROWS], tl.float32)
        for first in range(0, D, BLOCK_D):
            tile = negatives_tile(
                negatives_ptr, start, k, image_stride, row_stride, column_stride, first, of_image,
                D, ROWS, BLOCK_D, LAYOUT,
            )  # fmt: skip
            tile = tile * factor[:, None]
            again += tl.sum(tile * tile, 1)
        squared = again
    there = row < padded
    tl.store(scales_ptr + row, inverse_norm(squared) * column_scale, there)
    tl.store(scales_ptr + padded + row, factor, there)
    # In two steps: 2 · padded may be beyond 32 bits.
    tl.store(scales_ptr + padded + padded + index, extreme.to(tl.float32))


# Integers are not specialised by value, but for those on which the width of loads of negatives
# depends: what matters of the other rows, their alignment, is ALIGN.
@triton.jit(
    do_not_specialize=[
        *(f"{v}_{of}" for v in "xyt" for of in ("image", "crop", "step")),
        "temperature", "n", "k", "of_image", "crops", "globals_", "positives", "query_programs",
    ]
)  # fmt: skip
def info_nce_prologue_kernel(
    x_ptr, x_image, x_crop, x_step,  # [B, G, D] and its strides; y where there are none
    y_ptr, y_image, y_crop, y_step,  # [B, L, D] of the dtype of x; x where there are none
    t_ptr, t_image, t_crop, t_step,  # [B, P, D]
    negatives_ptr, image_stride, row_stride, column_stride,  # [K, D]
    high_ptr, low_ptr,  # [N, D] of dtype OP; low where OPERANDS says so
    cosines_ptr,  # [N, P] fp32: of queries and their positives
    # fp32: column_scale/‖factor·n‖, and 0 for zero rows and beyond K, [padded]; factor, [padded];
    # whether any factor is not 1, of each program
    scales_ptr,
    dense_ptr,  # [K, D] contiguous, where LAYOUT is "images"
    temperature,  # τ or a pointer to it
    n, k, padded, of_image,
    crops, globals_, positives,  # V, G, P
    query_programs,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, PAIRS: tl.constexpr,
    NORM_ROWS: tl.constexpr, NORM_D: tl.constexpr,
    UNIT: tl.constexpr, ALIGN: tl.constexpr,  # of x, y and t: steps of 1; bytes
    LAYOUT: tl.constexpr, OP: tl.constexpr, OPERANDS: tl.constexpr, RUNNING: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    K_ALIGNED: tl.constexpr,  # K is known to be a multiple of 16
):  # fmt: skip
    if K_ALIGNED:
        k = k // 16 * 16  # for Triton's analysis; a hint on an argument is lost
    program = tl.program_id(0)
    tau = value_of(temperature, ON_DEVICE)
    if program >= query_programs:
        norms(
            program - query_programs, negatives_ptr, image_stride, row_stride, column_stride,
            dense_ptr, scales_ptr, k, padded, of_image, column_scale_of(tau, OP, RUNNING),
            D, NORM_ROWS, NORM_D, LAYOUT, OP,
        )  # fmt: skip
    else:
        # A program has ROWS queries and PAIRS positives of each.
        chunks = tl.cdiv(positives, PAIRS)
        row = program // chunks * ROWS + tl.arange(0, ROWS)
        chunk = program % chunks
        inside = row < n
        pointers, steps = query_rows(
            x_ptr, x_image, x_crop, x_step, y_ptr, y_image, y_crop, y_step,
            row, crops, globals_, ALIGN,
        )  # fmt: skip
        factor, inverse, _ = unit_scales(pointers, steps, inside, D, ROWS, BLOCK_D, UNIT)
        for p in range(chunk * PAIRS, tl.minimum((chunk + 1) * PAIRS, positives)):
            others, other_steps = positive_rows(
                t_ptr, t_image, t_crop, t_step, row, crops, p, ALIGN
            )
            other_factor, other_inverse, _ = unit_scales(
                others, other_steps, inside, D, ROWS, BLOCK_D, UNIT
            )
            product = tl.zeros([ROWS], tl.float32)
            for first in range(0, D, BLOCK_D):
                query = load_columns(pointers, steps, inside, first, D, BLOCK_D, UNIT)
                positive = load_columns(others, other_steps, inside, first, D, BLOCK_D, UNIT)
                query = query * factor[:, None]
                product += tl.sum(query * (positive * other_factor[:, None]), 1)
            place = cosines_ptr + row.to(tl.int64) * positives + p
            tl.store(place, product * inverse * other_inverse, inside)
        if chunk == 0:
            for first in range(0, D, BLOCK_D):
                query = load_columns(pointers, steps, inside, first, D, BLOCK_D, UNIT)
                query = query * factor[:, None] * inverse[:, None]
                if OP == tl.float16:
                    query = query * RAISED
                column = first + tl.arange(0, BLOCK_D)
                offset = row.to(tl.int64)[:, None] * D + column[None, :]
                mask = inside[:, None]
                if D % BLOCK_D != 0:
                    mask = mask & (column < D)[None, :]
                high = narrow(query, OP)
                tl.store(high_ptr + offset, high, mask)
                if OPERANDS == TWO_HALVES_:
                    tl.store(low_ptr + offset, narrow(query - widen(high), OP), mask)
