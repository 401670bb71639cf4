"""How far numbers are from those of float64, and how far they may be."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Relative to the largest number of a row: about four times the rounding of the dtype. The largest
# number of a tensor would be too coarse a measure: it hides a wrong number among 100,000 right
# ones, and a row of norm 2^-100 beside a row of norm 1.
BOUNDS = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 2.0**-6,
    torch.float16: 2.0**-9,
}
# The bound of an fp32 result from half-precision rows: tensor cores cut off what they add.
OF_HALVES = 1e-4


class Difference(NamedTuple):
    """Where a result is furthest from what it should be, in measures of its row."""

    error: float  # over the row's largest number; NaN counts as infinite
    told: str  # what stands there

    def __str__(self) -> str:
        return f"{self.told}, off by {self.error:.1e} of the largest number in its row"


def difference(got: Tensor, exact: Tensor, least: float = 0.0) -> Difference:
    """The largest one within any row; a tensor of one dimension is a row.

    A row of zeros has to be zero, unless `least` says how large numbers are at the least.
    """
    if got.shape != exact.shape:
        return Difference(math.inf, f"shape {list(got.shape)} and not {list(exact.shape)}")
    if exact.numel() == 0:
        return Difference(0.0, "nothing")
    got, exact = (v.detach().double().cpu() for v in (got, exact))
    size = exact.abs().amax(-1, keepdim=True) if exact.ndim else exact.abs()
    apart = (got - exact).abs()
    relative = torch.where(apart == 0, 0, apart / size.clamp_min(least))
    relative = relative.nan_to_num(nan=math.inf, posinf=math.inf)
    worst = int(relative.argmax())
    place = [int(v) for v in torch.unravel_index(torch.tensor(worst), exact.shape)]
    told = f"{got.flatten()[worst]:.7g} and not {exact.flatten()[worst]:.7g} at {place}"
    return Difference(float(relative.flatten()[worst]), told)
