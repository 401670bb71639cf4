"""Rows as unit vectors, and the gradient through them: in PyTorch, and the buffers for kernels.

z/‖z‖ = (z·f₁)·f₂ with factors [B·L, 2] = (f₁, f₂): two, since neither the norm of a row nor its
inverse need be a number of its dtype; both 0 for a zero row. The gradient to z of g to ẑ is

    (g − (g·ẑ) ẑ)·f₂·f₁,

and where that lies beyond the largest number of its dtype, that number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .buffers import compute_dtype
from .units import saturated


def unit_results(z: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Unwritten (unit [B, L, D] of `dtype`, factors); fp64 for any fp64, else fp32."""
    wide = torch.float64 if dtype == torch.float64 else compute_dtype(z)
    unit = z.new_empty(z.shape, dtype=dtype)
    return unit, z.new_empty((z.shape[0] * z.shape[1], 2), dtype=wide)


def gradient_result(grad: Tensor, dtype: torch.dtype, view_major: bool) -> Tensor:
    """Unwritten [B, L, D] in the order in which the crops lie."""
    images, crops, dim = grad.shape
    if view_major:
        return grad.new_empty((crops, images, dim), dtype=dtype).transpose(0, 1)
    return grad.new_empty((images, crops, dim), dtype=dtype)


def is_view_major(z: Tensor) -> bool:
    """Whether [B, L, D] lies in memory as [L, B, D]."""
    return z.shape[0] > 1 and z.shape[1] > 1 and z.stride(1) > z.stride(0)


def unit(z: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(ẑ in `dtype`, factors)."""
    made, factors = unit_results(z, dtype)
    rows = z.to(factors.dtype)
    _, exponent = torch.frexp(rows.abs().amax(-1, keepdim=True))
    # a power of two near 1 / largest: that of subnormal numbers would be infinite
    most = 120 if rows.dtype == torch.float32 else 1000
    first = torch.exp2(-exponent.clamp(-most, most).to(rows.dtype))
    norm = torch.linalg.vector_norm(rows * first, dim=-1, keepdim=True)
    second = norm.reciprocal()
    second = torch.where(second > 0, second, torch.nan)  # also of infinite rows
    both = torch.where(norm == 0, 0, torch.cat([first, second], -1))  # [B, L, 2]
    factors.copy_(both.flatten(0, 1))
    return made.copy_(rows * both[..., :1] * both[..., 1:]), factors


def unit_backward(
    grad: Tensor, unit: Tensor, factors: Tensor, dtype: torch.dtype, view_major: bool
) -> Tensor:
    """The gradient [B, L, D] in `dtype`."""
    first, second = factors.view(*grad.shape[:2], 2).split(1, -1)
    wide, direction = grad.to(factors.dtype), unit.to(factors.dtype)
    across = wide - (wide * direction).sum(-1, keepdim=True) * direction
    to_rows = saturated(across * second * first, dtype)
    return gradient_result(grad, dtype, view_major).copy_(to_rows)
