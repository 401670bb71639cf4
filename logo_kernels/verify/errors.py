"""How far numbers are from those of float64, and how far they may be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Of the largest number of a row: what rounding to the dtype costs, some four times over. Whole
# tensors would be too coarse a measure: a wrong number is lost among 100,000 right ones, and a row
# of norm 2^-100 beside one of 1.
BOUNDS = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 2.0**-6,
    torch.float16: 2.0**-9,
}
# The same of a result in fp32 of rows that are not: tensor cores cut off what they add.
OF_HALVES = 1e-4


def error(got: Tensor, exact: Tensor, least: float = 0.0) -> float:
    """The largest difference within a row over the row's largest number; NaN counts as infinite.

    A row of zeros has to be zero, unless `least` says how large numbers are at the least. A tensor
    of one dimension is one row.
    """
    if got.shape != exact.shape:
        return math.inf
    if exact.numel() == 0:
        return 0.0
    got, exact = (v.detach().double().cpu().reshape(-1, v.shape[-1] if v.ndim else 1)
                  for v in (got, exact))  # fmt: skip
    difference = (got - exact).abs().amax(1)
    relative = torch.where(difference == 0, 0, difference / exact.abs().amax(1).clamp_min(least))
    return float(relative.nan_to_num(nan=math.inf, posinf=math.inf).max())
