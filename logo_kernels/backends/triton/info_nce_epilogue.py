"""InfoNCE, after the pass over the negatives: the splits added up, and every pair's loss.

One launch. A program has some queries, or the queries of one image where each image has a sum of
its own. The last program adds up the programs' sums over all images, in a fixed order.
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-untyped-globals

from __future__ import annotations

import triton
import triton.language as tl

from .info_nce_pass import INFINITY, store_mean
from .info_nce_rows import column_scale_of, lift_of, loss_unit, steepness_of, value_of
from .numbers import saturate
from .tickets import arrives_last, sum_in_order


@triton.jit
def combined(
    parts_ptr, mean_ptr, row, there, group, n, splits, steepness, column_scale, lift,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, RUNNING: tl.constexpr,
):  # fmt: skip
    """Writes the mean of rows from the splits' sums, added in the order of the splits.

    Returns the two parts of lse, the maximum of cosines and a logarithm: maximum/τ + logarithm.
    """
    column = group * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    inside = there[:, None]
    if D % BLOCK_D != 0:
        inside = inside & (column < D)
    totals_ptr = parts_ptr + tl.full([], splits, tl.int64) * n * D
    maxima_ptr = totals_ptr + tl.full([], splits, tl.int64) * n
    maximum = tl.zeros([ROWS], tl.float32)
    if RUNNING:
        maximum = tl.full([ROWS], -INFINITY, tl.float32)
        for split in tl.range(splits, loop_unroll_factor=4):
            place = tl.full([], split, tl.int64) * n + row
            maximum = tl.maximum(maximum, tl.load(maxima_ptr + place, there, 0.0))
    total = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, BLOCK_D], tl.float32)
    # Unrolled, so that several splits' loads are under way at once.
    for split in tl.range(splits, loop_unroll_factor=4):
        place = tl.full([], split, tl.int64) * n + row
        part_total = tl.load(totals_ptr + place, there, 1.0)
        part_mean = tl.load(parts_ptr + place[:, None] * D + column, inside, 0.0)
        if RUNNING:
            shrink = tl.exp2((tl.load(maxima_ptr + place, there, 0.0) - maximum) * steepness)
            part_total = part_total * shrink
            part_mean = part_mean * shrink[:, None]
        total += part_total
        mean += part_mean
    rest = store_mean(mean_ptr, row, there, group, mean, total, lift, column_scale, D, BLOCK_D)
    return maximum, rest


@triton.jit
def softplus_and_sigmoid(gap):
    """log(1 + e^gap) less max(gap, 0), and 1/(1 + e^−gap), to the last digits for every gap."""
    small = tl.exp(-tl.abs(gap))
    # log(1 + small), where 1 + small has lost digits of small: the quotient divides out the error
    # of the logarithm's argument.
    whole = 1.0 + small
    lost = whole - 1.0
    logarithm = tl.where(lost == 0.0, small, tl.log(whole) * tl.div_rn(small, lost))
    return logarithm, tl.div_rn(tl.where(gap >= 0, 1.0, small), whole)


@triton.jit
def pairs_of(
    maximum, rest, pull_ptr, total_ptr, row, there, tau, crops, globals_, positives,
    gg_weight, lg_weight,
    ROWS: tl.constexpr, PAIRS: tl.constexpr, REDUCTION: tl.constexpr,
):  # fmt: skip
    """Losses and pulls of rows with all of their positives; sums of gg and lg losses, in units of
    loss_unit."""
    unit = loss_unit(tau)
    crop = (row % crops)[:, None]
    is_global = crop < globals_
    weight = tl.where(is_global, gg_weight, lg_weight)
    gg = tl.zeros([ROWS, PAIRS], tl.float32)
    lg = tl.zeros([ROWS, PAIRS], tl.float32)
    for first in range(0, positives, PAIRS):
        p = first + tl.arange(0, PAIRS)[None, :]
        inside = there[:, None] & (p < positives)
        place = row.to(tl.int64)[:, None] * positives + p
        cosine = tl.load(pull_ptr + place, inside, 0.0)
        apart = tl.div_rn((maximum[:, None] - cosine) * unit, tau)
        gap = apart + rest[:, None] * unit
        logarithm, sigmoid = softplus_and_sigmoid(gap / unit)
        loss = tl.maximum(gap, 0.0) + logarithm * unit
        pair = inside & ~(is_global & (crop == p))  # a global crop is no positive of itself
        # A small tile is held by several warps, and one of them stores: not before all have loaded.
        tl.debug_barrier()
        tl.store(pull_ptr + place, tl.where(pair, weight * sigmoid, 0.0), inside)
        if REDUCTION == "pairs":
            tl.store(total_ptr + place, saturate(loss / unit, 1.0, tl.float32), inside)
        else:
            gg += tl.where(pair & is_global, loss, 0.0)
            lg += tl.where(pair & (is_global == 0), loss, 0.0)
    return tl.sum(tl.sum(gg, 1), 0), tl.sum(tl.sum(lg, 1), 0)


@triton.jit
def store_loss(pointer, value, unit):
    tl.store(pointer, saturate(value / unit, 1.0, tl.float32))


@triton.jit(
    do_not_specialize=[
        "temperature", "n", "splits", "program_rows", "crops", "globals_", "positives",
        "gg_weight", "lg_weight", "gg_share", "lg_share",
    ]
)  # fmt: skip
def info_nce_epilogue_kernel(
    parts_ptr,  # of `info_nce_kernel`, read where COMBINE; else [N] maxima where RUNNING
    lse_ptr, mean_ptr,  # [N], [N, D] fp32, written where COMBINE; else there is log Σ 2^t first
    pull_ptr,  # [N, P] fp32: cosines of positives, replaced by pulls
    total_ptr, terms_ptr,  # of InfoNCEResult; terms where TERMS
    partials_ptr,  # [2, programs] fp32, where REDUCTION is "all"
    counter_ptr,  # int32, zero
    temperature,  # τ or a pointer to it
    n, splits,
    program_rows,  # of a program: V where REDUCTION is "images"
    crops, globals_, positives,  # V, G, P
    gg_weight, lg_weight,  # d(total)/dℓ
    gg_share, lg_share,  # d(term)/dℓ
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, PAIRS: tl.constexpr,
    CHUNK: tl.constexpr, OP: tl.constexpr, RUNNING: tl.constexpr, COMBINE: tl.constexpr,
    REDUCTION: tl.constexpr,  # "pairs", "images" or "all"
    TERMS: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    group = tl.program_id(1)
    tau = value_of(temperature, ON_DEVICE)
    steepness = steepness_of(tau)
    column_scale = column_scale_of(tau, OP, RUNNING)
    lift = lift_of(column_scale, OP, RUNNING)
    begin = program * program_rows
    end = tl.minimum(begin + program_rows, n)
    gg = tl.full([], 0.0, tl.float32)
    lg = tl.full([], 0.0, tl.float32)
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        there = row < end
        if COMBINE:
            maximum, rest = combined(
                parts_ptr, mean_ptr, row, there, group, n, splits, steepness, column_scale, lift,
                D, ROWS, BLOCK_D, RUNNING,
            )  # fmt: skip
        else:
            rest = tl.load(lse_ptr + row, there, 0.0)
            maximum = tl.zeros([ROWS], tl.float32)
            if RUNNING:
                maximum = tl.load(parts_ptr + row, there, 0.0)
        if group == 0:
            if COMBINE or RUNNING:
                tl.debug_barrier()  # as in `pairs_of`
                lse = saturate(tl.div_rn(maximum, tau) + rest, 1.0, tl.float32)
                tl.store(lse_ptr + row, lse, there)
            gg_found, lg_found = pairs_of(
                maximum, rest, pull_ptr, total_ptr, row, there, tau, crops, globals_, positives,
                gg_weight, lg_weight, ROWS, PAIRS, REDUCTION,
            )  # fmt: skip
            gg += gg_found
            lg += lg_found

    if group == 0:
        unit = loss_unit(tau)
        if REDUCTION == "images":
            programs = tl.num_programs(0)
            store_loss(total_ptr + program, gg_weight * gg + lg_weight * lg, unit)
            if TERMS:
                store_loss(terms_ptr + program, gg_share * gg, unit)
                store_loss(terms_ptr + programs + program, lg_share * lg, unit)
        elif REDUCTION == "all":
            programs = tl.num_programs(0)
            tl.store(partials_ptr + program, gg)
            tl.store(partials_ptr + programs + program, lg)
            # Which program adds up depends on who comes last; what is added in which order does
            # not.
            if arrives_last(counter_ptr, programs):
                gg = sum_in_order(partials_ptr, programs, CHUNK)
                lg = sum_in_order(partials_ptr + programs, programs, CHUNK)
                store_loss(total_ptr, gg_weight * gg + lg_weight * lg, unit)
                if TERMS:
                    store_loss(terms_ptr, gg_share * gg, unit)
                    store_loss(terms_ptr + 1, lg_share * lg, unit)
