"""Rows as unit vectors, and the gradient through them: records, operators and Function.

z/‖z‖ = (z·f₁)·f₂ with factors [B·L, 2] = (f₁, f₂). There are two, since neither the norm of a row
nor its inverse need be a number of its dtype; both are 0 for a zero row. A gradient g to ẑ gives z
the gradient

    (g − (g·ẑ) ẑ)·f₂·f₁,

clamped to the largest number of its dtype.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..autograd import batched, no_tangents, once, references
from ..backends import Key
from ..buffers import empty
from ..operators import Operator
from .pairs import key_of


class UnitCall(NamedTuple):
    z: Tensor  # [B, L, D] of any strides
    dtype: torch.dtype  # of the unit vectors

    def sizes(self) -> dict[str, Any]:
        images, _, dim = self.z.shape
        return {"images": images, "dim": dim, "wide": self.wide}

    @property
    def wide(self) -> bool:
        """Whether the factors are fp64: where rows or unit vectors are."""
        return torch.float64 in (self.z.dtype, self.dtype)

    def key(self) -> Key:
        return key_of(self.z.device, self.dtype)


class UnitResult(NamedTuple):
    unit: Tensor  # [B, L, D] dense
    factors: Tensor  # [B·L, 2] fp64 if `wide`, else fp32

    @classmethod
    def empty(cls, call: UnitCall) -> UnitResult:
        z, dtype = call
        wide = torch.float64 if call.wide else torch.float32
        return cls(empty(z, z.shape, dtype), empty(z, (z.shape[0] * z.shape[1], 2), wide))


class UnitBackwardCall(NamedTuple):
    grad: Tensor  # [B, L, D] dense, of the dtype of unit
    unit: Tensor
    factors: Tensor
    dtype: torch.dtype  # of the gradient to z
    view_major: bool  # whether z lies in memory as [L, B, D]

    def sizes(self) -> dict[str, Any]:
        images, _, dim = self.unit.shape
        return {"images": images, "dim": dim, "wide": self.wide}

    @property
    def wide(self) -> bool:
        return self.factors.dtype == torch.float64

    def key(self) -> Key:
        return key_of(self.unit.device, self.unit.dtype)


class UnitGradient(NamedTuple):
    grad_z: Tensor  # [B, L, D] in the order in which the crops lie

    @classmethod
    def empty(cls, call: UnitBackwardCall) -> UnitGradient:
        images, crops, dim = call.grad.shape
        if call.view_major:
            return cls(empty(call.grad, (crops, images, dim), call.dtype).transpose(0, 1))
        return cls(empty(call.grad, (images, crops, dim), call.dtype))


def is_view_major(z: Tensor) -> bool:
    """Whether [B, L, D] lies in memory as [L, B, D]."""
    return z.shape[0] > 1 and z.shape[1] > 1 and z.stride(1) > z.stride(0)


unit = Operator("unit", UnitCall, UnitResult)
unit_backward = Operator("unit_backward", UnitBackwardCall, UnitGradient)


class Unit(torch.autograd.Function):
    """z/‖z‖ over the last dimension in `dtype`, exact for any finite norm; 0 for a zero row."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
        units, factors = unit(UnitCall(z, dtype), backend)
        ctx.save_for_backward(units, factors)
        ctx.inputs = references(z)
        ctx.dtype, ctx.view_major, ctx.backend = z.dtype, is_view_major(z), backend
        return units

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        no_tangents("LocalAffinity", (upstream,))
        units, factors = ctx.saved_tensors
        grad = upstream if batched(upstream) else upstream.detach()  # a batched one cannot
        given = grad.contiguous(), units, factors, ctx.dtype, ctx.view_major
        found = unit_backward(UnitBackwardCall(*given), ctx.backend)
        return *once(found, upstream, *ctx.inputs), None, None
