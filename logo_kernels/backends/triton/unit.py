"""Rows as unit vectors, and the gradient through them: a launch each, bound by bytes.

A program has a few rows. It holds them whole where D is at most BLOCK_D; longer rows it reads again
in blocks.

z/‖z‖ = (z·f₁)·f₂ with factors [B·L, 2] = (f₁, f₂): two, since neither the norm of a row nor its
inverse need be a number of its dtype; both are 0 for a zero row.
"""

# Upper case marks compile-time constants in kernels; a branch on one is no expression.
# ruff: noqa: N803, N806
# mypy: allow-untyped-defs

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import triton
import triton.language as tl

from ...units import unit as unit_by_torch
from ...units import unit_backward as unit_backward_by_torch
from .launch import launching
from .numbers import HIGH, LOW, narrow, saturate, scale_towards_one, widen
from .tiles import next_power_of_two

if TYPE_CHECKING:
    from ...affinity.units import UnitBackwardCall, UnitCall, UnitGradient, UnitResult


@functools.cache
def unit_tile(dim: int, itemsize: int) -> tuple[int, int]:
    """(ROWS, BLOCK_D): 16 KiB of a tensor to a program of 4 warps, four wide loads to a thread."""
    block_d = min(16384 // itemsize, max(16, next_power_of_two(dim)))
    return max(1, 16384 // itemsize // block_d), block_d


@triton.jit
def place_of(row, rows, L: tl.constexpr, stride_image, stride_crop):
    """The places where rows begin, in 64 bits."""
    image = row // L
    return image.to(tl.int64) * stride_image + (row - image * L).to(tl.int64) * stride_crop


@triton.jit
def load_block(pointer, start, there, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Columns start.. of rows as fp32; zeros beyond D and where not `there`."""
    column = start + tl.arange(0, BLOCK_D)[None, :]
    mask = there[:, None]
    if D % BLOCK_D != 0:
        mask = mask & (column < D)
    return widen(tl.load(pointer[:, None] + column.to(tl.int64) * stride, mask, other=0.0))


@triton.jit
def store_block(pointer, start, there, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rounds columns start.. of rows to the dtype of the pointer, and writes them."""
    column = start + tl.arange(0, BLOCK_D)[None, :]
    mask = there[:, None]
    if D % BLOCK_D != 0:
        mask = mask & (column < D)
    tl.store(pointer[:, None] + column, narrow(tile, pointer.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows"])
def unit_kernel(
    z_ptr, z_image, z_crop, z_step,  # [B, L, D] and its strides
    unit_ptr,  # [B, L, D]
    factors_ptr,  # [B·L, 2] fp32
    rows,
    L: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    z_rows = z_ptr + place_of(row, rows, L, z_image, z_crop)
    to_rows = unit_ptr + row.to(tl.int64) * D
    z = load_block(z_rows, 0, there, z_step, D, BLOCK_D)
    squares = tl.sum(z * z, 1)
    for start in range(BLOCK_D, D, BLOCK_D):
        more = load_block(z_rows, start, there, z_step, D, BLOCK_D)
        squares += tl.sum(more * more, 1)
    first = tl.full([ROWS], 1.0, tl.float32)
    extreme = there & ((squares < LOW) | (squares > HIGH) | (squares != squares))
    if tl.max(extreme.to(tl.int32), 0) > 0:
        largest = tl.max(tl.abs(z), 1)
        for start in range(BLOCK_D, D, BLOCK_D):
            more = load_block(z_rows, start, there, z_step, D, BLOCK_D)
            largest = tl.maximum(largest, tl.max(tl.abs(more), 1))
        first = tl.where(extreme, scale_towards_one(largest), first)
        scaled = z * first[:, None]
        squares = tl.sum(scaled * scaled, 1)
        for start in range(BLOCK_D, D, BLOCK_D):
            scaled = load_block(z_rows, start, there, z_step, D, BLOCK_D) * first[:, None]
            squares += tl.sum(scaled * scaled, 1)
    second = tl.div_rn(1.0, tl.sqrt_rn(tl.where(squares == 0.0, 1.0, squares)))
    second = tl.where(second > 0.0, second, float("nan"))  # of an infinite row, and of NaN
    first = tl.where(squares == 0.0, 0.0, first)
    second = tl.where(squares == 0.0, 0.0, second)
    tl.store(factors_ptr + row.to(tl.int64) * 2, first, there)
    tl.store(factors_ptr + row.to(tl.int64) * 2 + 1, second, there)
    store_block(to_rows, 0, there, z * first[:, None] * second[:, None], D, BLOCK_D)
    for start in range(BLOCK_D, D, BLOCK_D):
        more = load_block(z_rows, start, there, z_step, D, BLOCK_D)
        store_block(to_rows, start, there, more * first[:, None] * second[:, None], D, BLOCK_D)


@triton.jit
def through_norm(grad, unit, along, first, second, DTYPE: tl.constexpr):
    """(g − (g·ẑ) ẑ)/‖z‖; where that lies beyond the largest number of DTYPE, that number."""
    across = grad - along[:, None] * unit
    to_z = across * second[:, None] * first[:, None]
    return saturate(to_z, 1.0, DTYPE)


@triton.jit(do_not_specialize=["rows"])
def unit_backward_kernel(
    grad_ptr, unit_ptr,  # [B, L, D]
    factors_ptr,  # [B·L, 2] fp32
    to_ptr, to_image, to_crop,  # [B, L, D] and its strides; D has stride 1
    rows,
    L: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = to_ptr.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    grad_rows = grad_ptr + row.to(tl.int64) * D
    unit_rows = unit_ptr + row.to(tl.int64) * D
    to_rows = to_ptr + place_of(row, rows, L, to_image, to_crop)
    grad = load_block(grad_rows, 0, there, 1, D, BLOCK_D)
    unit = load_block(unit_rows, 0, there, 1, D, BLOCK_D)
    along = tl.sum(grad * unit, 1)
    for start in range(BLOCK_D, D, BLOCK_D):
        more = load_block(grad_rows, start, there, 1, D, BLOCK_D)
        along += tl.sum(more * load_block(unit_rows, start, there, 1, D, BLOCK_D), 1)
    first = tl.load(factors_ptr + row.to(tl.int64) * 2, there, other=0.0)
    second = tl.load(factors_ptr + row.to(tl.int64) * 2 + 1, there, other=0.0)
    to_z = through_norm(grad, unit, along, first, second, DTYPE)
    store_block(to_rows, 0, there, to_z, D, BLOCK_D)
    for start in range(BLOCK_D, D, BLOCK_D):
        more = load_block(grad_rows, start, there, 1, D, BLOCK_D)
        direction = load_block(unit_rows, start, there, 1, D, BLOCK_D)
        to_z = through_norm(more, direction, along, first, second, DTYPE)
        store_block(to_rows, start, there, to_z, D, BLOCK_D)


def unit(call: UnitCall, result: UnitResult) -> None:
    """Fills unit vectors and factors by one launch of `unit_kernel`; torch serves float64."""
    if call.wide:  # crops of a float32 module may be float64
        return unit_by_torch(call, result)
    z = call.z
    images, crops, dim = z.shape
    rows, (tile_rows, block_d) = images * crops, unit_tile(dim, z.element_size())
    with launching(z):
        unit_kernel[(triton.cdiv(rows, tile_rows),)](
            z, *z.stride(), result.unit, result.factors, rows,
            L=crops, D=dim, ROWS=tile_rows, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip


def unit_backward(call: UnitBackwardCall, result: UnitGradient) -> None:
    """Fills the gradient to z by one launch of `unit_backward_kernel`; torch serves float64."""
    if call.wide:
        return unit_backward_by_torch(call, result)
    grad, to_z = call.grad, result.grad_z
    images, crops, dim = grad.shape
    rows, (tile_rows, block_d) = images * crops, unit_tile(dim, 2 * grad.element_size())
    with launching(grad):
        unit_backward_kernel[(triton.cdiv(rows, tile_rows),)](
            grad, call.unit, call.factors, to_z, *to_z.stride()[:2], rows,
            L=crops, D=dim, ROWS=tile_rows, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
