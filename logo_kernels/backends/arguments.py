"""What the compiled launchers are given instead of tensors; csrc/bindings.h reads it."""

from __future__ import annotations

import torch
from torch import Tensor

# The numbers of csrc/include/logo/problem.h.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
REDUCTIONS = {"mean": 0, "sum": 1, "none": 2, "pairs": 3}

Rows = tuple[int, int, int, int, int, int]
NO_ROWS: Rows = (0, 0, 0, 0, 0, 0)


def rows(crops: Tensor | None) -> Rows:
    """(address, dtype, V, strides in elements over B, V, D) of crops [B, V, D]."""
    if crops is None or crops.numel() == 0:
        return NO_ROWS
    image, crop, element = crops.stride()
    return crops.data_ptr(), DTYPES[crops.dtype], crops.size(1), image, crop, element


def matrix_rows(matrix: Tensor | None) -> Rows:
    """The same of a matrix [K, D], as those of one image."""
    if matrix is None:
        return NO_ROWS
    row, element = matrix.stride()
    return matrix.data_ptr(), DTYPES[matrix.dtype], matrix.shape[0], 0, row, element


def pairs_rows(upstream: Tensor) -> Rows:
    """[], [B] or [B, V, P] as rows of P numbers: the gradient of a sum is that of each summand."""
    image, crop, element = (*upstream.stride(), 0, 0, 0)[:3]
    return upstream.data_ptr(), DTYPES[upstream.dtype], 1, image, crop, element
