"""Rows as unit vectors in readable PyTorch, and the gradient through them (affinity/units.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...units import saturated

if TYPE_CHECKING:
    from ...affinity.units import UnitBackwardCall, UnitCall, UnitGradient, UnitResult


def unit(call: UnitCall, result: UnitResult) -> None:
    rows = call.z.to(result.factors.dtype)
    _, exponent = torch.frexp(rows.abs().amax(-1, keepdim=True))
    # a power of two near 1 / largest: that of subnormal numbers would be infinite
    most = 120 if rows.dtype == torch.float32 else 1000
    first = torch.exp2(-exponent.clamp(-most, most).to(rows.dtype))
    norm = torch.linalg.vector_norm(rows * first, dim=-1, keepdim=True)
    second = norm.reciprocal()
    second = torch.where(second > 0, second, torch.nan)  # also of infinite rows
    both = torch.where(norm == 0, 0, torch.cat([first, second], -1))  # [B, L, 2]
    result.factors.copy_(both.flatten(0, 1))
    result.unit.copy_(rows * both[..., :1] * both[..., 1:])


def unit_backward(call: UnitBackwardCall, result: UnitGradient) -> None:
    grad, factors = call.grad, call.factors
    first, second = factors.view(*grad.shape[:2], 2).split(1, -1)
    wide, direction = grad.to(factors.dtype), call.unit.to(factors.dtype)
    across = wide - (wide * direction).sum(-1, keepdim=True) * direction
    result.grad_z.copy_(saturated(across * second * first, call.dtype))
