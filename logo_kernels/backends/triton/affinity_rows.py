"""How the affinity's kernels read and write rows of H numbers; and where pairs of crops lie.

A pair (i, j), i ≠ j, of ordered crops of image b is row p = (b·L + i)·(L − 1) + j − (j > i).
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .numbers import widen


@triton.jit
def columns_of(group, BLOCK_H: tl.constexpr):
    """Columns of a group of BLOCK_H."""
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
    """(mean, scale, bias) of columns, from a norm whose rows they are."""
    mean = vector(norm_ptr, 0, column, H, BLOCK_H)
    scale = vector(norm_ptr, 1, column, H, BLOCK_H)
    bias = vector(norm_ptr, 2, column, H, BLOCK_H)
    return mean, scale, bias


@triton.jit
def shaped(there, column, RANK: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr):
    """The mask of a tile, from that of its rows."""
    mask = tl.expand_dims(there, RANK - 1)
    if H % BLOCK_H != 0:
        mask = mask & (column < H)
    return mask


@triton.jit
def load_rows(
    pointer, row, there, column, RANK: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr
):
    """Rows `row`, int64, of a [.., H] as fp32, a tile of that RANK; zeros where not `there`."""
    place = tl.expand_dims(row, RANK - 1) * H + column
    mask = shaped(there, column, RANK, H, BLOCK_H)
    return widen(tl.load(pointer + place, mask, other=0.0))


@triton.jit
def store_rows(
    pointer, row, there, column, tile, RANK: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr
):
    """Writes a tile of that RANK to rows `row`, int64, of a [.., H], where `there`."""
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
