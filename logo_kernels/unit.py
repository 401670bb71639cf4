"""Rows as unit vectors, differentiable; for the affinity's plain form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import pair_ops as ops
from .autograd import differentiated_once
from .backends.unit import is_view_major


class Unit(torch.autograd.Function):
    """z/‖z‖ over the last dimension in `dtype`, exact for any finite norm; 0 for a zero row."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
        unit, factors = ops.unit(z, dtype, backend)
        ctx.save_for_backward(unit, factors)
        ctx.dtype, ctx.view_major, ctx.backend = z.dtype, is_view_major(z), backend
        return unit

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        unit, factors = ctx.saved_tensors
        with torch.no_grad():
            to_z = ops.unit_backward(grad, unit, factors, ctx.dtype, ctx.view_major, ctx.backend)
        return differentiated_once(to_z), None, None
