"""InfoNCE's pass over the negatives: an attention forward with K = V, the unit negatives.

    lse_n = log Σ_k e^{q̂_n·n̂_k/τ}        mean_n = Σ_k softmax_k(q̂_n·n̂_k/τ) n̂_k

A program holds BLOCK_N queries and walks over the negatives of its split. A tile of negatives, as
it is in memory, serves both products:

    t = (q̂ · n)·column_k        p = 2^t        total += p        mean += (p·column_k) · n

with column_k = log2(e)/(τ‖n_k‖). So no normalised copy of the negatives is made, and the norms cost
no more than a softmax's scale.

Maximum. Logits of unit vectors are bounded. Where 1/τ is small enough (info_nce_plan.py), none is
subtracted: splits simply add up, and nothing is rescaled. Elsewhere column_k = 1/‖n_k‖, and
t = ((q̂ · n)·column_k − base)·log2(e)/τ, base a running maximum of the cosines. They are subtracted
before they are multiplied, since a product's last digit may be more than one, or infinite.

fp16. To keep every operand in its range, queries are raised by RAISED, and probabilities by 2^lift:
t is the exponent less `lift`. The weight of n in the mean, 2^t·column, is relative to
column_scale·Σ 2^t, so that no factor is left to multiply by in the inner loop.

Extreme norms. For each row outside its limits, the prologue finds the power of two that brings the
largest magnitude to about one. A second loop, the careful one, multiplies tiles by these factors
before it uses them, and looks which negatives are absent for which queries. Programs whose split
has such a row do all of it in that loop. Other programs do few tiles there: the last, if it is not
full, and those that some of their queries do not see. The tiles of the first loop go from memory to
the tensor cores by shared memory alone.

D up to 256: a tile holds whole rows. Beyond, each program computes BLOCK_D columns of the mean, and
walks over all of D in chunks to get the scores. That is D/BLOCK_D times the work for scores;
registers and shared memory do not grow with D.

Loads are of blocks, by cp.async, with several tiles in flight, not by TMA: negatives may have any
strides and alignment (a queue kept as [D, K] is usual), and one kernel serves sm_80 as well.
"""

# Upper case marks compile-time constants in kernels; a branch on one is no expression.
# ruff: noqa: N803, N806
# mypy: allow-untyped-defs, allow-untyped-globals

from __future__ import annotations

import triton
import triton.language as tl

from .info_nce_plan import FULL, HALF, TWO_HALVES
from .info_nce_rows import column_scale_of, lift_of, load_negatives, steepness_of, value_of
from .numbers import INTERPRETED, operand, widen

INFINITY = tl.constexpr(float("inf"))
LN2 = tl.constexpr(0.6931471805599453)
HALF_ = tl.constexpr(HALF)
FULL_ = tl.constexpr(FULL)
TWO_HALVES_ = tl.constexpr(TWO_HALVES)


@triton.jit
def add_product(high, low, right, total, OPERANDS: tl.constexpr):
    """total + (high + low)·right in fp32; `low` is there where OPERANDS says so."""
    if OPERANDS == FULL_:
        product = tl.dot(high, right, total, input_precision="tf32x3")
    elif OPERANDS == TWO_HALVES_:
        product = tl.dot(high, right, tl.dot(low, right, total))
    else:
        product = tl.dot(high, right, total)
    return product


@triton.jit
def operand_parts(x, OP: tl.constexpr, OPERANDS: tl.constexpr):
    """fp32 as operands (high, low); where OPERANDS has one part, both are the same."""
    high = operand(x, OP)
    low = high
    if OPERANDS == TWO_HALVES_:
        low = operand(x - widen(high), OP)
    return high, low


@triton.jit
def load_queries(
    queries_ptr, row, n, first_column,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows `row` [BLOCK_N] of [N, D], columns first_column.., as [BLOCK_N, BLOCK_D]."""
    column = first_column + tl.arange(0, BLOCK_D)
    inside = (row < n)[:, None]
    if D % BLOCK_D != 0:
        inside = inside & (column < D)[None, :]
    queries = tl.load(queries_ptr + row.to(tl.int64)[:, None] * D + column[None, :], inside, 0.0)
    if INTERPRETED:
        queries = widen(queries)
    return queries


@triton.jit
def scores_of_chunks(
    high_ptr, low_ptr, row, n,
    negatives_ptr, start, k, row_stride, column_stride, factor,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK_D: tl.constexpr,
    STAGES: tl.constexpr, OP: tl.constexpr, OPERANDS: tl.constexpr, LAYOUT: tl.constexpr,
    CAREFUL: tl.constexpr,
):  # fmt: skip
    """q·nᵀ [BLOCK_N, BLOCK_K], added up over the chunks of D."""
    scores = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for first in tl.range(0, D, CHUNK_D, num_stages=STAGES):
        high = load_queries(high_ptr, row, n, first, D, CHUNK_D)
        low = high
        if OPERANDS == TWO_HALVES_:
            low = load_queries(low_ptr, row, n, first, D, CHUNK_D)
        tile = load_negatives(
            negatives_ptr, start, k, row_stride, column_stride, first,
            D, BLOCK_K, CHUNK_D, LAYOUT, not CAREFUL,
        )  # fmt: skip
        if CAREFUL:
            tile = operand(widen(tile) * factor[:, None], OP)
        scores = add_product(high, low, tl.trans(tile), scores, OPERANDS)
    return scores


@triton.jit
def walk(
    mean, total, maximum,  # [BLOCK_N, BLOCK_D], [BLOCK_N], [BLOCK_N] so far
    begin, end, gap_at, gap,  # positions in steps of BLOCK_K; from gap_at on, gap is added
    high_ptr, low_ptr, row, n,  # queries as operands [N, D], and which [BLOCK_N]
    negatives_ptr, row_stride, column_stride, columns_ptr, factors_ptr, k, group,
    own_first, own_last,  # [BLOCK_N] negatives that each query does not see, where OWN
    steepness, lift, one,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr, STAGES: tl.constexpr, OP: tl.constexpr, OPERANDS: tl.constexpr,
    RUNNING: tl.constexpr, OWN: tl.constexpr, LAYOUT: tl.constexpr,
    CAREFUL: tl.constexpr,  # rows may be extreme, and absent for some or all queries
):  # fmt: skip
    """Adds negatives to (Σ p·column·n [BLOCK_N, BLOCK_D], Σ p, maximum).

    With c = q̂·n̂, p = 2^((c − maximum)·log2(e)/τ + lift). Where RUNNING, the maximum is of c so far;
    else it is 0.
    """
    WHOLE: tl.constexpr = CHUNK_D >= D
    # Where a tile holds all of D, this is the loop whose loads run ahead, else the one inside.
    AHEAD: tl.constexpr = STAGES if WHOLE else 1
    if WHOLE:
        high = load_queries(high_ptr, row, n, 0, D, BLOCK_D)
        low = high
        if OPERANDS == TWO_HALVES_:
            low = load_queries(low_ptr, row, n, 0, D, BLOCK_D)
    for position in tl.range(begin, end, BLOCK_K, num_stages=AHEAD):
        start = tl.multiple_of(tl.where(position < gap_at, position, position + gap), BLOCK_K)
        index = start + tl.arange(0, BLOCK_K)
        column = tl.load(columns_ptr + index)
        factor = column
        if CAREFUL:
            factor = tl.load(factors_ptr + index)
        tile = load_negatives(
            negatives_ptr, start, k, row_stride, column_stride, group * BLOCK_D,
            D, BLOCK_K, BLOCK_D, LAYOUT, not CAREFUL,
        )  # fmt: skip
        if CAREFUL:
            tile = operand(widen(tile) * factor[:, None], OP)
        if WHOLE:
            scores = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
            scores = add_product(high, low, tl.trans(tile), scores, OPERANDS)
        else:
            scores = scores_of_chunks(
                high_ptr, low_ptr, row, n,
                negatives_ptr, start, k, row_stride, column_stride, factor,
                D, BLOCK_N, BLOCK_K, CHUNK_D, STAGES, OP, OPERANDS, LAYOUT, CAREFUL,
            )  # fmt: skip
        exponent = scores * column[None, :]  # a cosine where RUNNING
        if CAREFUL:
            absent = (index >= k)[None, :]
            if OWN:
                own = (index[None, :] >= own_first[:, None]) & (index[None, :] < own_last[:, None])
                absent = absent | own
            exponent = tl.where(absent, -INFINITY, exponent)
        if RUNNING:
            # A query may not have seen any negative yet: −inf − (−inf) would be NaN.
            larger = tl.maximum(maximum, tl.max(exponent, 1))
            finite = tl.where(larger == -INFINITY, 0.0, larger)
            shrink = tl.exp2((maximum - finite) * steepness)
            # `one` again: the product would go unrounded into the difference, which for the largest
            # cosine is then not zero, and a small τ makes much of it.
            apart = tl.fma(exponent, one, -finite[:, None])
            probability = tl.exp2(apart * steepness + lift)
            total = total * shrink
            mean = mean * shrink[:, None]
            maximum = larger
        else:
            probability = tl.exp2(exponent + lift)
        total += tl.sum(probability, 1)
        weight, rest = operand_parts(probability * column[None, :], OP, OPERANDS)
        if OPERANDS == HALF_:
            mean = add_product(weight, rest, tile, mean, OPERANDS)
        else:
            # Tensor cores add towards zero: over thousands of steps that would be 1e-4 of the sum.
            # So each tile has a sum of its own, rounded to nearest when it is added. It is added as
            # a product with a one that the compiler does not know, which else would make one sum of
            # them again.
            fresh = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
            mean = tl.fma(add_product(weight, rest, tile, fresh, OPERANDS), one, mean)
    return mean, total, maximum


@triton.jit
def any_extreme(extreme_ptr, first, last, ROWS: tl.constexpr):
    """Whether rows first..last, or some beside them, have a factor that is not 1."""
    found = tl.zeros([256], tl.float32)
    end = tl.cdiv(last, ROWS)
    for start in range(first // ROWS, end, 256):
        index = start + tl.arange(0, 256)
        found = tl.maximum(found, tl.load(extreme_ptr + index, index < end, 0.0))
    return tl.max(found, 0) != 0.0


@triton.jit
def store_mean(
    mean_ptr, row, there, group, mean, total, lift, column_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The mean from sums of 2^(t + lift); returns the logarithm of Σ 2^t."""
    column = group * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    inside = there[:, None]
    if D % BLOCK_D != 0:
        inside = inside & (column < D)
    mean = mean * (1.0 / (total * column_scale))[:, None]
    tl.store(mean_ptr + row.to(tl.int64)[:, None] * D + column, mean, inside)
    return (tl.log2(total) - lift) * LN2


# The kernel is specialised by strides that 16 divides, since they decide the width of loads, by a K
# that 16 divides where rows of negatives lie side by side, and by a stride of one; by nothing else.
@triton.jit(
    do_not_specialize=[
        "n", "k", "split_tiles", "own_v", "own_p", "temperature", "one",
    ]
)  # fmt: skip
def info_nce_kernel(
    queries_ptr,  # [N, D] unit queries as operands, the high parts
    low_ptr,  # [N, D] the low parts, where OPERANDS says so
    negatives_ptr, row_stride, column_stride,  # [K, D]
    scales_ptr,  # of the prologue: columns [padded], factors [padded], flags
    lse_ptr, mean_ptr,  # [N], [N, D] fp32 where there is one split: log Σ 2^t, and the mean
    parts_ptr,  # else sums for the epilogue: [S, N, D], [S, N] totals, fp32. RUNNING: [S, N] maxima
    n, k, padded,
    split_tiles,  # of BLOCK_K negatives in a split
    own_v, own_p,  # query i does not see negative j with j // own_p == i // own_v, where OWN
    temperature,  # τ or a pointer to it
    one,  # 1.0
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr, CAREFUL_K: tl.constexpr, STAGES: tl.constexpr, NORM_ROWS: tl.constexpr,
    OP: tl.constexpr, OPERANDS: tl.constexpr,
    RUNNING: tl.constexpr, OWN: tl.constexpr, LAYOUT: tl.constexpr, ONE_SPLIT: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    K_ALIGNED: tl.constexpr,  # K is known to be a multiple of 16
):  # fmt: skip
    if K_ALIGNED:
        k = k // 16 * 16  # for Triton's analysis; a hint on an argument is lost
    # Programs that run side by side walk over the same negatives: they find them in L2.
    n_start = tl.program_id(0) * BLOCK_N
    split = tl.program_id(1)
    group = tl.program_id(2)
    row = n_start + tl.arange(0, BLOCK_N)
    factors_ptr = scales_ptr + padded
    tau = value_of(temperature, ON_DEVICE)
    steepness = steepness_of(tau)
    column_scale = column_scale_of(tau, OP, RUNNING)
    lift = lift_of(column_scale, OP, RUNNING)
    first = split * split_tiles * BLOCK_K
    last = tl.minimum(first + split_tiles * BLOCK_K, k)

    # Tiles first..hidden and shown..whole are seen by all queries from end to end; hidden..shown
    # and whole..last are not.
    own_first = row
    own_last = row
    whole = first + (last - first) // BLOCK_K * BLOCK_K
    hidden = whole
    shown = whole
    if OWN:
        own_first = row // own_v * own_p
        own_last = own_first + own_p
        none_before = n_start // own_v * own_p
        none_after = (tl.minimum(n_start + BLOCK_N, n) - 1) // own_v * own_p + own_p
        hidden = tl.maximum(first, tl.minimum(whole, none_before // BLOCK_K * BLOCK_K))
        shown = tl.maximum(hidden, tl.minimum(whole, tl.cdiv(none_after, BLOCK_K) * BLOCK_K))
    if any_extreme(factors_ptr + padded, first, last, NORM_ROWS):
        hidden = first
        shown = whole

    mean = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    maximum = tl.full([BLOCK_N], -INFINITY, tl.float32)
    # The rare tiles first: what they need takes no registers in the other loop then.
    mean, total, maximum = walk(
        mean, total, maximum,
        hidden, shown + (last - whole), shown, whole - shown,
        queries_ptr, low_ptr, row, n,
        negatives_ptr, row_stride, column_stride, scales_ptr, factors_ptr, k, group,
        own_first, own_last, steepness, lift, one,
        D, BLOCK_N, CAREFUL_K, BLOCK_D, CHUNK_D, 1, OP, OPERANDS, RUNNING, OWN, LAYOUT, True,
    )  # fmt: skip
    # A product with one: without it, Triton 3.6 defines these sums amid the next loop's wgmmas, and
    # ptxas then lets every one wait for the one before.
    mean = mean * one
    mean, total, maximum = walk(
        mean, total, maximum,
        first, hidden + (whole - shown), hidden, shown - hidden,
        queries_ptr, low_ptr, row, n,
        negatives_ptr, row_stride, column_stride, scales_ptr, factors_ptr, k, group,
        own_first, own_last, steepness, lift, one,
        D, BLOCK_N, BLOCK_K, BLOCK_D, CHUNK_D, STAGES, OP, OPERANDS, RUNNING, OWN, LAYOUT, False,
    )  # fmt: skip
    if ONE_SPLIT:
        rest = store_mean(
            mean_ptr, row, row < n, group, mean, total, lift, column_scale, D, BLOCK_D
        )
        if group == 0:
            tl.store(lse_ptr + row, rest, row < n)
            if RUNNING:
                tl.store(parts_ptr + row, maximum, row < n)
    else:
        there = row < n
        place = tl.full([], split, tl.int64) * n + row
        totals_ptr = parts_ptr + tl.full([], tl.num_programs(1), tl.int64) * n * D
        if group == 0:
            tl.store(totals_ptr + place, total, there)
            if RUNNING:
                maxima_ptr = totals_ptr + tl.full([], tl.num_programs(1), tl.int64) * n
                tl.store(maxima_ptr + place, maximum, there)
        column = group * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
        inside = there[:, None]
        if D % BLOCK_D != 0:
            inside = inside & (column < D)
        tl.store(parts_ptr + place[:, None] * D + column, mean, inside)
