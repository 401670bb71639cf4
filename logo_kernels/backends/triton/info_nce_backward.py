"""InfoNCE's backward: gradients in one launch, from pulls and means that forward has found.

With w = upstream · pull of a pair and δ = Σ_p w_p (O − k̂⁺_p), a query's gradient is
(δ − (δ·q̂) q̂)/(τ‖q‖), and that of τ is −Σ_n δ·q̂ / τ².
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803, N806, SIM300
# mypy: allow-untyped-defs, allow-untyped-globals

from __future__ import annotations

import triton
import triton.language as tl

from .info_nce_rows import load_columns, positive_rows, query_rows, unit_scales, value_of
from .numbers import biased_exponent, from_exponent, narrow, saturate
from .tickets import arrives_last, sum_in_order


@triton.jit
def directions(
    pointers, steps, inside, factor, inverse,  # of queries
    t_ptr, t_image, t_crop, t_step,
    upstream_ptr, upstream_image, upstream_crop, upstream_pair, pull_ptr, mean_ptr,
    row, crops, positives, first,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """Columns first.. of δ and of q̂, [ROWS, BLOCK_D]; the largest upstream gradient, [ROWS]."""
    pulled = tl.zeros([ROWS, BLOCK_D], tl.float32)
    weights = tl.zeros([ROWS], tl.float32)
    most = tl.zeros([ROWS], tl.float32)
    upstream_rows = upstream_ptr + (row // crops).to(tl.int64) * upstream_image
    upstream_rows += (row % crops).to(tl.int64) * upstream_crop
    for p in range(positives):
        pair = tl.full([], p, tl.int64)
        weight = tl.load(upstream_rows + pair * upstream_pair, inside, other=0.0)
        most = tl.maximum(most, tl.abs(weight))
        weight *= tl.load(pull_ptr + row.to(tl.int64) * positives + p, inside, other=0.0)
        others, other_steps = positive_rows(t_ptr, t_image, t_crop, t_step, row, crops, p, ALIGN)
        other_factor, other_inverse, _ = unit_scales(
            others, other_steps, inside, D, ROWS, BLOCK_D, UNIT
        )
        positive = load_columns(others, other_steps, inside, first, D, BLOCK_D, UNIT)
        positive = positive * other_factor[:, None]
        pulled += positive * (weight * other_inverse)[:, None]
        weights += weight
    column = first + tl.arange(0, BLOCK_D)
    mask = inside[:, None]
    if D % BLOCK_D != 0:
        mask = mask & (column < D)[None, :]
    mean = tl.load(mean_ptr + row.to(tl.int64)[:, None] * D + column[None, :], mask, other=0.0)
    query = load_columns(pointers, steps, inside, first, D, BLOCK_D, UNIT)
    unit = query * factor[:, None] * inverse[:, None]
    return weights[:, None] * mean - pulled, unit, most


@triton.jit
def split(tau):
    """(mantissa, power) of τ, subnormal numbers too: mantissa·2^power, a mantissa in [1, 2)."""
    lifted = tl.where(tau < 2.0**-64, tau * 2.0**64, tau)
    exponent = biased_exponent(lifted)
    bits = (lifted.to(tl.int32, bitcast=True) & 0x7FFFFF) | 0x3F800000
    mantissa = tl.where(exponent == 255, tau, bits.to(tl.float32, bitcast=True))  # inf and NaN
    return mantissa, exponent - 127 - tl.where(tau < 2.0**-64, 64, 0)


@triton.jit
def power_of_two(power):
    """2^power, or the normal number next to it."""
    return from_exponent(tl.minimum(tl.maximum(power, -126), 127) + 127)


# Integers are not specialised by value: all that matters of them for the code is UNIT, ALIGN and
# ALIGN_OUT.
@triton.jit(
    do_not_specialize=[
        *(f"{v}_{of}" for v in "xyt" for of in ("image", "crop", "step")),
        *(f"g{v}_{of}" for v in "xy" for of in ("image", "crop")),
        *(f"upstream_{of}" for of in ("image", "crop", "pair")),
        "temperature", "mantissa", "power", "n", "crops", "globals_", "positives", "to_x", "to_y",
    ]
)  # fmt: skip
def info_nce_backward_kernel(
    x_ptr, x_image, x_crop, x_step,  # [B, G, D] and its strides; y where there are none
    y_ptr, y_image, y_crop, y_step,  # [B, L, D] of the dtype of x; x where there are none
    t_ptr, t_image, t_crop, t_step,  # [B, P, D]
    gx_ptr, gx_image, gx_crop,  # gradients, of unit step
    gy_ptr, gy_image, gy_crop,
    upstream_ptr, upstream_image, upstream_crop, upstream_pair,  # fp32, strides 0 where it has none
    pull_ptr, mean_ptr,  # [N, P], [N, D] fp32
    tau_grad_ptr,  # [] fp32, written where TO_TAU
    partials_ptr,  # [programs] fp32
    counter_ptr,  # int32, zero
    temperature,  # τ or a pointer to it
    mantissa, power,  # of τ, if it is a number: mantissa·2^power need not be one of fp32
    n, crops, globals_, positives,  # N, V, G, P
    to_x, to_y,  # 1 or 0: which gradients are wanted
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
    UNIT: tl.constexpr, ALIGN: tl.constexpr,  # of x, y and t: steps of 1; bytes
    ALIGN_OUT: tl.constexpr,  # bytes
    TO_TAU: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = gx_ptr.dtype.element_ty
    tau = value_of(temperature, ON_DEVICE)
    if ON_DEVICE:
        mantissa, power = split(tau)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    pointers, steps = query_rows(
        x_ptr, x_image, x_crop, x_step, y_ptr, y_image, y_crop, y_step,
        row, crops, globals_, ALIGN,
    )  # fmt: skip
    factor, inverse, zero = unit_scales(pointers, steps, inside, D, ROWS, BLOCK_D, UNIT)
    along = tl.zeros([ROWS], tl.float32)
    direction = tl.zeros([ROWS, BLOCK_D], tl.float32)
    unit = tl.zeros([ROWS, BLOCK_D], tl.float32)
    most = tl.zeros([ROWS], tl.float32)
    for first in range(0, D, BLOCK_D):
        direction, unit, most = directions(
            pointers, steps, inside, factor, inverse, t_ptr, t_image, t_crop, t_step,
            upstream_ptr, upstream_image, upstream_crop, upstream_pair, pull_ptr, mean_ptr,
            row, crops, positives, first, D, ROWS, BLOCK_D, UNIT, ALIGN,
        )  # fmt: skip
        along += tl.sum(direction * unit, 1)

    # factor/2^power in two steps, since it may be no number
    shift = biased_exponent(factor) - 127 - power
    first_shift = power_of_two(shift >> 1)
    second_shift = power_of_two(shift - (shift >> 1))
    outputs, _ = query_rows(
        gx_ptr, gx_image, gx_crop, 1, gy_ptr, gy_image, gy_crop, 1,
        row, crops, globals_, ALIGN_OUT,
    )  # fmt: skip
    wanted = inside & (tl.where(row % crops < globals_, to_x, to_y) != 0)
    for first in range(0, D, BLOCK_D):
        if BLOCK_D < D:
            direction, unit, most = directions(
                pointers, steps, inside, factor, inverse, t_ptr, t_image, t_crop, t_step,
                upstream_ptr, upstream_image, upstream_crop, upstream_pair, pull_ptr, mean_ptr,
                row, crops, positives, first, D, ROWS, BLOCK_D, UNIT, ALIGN,
            )  # fmt: skip
        # Over τ and ‖q‖ after all is added up, since infinities would not cancel.
        gradient = tl.div_rn(direction - along[:, None] * unit, mantissa)
        gradient = gradient * inverse[:, None] * first_shift[:, None] * second_shift[:, None]
        gradient = tl.where(zero[:, None], 0.0, gradient)
        # An fp16 that a loss scaler may have multiplied reaches inf, for it to see.
        finite = saturate(gradient, 1.0, DTYPE)
        if DTYPE == tl.float16:
            finite = tl.where(most[:, None] > 1, gradient, finite)
        column = first + tl.arange(0, BLOCK_D)
        mask = wanted[:, None]
        if D % BLOCK_D != 0:
            mask = mask & (column < D)[None, :]
        tl.store(outputs[:, None] + column[None, :], narrow(finite, DTYPE), mask)

    if TO_TAU:
        programs = tl.num_programs(0)
        tl.store(partials_ptr + tl.program_id(0), tl.sum(along, 0))
        if arrives_last(counter_ptr, programs):
            found = sum_in_order(partials_ptr, programs, CHUNK)
            found = -tl.div_rn(tl.div_rn(found, tau), tau)
            tl.store(tau_grad_ptr, saturate(found, 1.0, tl.float32))
