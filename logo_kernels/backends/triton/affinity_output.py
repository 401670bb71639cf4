"""The affinity's output layer: from the second product y to each image's mean over pairs, and back.

Pair p has f_p = w₃·relu(batch norm(y_p)) + b₃; an image has the mean of link(f_p) over its pairs.

Launches: output 1, 2 where the pairs of few images are divided among programs; output_backward 1;
output_moments 2; output_sums 2. Where there are two, the second adds up what the programs of the
first have written, in a fixed order.
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
from .affinity_plan import LayerTile, column_tile, halved, programs, row_tile, segments
from .affinity_rows import columns_of, load_rows, norm_of, store_rows, vector
from .gpu import multiprocessors
from .launch import launching
from .numbers import narrow
from .tiles import next_power_of_two

if TYPE_CHECKING:
    from ...affinity.pairs import (
        Moments,
        OutputBackwardCall,
        OutputCall,
        OutputGradientCall,
        OutputGradientResult,
        OutputGradients,
        OutputLayerCall,
        OutputLayerResult,
        OutputMomentsCall,
        OutputResult,
        OutputSums,
        OutputSumsCall,
    )

# Numbers of links, as affinity/pairs.py gives them; softplus is the third.
IDENTITY = tl.constexpr(0)
SOFTPLUS_NEGATED = tl.constexpr(2)


@triton.jit
def linked(f, LINK: tl.constexpr):
    """(link(f), link′(f)) for f of any size; NaN for NaN."""
    if LINK == IDENTITY:
        value = f
        slope = tl.full(f.shape, 1.0, tl.float32)
    else:
        if LINK == SOFTPLUS_NEGATED:
            f = -f
        e = tl.exp(-tl.abs(f))
        # log(1 + e) = e · log(u) / (u − 1) for u = 1 + e as it is rounded, as exact as log.
        u = 1.0 + e
        log = tl.where(u == 1.0, e, e * (tl.log(u) / tl.where(u == 1.0, 1.0, u - 1.0)))
        value = tl.where(f <= 0.0, 0.0, f) + log
        slope = tl.where(f >= 0.0, 1.0, e) / u
        if LINK == SOFTPLUS_NEGATED:
            slope = -slope
    return value, slope


@triton.jit
def upstream_of_pairs(slope_ptr, grad_ptr, grad_stride, start, row, there, PAIRS: tl.constexpr):
    """t_p = grad_b·slope_p of pairs start + row; `row` has 32 bits, in which division is fast."""
    image = start // PAIRS
    within = (start - image * PAIRS).to(tl.int32) + row
    slope = tl.load(slope_ptr + start + row, there, other=0.0)
    image += within // PAIRS
    return slope * tl.load(grad_ptr + image * grad_stride, there, other=0.0)


@triton.jit(do_not_specialize=["rows", "span"])
def affinity_output_moments_kernel(
    y_ptr,  # [P, H']
    parts_ptr,  # [programs, 2, H'] fp32: mean and Σ (y − mean)² of `span` rows each
    batches_ptr,  # [] int64, counted up where COUNT
    rows, span,
    COUNT: tl.constexpr,
    H: tl.constexpr, DEEP: tl.constexpr, ACROSS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    count_batch(batches_ptr, COUNT)
    column = columns_of(tl.program_id(1), BLOCK_H)
    begin = tl.program_id(0).to(tl.int64) * span
    end = tl.minimum(begin + span, rows)
    mean = tl.zeros([ACROSS, BLOCK_H], tl.float32)
    square = tl.zeros([ACROSS, BLOCK_H], tl.float32)
    count = tl.zeros([ACROSS], tl.float32)
    row_of_tile = tl.arange(0, DEEP)[:, None] * ACROSS + tl.arange(0, ACROSS)[None, :]
    for start in range(begin, end, DEEP * ACROSS):
        row = start + row_of_tile
        there = row < end
        y = load_rows(y_ptr, row, there, column, 3, H, BLOCK_H)
        more = tl.sum(there.to(tl.float32), 0)
        more_mean, more_square = moments_of_tile(y, there, more)
        mean, square, count = merge(mean, square, count, more_mean, more_square, more)
    whole, squares = moments_across(mean, square, count)
    part = tl.full([1], tl.program_id(0), tl.int64) * 2
    here = tl.full([1], 1, tl.int1)
    store_rows(parts_ptr, part, here, column, whole[None, :], 2, H, BLOCK_H)
    store_rows(parts_ptr, part + 1, here, column, squares[None, :], 2, H, BLOCK_H)


@triton.jit(do_not_specialize=["images", "segment"])
def affinity_output_kernel(
    y_ptr,  # [P, H']
    norm_ptr,  # [3, H'] fp32
    weight_ptr,  # [H'] fp32
    bias_ptr,  # [1] fp32
    value_ptr,  # [B, segments] fp32
    slope_ptr,  # [P] fp32
    images,
    segment,  # pairs of an image in a program, a multiple of ROWS / IMAGES if it is not all
    PAIRS: tl.constexpr, LINK: tl.constexpr, H: tl.constexpr,
    IMAGES: tl.constexpr, ROWS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """A tile has ROWS / IMAGES pairs of IMAGES images."""
    EACH: tl.constexpr = ROWS // IMAGES
    first_image = tl.program_id(0).to(tl.int64) * IMAGES
    image = first_image + tl.arange(0, ROWS) // EACH
    begin = tl.program_id(1) * segment
    end = tl.minimum(begin + segment, PAIRS)
    last_bias = tl.load(bias_ptr)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(begin, end, EACH):
        within = start + tl.arange(0, ROWS) % EACH
        there = (within < end) & (image < images)
        pair = image * PAIRS + within
        f = tl.zeros([ROWS], tl.float32)
        for first in range(0, H, BLOCK_H):
            column = first + tl.arange(0, BLOCK_H)
            mean, scale, bias = norm_of(norm_ptr, column, H, BLOCK_H)
            y = load_rows(y_ptr, pair, there, column, 2, H, BLOCK_H)
            n = (y - mean) * scale + bias
            # Beyond H the weight is 0, and n is as well.
            f += tl.sum(tl.where(n <= 0.0, 0.0, n) * vector(weight_ptr, 0, column, H, BLOCK_H), 1)
        value, slope = linked(f + last_bias, LINK)
        tl.store(slope_ptr + pair, slope / PAIRS, there)
        total += tl.where(there, value, 0.0)
    value = tl.sum(tl.reshape(total, [IMAGES, EACH]), 1) / PAIRS
    place = first_image + tl.arange(0, IMAGES)
    # All lanes of a warp have the same sums. On the way through shared memory to the layout of the
    # store, they all write the same number to the same place: a harmless race that racecheck
    # reports. To global memory one thread of each place stores.
    tl.store(value_ptr + place * tl.num_programs(1) + tl.program_id(1), value, place < images)


@triton.jit(do_not_specialize=["grad_stride", "rows", "span"])
def affinity_output_sums_kernel(
    y_ptr,  # [P, H']
    norm_ptr,  # [3, H'] fp32
    slope_ptr,  # [P] fp32
    grad_ptr, grad_stride,  # [B] fp32
    parts_ptr,  # [programs, 2, H'] fp32, of `span` rows each
    rows, span,
    PAIRS: tl.constexpr, H: tl.constexpr,
    DEEP: tl.constexpr, ACROSS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    column = columns_of(tl.program_id(1), BLOCK_H)
    mean, scale, bias = norm_of(norm_ptr, column, H, BLOCK_H)
    begin = tl.program_id(0).to(tl.int64) * span
    end = tl.minimum(begin + span, rows)
    total = tl.zeros([ACROSS, BLOCK_H], tl.float32)
    moment = tl.zeros([ACROSS, BLOCK_H], tl.float32)
    row_of_tile = tl.arange(0, DEEP)[:, None] * ACROSS + tl.arange(0, ACROSS)[None, :]
    for start in range(begin, end, DEEP * ACROSS):
        row = start + row_of_tile
        there = row < end
        y = load_rows(y_ptr, row, there, column, 3, H, BLOCK_H)
        t = upstream_of_pairs(slope_ptr, grad_ptr, grad_stride, start, row_of_tile, there, PAIRS)
        apart = y - mean
        m = tl.where(apart * scale + bias > 0.0, t[:, :, None], 0.0)
        total += tl.sum(m, 0)
        moment += tl.sum(m * apart, 0)
    part = tl.full([1], tl.program_id(0), tl.int64) * 2
    here = tl.full([1], 1, tl.int1)
    store_rows(parts_ptr, part, here, column, tl.sum(total, 0)[None, :], 2, H, BLOCK_H)
    store_rows(parts_ptr, part + 1, here, column, tl.sum(moment, 0)[None, :], 2, H, BLOCK_H)


@triton.jit(do_not_specialize=["grad_stride", "rows"])
def affinity_output_backward_kernel(
    y_ptr,  # [P, H']
    norm_ptr,  # [3, H'] fp32
    weight_ptr,  # [H'] fp32
    slope_ptr,  # [P] fp32
    grad_ptr, grad_stride,  # [B] fp32
    correction_ptr,  # [2, H'] fp32
    out_ptr,  # [P, H']
    rows,
    PAIRS: tl.constexpr, H: tl.constexpr, ROWS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    column = columns_of(tl.program_id(1), BLOCK_H)
    mean, scale, bias = norm_of(norm_ptr, column, H, BLOCK_H)
    weight = vector(weight_ptr, 0, column, H, BLOCK_H)
    constant = vector(correction_ptr, 0, column, H, BLOCK_H)
    slope = vector(correction_ptr, 1, column, H, BLOCK_H)
    row_of_tile = tl.arange(0, ROWS)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        start = tl.full([], tile, tl.int64) * ROWS
        row = start + row_of_tile
        there = row < rows
        y = load_rows(y_ptr, row, there, column, 2, H, BLOCK_H)
        t = upstream_of_pairs(slope_ptr, grad_ptr, grad_stride, start, row_of_tile, there, PAIRS)
        apart = y - mean
        m = tl.where(apart * scale + bias > 0.0, t[:, None] * weight, 0.0)
        out = scale * (m - constant - slope * apart)
        store_rows(
            out_ptr, row, there, column, narrow(out, out_ptr.dtype.element_ty), 2, H, BLOCK_H
        )


def output_moments(call: OutputMomentsCall, result: Moments) -> None:
    """Fills moments [2, H']."""
    _launch_output_moments(call.y, result.moments)


def output_layer(call: OutputLayerCall, result: OutputLayerResult) -> None:
    """Fills value, slope, norm; where the batch's statistics are used, the running ones follow."""
    if call.batch:
        _launch_output_moments(call.y, result.norm, call)
    else:
        with launching(call.y):
            norm_of_running(call, result.norm)
    _launch_output(call, result.norm, result.value, result.slope)


def output(call: OutputCall, result: OutputResult) -> None:
    """Fills value and slope from norm, whichever way its statistics were found."""
    _launch_output(call, call.norm, result.value, result.slope)


def output_sums(call: OutputSumsCall, result: OutputSums) -> None:
    """Fills sums [2, H']."""
    torch.sum(_launch_output_sums(call), 0, out=result.sums)


def output_gradient(call: OutputGradientCall, result: OutputGradientResult) -> None:
    """Fills the gradient to y and facts [6, H']; facts that nothing reads are zeros already."""
    if call.summed:
        parts = _launch_output_sums(call)
        with launching(call.y):
            values = call.y.shape[0]
            combine_facts(parts, call.norm, call.last, call.batch, values, result.facts)
    _launch_output_backward(call, result.facts, result.grad_y)


def output_backward(call: OutputBackwardCall, result: OutputGradients) -> None:
    """Fills the gradient to y, corrected for the statistics' part."""
    _launch_output_backward(call, call.correction, result.grad_y)


def _launch_output_moments(y: Tensor, to: Tensor, layer: OutputLayerCall | None = None) -> None:
    """Fills `to`: moments [2, H'], or norm [4, H'] of the layer."""
    rows, width = y.shape
    tile = halved(column_tile(width, y.element_size(), 8))
    batches = None if layer is None else layer.batches
    with launching(y):
        count, span, column_tiles = _shares(y, tile)
        parts = y.new_empty(count, 2, width, dtype=torch.float32)
        affinity_output_moments_kernel[(count, column_tiles)](
            y, parts, parts if batches is None else batches, rows, span,
            COUNT=batches is not None, H=width, DEEP=tile.deep, ACROSS=tile.across,
            BLOCK_H=tile.block_h, num_warps=tile.num_warps,
        )  # fmt: skip
        combine_moments(parts, to, rows, span, 1, layer)


def _launch_output(
    call: OutputCall | OutputLayerCall, norm: Tensor, value: Tensor, slope: Tensor
) -> None:
    y, pairs = call.y, call.pairs
    rows, width = y.shape
    images = rows // pairs
    tile = row_tile(width, y.element_size(), 1024)
    each = min(tile.rows, next_power_of_two(pairs))
    groups = triton.cdiv(images, tile.rows // each)
    tiles = triton.cdiv(pairs, each)
    with launching(y):
        count = segments(groups, tiles, multiprocessors(y.device.index))
        of_segments = value
        if count > 1:
            of_segments = y.new_empty(images, count, dtype=torch.float32)
        affinity_output_kernel[(groups, count)](
            y, norm, call.last, call.last_bias, of_segments, slope, images,
            triton.cdiv(tiles, count) * each,
            PAIRS=pairs, LINK=call.link, H=width,
            IMAGES=tile.rows // each, ROWS=tile.rows, BLOCK_H=tile.block_h, num_warps=4,
        )  # fmt: skip
        if count > 1:
            torch.sum(of_segments, 1, out=value)


def _launch_output_sums(call: OutputSumsCall | OutputGradientCall) -> Tensor:
    """The sums of programs, [programs, 2, H']."""
    y, grad = call.y, call.grad
    rows, width = y.shape
    tile = column_tile(width, y.element_size(), 4)
    with launching(y):
        count, span, column_tiles = _shares(y, tile)
        parts = y.new_empty(count, 2, width, dtype=torch.float32)
        affinity_output_sums_kernel[(count, column_tiles)](
            y, call.norm, call.slope, grad, grad.stride(0), parts, rows, span,
            PAIRS=call.pairs, H=width, DEEP=tile.deep, ACROSS=tile.across, BLOCK_H=tile.block_h,
            num_warps=tile.num_warps,
        )  # fmt: skip
        return parts


def _launch_output_backward(
    call: OutputBackwardCall | OutputGradientCall, correction: Tensor, grad_y: Tensor
) -> None:
    y, grad = call.y, call.grad
    rows, width = y.shape
    tile = row_tile(width, y.element_size(), 256)
    column_tiles = triton.cdiv(width, tile.block_h)
    with launching(y):
        tiles = triton.cdiv(rows, tile.rows)
        count = programs(tiles, column_tiles, 3, multiprocessors(y.device.index))
        affinity_output_backward_kernel[(count, column_tiles)](
            y, call.norm, call.last, call.slope, grad, grad.stride(0), correction, grad_y, rows,
            PAIRS=call.pairs, H=width, ROWS=tile.rows, BLOCK_H=tile.block_h, num_warps=4,
        )  # fmt: skip


def _shares(y: Tensor, tile: LayerTile) -> tuple[int, int, int]:
    """(programs, rows of each, tiles of columns) for sums over y [P, H']."""
    rows, width = y.shape
    tiles = triton.cdiv(rows, tile.deep * tile.across)
    column_tiles = triton.cdiv(width, tile.block_h)
    most = programs(tiles, column_tiles, 2, multiprocessors(y.device.index))
    span = triton.cdiv(tiles, most) * tile.deep * tile.across
    return triton.cdiv(rows, span), span, column_tiles
