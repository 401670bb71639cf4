"""Device functions that the pair stage's kernels share; pairs and norm as in backends/pairs.py."""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .rows import widen


@triton.jit
def columns_of(group, BLOCK_H: tl.constexpr):
    return group * BLOCK_H + tl.arange(0, BLOCK_H)


@triton.jit
def vector(pointer, index, column, H: tl.constexpr, BLOCK_H: tl.constexpr):
    """[BLOCK_H] of row `index` of a [.., H] in fp32; zeros beyond H."""
    if H % BLOCK_H == 0:
        loaded = tl.load(pointer + index * H + column)
    else:
        loaded = tl.load(pointer + index * H + column, column < H, other=0.0)
    return loaded


@triton.jit
def norm_of(norm_ptr, column, H: tl.constexpr, BLOCK_H: tl.constexpr):
    """(mean, scale, bias)."""
    mean = vector(norm_ptr, 0, column, H, BLOCK_H)
    scale = vector(norm_ptr, 1, column, H, BLOCK_H)
    bias = vector(norm_ptr, 2, column, H, BLOCK_H)
    return mean, scale, bias


@triton.jit
def shaped(there, column, RANK: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr):
    """Mask of a tile from that of its rows."""
    mask = tl.expand_dims(there, RANK - 1)
    if H % BLOCK_H != 0:
        mask = mask & (column < H)
    return mask


@triton.jit
def load_rows(
    pointer, row, there, column, RANK: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr
):
    """fp32 rows `row`, int64, of a [.., H]: a tile of that RANK; zeros where not `there`."""
    place = tl.expand_dims(row, RANK - 1) * H + column
    mask = shaped(there, column, RANK, H, BLOCK_H)
    return widen(tl.load(pointer + place, mask, other=0.0))


@triton.jit
def store_rows(
    pointer, row, there, column, tile, RANK: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr
):
    place = tl.expand_dims(row, RANK - 1) * H + column
    tl.store(pointer + place, tile, shaped(there, column, RANK, H, BLOCK_H))


@triton.jit
def rolled(image, roll, images):
    """(image + roll) mod images for 0 ≤ roll < images."""
    other = image + roll
    return tl.where(other < images, other, other - images)


@triton.jit
def pair_rows(image, i, j, L: tl.constexpr):
    """(p [DEEP, ACROSS] of j [DEEP] and i [ACROSS], whether there is such a pair)."""
    first = (image * L + i)[None, :] * (L - 1)
    pair = first + (j[:, None] - (j[:, None] > i[None, :]).to(tl.int32))
    there = (i < L)[None, :] & (j < L)[:, None] & (i[None, :] != j[:, None])
    return pair, there


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
