"""Rows as unit vectors and norms, in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .autograd import has_value

if TYPE_CHECKING:
    from .affinity.units import UnitBackwardCall, UnitCall, UnitGradient, UnitResult

# Norms between 1/ORDINARY and ORDINARY are squared as they are: half the passes over memory.
ORDINARY = 2.0**40

# The smallest positive number of fp32, and of fp64.
LEAST, SUBNORMAL = 2.0**-149, 5e-324


class UnitRows:
    """Crops [B, V, D] as unit vectors and norms, right for any finite norm.

    Unless all norms are ordinary, each row is divided by its largest magnitude before it is
    squared, so that none over- or underflows; a zero row stays zero and gets cosines and gradients
    of zero.
    """

    zero: Tensor | None
    largest: Tensor | None

    def __init__(self, crops: Tensor, dtype: torch.dtype) -> None:
        """Of crops in `dtype`."""
        rows = crops.detach().to(dtype)
        if has_value(rows):
            norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)  # [B, V, 1]
            if bool(((norm > 1 / ORDINARY) & (norm < ORDINARY)).all()):
                self.zero = self.largest = None
                self.norm, self.unit = norm, rows / norm
                return
        largest = rows.abs().amax(-1, keepdim=True)  # [B, V, 1]
        self.zero = largest == 0
        self.largest = largest = torch.where(self.zero, 1, largest)
        scaled = rows / largest
        norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)  # [B, V, 1], 1 ≤ norm ≤ √D
        self.norm = torch.where(self.zero, 1, norm)
        self.unit = scaled / self.norm  # [B, V, D]

    def pull(self, weights: Tensor, others: UnitRows, cosines: Tensor) -> Tensor:
        """‖x_i‖ d(Σ w_ij cos(x_i, y_j))/dx_i = Σ_j w_ij (ŷ_j − cos_ij x̂_i), as [B, V, D]."""
        along = (weights * cosines).sum(-1, keepdim=True)
        return weights @ others.unit - along * self.unit

    def gradient(self, pulls: Tensor) -> Tensor:
        """The gradient that pulls of norm ‖x_i‖ mean; 0 for a zero row."""
        return scaled_back(pulls, self.norm, self.zero, self.largest)

    def gradient_over(self, pulls: Tensor, tau: Tensor | float) -> Tensor:
        """The same over τ, any positive number or a tensor [] of one."""
        if self.zero is None or self.largest is None:
            return divided(pulls, self.norm, tau)
        return torch.where(self.zero, 0, divided(pulls, self.norm, self.largest, tau))


def scaled_back(pulls: Tensor, norm: Tensor, zero: Tensor | None, largest: Tensor | None) -> Tensor:
    """`pulls` over the norms of rows, 0 for a zero row.

    Divided by the norm in two steps, since the norm itself may not be representable, and after
    all pulls are added up: infinities would not cancel.
    """
    if zero is None or largest is None:
        return pulls / norm
    return torch.where(zero, 0, pulls / norm / largest)


def divided(value: Tensor, norm: Tensor, *others: Tensor | float) -> Tensor:
    """`value` over all of them, whose product and whose inverses may not be representable."""
    mantissa, exponent = torch.frexp(norm)  # in [1/2, 1)
    value, power = value / mantissa, -exponent
    for other in others:
        if isinstance(other, Tensor):
            mantissa, exponent = torch.frexp(other)
            value, power = value / mantissa, power - exponent
        else:
            fraction, of_two = math.frexp(other)
            value, power = value / fraction, power - of_two
    # in three steps that are numbers of the dtype; what is beyond them is zero or infinite
    most = 3 * (126 if value.dtype == torch.float32 else 1022)
    power = power.clamp(-most, most)
    for steps in (3, 2, 1):
        step = torch.div(power, steps, rounding_mode="trunc")
        value, power = value * torch.exp2(step.to(value.dtype)), power - step
    return value


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """No autocast inside: it would turn the products below into half precision.

    Nor subnormal numbers as zeros: torch.set_flush_denormal is of one thread and of those that it
    starts later, so that results would depend on which thread computes them. Under it, one does.
    """
    flushes = SUBNORMAL == 0  # by that mode itself
    threads = torch.get_num_threads() if flushes else 0
    try:
        if flushes:
            torch.set_flush_denormal(False)
            torch.set_num_threads(1)
        with torch.autocast(device, enabled=False):
            yield
    finally:
        if flushes:
            torch.set_num_threads(threads)
            torch.set_flush_denormal(True)


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype of autocast, None where it is off; the device "meta" has no autocast."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def saturated(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest finite value of `dtype` where a gradient, ∝ 1/‖x‖, lies beyond it."""
    limit = torch.finfo(dtype).max
    return gradient.clamp(-limit, limit)


def near(tau: float, dtype: torch.dtype) -> float:
    """A number τ for sums in `dtype`: never zero, and infinite where it is too large for fp32.

    What a τ below fp32 moves, in a loss that fp32 holds, is less than an error of the cosines.
    """
    if dtype == torch.float64:
        return tau
    return max(tau, LEAST) if tau <= torch.finfo(dtype).max else math.inf


def unit(call: UnitCall, result: UnitResult) -> None:
    """A backend's `unit` (affinity/units.py)."""
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
    """A backend's `unit_backward`."""
    grad, factors = call.grad, call.factors
    first, second = factors.view(*grad.shape[:2], 2).split(1, -1)
    wide, direction = grad.to(factors.dtype), call.unit.to(factors.dtype)
    across = wide - (wide * direction).sum(-1, keepdim=True) * direction
    result.grad_z.copy_(saturated(across * second * first, call.dtype))
