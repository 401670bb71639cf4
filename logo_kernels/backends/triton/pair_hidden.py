"""The first half of the pair stage: from a and c to the pairs' hidden layer, and back.

Launches: hidden 1, hidden_backward 1; hidden_moments 2; hidden_sums 2, 3 above 12 crops. Each of
the last ones adds up what the programs of the launch before have written, in a fixed order.
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803, N806
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launching, multiprocessors
from .pair_facts import facts
from .pair_moments import BatchNorm, combined, count_batch, folded
from .pair_plan import halved, image_tile, pair_tile, programs
from .pair_tiles import (
    columns_of,
    load_rows,
    merge,
    moments_across,
    moments_of_tile,
    norm_of,
    pair_rows,
    rolled,
    store_rows,
    vector,
)
from .rows import narrow


@triton.jit(do_not_specialize=["images", "roll", "span"])
def hidden_moments_kernel(
    a_ptr, c_ptr,  # [B, L, H]
    parts_ptr,  # [programs, 2, H] fp32: mean and Σ (h − mean)² of `span` images each
    batches_ptr,  # [] int64, counted up where COUNT
    images, roll, span,
    COUNT: tl.constexpr, L: tl.constexpr, H: tl.constexpr,
    DEEP: tl.constexpr, ACROSS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """With α and γ the deviations of a and c from their means over the crops of an image,

        Σ_{i≠j} (h − h̄)² = Σ_{i≠j} (α_i + γ_j)² = (L − 2)·(Σα² + Σγ²) + Σ(α − γ)²,

    in which nothing cancels, however much larger a and c are than their sums.
    """
    count_batch(batches_ptr, COUNT)
    program = tl.program_id(0)
    column = columns_of(tl.program_id(1), BLOCK_H)
    begin = program.to(tl.int64) * span
    end = tl.minimum(begin + span, images)
    mean = tl.zeros([ACROSS, BLOCK_H], tl.float32)
    square = tl.zeros([ACROSS, BLOCK_H], tl.float32)
    count = tl.zeros([ACROSS], tl.float32)
    none = tl.zeros([ACROSS, BLOCK_H], tl.float32)
    for start in range(begin, end, ACROSS):
        image = start + tl.arange(0, ACROSS)
        other = rolled(image, roll, images)
        h_mean = none
        a_mean, a_square, c_mean, c_square, d_square = none, none, none, none, none
        crops = tl.zeros([ACROSS], tl.float32)
        for first in range(0, L, DEEP):
            crop = first + tl.arange(0, DEEP)
            there = (crop < L)[:, None] & (image < end)[None, :]
            a = load_rows(a_ptr, image[None, :] * L + crop[:, None], there, column, 3, H, BLOCK_H)
            c = load_rows(c_ptr, other[None, :] * L + crop[:, None], there, column, 3, H, BLOCK_H)
            more = tl.sum(there.to(tl.float32), 0)
            h_mean += tl.sum(a + c, 0) / L
            d_mean, d_more = moments_of_tile(a - c, there, more)
            _, d_square, _ = merge(a_mean - c_mean, d_square, crops, d_mean, d_more, more)
            a_next, a_more = moments_of_tile(a, there, more)
            c_next, c_more = moments_of_tile(c, there, more)
            a_mean, a_square, _ = merge(a_mean, a_square, crops, a_next, a_more, more)
            c_mean, c_square, crops = merge(c_mean, c_square, crops, c_next, c_more, more)
        pairs = tl.where(image < end, 1.0, 0.0) * (L * (L - 1))
        mean, square, count = merge(
            mean, square, count,
            h_mean, (L - 2) * (a_square + c_square) + d_square, pairs,
        )  # fmt: skip
    whole, squares = moments_across(mean, square, count)
    part = tl.full([1], program, tl.int64) * 2
    here = tl.full([1], 1, tl.int1)
    store_rows(parts_ptr, part, here, column, whole[None, :], 2, H, BLOCK_H)
    store_rows(parts_ptr, part + 1, here, column, squares[None, :], 2, H, BLOCK_H)


@triton.jit(do_not_specialize=["images", "roll"])
def hidden_kernel(
    a_ptr, c_ptr,  # [B, L, H]
    norm_ptr,  # [3, H] fp32
    x_ptr,  # [P, H]
    images, roll,
    L: tl.constexpr, H: tl.constexpr,
    DEEP: tl.constexpr, ACROSS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """A program has ACROSS crops i of an image and all j."""
    GROUPS: tl.constexpr = (L + ACROSS - 1) // ACROSS
    image = (tl.program_id(0) // GROUPS).to(tl.int64)
    other = rolled(image, roll, images)
    column = columns_of(tl.program_id(1), BLOCK_H)
    mean, scale, bias = norm_of(norm_ptr, column, H, BLOCK_H)
    i = tl.program_id(0) % GROUPS * ACROSS + tl.arange(0, ACROSS)
    a = load_rows(a_ptr, image * L + i, i < L, column, 2, H, BLOCK_H)
    for first in range(0, L, DEEP):
        j = first + tl.arange(0, DEEP)
        c = load_rows(c_ptr, other * L + j, j < L, column, 2, H, BLOCK_H)
        n = (a[None, :, :] + c[:, None, :] - mean) * scale + bias
        x = tl.where(n <= 0.0, 0.0, n)  # NaN stays
        pair, there = pair_rows(image, i, j, L)
        store_rows(x_ptr, pair, there, column, narrow(x, x_ptr.dtype.element_ty), 3, H, BLOCK_H)


@triton.jit(do_not_specialize=["images", "roll"])
def hidden_sums_kernel(
    grad_ptr,  # [P, H]
    a_ptr, c_ptr,  # [B, L, H]
    norm_ptr,  # [3, H] fp32
    to_a_ptr,  # [J, B, L, H] fp32, for each of the J groups of DEEP crops j
    to_c_ptr,  # [B, L, H] fp32
    parts_ptr,  # [programs, 2, H] fp32
    images, roll,
    L: tl.constexpr, H: tl.constexpr,
    DEEP: tl.constexpr, ACROSS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """A program walks over images and groups of DEEP crops j; it has all i, ACROSS at once."""
    GROUPS: tl.constexpr = (L + DEEP - 1) // DEEP
    program = tl.program_id(0)
    column = columns_of(tl.program_id(1), BLOCK_H)
    mean, scale, bias = norm_of(norm_ptr, column, H, BLOCK_H)
    total = tl.zeros([ACROSS, BLOCK_H], tl.float32)
    moment = tl.zeros([ACROSS, BLOCK_H], tl.float32)
    for unit in range(program, images * GROUPS, tl.num_programs(0)):
        image = tl.full([], unit // GROUPS, tl.int64)
        group = unit % GROUPS
        other = rolled(image, roll, images)
        j = group * DEEP + tl.arange(0, DEEP)
        to_c = tl.zeros([DEEP, ACROSS, BLOCK_H], tl.float32)
        for first in range(0, L, ACROSS):
            i = first + tl.arange(0, ACROSS)
            pair, there = pair_rows(image, i, j, L)
            grad = load_rows(grad_ptr, pair, there, column, 3, H, BLOCK_H)
            # Again for every i, from L1: there are no registers to keep it in.
            c = load_rows(c_ptr, (other * L + j)[:, None], there, column, 3, H, BLOCK_H)
            a = load_rows(a_ptr, image * L + i, i < L, column, 2, H, BLOCK_H)
            apart = a[None, :, :] + c - mean
            m = tl.where(apart * scale + bias > 0.0, grad, 0.0)
            to_a = tl.sum(m, 0)
            to_c += m
            total += to_a
            moment += tl.sum(m * apart, 0)
            row = (tl.full([], group, tl.int64) * images + image) * L + i
            store_rows(to_a_ptr, row, i < L, column, to_a, 2, H, BLOCK_H)
        store_rows(to_c_ptr, other * L + j, j < L, column, tl.sum(to_c, 1), 2, H, BLOCK_H)
    part = tl.full([1], program, tl.int64) * 2
    here = tl.full([1], 1, tl.int1)
    store_rows(parts_ptr, part, here, column, tl.sum(total, 0)[None, :], 2, H, BLOCK_H)
    store_rows(parts_ptr, part + 1, here, column, tl.sum(moment, 0)[None, :], 2, H, BLOCK_H)


@triton.jit(do_not_specialize=["images", "roll"])
def hidden_backward_kernel(
    to_a_ptr, to_c_ptr,  # [B, L, H] fp32
    a_ptr, c_ptr,  # [B, L, H]
    norm_ptr,  # [3, H] fp32
    correction_ptr,  # [2, H] fp32
    grad_a_ptr, grad_c_ptr,  # [B, L, H]
    images, roll,
    L: tl.constexpr, H: tl.constexpr,
    DEEP: tl.constexpr, ACROSS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Of image b the gradient to a, of the image that it meets the gradient to c.

    With a crop's pairs go Σ_{j≠i} (a_i + c_j − mean) = (L − 1)·(a_i + c̄ − mean) − (c_i − c̄).
    """
    column = columns_of(tl.program_id(1), BLOCK_H)
    image = tl.program_id(0).to(tl.int64) * ACROSS + tl.arange(0, ACROSS)
    other = rolled(image, roll, images)
    mean = vector(norm_ptr, 0, column, H, BLOCK_H)
    scale = vector(norm_ptr, 1, column, H, BLOCK_H)
    constant = vector(correction_ptr, 0, column, H, BLOCK_H) * (L - 1)
    slope = vector(correction_ptr, 1, column, H, BLOCK_H)
    a_mean = tl.zeros([ACROSS, BLOCK_H], tl.float32)
    c_mean = tl.zeros([ACROSS, BLOCK_H], tl.float32)
    for first in range(0, L, DEEP):
        crop = first + tl.arange(0, DEEP)[:, None]
        there = (crop < L) & (image < images)[None, :]
        a = load_rows(a_ptr, image[None, :] * L + crop, there, column, 3, H, BLOCK_H)
        c = load_rows(c_ptr, other[None, :] * L + crop, there, column, 3, H, BLOCK_H)
        a_mean += tl.sum(a, 0) / L
        c_mean += tl.sum(c, 0) / L
    for first in range(0, L, DEEP):
        crop = first + tl.arange(0, DEEP)[:, None]
        there = (crop < L) & (image < images)[None, :]
        a_row = image[None, :] * L + crop
        c_row = other[None, :] * L + crop
        a = load_rows(a_ptr, a_row, there, column, 3, H, BLOCK_H)
        c = load_rows(c_ptr, c_row, there, column, 3, H, BLOCK_H)
        to_a = load_rows(to_a_ptr, a_row, there, column, 3, H, BLOCK_H)
        to_c = load_rows(to_c_ptr, c_row, there, column, 3, H, BLOCK_H)
        of_a = (L - 1) * (a + c_mean[None, :, :] - mean) - (c - c_mean[None, :, :])
        of_c = (L - 1) * (c + a_mean[None, :, :] - mean) - (a - a_mean[None, :, :])
        to_a = scale * (to_a - constant - slope * of_a)
        to_c = scale * (to_c - constant - slope * of_c)
        DTYPE: tl.constexpr = grad_a_ptr.dtype.element_ty
        store_rows(grad_a_ptr, a_row, there, column, narrow(to_a, DTYPE), 3, H, BLOCK_H)
        store_rows(grad_c_ptr, c_row, there, column, narrow(to_c, DTYPE), 3, H, BLOCK_H)


def hidden_moments(a: Tensor, c: Tensor, roll: int, batch_norm: BatchNorm | None = None) -> Tensor:
    """`PairStage.hidden_moments`; norm [4, H] where the batch norm is given."""
    images, crops, width = a.shape
    tile = halved(image_tile(crops, width, a.element_size()))
    tiles = triton.cdiv(images, tile.across)
    column_tiles = triton.cdiv(width, tile.block_h)
    batches = None if batch_norm is None else batch_norm.batches
    with launching(a):
        most = programs(tiles, column_tiles, 2, multiprocessors(a.device.index))
        span = triton.cdiv(tiles, most) * tile.across
        count = triton.cdiv(images, span)
        parts = a.new_empty(count, 2, width, dtype=torch.float32)
        hidden_moments_kernel[(count, column_tiles)](
            a, c, parts, parts if batches is None else batches, images, roll % images, span,
            COUNT=batches is not None, L=crops, H=width,
            DEEP=tile.deep, ACROSS=tile.across, BLOCK_H=tile.block_h, num_warps=tile.num_warps,
        )  # fmt: skip
        return combined(parts, images, span, crops * (crops - 1), batch_norm)


def hidden_layer(
    a: Tensor,
    c: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    batch: bool,
    momentum: float,
    eps: float,
    roll: int,
) -> tuple[Tensor, Tensor]:
    """`PairStage.hidden_layer`."""
    if batch:
        of = BatchNorm(weight, bias, mean, var, batches, momentum, eps)
        norm = hidden_moments(a, c, roll, of)
    else:
        assert mean is not None
        assert var is not None
        with launching(a):
            norm = folded(mean, var, weight, bias, eps)
    return hidden(a, c, norm, roll), norm


def hidden(a: Tensor, c: Tensor, norm: Tensor, roll: int) -> Tensor:
    """`PairStage.hidden`."""
    images, crops, width = a.shape
    x = a.new_empty(images * crops * (crops - 1), width)
    tile = pair_tile(crops, width, a.element_size(), 8)
    grid = images * triton.cdiv(crops, tile.across), triton.cdiv(width, tile.block_h)
    with launching(a):
        hidden_kernel[grid](
            a, c, norm, x, images, roll % images,
            L=crops, H=width, DEEP=tile.deep, ACROSS=tile.across, BLOCK_H=tile.block_h,
            num_warps=tile.num_warps,
        )  # fmt: skip
    return x


def hidden_sums(
    grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, roll: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`PairStage.hidden_sums`."""
    to_a, to_c, parts = _sums(grad, a, c, norm, roll)
    return to_a, to_c, parts.sum(0)


def hidden_gradient(
    grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, batch: bool, roll: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`PairStage.hidden_gradient`."""
    to_a, to_c, parts = _sums(grad, a, c, norm, roll)
    with launching(a):
        found = facts(parts, norm, None, batch, grad.shape[0])
    return *hidden_backward(to_a, to_c, a, c, norm, found, roll), found


def _sums(
    grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, roll: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(Σ_j m, Σ_i m, sums [programs, 2, H])."""
    images, crops, width = a.shape
    tile = halved(pair_tile(crops, width, a.element_size(), 4))
    groups = triton.cdiv(crops, tile.deep)
    column_tiles = triton.cdiv(width, tile.block_h)
    to_a = a.new_empty(groups, images, crops, width, dtype=torch.float32)
    to_c = a.new_empty(images, crops, width, dtype=torch.float32)
    with launching(a):
        count = programs(images * groups, column_tiles, 2, multiprocessors(a.device.index))
        parts = a.new_empty(count, 2, width, dtype=torch.float32)
        hidden_sums_kernel[(count, column_tiles)](
            grad, a, c, norm, to_a, to_c, parts, images, roll % images,
            L=crops, H=width, DEEP=tile.deep, ACROSS=tile.across, BLOCK_H=tile.block_h,
            num_warps=tile.num_warps,
        )  # fmt: skip
        return to_a[0] if groups == 1 else to_a.sum(0), to_c, parts


def hidden_backward(
    to_a: Tensor, to_c: Tensor, a: Tensor, c: Tensor, norm: Tensor, correction: Tensor, roll: int
) -> tuple[Tensor, Tensor]:
    """`PairStage.hidden_backward`."""
    images, crops, width = a.shape
    grad_a, grad_c = torch.empty_like(a), torch.empty_like(c)
    tile = image_tile(crops, width, to_a.element_size())
    grid = triton.cdiv(images, tile.across), triton.cdiv(width, tile.block_h)
    with launching(a):
        hidden_backward_kernel[grid](
            to_a, to_c, a, c, norm, correction, grad_a, grad_c, images, roll % images,
            L=crops, H=width, DEEP=tile.deep, ACROSS=tile.across, BLOCK_H=tile.block_h,
            num_warps=tile.num_warps,
        )  # fmt: skip
    return grad_a, grad_c
