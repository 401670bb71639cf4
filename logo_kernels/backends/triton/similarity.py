"""Cosines between all pairs of rows of an image, and their gradients: one launch each.

Both form one row tile a | b (or a alone), as cosine.py does: the Gram matrix of a tile of 16 rows
costs the tensor cores the same whether all its entries are used or the block a·bᵀ alone, and the
squared norms are on its diagonal.
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803, N806
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..buffers import gradient_like
from .launch import alignment, gradient_rows, launching, strides, unit_steps
from .rows import (
    TL_DTYPE,
    combination,
    diagonal,
    gram_matrix,
    inverse_norm,
    narrow,
    row_of_image,
    store_gradients,
    widen,
)
from .tiles import tile_for

AB_STRIDES = [f"{v}_{of}" for v in "ab" for of in ("image", "row", "step")]


@triton.jit
def rows_of_blocks(
    a_ptr, a_image, a_row, a_step, b_ptr, b_image, b_row, b_step, image, row,
    V: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Pointers to the rows a | b of one image, [V_PAD], and their steps."""
    a_rows = row_of_image(a_ptr, image, row, 0, a_image, a_row)
    b_rows = row_of_image(b_ptr, image, row, V, b_image, b_row)
    # Triton's alignment analysis ends at a choice between pointers.
    rows = tl.multiple_of(tl.where(row < V, a_rows, b_rows), ALIGN)
    return rows, tl.where(row < V, a_step, b_step).to(tl.int64)


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
    rows, steps = rows_of_blocks(
        a_ptr, a_image, a_row, a_step, b_ptr, b_image, b_row, b_step, image, row, V, ALIGN
    )
    there = row < V + W
    _, gram, _, _ = gram_matrix(
        rows, rows, rows, there, there, there, steps,
        V + W, D, V_PAD, BLOCK_D, SPLIT, RESCUE_D, STAGES, OP, False, False, UNIT, False,
    )  # fmt: skip
    inverse = inverse_norm(diagonal(gram, 1, V_PAD))
    cosines = gram * inverse[:, None] * inverse_norm(diagonal(gram, 0, V_PAD))[None, :]

    OTHERS: tl.constexpr = W if W > 0 else V
    FIRST: tl.constexpr = V if W > 0 else 0
    other = (row - FIRST)[None, :]
    place = row[:, None] * OTHERS + other
    tl.store(
        cosines_ptr + image * (V * OTHERS) + place,
        narrow(cosines, cosines_ptr.dtype.element_ty),
        (row < V)[:, None] & (other >= 0) & (other < OTHERS),
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
    rows, steps = rows_of_blocks(
        a_ptr, a_image, a_row, a_step, b_ptr, b_image, b_row, b_step, image, row, V, ALIGN_IN
    )
    there = row < V + W
    tile, gram, factor, extreme = gram_matrix(
        rows, rows, rows, there, there, there, steps,
        V + W, D, V_PAD, BLOCK_D, SPLIT, RESCUE_D, STAGES, OP, False, False, UNIT, True,
    )  # fmt: skip
    inverse = inverse_norm(diagonal(gram, 1, V_PAD))
    inverse_of_column = inverse_norm(diagonal(gram, 0, V_PAD))
    cosines = gram * inverse[:, None] * inverse_of_column[None, :]

    # The weight of pair (i, j) in the gradient of row i: the upstream gradient where i is of a and
    # j of b, its transpose where they are the other way round; both where a is both. A row with
    # itself has cosine 1 whatever the row: no gradient.
    up = up_ptr + image * up_image
    OTHERS: tl.constexpr = W if W > 0 else V
    FIRST: tl.constexpr = V if W > 0 else 0
    i = row[:, None].to(tl.int64)
    j = row[None, :].to(tl.int64)
    forth = (i < V) & (j >= FIRST) & (j < FIRST + OTHERS) & (i != j)
    back = (j < V) & (i >= FIRST) & (i < FIRST + OTHERS) & (i != j)
    pairs = widen(tl.load(up + i * up_row + (j - FIRST) * up_column, forth, other=0.0))
    pairs += widen(tl.load(up + j * up_row + (i - FIRST) * up_column, back, other=0.0))
    weights = combination(pairs, cosines, inverse_of_column, V_PAD)

    ga_rows = row_of_image(ga_ptr, image, row, 0, ga_image, ga_row)
    gb_rows = row_of_image(gb_ptr, image, row, V, gb_image, gb_row)
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


def similarity(
    a: Tensor,  # [B, V, D]
    b: Tensor | None,  # [B, W, D]
) -> Tensor:  # [B, V, W], dtype of a
    """`Backend.similarity`."""
    images, v, dim = a.shape
    w = 0 if b is None else b.shape[1]
    other = a if b is None else b
    cosines = a.new_empty(images, v, w or v)
    if images == 0:
        return cosines
    tile = tile_for(v + w, dim, a.dtype, a.element_size(), False)
    with launching(a):
        similarity_kernel[(images,)](
            a, *strides(a), other, *strides(other), cosines,
            V=v, W=w, D=dim, UNIT=unit_steps(a, other), ALIGN=alignment(a, other),
            OP=TL_DTYPE[a.dtype], V_PAD=tile.v_pad, BLOCK_D=tile.block_d, SPLIT=tile.split,
            RESCUE_D=tile.rescue_d, STAGES=tile.num_stages, num_warps=tile.num_warps,
        )  # fmt: skip
    return cosines


def similarity_backward(
    grad: Tensor,  # [B, V, W]
    a: Tensor,
    b: Tensor | None,
    grad_a: bool,
    grad_b: bool,
) -> tuple[Tensor, Tensor]:
    """`Backend.similarity_backward`."""
    images, v, dim = a.shape
    w = 0 if b is None else b.shape[1]
    other = a if b is None else b
    grad_b = grad_b and b is not None
    to_a = gradient_like(a) if grad_a else a.new_empty(0)
    to_b = gradient_like(other) if grad_b else a.new_empty(0)
    if images == 0 or not (grad_a or grad_b):
        return to_a, to_b
    tile = tile_for(v + w, dim, a.dtype, a.element_size(), True)
    with launching(a):
        similarity_backward_kernel[(images,)](
            grad, *strides(grad), a, *strides(a), other, *strides(other),
            *gradient_rows(to_a, a), *gradient_rows(to_b, a),
            V=v, W=w, D=dim, UNIT=unit_steps(a, other), GRAD_A=grad_a, GRAD_B=grad_b,
            ALIGN_IN=alignment(a, other), ALIGN_OUT=alignment(to_a, to_b),
            OP=TL_DTYPE[a.dtype], V_PAD=tile.v_pad, BLOCK_D=tile.block_d, SPLIT=tile.split,
            RESCUE_D=tile.rescue_d, STAGES=tile.num_stages, num_warps=tile.num_warps,
        )  # fmt: skip
    return to_a, to_b
