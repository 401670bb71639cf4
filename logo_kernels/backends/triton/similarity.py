"""Cosines between two sets of rows of each image, a·bᵀ of unit rows, and their gradients.

Each is one launch, one program per image. One tile holds the rows a | b, as image.py has it. The
tensor cores take 16 rows at the least: up to 16 rows, the block a·bᵀ alone would cost as much as
the whole Gram matrix, whose diagonal is the squared norms that cosines need.
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803, N806
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from .image import combination, cosines_of, gram_matrix, rows_of_image, store_gradients
from .launch import alignment, gradient_rows, launching, strides, unit_steps
from .numbers import TL_DTYPE, narrow, widen
from .tiles import tile_for

if TYPE_CHECKING:
    from ...similarity import (
        SimilarityBackwardCall,
        SimilarityCall,
        SimilarityGradients,
        SimilarityResult,
    )

AB_STRIDES = [f"{v}_{of}" for v in "ab" for of in ("image", "row", "step")]


@triton.jit
def is_between(i, j, V: tl.constexpr, W: tl.constexpr):
    """Whether row i of the tile a | b is of a, and row j of b; or both of a, where W = 0."""
    FIRST: tl.constexpr = V if W > 0 else 0
    OTHERS: tl.constexpr = W if W > 0 else V
    return (i < V) & (j >= FIRST) & (j < FIRST + OTHERS)


@triton.jit
def cosines_between(
    a_ptr, a_image, a_row, a_step,  # V rows of each image
    b_ptr, b_image, b_row, b_step,  # W rows; a itself where W = 0
    image, row,
    V: tl.constexpr, W: tl.constexpr, D: tl.constexpr, UNIT: tl.constexpr, ALIGN: tl.constexpr,
    OP: tl.constexpr, V_PAD: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr,
    RESCUE_D: tl.constexpr, STAGES: tl.constexpr,
    AGAIN: tl.constexpr,  # whether the rows are read again, for gradients
):  # fmt: skip
    """Cosines of the rows a | b of one image, [V_PAD, V_PAD]; those of `is_between` are â·b̂ᵀ.

    Returns (cosines, 1/norms of rows, 1/norms of columns, pointers to rows, steps of rows), and of
    `gram_matrix` (tile, factor, extreme).
    """
    a_rows = rows_of_image(a_ptr, image, row, 0, a_image, a_row)
    b_rows = rows_of_image(b_ptr, image, row, V, b_image, b_row)
    # Triton's alignment analysis ends at a choice between pointers.
    rows = tl.multiple_of(tl.where(row < V, a_rows, b_rows), ALIGN)
    steps = tl.where(row < V, a_step, b_step).to(tl.int64)
    there = row < V + W
    tile, gram, factor, extreme = gram_matrix(
        rows, rows, rows, there, there, there, steps,
        V + W, D, V_PAD, BLOCK_D, SPLIT, RESCUE_D, STAGES, OP, False, False, UNIT, AGAIN,
    )  # fmt: skip
    cosines, inverse, inverse_of_column = cosines_of(gram, V_PAD)
    return cosines, inverse, inverse_of_column, rows, steps, tile, factor, extreme


@triton.jit(do_not_specialize=[*AB_STRIDES])
def similarity_kernel(
    a_ptr, a_image, a_row, a_step,  # [B, V, D] and its strides
    b_ptr, b_image, b_row, b_step,  # [B, W, D]; a itself where W = 0
    cosines_ptr,  # [B, V, W], or [B, V, V] where W = 0, contiguous
    V: tl.constexpr, W: tl.constexpr, D: tl.constexpr, UNIT: tl.constexpr, ALIGN: tl.constexpr,
    OP: tl.constexpr, V_PAD: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr,
    RESCUE_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, V_PAD)
    cosines, _, _, _, _, _, _, _ = cosines_between(
        a_ptr, a_image, a_row, a_step, b_ptr, b_image, b_row, b_step, image, row,
        V, W, D, UNIT, ALIGN, OP, V_PAD, BLOCK_D, SPLIT, RESCUE_D, STAGES, False,
    )  # fmt: skip
    FIRST: tl.constexpr = V if W > 0 else 0
    OTHERS: tl.constexpr = W if W > 0 else V
    i = row[:, None]
    j = row[None, :]
    tl.store(
        cosines_ptr + image * (V * OTHERS) + (i * OTHERS + (j - FIRST)),
        narrow(cosines, cosines_ptr.dtype.element_ty),
        is_between(i, j, V, W),
    )


@triton.jit(
    do_not_specialize=[
        *AB_STRIDES, "up_image", "up_row", "up_column",
        "ga_image", "ga_row", "gb_image", "gb_row",
    ]
)  # fmt: skip
def similarity_backward_kernel(
    up_ptr, up_image, up_row, up_column,  # [B, V, W], or [B, V, V] where W = 0: the upstream
    a_ptr, a_image, a_row, a_step,  # [B, V, D]
    b_ptr, b_image, b_row, b_step,  # [B, W, D]; a itself where W = 0
    ga_ptr, ga_image, ga_row,  # gradients of unit step; written where GRAD_A, GRAD_B
    gb_ptr, gb_image, gb_row,
    V: tl.constexpr, W: tl.constexpr, D: tl.constexpr, UNIT: tl.constexpr,
    GRAD_A: tl.constexpr, GRAD_B: tl.constexpr,
    ALIGN_IN: tl.constexpr, ALIGN_OUT: tl.constexpr,
    OP: tl.constexpr, V_PAD: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr,
    RESCUE_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, V_PAD)
    cosines, inverse, inverse_of_column, rows, steps, tile, factor, extreme = cosines_between(
        a_ptr, a_image, a_row, a_step, b_ptr, b_image, b_row, b_step, image, row,
        V, W, D, UNIT, ALIGN_IN, OP, V_PAD, BLOCK_D, SPLIT, RESCUE_D, STAGES, True,
    )  # fmt: skip

    # The weight of pair (i, j) in the gradient of row i: the upstream gradient where i is of a and
    # j of b, its transpose where they are the other way round; both where a is both. A row with
    # itself has cosine 1 whatever the row: no gradient.
    up = up_ptr + image * up_image
    FIRST: tl.constexpr = V if W > 0 else 0
    i = row[:, None].to(tl.int64)
    j = row[None, :].to(tl.int64)
    forth = is_between(i, j, V, W) & (i != j)
    back = is_between(j, i, V, W) & (i != j)
    pairs = widen(tl.load(up + i * up_row + (j - FIRST) * up_column, forth, other=0.0))
    pairs += widen(tl.load(up + j * up_row + (i - FIRST) * up_column, back, other=0.0))
    weights = combination(pairs, cosines, inverse_of_column, V_PAD)

    there = row < V + W
    ga_rows = rows_of_image(ga_ptr, image, row, 0, ga_image, ga_row)
    gb_rows = rows_of_image(gb_ptr, image, row, V, gb_image, gb_row)
    out_rows = tl.multiple_of(tl.where(row < V, ga_rows, gb_rows), ALIGN_OUT)
    wanted = ((row < V) & GRAD_A) | ((row >= V) & there & GRAD_B)
    one = tl.full([V_PAD], 1.0, tl.float32)
    # CAREFUL: an upstream gradient may have any size.
    store_gradients(
        tile, weights, inverse, factor, extreme,
        rows, rows, rows, there, there, there, steps,
        out_rows, wanted, out_rows, wanted, one,
        D, BLOCK_D, SPLIT, RESCUE_D, STAGES, OP, False, False, False, UNIT, True,
    )  # fmt: skip


def similarity(call: SimilarityCall, result: SimilarityResult) -> None:
    """Fills cosines by one launch of `similarity_kernel`."""
    a, b = call.a, call.a if call.b is None else call.b
    images, v, dim = a.shape
    w = 0 if call.b is None else b.shape[1]
    if images == 0:
        return
    tile = tile_for(v + w, dim, a.dtype, a.element_size(), False)
    with launching(a):
        similarity_kernel[(images,)](
            a, *strides(a), b, *strides(b), result.cosines,
            V=v, W=w, D=dim, UNIT=unit_steps(a, b), ALIGN=alignment(a, b),
            OP=TL_DTYPE[a.dtype], V_PAD=tile.v_pad, BLOCK_D=tile.block_d, SPLIT=tile.split,
            RESCUE_D=tile.rescue_d, STAGES=tile.num_stages, num_warps=tile.num_warps,
        )  # fmt: skip


def similarity_backward(call: SimilarityBackwardCall, result: SimilarityGradients) -> None:
    """Fills the gradients that are wanted by one launch of `similarity_backward_kernel`."""
    a, b = call.a, call.a if call.b is None else call.b
    to_a, to_b = result.grad_a, result.grad_b
    images, v, dim = a.shape
    w = 0 if call.b is None else b.shape[1]
    if images == 0 or (to_a is None and to_b is None):
        return
    tile = tile_for(v + w, dim, a.dtype, a.element_size(), True)
    with launching(a):
        similarity_backward_kernel[(images,)](
            call.grad, *strides(call.grad), a, *strides(a), b, *strides(b),
            *gradient_rows(to_a, a), *gradient_rows(to_b, a),
            V=v, W=w, D=dim, UNIT=unit_steps(a, b),
            GRAD_A=to_a is not None, GRAD_B=to_b is not None,
            ALIGN_IN=alignment(a, b), ALIGN_OUT=alignment(to_a, to_b),
            OP=TL_DTYPE[a.dtype], V_PAD=tile.v_pad, BLOCK_D=tile.block_d, SPLIT=tile.split,
            RESCUE_D=tile.rescue_d, STAGES=tile.num_stages, num_warps=tile.num_warps,
        )  # fmt: skip
