"""Moments of batch norm: of tiles, merged without cancellation, and of all programs of a launch.

The first launch leaves a mean and a sum of squares about it for each program. The second combines
these, makes what batch norm needs of them, and lets the running statistics follow. It is a launch
of its own: one program for each 8 columns reads the parts there, where the last program of the
first launch would have to read all of them alone.
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .affinity_rows import columns_of, shaped, vector
from .tiles import next_power_of_two

if TYPE_CHECKING:
    from ...affinity.pairs import HiddenLayerCall, OutputLayerCall

COLUMNS = 8  # a sector of 32 bytes of each row
PARTS = 1024  # at once; there are seldom more


@triton.jit
def merge(mean, square, count, more_mean, more_square, more_count):
    """Moments of two disjoint sets of values as those of one (Chan): a sum of what is ≥ 0."""
    total = count + more_count
    share = (more_count / tl.maximum(total, 1.0))[:, None]
    apart = more_mean - mean
    square += more_square + apart * apart * (count[:, None] * share)
    return mean + apart * share, square, total


@triton.jit
def moments_of_tile(tile, there, count):
    """Over the first axis of a tile: the mean, and the sum of squares about it."""
    mean = tl.sum(tile, 0) / tl.maximum(count, 1.0)[:, None]
    apart = tl.where(there[:, :, None], tile - mean[None, :, :], 0.0)
    return mean, tl.sum(apart * apart, 0)


@triton.jit
def moments_across(mean, square, count):
    """Over the first axis of moments, counts [ACROSS]; at least one is not empty."""
    share = (count / tl.sum(count, 0))[:, None]
    whole = tl.sum(mean * share, 0)
    apart = mean - whole[None, :]
    return whole, tl.sum(square + apart * apart * count[:, None], 0)


@triton.jit
def count_batch(batches_ptr, COUNT: tl.constexpr):
    """Counts a batch of the running statistics, before the second launch reads their number."""
    if COUNT and tl.program_id(0) + tl.program_id(1) == 0:
        tl.store(batches_ptr, tl.load(batches_ptr) + 1)


@triton.jit
def fold(
    mean, var, weight_ptr, bias_ptr, norm_ptr, eps, column, H: tl.constexpr, BLOCK_H: tl.constexpr
):
    """norm [4, H] of columns from their statistics."""
    inverse = tl.div_rn(1.0, tl.sqrt_rn(var + eps))
    mask = column < H
    to = norm_ptr + column
    tl.store(to, mean, mask)
    tl.store(to + H, vector(weight_ptr, 0, column, H, BLOCK_H) * inverse, mask)
    tl.store(to + 2 * H, vector(bias_ptr, 0, column, H, BLOCK_H), mask)
    tl.store(to + 3 * H, inverse, mask)


@triton.jit
def follow(pointer, value, share, column, H: tl.constexpr, BLOCK_H: tl.constexpr):
    """Moves running statistics by that share of their distance to the value."""
    before = vector(pointer, 0, column, H, BLOCK_H)
    tl.store(pointer + column, before + share * (value - before), column < H)


@triton.jit(do_not_specialize=["parts", "work", "span"])
def affinity_moments_kernel(
    parts_ptr,  # [parts, 2, H] fp32: mean, Σ (v − mean)²
    to_ptr,  # fp32: moments [2, H], where FOLD norm [4, H]
    weight_ptr, bias_ptr,  # [H] fp32, read where FOLD, as is eps
    mean_ptr, var_ptr, batches_ptr,  # [H] fp32, [] int64: written to where FOLLOW
    momentum, eps,
    parts,
    work, span,  # part k is of values k·span·EACH .. (k + 1)·span·EACH, of work·EACH
    FOLD: tl.constexpr, FOLLOW: tl.constexpr, CUMULATIVE: tl.constexpr,
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
    var = tl.sum(square / count[:, None], 0)
    mean = tl.sum(mean, 0)
    if FOLD:
        fold(mean, var, weight_ptr, bias_ptr, to_ptr, eps, column, H, BLOCK_H)
        if FOLLOW:
            values = tl.sum(count, 0) * EACH
            share = momentum
            if CUMULATIVE:
                share = 1.0 / tl.load(batches_ptr).to(tl.float32)
            follow(mean_ptr, mean, share, column, H, BLOCK_H)
            follow(var_ptr, var * (values / (values - 1.0)), share, column, H, BLOCK_H)
    else:
        tl.store(to_ptr + column, mean, column < H)
        tl.store(to_ptr + H + column, var, column < H)


@triton.jit
def affinity_norm_kernel(
    mean_ptr, var_ptr, weight_ptr, bias_ptr,  # [H] fp32
    norm_ptr,  # [4, H] fp32
    eps,
    H: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    column = columns_of(tl.program_id(0), BLOCK_H)
    mean = vector(mean_ptr, 0, column, H, BLOCK_H)
    var = vector(var_ptr, 0, column, H, BLOCK_H)
    fold(mean, var, weight_ptr, bias_ptr, norm_ptr, eps, column, H, BLOCK_H)


def combine_moments(
    parts: Tensor,  # [programs, 2, H] fp32 of `affinity_moments_kernel`
    to: Tensor,
    work: int,
    span: int,
    each: int,
    layer: HiddenLayerCall | OutputLayerCall | None = None,
) -> None:
    """Fills `to`: moments [2, H], mean and biased variance; or of a layer norm [4, H].

    The running statistics of a layer follow. Called within `launching`.
    """
    count, _, width = parts.shape
    weight = bias = mean = var = batches = None
    momentum, eps = 0.0, 0.0
    if layer is not None:
        weight, bias = layer.norm_weight, layer.norm_bias
        mean, var, batches = layer.running_mean, layer.running_var, layer.batches
        momentum, eps = float(layer.momentum), float(layer.eps)
    absent = to  # a stand-in, not used
    affinity_moments_kernel[(triton.cdiv(width, COLUMNS),)](
        parts, to,
        absent if weight is None else weight, absent if bias is None else bias,
        absent if mean is None else mean, absent if var is None else var,
        absent if batches is None else batches,
        momentum, eps, count, work, span,
        FOLD=layer is not None, FOLLOW=mean is not None, CUMULATIVE=momentum < 0,
        EACH=each, H=width, PARTS=min(PARTS, next_power_of_two(count)), BLOCK_H=COLUMNS,
        num_warps=8,
    )  # fmt: skip


def norm_of_running(layer: HiddenLayerCall | OutputLayerCall, norm: Tensor) -> None:
    """Fills norm [4, H] from the running statistics alone. Called within `launching`."""
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None
    assert var is not None
    width = norm.shape[1]
    block = min(256, next_power_of_two(width))
    affinity_norm_kernel[(triton.cdiv(width, block),)](
        mean, var, layer.norm_weight, layer.norm_bias, norm, float(layer.eps),
        H=width, BLOCK_H=block, num_warps=2,
    )  # fmt: skip
