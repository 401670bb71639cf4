"""Mean and variance from those that programs found of their parts: the second of two launches.

What a batch norm makes of them is made here as well, and its running statistics follow.

A launch of its own: here as many programs read the parts as there are groups of 8 columns, where
the last program of the first launch would have to read all of them alone.
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .pair_tiles import columns_of, merge, moments_across, shaped, vector
from .tiles import power_of_two

COLUMNS = 8  # a sector of 32 bytes of each row
PARTS = 1024  # at once; there are seldom more


class BatchNorm(NamedTuple):
    """One whose statistics are found, as `PairStage.hidden_layer` is given it."""

    weight: Tensor
    bias: Tensor
    mean: Tensor | None
    var: Tensor | None
    batches: Tensor | None
    momentum: float
    eps: float


@triton.jit
def count_batch(batches_ptr, COUNT: tl.constexpr):
    """Before the second launch reads how many batches the running statistics are of."""
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
    before = vector(pointer, 0, column, H, BLOCK_H)
    tl.store(pointer + column, before + share * (value - before), column < H)


@triton.jit(do_not_specialize=["parts", "work", "span"])
def combine_moments_kernel(
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
def fold_kernel(
    mean_ptr, var_ptr, weight_ptr, bias_ptr,  # [H] fp32
    norm_ptr,  # [4, H] fp32
    eps,
    H: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    column = columns_of(tl.program_id(0), BLOCK_H)
    mean = vector(mean_ptr, 0, column, H, BLOCK_H)
    var = vector(var_ptr, 0, column, H, BLOCK_H)
    fold(mean, var, weight_ptr, bias_ptr, norm_ptr, eps, column, H, BLOCK_H)


def combined(
    parts: Tensor, work: int, span: int, each: int, batch_norm: BatchNorm | None = None
) -> Tensor:
    """[2, H] mean and biased variance, or norm [4, H]; called within `launching`."""
    count, _, width = parts.shape
    made = parts.new_empty(2 if batch_norm is None else 4, width)
    of = batch_norm or BatchNorm(made, made, None, None, None, 0.0, 0.0)
    combine_moments_kernel[(triton.cdiv(width, COLUMNS),)](
        parts, made, of.weight, of.bias,
        made if of.mean is None else of.mean, made if of.var is None else of.var,
        made if of.batches is None else of.batches,
        float(of.momentum), float(of.eps), count, work, span,
        FOLD=batch_norm is not None, FOLLOW=of.mean is not None, CUMULATIVE=of.momentum < 0,
        EACH=each, H=width, PARTS=min(PARTS, power_of_two(count)), BLOCK_H=COLUMNS, num_warps=8,
    )  # fmt: skip
    return made


def folded(mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """norm [4, H] of statistics that are constants; called within `launching`."""
    width = weight.shape[0]
    norm = weight.new_empty(4, width)
    block = min(256, power_of_two(width))
    fold_kernel[(triton.cdiv(width, block),)](
        mean, var, weight, bias, norm, float(eps), H=width, BLOCK_H=block, num_warps=2
    )
    return norm
