"""The buffers that results are written to: one rule for every backend and for fake tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from .protocol import CosineResult


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """fp64 if any input is fp64, else fp32: the dtype of sums and losses."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def wide_empty(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised, of the dtype in which `like` is summed."""
    return like.new_empty(shape, dtype=compute_dtype(like))


def gradient_like(crops: Tensor) -> Tensor:
    """An uninitialised gradient for `crops` [B, V, D], with unit stride over D.

    A view-major input (a transposed view of [V, B, D]) gets a view-major gradient, so that the
    next node of the graph sees a contiguous tensor.
    """
    gradient = torch.empty_like(crops)
    if gradient.stride(-1) != 1:
        gradient = torch.empty(crops.shape, dtype=crops.dtype, device=crops.device)
    return gradient


def cosine_result(
    global_crops: Tensor,
    local_crops: Tensor | None,
    targets: Tensor | None,
    features: Tensor | None,
    reduction: str,
    grad_global: bool,
    grad_local: bool,
    grad_features: bool,
) -> CosineResult:
    """Uninitialised buffers for `Backend.cosine`."""
    images, crops, _ = global_crops.shape
    dtype = compute_dtype(global_crops, targets, features)
    over_images = [images] if reduction == "none" else []

    def gradient(of: Tensor | None, wanted: bool) -> Tensor:
        if of is None or not wanted:
            return global_crops.new_empty(0)  # one each: operators may not alias
        return gradient_like(of)

    fp16 = (global_crops.dtype == torch.float16 and (grad_global or grad_local)) or (
        grad_features and features is not None and features.dtype == torch.float16
    )
    rows = 0
    if fp16:
        rows = crops
        if local_crops is not None:
            rows += local_crops.shape[1] * (1 if features is None else 2)
    return CosineResult(
        global_crops.new_empty(over_images, dtype=dtype),
        global_crops.new_empty([3, *over_images], dtype=dtype),
        gradient(global_crops, grad_global),
        gradient(local_crops, grad_local),
        gradient(features, grad_features),
        global_crops.new_empty([images, rows] if fp16 else [0, 0], dtype=torch.float32),
    )
