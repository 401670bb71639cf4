"""Rules for the buffers that results are written to, the same for every backend and fake tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """fp64 if any input is fp64, else fp32: the dtype of sums and losses."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype is torch.float64:
            return torch.float64
    return torch.float32


def empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised, on the device of `like`; torch takes half as long where it keeps the dtype."""
    return like.new_empty(shape) if like.dtype is dtype else like.new_empty(shape, dtype=dtype)


def gradient_like(crops: Tensor) -> Tensor:
    """An uninitialised gradient for `crops` [B, V, D], with unit stride over D.

    A view-major input (a transposed view of [V, B, D]) gets a view-major gradient, so that the
    next node of the graph sees a contiguous tensor.
    """
    gradient = torch.empty_like(crops)
    if gradient.stride(-1) != 1:
        gradient = torch.empty(crops.shape, dtype=crops.dtype, device=crops.device)
    return gradient


def gradient_for(crops: Tensor | None, wanted: bool) -> Tensor | None:
    """The buffer of a gradient that is wanted, else None."""
    return gradient_like(crops) if wanted and crops is not None else None


def present(*tensors: Tensor | None) -> list[Tensor]:
    """Those that are there."""
    return [tensor for tensor in tensors if tensor is not None]
