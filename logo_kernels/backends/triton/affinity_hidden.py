"""The affinity's hidden layer: from a and c to x = relu(batch norm(h)) of every pair, and back.

Pair p of crops i ≠ j has h_p = a[b, i] + c[(b + roll) mod B, j]; its row is affinity_rows.py's.

Launches: hidden 1, hidden_backward 1; hidden_moments 2; hidden_sums 2, 3 above 12 crops. Where
there are several, later ones add up what the programs of the first have written, in a fixed order.
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803, N806
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .affinity_facts import combine_facts
from .affinity_moments import (
    combine_moments,
    count_batch,
    merge,
    moments_across,
    moments_of_tile,
    norm_of_running,
)
from .affinity_plan import halved, image_tile, pair_tile, programs
from .affinity_rows import (
    columns_of,
    load_rows,
    norm_of,
    pair_rows,
    rolled,
    store_rows,
    vector,
)
from .gpu import multiprocessors
from .launch import launching
from .numbers import narrow

if TYPE_CHECKING:
    from ...affinity.pairs import (
        HiddenBackwardCall,
        HiddenCall,
        HiddenGradientCall,
        HiddenGradientResult,
        HiddenGradients,
        HiddenLayerCall,
        HiddenLayerResult,
        HiddenMomentsCall,
        HiddenResult,
        HiddenSums,
        HiddenSumsCall,
        Moments,
    )


@triton.jit(do_not_specialize=["images", "roll", "span"])
def affinity_hidden_moments_kernel(
    a_ptr, c_ptr,  # [B, L, H]
    parts_ptr,  # [programs, 2, H] fp32: mean and Σ (h − mean)² of `span` images each
    batches_ptr,  # [] int64, counted up where COUNT
    images, roll, span,
    COUNT: tl.constexpr, L: tl.constexpr, H: tl.constexpr,
    DEEP: tl.constexpr, ACROSS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Mean and squares of h, which follow from a and c without a pass over the pairs.

    With α and γ the deviations of a and c from their means over the crops of an image,

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
def affinity_hidden_kernel(
    a_ptr, c_ptr,  # [B, L, H]
    norm_ptr,  # [3, H] fp32
    x_ptr,  # [P, H]
    images, roll,
    L: tl.constexpr, H: tl.constexpr,
    DEEP: tl.constexpr, ACROSS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """x of all pairs; a program has ACROSS crops i of an image and all j."""
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
def affinity_hidden_sums_kernel(
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
    """Σ_j m and Σ_i m of m_p = grad_p where n(h_p) > 0, else 0; and Σ m, Σ m·(h − mean) over pairs.

    A program walks over images and groups of DEEP crops j; it has all i, ACROSS at once.
    """
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
            # c is loaded again for every i, from L1: there are no registers to keep it in.
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
def affinity_hidden_backward_kernel(
    to_a_ptr, to_c_ptr,  # [B, L, H] fp32
    a_ptr, c_ptr,  # [B, L, H]
    norm_ptr,  # [3, H] fp32
    correction_ptr,  # [2, H] fp32
    grad_a_ptr, grad_c_ptr,  # [B, L, H]
    images, roll,
    L: tl.constexpr, H: tl.constexpr,
    DEEP: tl.constexpr, ACROSS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Gradients to a of image b, and to c of the image that it meets.

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


def hidden_moments(call: HiddenMomentsCall, result: Moments) -> None:
    """Fills moments [2, H]."""
    _launch_hidden_moments(call.a, call.c, call.roll, result.moments)


def hidden_layer(call: HiddenLayerCall, result: HiddenLayerResult) -> None:
    """Fills x and norm; where the batch's statistics are used, the running ones follow."""
    if call.batch:
        _launch_hidden_moments(call.a, call.c, call.roll, result.norm, call)
    else:
        with launching(call.a):
            norm_of_running(call, result.norm)
    _launch_hidden(call.a, call.c, result.norm, call.roll, result.x)


def hidden(call: HiddenCall, result: HiddenResult) -> None:
    """Fills x from norm, whichever way its statistics were found."""
    _launch_hidden(call.a, call.c, call.norm, call.roll, result.x)


def hidden_sums(call: HiddenSumsCall, result: HiddenSums) -> None:
    """Fills to_a, to_c and sums [2, H]."""
    parts = _launch_hidden_sums(call, result.to_a, result.to_c)
    torch.sum(parts, 0, out=result.sums)


def hidden_gradient(call: HiddenGradientCall, result: HiddenGradientResult) -> None:
    """Fills the gradients to a and c, and facts [5, H]."""
    grad_a, grad_c, _, to_a, to_c = result
    to_a, to_c = grad_a if to_a is None else to_a, grad_c if to_c is None else to_c
    parts = _launch_hidden_sums(call, to_a, to_c)
    with launching(call.a):
        values = call.grad_x.shape[0]
        combine_facts(parts, call.norm, None, call.batch, values, result.facts)
    _launch_hidden_backward(
        to_a, to_c, call.a, call.c, call.norm, result.facts, call.roll, grad_a, grad_c,
    )  # fmt: skip


def hidden_backward(call: HiddenBackwardCall, result: HiddenGradients) -> None:
    """Fills the gradients to a and c from sums, corrected for the statistics' part."""
    _launch_hidden_backward(
        call.to_a, call.to_c, call.a, call.c, call.norm, call.correction, call.roll,
        result.grad_a, result.grad_c,
    )  # fmt: skip


def _launch_hidden_moments(
    a: Tensor, c: Tensor, roll: int, to: Tensor, layer: HiddenLayerCall | None = None
) -> None:
    """Fills `to`: moments [2, H], or norm [4, H] of the layer."""
    images, crops, width = a.shape
    tile = halved(image_tile(crops, width, a.element_size()))
    tiles = triton.cdiv(images, tile.across)
    column_tiles = triton.cdiv(width, tile.block_h)
    batches = None if layer is None else layer.batches
    with launching(a):
        most = programs(tiles, column_tiles, 2, multiprocessors(a.device.index))
        span = triton.cdiv(tiles, most) * tile.across
        count = triton.cdiv(images, span)
        parts = a.new_empty(count, 2, width, dtype=torch.float32)
        affinity_hidden_moments_kernel[(count, column_tiles)](
            a, c, parts, parts if batches is None else batches, images, roll % images, span,
            COUNT=batches is not None, L=crops, H=width,
            DEEP=tile.deep, ACROSS=tile.across, BLOCK_H=tile.block_h, num_warps=tile.num_warps,
        )  # fmt: skip
        combine_moments(parts, to, images, span, crops * (crops - 1), layer)


def _launch_hidden(a: Tensor, c: Tensor, norm: Tensor, roll: int, x: Tensor) -> None:
    images, crops, width = a.shape
    tile = pair_tile(crops, width, a.element_size(), 8)
    grid = images * triton.cdiv(crops, tile.across), triton.cdiv(width, tile.block_h)
    with launching(a):
        affinity_hidden_kernel[grid](
            a, c, norm, x, images, roll % images,
            L=crops, H=width, DEEP=tile.deep, ACROSS=tile.across, BLOCK_H=tile.block_h,
            num_warps=tile.num_warps,
        )  # fmt: skip


def _launch_hidden_sums(
    call: HiddenSumsCall | HiddenGradientCall, to_a: Tensor, to_c: Tensor
) -> Tensor:
    """Fills to_a and to_c; returns the sums of programs, [programs, 2, H]."""
    a, c = call.a, call.c
    images, crops, width = a.shape
    tile = halved(pair_tile(crops, width, a.element_size(), 4))
    groups = triton.cdiv(crops, tile.deep)
    column_tiles = triton.cdiv(width, tile.block_h)
    of_groups = to_a
    if groups > 1:
        of_groups = a.new_empty(groups, images, crops, width, dtype=torch.float32)
    with launching(a):
        count = programs(images * groups, column_tiles, 2, multiprocessors(a.device.index))
        parts = a.new_empty(count, 2, width, dtype=torch.float32)
        affinity_hidden_sums_kernel[(count, column_tiles)](
            call.grad_x, a, c, call.norm, of_groups, to_c, parts, images, call.roll % images,
            L=crops, H=width, DEEP=tile.deep, ACROSS=tile.across, BLOCK_H=tile.block_h,
            num_warps=tile.num_warps,
        )  # fmt: skip
        if groups > 1:
            torch.sum(of_groups, 0, out=to_a)
    return parts


def _launch_hidden_backward(
    to_a: Tensor,
    to_c: Tensor,
    a: Tensor,
    c: Tensor,
    norm: Tensor,
    correction: Tensor,
    roll: int,
    grad_a: Tensor,
    grad_c: Tensor,
) -> None:
    images, crops, width = a.shape
    tile = image_tile(crops, width, to_a.element_size())
    grid = triton.cdiv(images, tile.across), triton.cdiv(width, tile.block_h)
    with launching(a):
        affinity_hidden_backward_kernel[grid](
            to_a, to_c, a, c, norm, correction, grad_a, grad_c, images, roll % images,
            L=crops, H=width, DEEP=tile.deep, ACROSS=tile.across, BLOCK_H=tile.block_h,
            num_warps=tile.num_warps,
        )  # fmt: skip
