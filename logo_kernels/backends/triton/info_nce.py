"""Log-sum-exp and softmax-weighted mean of unit negatives: an attention forward with K = V.

    lse_n = log Σ_k e^{q̂_n·n̂_k/τ}        mean_n = Σ_k softmax_k(q̂_n·n̂_k/τ) n̂_k

Three launches. `norms_kernel` reads the negatives once for 1/‖n_k‖. In `info_nce_kernel` a program
holds BLOCK_N queries and walks over the negatives of its split; a tile of them, as it is in memory,
serves both products:

    t = (q̂ · n)·column_k − base        p = 2^t        total += p        mean += (p·column_k) · n

with column_k = log2(e)/(τ‖n_k‖). So no normalised copy of the negatives is made, and the norms cost
what a softmax's scale costs anyway. `combine_kernel` adds up the splits in their order. With one
split there is nothing to add up, and no such launch.

Maximum. Logits of unit vectors are bounded: where 1/τ is small enough (info_nce_plan.py), base is a
constant, splits simply add up and nothing is rescaled; elsewhere base follows a running maximum.

Extreme norms. Where a row's squared norm is outside `norm_limits`, `norms_kernel` finds the power
of two that brings its largest magnitude to about one and works with that row instead. Programs
whose split has such a row do all of it in a second loop, the careful one, which multiplies tiles by
these factors before it uses them and looks which negatives are absent for which queries. Other
programs do so with few tiles: the last, if it is not full, and those that some of their queries do
not see. The tiles of the first loop go from memory to the tensor cores by shared memory alone.

D up to 256: a tile holds whole rows. Beyond, each program computes BLOCK_D columns of the mean, for
which it walks over all of D in chunks to get the scores: D/BLOCK_D times the work for scores, and
registers and shared memory that do not grow with D.

Loads are of blocks, by cp.async, with several tiles in flight, not by TMA: negatives may have any
strides and alignment (a queue kept as [D, K] is usual), and one kernel serves sm_80 as well.
"""

# Upper case marks compile-time constants in kernels; a branch on one is no expression.
# ruff: noqa: N803, N806, SIM108
# mypy: allow-untyped-defs, allow-untyped-globals

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contrast import Attention
from .environment import interpreted
from .info_nce_plan import (
    FULL,
    HALF,
    TWO_HALVES,
    combine_tile,
    norm_limits,
    norm_tile,
    operands_for,
    plan_for,
    ranges_for,
)
from .launch import launching, multiprocessors
from .rows import (
    INTERPRETED,
    TL_DTYPE,
    biased_exponent,
    inverse_norm,
    operand,
    power_of_two,
    scale_towards_one,
    widen,
)

INFINITY = tl.constexpr(float("inf"))
LN2 = tl.constexpr(0.6931471805599453)
HALF_ = tl.constexpr(HALF)
FULL_ = tl.constexpr(FULL)
TWO_HALVES_ = tl.constexpr(TWO_HALVES)
# Negatives of a tile in the rare loop: so few that it takes no more registers than the other.
CAREFUL_K = 16
ONE_BIASED = tl.constexpr(127)  # the biased exponent of 1


@triton.jit
def load_negatives(
    negatives_ptr, start, k, row_stride, column_stride, first_column,
    D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, LAYOUT: tl.constexpr,
    ALL_THERE: tl.constexpr,
):  # fmt: skip
    """Rows start.. and columns first_column.. as [BLOCK_K, BLOCK_D]; zeros beyond the ends.

    ALL_THERE: no row is beyond K. LAYOUT: "dense", contiguous, with strides that are constants,
    which saves registers; "wide", offsets inside a tile take 64 bits; or "strided".
    """
    row = tl.arange(0, BLOCK_K)
    column = first_column + tl.arange(0, BLOCK_D)
    inside = tl.full([BLOCK_K, 1], 1, tl.int1) if ALL_THERE else (start + row < k)[:, None]
    if D % BLOCK_D != 0:
        inside = inside & (column < D)[None, :]
    if LAYOUT == "dense":
        base = negatives_ptr + tl.full([], start, tl.int64) * D
        pointers = base + (row[:, None] * D + column[None, :])
    else:
        base = negatives_ptr + tl.full([], start, tl.int64) * row_stride
        if LAYOUT == "wide":
            row = row.to(tl.int64)
            column = column.to(tl.int64)
        pointers = base + row[:, None] * row_stride + column[None, :] * column_stride
    if ALL_THERE and D % BLOCK_D == 0:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, inside, 0.0)
    if INTERPRETED:
        tile = widen(tile)
    return tile


@triton.jit
def norms_kernel(
    negatives_ptr, row_stride, column_stride,  # [K, D]
    columns_ptr,  # [padded] fp32: scale/‖factor·n‖, and 0 for zero rows and beyond K
    factors_ptr,  # [padded] uint8: biased exponents of the powers of two
    extreme_ptr,  # [programs] int32: whether any factor here is not 1
    k, padded, scale, low, high,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0) * ROWS
    squared = tl.zeros([ROWS], tl.float32)
    for first in range(0, D, BLOCK_D):
        tile = widen(
            load_negatives(
                negatives_ptr, start, k, row_stride, column_stride, first,
                D, ROWS, BLOCK_D, LAYOUT, False,
            )
        )  # fmt: skip
        squared += tl.sum(tile * tile, 1)
    row = start + tl.arange(0, ROWS)
    inside = (squared >= low) & (squared <= high) | (row >= k)
    biased = tl.full([ROWS], ONE_BIASED, tl.int32)
    extreme = tl.min(inside.to(tl.int32), 0) == 0
    if extreme:
        largest = tl.zeros([ROWS], tl.float32)
        for first in range(0, D, BLOCK_D):
            tile = widen(
                load_negatives(
                    negatives_ptr, start, k, row_stride, column_stride, first,
                    D, ROWS, BLOCK_D, LAYOUT, False,
                )
            )  # fmt: skip
            largest = tl.maximum(largest, tl.max(tl.abs(tile), 1))
        # A zero row stays one whatever it is multiplied by.
        ordinary = inside | (largest == 0.0)
        factor = tl.where(ordinary, 1.0, scale_towards_one(largest))
        biased = biased_exponent(factor)
        extreme = tl.min(ordinary.to(tl.int32), 0) == 0
        again = tl.zeros([ROWS], tl.float32)
        for first in range(0, D, BLOCK_D):
            tile = widen(
                load_negatives(
                    negatives_ptr, start, k, row_stride, column_stride, first,
                    D, ROWS, BLOCK_D, LAYOUT, False,
                )
            )  # fmt: skip
            tile = tile * factor[:, None]
            again += tl.sum(tile * tile, 1)
        squared = again
    there = row < padded
    tl.store(columns_ptr + row, inverse_norm(squared) * scale, there)
    tl.store(factors_ptr + row, biased.to(tl.uint8), there)
    tl.store(extreme_ptr + tl.program_id(0), extreme.to(tl.int32))


@triton.jit
def multiply(high, low, right, total, OPERANDS: tl.constexpr):
    """total + (high + low)·right in fp32; `low` is there where OPERANDS says so."""
    if OPERANDS == FULL_:
        product = tl.dot(high, right, total, input_precision="tf32x3")
    elif OPERANDS == TWO_HALVES_:
        product = tl.dot(high, right, tl.dot(low, right, total))
    else:
        product = tl.dot(high, right, total)
    return product


@triton.jit
def parts(x, OP: tl.constexpr, OPERANDS: tl.constexpr):
    """fp32 as operands, high and low; one and the same where there is one."""
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
    """q·nᵀ [BLOCK_N, BLOCK_K] where D takes several chunks."""
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
        scores = multiply(high, low, tl.trans(tile), scores, OPERANDS)
    return scores


@triton.jit
def walk(
    mean, total, maximum,  # [BLOCK_N, BLOCK_D], [BLOCK_N], [BLOCK_N] so far
    begin, end, gap_at, gap,  # positions in steps of BLOCK_K; from gap_at on, gap is added
    high_ptr, low_ptr, row, n,  # queries as operands [N, D], and which [BLOCK_N]
    negatives_ptr, row_stride, column_stride, columns_ptr, factors_ptr, k, group,
    own_first, own_last,  # [BLOCK_N] negatives that each query does not see, where OWN
    lift, one,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr, STAGES: tl.constexpr, OP: tl.constexpr, OPERANDS: tl.constexpr,
    RUNNING: tl.constexpr, OWN: tl.constexpr, LAYOUT: tl.constexpr,
    CAREFUL: tl.constexpr,  # rows may be extreme, and absent for some or all queries
):  # fmt: skip
    """Adds negatives to (Σ p·column·n [BLOCK_N, BLOCK_D], Σ p, max).

    The maximum is of q̂·n̂·log2(e)/τ, where RUNNING; p = 2^(that − maximum + lift).
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
            factor = power_of_two(tl.load(factors_ptr + index).to(tl.int32))
        tile = load_negatives(
            negatives_ptr, start, k, row_stride, column_stride, group * BLOCK_D,
            D, BLOCK_K, BLOCK_D, LAYOUT, not CAREFUL,
        )  # fmt: skip
        if CAREFUL:
            tile = operand(widen(tile) * factor[:, None], OP)
        if WHOLE:
            scores = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
            scores = multiply(high, low, tl.trans(tile), scores, OPERANDS)
        else:
            scores = scores_of_chunks(
                high_ptr, low_ptr, row, n,
                negatives_ptr, start, k, row_stride, column_stride, factor,
                D, BLOCK_N, BLOCK_K, CHUNK_D, STAGES, OP, OPERANDS, LAYOUT, CAREFUL,
            )  # fmt: skip
        exponent = scores * column[None, :]
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
            shrink = tl.exp2(maximum - finite)
            probability = tl.exp2(exponent - (finite - lift)[:, None])
            total = total * shrink
            mean = mean * shrink[:, None]
            maximum = larger
        else:
            probability = tl.exp2(exponent + lift)
        total += tl.sum(probability, 1)
        weight, rest = parts(probability * column[None, :], OP, OPERANDS)
        if OPERANDS == HALF_:
            mean = multiply(weight, rest, tile, mean, OPERANDS)
        else:
            # Tensor cores add towards zero: over thousands of steps that would be 1e-4 of the sum.
            # So a sum of its own for each tile, rounded to nearest when it is added; as a product
            # with a one that the compiler does not know, or it would make one sum of them again.
            fresh = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
            mean = tl.fma(multiply(weight, rest, tile, fresh, OPERANDS), one, mean)
    return mean, total, maximum


@triton.jit
def any_extreme(extreme_ptr, first, last, ROWS: tl.constexpr):
    """Whether rows first..last, or some beside them, have a factor that is not 1."""
    found = tl.zeros([256], tl.int32)
    end = tl.cdiv(last, ROWS)
    for start in range(first // ROWS, end, 256):
        index = start + tl.arange(0, 256)
        found = found | tl.load(extreme_ptr + index, index < end, 0)
    return tl.max(found, 0) != 0


@triton.jit
def store_result(
    lse_ptr, mean_ptr, row, n, group, mean, total, maximum, lift, column_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """lse and mean from sums of 2^(t − maximum + lift)."""
    there = row < n
    if group == 0:
        tl.store(lse_ptr + row, (tl.log2(total) + (maximum - lift)) * LN2, there)
    column = group * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    inside = there[:, None]
    if D % BLOCK_D != 0:
        inside = inside & (column < D)
    mean = mean * (1.0 / (total * column_scale))[:, None]
    tl.store(mean_ptr + row.to(tl.int64)[:, None] * D + column, mean, inside)


# What the kernel is compiled anew for: divisibility of K and of the strides by 16, on which the
# width of loads depends, and a stride of one. N and the rest are not looked at.
@triton.jit(
    do_not_specialize=[
        "n", "split_tiles", "own_v", "own_p", "column_scale", "lift", "one",
    ]
)  # fmt: skip
def info_nce_kernel(
    queries_ptr,  # [N, D] of `query_parts`, the high parts
    low_ptr,  # [N, D] the low parts, where OPERANDS says so
    negatives_ptr, row_stride, column_stride,  # [K, D]
    columns_ptr, factors_ptr, extreme_ptr,  # of `norms_kernel`
    lse_ptr, mean_ptr,  # [N], [N, D] fp32, the result, where there is one split
    total_ptr, maximum_ptr, sum_ptr,  # [S, N], [S, N], [S, N, D] fp32 for `combine_kernel`, else
    n, k,
    split_tiles,  # of BLOCK_K negatives in a split
    own_v, own_p,  # query i does not see negative j with j // own_p == i // own_v, where OWN
    column_scale, lift,  # of `Ranges`
    one,  # 1.0
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr, CAREFUL_K: tl.constexpr, STAGES: tl.constexpr, NORM_ROWS: tl.constexpr,
    OP: tl.constexpr, OPERANDS: tl.constexpr,
    RUNNING: tl.constexpr, OWN: tl.constexpr, LAYOUT: tl.constexpr, ONE_SPLIT: tl.constexpr,
):  # fmt: skip
    # Programs that run side by side walk over the same negatives: they find them in L2.
    n_start = tl.program_id(0) * BLOCK_N
    split = tl.program_id(1)
    group = tl.program_id(2)
    row = n_start + tl.arange(0, BLOCK_N)
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
    if any_extreme(extreme_ptr, first, last, NORM_ROWS):
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
        negatives_ptr, row_stride, column_stride, columns_ptr, factors_ptr, k, group,
        own_first, own_last, lift, one,
        D, BLOCK_N, CAREFUL_K, BLOCK_D, CHUNK_D, 1, OP, OPERANDS, RUNNING, OWN, LAYOUT, True,
    )  # fmt: skip
    # A product with one: without it, Triton 3.6 defines these sums amid the next loop's wgmmas, and
    # ptxas then lets every one wait for the one before.
    mean = mean * one
    mean, total, maximum = walk(
        mean, total, maximum,
        first, hidden + (whole - shown), hidden, shown - hidden,
        queries_ptr, low_ptr, row, n,
        negatives_ptr, row_stride, column_stride, columns_ptr, factors_ptr, k, group,
        own_first, own_last, lift, one,
        D, BLOCK_N, BLOCK_K, BLOCK_D, CHUNK_D, STAGES, OP, OPERANDS, RUNNING, OWN, LAYOUT, False,
    )  # fmt: skip
    if not RUNNING:
        maximum = tl.zeros([BLOCK_N], tl.float32)
    if ONE_SPLIT:
        store_result(
            lse_ptr, mean_ptr, row, n, group, mean, total, maximum, lift, column_scale,
            D, BLOCK_D,
        )  # fmt: skip
    else:
        there = row < n
        place = tl.full([], split, tl.int64) * n + row
        if group == 0:
            tl.store(total_ptr + place, total, there)
            if RUNNING:
                tl.store(maximum_ptr + place, maximum, there)
        column = group * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
        inside = there[:, None]
        if D % BLOCK_D != 0:
            inside = inside & (column < D)
        tl.store(sum_ptr + place[:, None] * D + column, mean, inside)


@triton.jit(do_not_specialize=["n", "splits", "column_scale", "lift"])
def combine_kernel(
    total_ptr, maximum_ptr, sum_ptr,  # [S, N], [S, N] read where RUNNING, [S, N, D] fp32
    lse_ptr, mean_ptr,  # [N], [N, D] fp32
    n, splits, column_scale, lift,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, RUNNING: tl.constexpr,
):  # fmt: skip
    """The result from the splits' sums, added in the order of the splits."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    there = row < n
    column = group * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    inside = there[:, None]
    if D % BLOCK_D != 0:
        inside = inside & (column < D)
    maximum = tl.zeros([ROWS], tl.float32)
    if RUNNING:
        maximum = tl.full([ROWS], -INFINITY, tl.float32)
        for split in range(splits):
            place = tl.full([], split, tl.int64) * n + row
            maximum = tl.maximum(maximum, tl.load(maximum_ptr + place, there, 0.0))
    total = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for split in tl.range(splits, num_stages=4):
        place = tl.full([], split, tl.int64) * n + row
        part_total = tl.load(total_ptr + place, there, 1.0)
        part_mean = tl.load(sum_ptr + place[:, None] * D + column, inside, 0.0)
        if RUNNING:
            shrink = tl.exp2(tl.load(maximum_ptr + place, there, 0.0) - maximum)
            part_total = part_total * shrink
            part_mean = part_mean * shrink[:, None]
        total += part_total
        mean += part_mean
    store_result(
        lse_ptr, mean_ptr, row, n, group, mean, total, maximum, lift, column_scale, D, BLOCK_D
    )


def info_nce(
    queries: Tensor,  # [N, D] fp32 contiguous
    negatives: Tensor,  # [K, D] fp32, bf16, fp16
    temperature: float | Tensor,
    dtype: torch.dtype,
    own: tuple[int, int] | None,
) -> Attention:
    """The pass over the negatives."""
    temperature = float(temperature)
    n, dim = queries.shape
    k = negatives.shape[0]
    lse, mean = queries.new_empty(n), queries.new_empty(n, dim)
    if n == 0:
        return Attention(lse, mean)
    operands = operands_for(dtype, negatives.dtype)
    ranges = ranges_for(temperature, negatives.dtype)
    norms = norm_tile(dim, negatives.element_size())
    row_stride, column_stride = negatives.stride()
    with launching(queries):
        device = queries.device.index
        plan = plan_for(n, k, dim, operands, multiprocessors(device), major_capability(device))
        shape = plan.shape
        furthest = max(norms.rows, shape.block_k) * row_stride + 2 * dim * column_stride
        layout = (
            "wide" if furthest >= 2**31 else "dense" if negatives.is_contiguous() else "strided"
        )
        # Whole tiles: the inner loop reads these without a mask.
        padded = -(-k // shape.block_k) * shape.block_k
        columns = queries.new_empty(padded)
        factors = torch.empty(padded, dtype=torch.uint8, device=queries.device)
        programs = triton.cdiv(padded, norms.rows)
        extreme = torch.empty(programs, dtype=torch.int32, device=queries.device)
        low, high = norm_limits(negatives.dtype)
        norms_kernel[(programs,)](
            negatives, row_stride, column_stride, columns, factors, extreme,
            k, padded, ranges.column_scale, low, high,
            D=dim, ROWS=norms.rows, BLOCK_D=norms.block_d, LAYOUT=layout, num_warps=4,
        )  # fmt: skip

        queries_high, queries_low = query_parts(
            queries, ranges.query_scale, negatives.dtype, operands
        )
        # Stand-ins where there is nothing to combine.
        totals = maxima = sums = lse
        if plan.splits > 1:
            totals = queries.new_empty(plan.splits, n)
            maxima = queries.new_empty(plan.splits, n) if ranges.running else totals
            sums = queries.new_empty(plan.splits, n, dim)
        info_nce_kernel[(triton.cdiv(n, shape.block_n), plan.splits, plan.groups)](
            queries_high, queries_low, negatives, row_stride, column_stride,
            columns, factors, extreme, lse, mean, totals, maxima, sums,
            n, k, plan.tiles_per_split, *(own or (1, 1)),
            ranges.column_scale, ranges.lift, 1.0,
            D=dim, BLOCK_N=shape.block_n, BLOCK_K=shape.block_k, BLOCK_D=shape.block_d,
            CHUNK_D=shape.chunk_d, CAREFUL_K=min(shape.block_k, CAREFUL_K),
            STAGES=shape.num_stages, NORM_ROWS=norms.rows,
            OP=TL_DTYPE[negatives.dtype], OPERANDS=operands, RUNNING=ranges.running,
            OWN=own is not None, LAYOUT=layout, ONE_SPLIT=plan.splits == 1,
            num_warps=shape.num_warps,
        )  # fmt: skip
        if plan.splits > 1:
            tile = combine_tile(dim)
            combine_kernel[(triton.cdiv(n, tile.rows), triton.cdiv(dim, tile.block_d))](
                totals, maxima, sums, lse, mean, n, plan.splits, ranges.column_scale, ranges.lift,
                D=dim, ROWS=tile.rows, BLOCK_D=tile.block_d, RUNNING=ranges.running, num_warps=4,
            )  # fmt: skip
    return Attention(lse, mean)


@functools.cache
def major_capability(device: int | None) -> int:
    """The first number of the device's compute capability; a constant under the interpreter."""
    return 9 if interpreted() else torch.cuda.get_device_capability(device)[0]


def query_parts(
    queries: Tensor, scale: float, dtype: torch.dtype, operands: int
) -> tuple[Tensor, Tensor]:
    """scale·q̂ as operands, high and low: `parts`, but once for all programs.

    Operands that come from memory as they are go to shared memory for all tiles; converted by each
    program, they would be kept in registers, of which there are none to spare.
    """
    if scale != 1.0:
        queries = queries * scale
    high = queries.to(dtype)
    return high, (queries - high).to(dtype) if operands == TWO_HALVES else high
