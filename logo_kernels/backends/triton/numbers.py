"""Numbers inside kernels: dtypes and conversions, exponents and powers of two, norms, limits.

Triton's interpreter stores bf16 as integers: its dot and sum read them as such, and its conversions
truncate. Under the interpreter, kernels hold halves as fp32 and round them by hand.
"""

# Upper case marks compile-time constants in kernels; a branch on one is no expression.
# ruff: noqa: N803, SIM108, SIM300
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .environment import interpreted

TL_DTYPE = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}

INTERPRETED = tl.constexpr(interpreted())

# Squared norms between these need no rescaling: products of two rows stay inside fp32, what
# underflows is below its precision, and 1/(norm·norm) stays inside bf16 and fp32.
LOW = tl.constexpr(2.0**-60)
HIGH = tl.constexpr(2.0**60)


@triton.jit
def widen(x):
    """Any float as fp32."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        wide = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = x.to(tl.float32)
    return wide


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """fp32 rounded to DTYPE, to the nearest even."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        bits = tl.where(x != x, 0x7FC0, rounded).to(tl.uint16)
        narrowed = bits.to(tl.bfloat16, bitcast=True)
    else:
        narrowed = x.to(DTYPE)
    return narrowed


@triton.jit
def operand(x, DTYPE: tl.constexpr):
    """fp32 as an operand of `tl.dot` that has the precision of DTYPE."""
    if INTERPRETED:
        converted = widen(narrow(x, DTYPE))
    else:
        converted = x.to(DTYPE)
    return converted


@triton.jit
def high_and_low(x):
    """fp32 as the sum of two tf32 operands, short of it by one unit in the last place at most."""
    bits = x.to(tl.int32, bitcast=True)
    high = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)  # 11 bits, rounded
    return high, x - high  # 12 bits, of which tensor cores read 11


@triton.jit
def biased_exponent(x):
    """The e of finite |x| in [2^(e−127), 2^(e−126)); 0 for denormals, 255 for inf and NaN."""
    return (x.to(tl.int32, bitcast=True) >> 23) & 0xFF


@triton.jit
def from_exponent(biased):
    """2^(biased − 127), for biased in [1, 254]."""
    return (biased << 23).to(tl.float32, bitcast=True)


@triton.jit
def scale_towards_one(largest):
    """The power of two that brings magnitudes of `largest` to [1, 4); denormals, above 2^-24."""
    return from_exponent(tl.minimum(tl.maximum(254 - biased_exponent(largest), 1), 254))


@triton.jit
def inverse_norm(squared):
    """1/√squared, and 0 for a zero row: then its cosines and its gradient are 0."""
    return tl.where(squared == 0.0, 0.0, tl.div_rn(1.0, tl.sqrt_rn(squared)))


@triton.jit
def saturate(x, factor, DTYPE: tl.constexpr):
    """x clamped to `factor` times the largest finite values of DTYPE; NaN stays."""
    if DTYPE == tl.float16:
        limit = 65504.0 * factor
    elif DTYPE == tl.bfloat16:
        limit = 3.3895313892515355e38 * factor
    else:
        limit = 3.4028234663852886e38 * factor
    x = tl.minimum(x, limit, propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(x, -limit, propagate_nan=tl.PropagateNan.ALL)
