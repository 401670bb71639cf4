"""The rows of one image as a tile: their Gram matrix, and gradients that are combinations of them.

The kernels of cosine.py and similarity.py are made of these device functions. All rows of an image
that are read, whatever tensors they come from, form one padded tile [V_PAD, BLOCK_D]. Rows beyond
the image's are masked: they cost no memory traffic and are zero. Two products make up everything:
the Gram matrix of the tile, [V_PAD, V_PAD], summed over D; and W·X, the gradient, where
W [V_PAD, V_PAD] follows from the Gram matrix alone.

Split tiles. A matrix product of 16 or 32 rows has too few output tiles to occupy several warps:
each would repeat the others' work. With SPLIT > 1 the tile is [SPLIT, V_PAD, BLOCK_D / SPLIT], a
batch of products over consecutive parts of D, and each warp gets its own part.

Precision. Half-precision operands are multiplied as they are, fp32 ones in parts of tf32.

Extreme norms. Squares are first accumulated in fp32 as they come. Where a squared norm leaves
[LOW, HIGH] (or is zero or NaN), the image is done again, with each row multiplied by the power of
two that brings its largest magnitude to about one. Ordinary images never take that branch.
"""

# Upper case marks compile-time constants in kernels; a branch on one is no expression.
# ruff: noqa: N803, N806, SIM108, SIM300
# mypy: allow-untyped-defs, allow-untyped-globals

from __future__ import annotations

import triton
import triton.language as tl

from .numbers import (
    HIGH,
    INTERPRETED,
    LOW,
    biased_exponent,
    from_exponent,
    high_and_low,
    inverse_norm,
    narrow,
    operand,
    saturate,
    scale_towards_one,
    widen,
)

# LOW and HIGH of fp16, whose products never leave fp32, while W has fp16's range. They bound the
# ratio of two norms by 2^24. A W in two fp16 parts resolves 2^-39 of a row's largest entry: 2^-15
# in the worst case, below the 2^-11 of fp16 itself.
LOW_FP16 = tl.constexpr(2.0**-16)
HIGH_FP16 = tl.constexpr(2.0**32)


@triton.jit
def per_row(v, SPLIT: tl.constexpr):
    """One value per row, [V_PAD], in the rank of a tile."""
    if SPLIT == 1:
        spread = v[:, None]
    else:
        spread = v[None, :, None]
    return spread


@triton.jit
def columns_of_tile(start, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr):
    """Indices over D of a tile: [1, BLOCK_D] or [SPLIT, 1, BLOCK_D / SPLIT]."""
    if SPLIT == 1:
        index = start + tl.arange(0, BLOCK_D)[None, :]
    else:
        PART: tl.constexpr = BLOCK_D // SPLIT
        part = tl.arange(0, SPLIT)[:, None, None] * PART
        index = start + part + tl.arange(0, PART)[None, None, :]
    return index


@triton.jit
def rows_of_image(pointer, image, row, first, stride_image, stride_row):
    """[V_PAD] pointers to rows `row` − `first` of the image, in 64 bits."""
    return pointer + image * stride_image + (row - first).to(tl.int64) * stride_row


@triton.jit
def load_tile(
    x_rows,  # [V_PAD] pointers to the rows that have the dtype of x
    t_rows,  # [V_PAD] to targets, where T_APART: their dtype differs from that of x
    r_rows,  # [V_PAD] to features, where R_APART
    in_x,  # [V_PAD] which rows each of the three serves
    in_t,
    in_r,
    steps,  # [V_PAD] int64 strides over D; not read where UNIT
    start,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
    OP: tl.constexpr,  # dtype of the operands of products: that of all rows, or fp32
    T_APART: tl.constexpr,
    R_APART: tl.constexpr,
    UNIT: tl.constexpr,
    POLICY: tl.constexpr,
):
    """Columns start.. of all rows of one image, as a tile of dtype OP."""
    index = columns_of_tile(start, BLOCK_D, SPLIT)
    if UNIT:
        offset = index
    else:
        offset = index.to(tl.int64) * per_row(steps, SPLIT)
    mask = per_row(in_x, SPLIT)
    if D % BLOCK_D != 0:
        mask = mask & (index < D)
    tile = tl.load(per_row(x_rows, SPLIT) + offset, mask, other=0.0, eviction_policy=POLICY)
    if INTERPRETED or T_APART or R_APART:
        tile = widen(tile)
    if T_APART:
        mask = per_row(in_t, SPLIT)
        if D % BLOCK_D != 0:
            mask = mask & (index < D)
        apart = tl.load(per_row(t_rows, SPLIT) + offset, mask, other=0.0, eviction_policy=POLICY)
        tile += widen(apart)
    if R_APART:
        mask = per_row(in_r, SPLIT)
        if D % BLOCK_D != 0:
            mask = mask & (index < D)
        apart = tl.load(per_row(r_rows, SPLIT) + offset, mask, other=0.0, eviction_policy=POLICY)
        tile += widen(apart)
    return tile


@triton.jit
def zero_gram(V_PAD: tl.constexpr, SPLIT: tl.constexpr):
    """A Gram matrix to add to; in SPLIT parts."""
    if SPLIT == 1:
        zeros = tl.zeros([V_PAD, V_PAD], tl.float32)
    else:
        zeros = tl.zeros([SPLIT, V_PAD, V_PAD], tl.float32)
    return zeros


@triton.jit
def matrix_product(a, b, OP: tl.constexpr):
    """a·b in fp32, from zero.

    fp32 operands: four products of tf32, the smallest first. `tf32x3` has three of them, in which
    norms lack the squares of the low parts: up to 5e-7 of a cosine where a row has few numbers. It
    also rounds both parts in software, a quarter of a loop's instructions.
    """
    if OP == tl.float32:
        a_high, a_low = high_and_low(a)
        b_high, b_low = high_and_low(b)
        product = tl.dot(a_low, b_low, input_precision="tf32")
        product = tl.dot(a_low, b_high, product, input_precision="tf32")
        product = tl.dot(a_high, b_low, product, input_precision="tf32")
        product = tl.dot(a_high, b_high, product, input_precision="tf32")
    else:
        product = tl.dot(a, b)
    return product


@triton.jit
def gram_of_tile(tile, OP: tl.constexpr, SPLIT: tl.constexpr):
    """X·Xᵀ of one block of columns."""
    if SPLIT == 1:
        gram = matrix_product(tile, tl.trans(tile), OP)
    else:
        gram = matrix_product(tile, tl.permute(tile, (0, 2, 1)), OP)
    return gram


@triton.jit
def add_gram_of_tile(tile, gram, OP: tl.constexpr, SPLIT: tl.constexpr):
    """gram + X·Xᵀ of one block of columns.

    Tensor cores cut off what they add: over all of D that would be 5e-6 of a norm. So every block
    begins at zero and is added in fp32, which rounds to nearest. An FMA adds it: Triton makes one
    product again of a product plus something else.
    """
    return tl.fma(gram_of_tile(tile, OP, SPLIT), 1.0, gram)


@triton.jit
def sum_parts(gram, SPLIT: tl.constexpr):
    """[SPLIT, V_PAD, V_PAD] -> [V_PAD, V_PAD]."""
    if SPLIT == 1:
        total = gram
    else:
        total = tl.sum(gram, 0)
    return total


@triton.jit
def diagonal(gram, AXIS: tl.constexpr, V_PAD: tl.constexpr):
    """The squared norms, laid out over rows (AXIS 1 summed away) or over columns (AXIS 0)."""
    row = tl.arange(0, V_PAD)
    return tl.sum(tl.where(row[:, None] == row[None, :], gram, 0.0), AXIS)


@triton.jit
def out_of_range(gram, ROWS: tl.constexpr, OP: tl.constexpr, V_PAD: tl.constexpr):
    """Whether any of the image's squared norms calls for the rescaled evaluation."""
    squared = diagonal(gram, 1, V_PAD)
    if OP == tl.float16:
        # Squares of fp16 never underflow: a zero is a row of zeros.
        inside = (squared >= LOW_FP16) & (squared <= HIGH_FP16) | (squared == 0.0)
    else:
        inside = (squared >= LOW) & (squared <= HIGH)
    inside = inside | (tl.arange(0, V_PAD) >= ROWS)
    return tl.min(inside.to(tl.int32), 0) == 0


@triton.jit
def rescaled_gram(
    x_rows, t_rows, r_rows, in_x, in_t, in_r, steps,
    D: tl.constexpr, V_PAD: tl.constexpr, BLOCK_D: tl.constexpr, OP: tl.constexpr,
    T_APART: tl.constexpr, R_APART: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """The Gram matrix of rows multiplied by powers of two, and these factors, [V_PAD]."""
    largest = tl.zeros([V_PAD], tl.float32)
    for start in tl.range(0, D, BLOCK_D, num_stages=1):
        tile = load_tile(
            x_rows, t_rows, r_rows, in_x, in_t, in_r, steps, start,
            D, BLOCK_D, 1, OP, T_APART, R_APART, UNIT, "evict_last",
        )  # fmt: skip
        largest = tl.maximum(largest, tl.max(tl.abs(widen(tile)), 1))
    factor = scale_towards_one(largest)
    gram = zero_gram(V_PAD, 1)
    for start in tl.range(0, D, BLOCK_D, num_stages=1):
        tile = load_tile(
            x_rows, t_rows, r_rows, in_x, in_t, in_r, steps, start,
            D, BLOCK_D, 1, OP, T_APART, R_APART, UNIT, "evict_last",
        )  # fmt: skip
        gram = add_gram_of_tile(operand(widen(tile) * factor[:, None], OP), gram, OP, 1)
    return gram, factor


@triton.jit
def gram_matrix(
    x_rows, t_rows, r_rows, in_x, in_t, in_r, steps,
    ROWS: tl.constexpr, D: tl.constexpr, V_PAD: tl.constexpr, BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr, RESCUE_D: tl.constexpr, STAGES: tl.constexpr, OP: tl.constexpr,
    T_APART: tl.constexpr, R_APART: tl.constexpr, UNIT: tl.constexpr,
    AGAIN: tl.constexpr,  # whether the rows are read again, for W·X
):  # fmt: skip
    """X·Xᵀ of all rows of one image.

    Returns (tile, gram [V_PAD, V_PAD] of factor·rows, factor [V_PAD], whether any factor is not 1).
    `tile` is the image where a tile holds all of D; else it has no meaning.
    """
    if BLOCK_D >= D:
        tile = load_tile(
            x_rows, t_rows, r_rows, in_x, in_t, in_r, steps, 0,
            D, BLOCK_D, SPLIT, OP, T_APART, R_APART, UNIT, "evict_first",
        )  # fmt: skip
        gram = sum_parts(gram_of_tile(tile, OP, SPLIT), SPLIT)
    else:
        POLICY: tl.constexpr = "evict_last" if AGAIN else "evict_first"
        parts = zero_gram(V_PAD, SPLIT)
        for start in tl.range(0, D, BLOCK_D, num_stages=STAGES):
            chunk = load_tile(
                x_rows, t_rows, r_rows, in_x, in_t, in_r, steps, start,
                D, BLOCK_D, SPLIT, OP, T_APART, R_APART, UNIT, POLICY,
            )  # fmt: skip
            parts = add_gram_of_tile(chunk, parts, OP, SPLIT)
        gram = sum_parts(parts, SPLIT)
        tile = gram
    factor = tl.full([V_PAD], 1.0, tl.float32)
    extreme = out_of_range(gram, ROWS, OP, V_PAD)
    if extreme:
        gram, factor = rescaled_gram(
            x_rows, t_rows, r_rows, in_x, in_t, in_r, steps,
            D, V_PAD, RESCUE_D, OP, T_APART, R_APART, UNIT,
        )  # fmt: skip
    return tile, gram, factor, extreme


@triton.jit
def cosines_of(gram, V_PAD: tl.constexpr):
    """(cosines [V_PAD, V_PAD], 1/‖x_i‖ laid out over rows, 1/‖x_j‖ over columns) of a Gram matrix.

    A zero row has cosines and an inverse of 0.
    """
    inverse = inverse_norm(diagonal(gram, 1, V_PAD))
    inverse_of_column = inverse_norm(diagonal(gram, 0, V_PAD))
    cosines = gram * inverse[:, None] * inverse_of_column[None, :]
    return cosines, inverse, inverse_of_column


@triton.jit
def combination(pairs, cosines, inverse_of_column, V_PAD: tl.constexpr):
    """M [V_PAD, V_PAD] with gradient_i = (M·X)_i / ‖x_i‖, by the normalisation's Jacobian.

    Σ_j w_ij (x̂_j − cos_ij x̂_i): off the diagonal w_ij/‖x_j‖, on it −Σ_j w_ij cos_ij / ‖x_i‖.
    """
    row = tl.arange(0, V_PAD)
    off = pairs * inverse_of_column[None, :]
    along = tl.sum(pairs * cosines, 1)  # [V_PAD]
    on = -along[:, None] * inverse_of_column[None, :]
    return tl.where(row[:, None] == row[None, :], on, off)


@triton.jit
def normalised_weights(matrix):
    """Each row over a power of two that brings its largest entry to [2^14, 2^15); and these powers.

    There fp16 operands are at their most precise, and bf16 and fp32 ones cannot overflow.
    """
    largest = tl.max(tl.abs(matrix), 1)
    exponent = tl.minimum(tl.maximum(biased_exponent(largest), 16), 254)  # 16: 2^-111
    up = from_exponent(127 + 14 + 127 - exponent)
    return matrix * up[:, None], from_exponent(exponent - 14)


@triton.jit
def weighted_rows(weights, tile, OP: tl.constexpr, SPLIT: tl.constexpr):
    """weights·X in fp32.

    Half-precision operands would round the weights to 8 or 11 bits. A second product with the
    rounded-off part makes that 16 or 22: then only the store of the gradient rounds.
    """
    if SPLIT > 1:
        weights = tl.broadcast_to(weights[None, :, :], [SPLIT, weights.shape[0], weights.shape[1]])
    if OP == tl.float32:
        product = matrix_product(weights, tile, OP)
    else:
        high = operand(weights, OP)
        low = operand(weights - widen(high), OP)
        product = tl.dot(low, tile, tl.dot(high, tile))
    return product


@triton.jit
def store_tile(
    gradient,  # a tile, fp32, each row already multiplied by row_factor
    out_rows,  # [V_PAD] pointers
    wanted,  # [V_PAD]
    row_factor,  # [V_PAD] powers of two, read where SATURATE
    start,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
    SATURATE: tl.constexpr,
):
    """Saturates, rounds and writes one tile of the gradient."""
    DTYPE: tl.constexpr = out_rows.dtype.element_ty
    index = columns_of_tile(start, BLOCK_D, SPLIT)
    mask = per_row(wanted, SPLIT)
    if D % BLOCK_D != 0:
        mask = mask & (index < D)
    if SATURATE:
        gradient = saturate(gradient, per_row(row_factor, SPLIT), DTYPE)
    # Nothing reads the gradient before the next kernel: it should not push inputs out of caches.
    tl.store(
        per_row(out_rows, SPLIT) + index, narrow(gradient, DTYPE), mask,
        eviction_policy="evict_first",
    )  # fmt: skip


@triton.jit
def store_gradients(
    tile, weights, inverse, factor, extreme,  # of `gram_matrix`, `combination`, `cosines_of`
    x_rows, t_rows, r_rows, in_x, in_t, in_r, steps,
    out_rows, wanted,  # [V_PAD] gradients of the dtype of x, and which of them
    apart_rows, apart_wanted,  # those of features, where OUT_APART
    store_scale,  # [V_PAD] powers of two by which rows are multiplied before they are stored
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr, RESCUE_D: tl.constexpr,
    STAGES: tl.constexpr, OP: tl.constexpr, T_APART: tl.constexpr, R_APART: tl.constexpr,
    OUT_APART: tl.constexpr, UNIT: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """Writes W·X, made from the tile if it holds the image, else by a second walk over D.

    CAREFUL: rows of W are normalised before they are rounded to operands, the result saturates,
    and store_scale is applied. Without CAREFUL, store_scale has to be one.
    """
    if extreme:
        matrix, down = normalised_weights(weights)
        down = down * inverse * store_scale
        for start in tl.range(0, D, RESCUE_D, num_stages=1):
            chunk = load_tile(
                x_rows, t_rows, r_rows, in_x, in_t, in_r, steps, start,
                D, RESCUE_D, 1, OP, T_APART, R_APART, UNIT, "evict_first",
            )  # fmt: skip
            chunk = operand(widen(chunk) * factor[:, None], OP)
            # In this order: 1/‖x‖ = inverse · factor itself may not be representable.
            gradient = weighted_rows(matrix, chunk, OP, 1) * down[:, None] * factor[:, None]
            store_tile(gradient, out_rows, wanted, store_scale, start, D, RESCUE_D, 1, True)
            if OUT_APART:
                store_tile(
                    gradient, apart_rows, apart_wanted, store_scale, start,
                    D, RESCUE_D, 1, True,
                )  # fmt: skip
    else:
        if CAREFUL:
            matrix, down = normalised_weights(weights)
            down = down * inverse * store_scale
        else:
            matrix = weights * inverse[:, None]
            down = inverse  # not used
        for start in tl.range(0, D, BLOCK_D, num_stages=STAGES):
            if BLOCK_D >= D:
                chunk = tile
            else:
                chunk = load_tile(
                    x_rows, t_rows, r_rows, in_x, in_t, in_r, steps, start,
                    D, BLOCK_D, SPLIT, OP, T_APART, R_APART, UNIT, "evict_first",
                )  # fmt: skip
            gradient = weighted_rows(matrix, chunk, OP, SPLIT)
            if CAREFUL:
                gradient = gradient * per_row(down, SPLIT)
            store_tile(
                gradient, out_rows, wanted, store_scale, start,
                D, BLOCK_D, SPLIT, CAREFUL,
            )  # fmt: skip
            if OUT_APART:
                store_tile(
                    gradient, apart_rows, apart_wanted, store_scale, start,
                    D, BLOCK_D, SPLIT, CAREFUL,
                )  # fmt: skip
