"""InfoNCE around a pass over the negatives, in PyTorch: what takes O(N · D) before and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .protocol import InfoNCECall, InfoNCEGradients, InfoNCEResult
from .units import Rows, full_precision, saturated


class Attention(NamedTuple):
    """Softmax over the negatives, seen from each query."""

    lse: Tensor  # [N] log Σ_k e^{q̂·n̂_k / τ}
    mean: Tensor  # [N, D] Σ_k softmax_k n̂_k


# (unit queries [N, D], negatives [K, D], τ, dtype of the user's queries, (V, P) or None)
Attend = Callable[[Tensor, Tensor, float | Tensor, torch.dtype, tuple[int, int] | None], Attention]


def fill(attend: Attend, call: InfoNCECall, result: InfoNCEResult) -> None:
    """`Backend.info_nce` by one call of `attend`."""
    with torch.no_grad(), full_precision(call.queries.device.type):
        queries = Rows(_joined(call), call.dtype).unit  # [B, V, D]
        positives = Rows(call.positives, call.dtype).unit  # [B, P, D]
        images, crops, _ = queries.shape
        negatives, own = call.negatives, None
        if negatives is None:
            negatives, own = call.positives.flatten(0, 1), (crops, positives.shape[1])
        tau = temperature(call)
        lse, mean = attend(
            queries.flatten(0, 1).contiguous(), negatives, tau, call.queries.dtype, own
        )
        lse = lse.view(images, crops)
        gap = lse.unsqueeze(-1) - queries @ positives.mT / tau  # [B, V, P]
        # Not softplus with its threshold: above 20 it would drop what fp64 still resolves.
        losses = F.relu(gap) + torch.log1p(torch.exp(-gap.abs()))
        pairs, weights = _pairs(call, gap)
        result.lse.copy_(lse)
        result.mean.copy_(mean.view_as(result.mean))
        share = 1 / images if call.reduction == "mean" else 1.0
        result.pull.copy_(torch.where(pairs, weights * share * torch.sigmoid(gap), 0))
        if call.reduction == "pairs":
            result.total.copy_(losses)
            return
        globals_, locals_, count = call.counts
        losses = torch.where(pairs, losses, 0)
        total = (weights * losses).sum((1, 2))
        gg = losses[:, :globals_].sum((1, 2)) / max(1, globals_ * (globals_ - 1))
        lg = losses[:, globals_:].sum((1, 2)) / max(1, locals_ * count)
        terms = torch.stack([gg, lg])
        if call.reduction != "none":
            total, terms = share * total.sum(), share * terms.sum(1)
        result.total.copy_(total)
        result.terms.copy_(terms)


def fill_gradients(
    call: InfoNCECall, upstream: Tensor, pull: Tensor, mean: Tensor, gradients: InfoNCEGradients
) -> None:
    """`Backend.info_nce_backward`."""
    with torch.no_grad(), full_precision(call.queries.device.type):
        q = Rows(_joined(call), call.dtype)
        weights = upstream.view(*upstream.shape, *[1] * (3 - upstream.ndim)) * pull
        direction = weights.sum(-1, keepdim=True) * mean
        direction = direction - weights @ Rows(call.positives, call.dtype).unit
        along = (direction * q.unit).sum(-1, keepdim=True)
        tau = temperature(call)
        gradient = q.gradient((direction - along * q.unit) / tau)
        if call.queries.dtype != torch.float16:
            gradient = saturated(gradient, call.queries.dtype)
        globals_ = call.counts[0]
        for buffer, of in (
            (gradients.global_crops, gradient[:, :globals_]),
            (gradients.local_crops, gradient[:, globals_:]),
        ):
            if buffer.numel():
                buffer.copy_(of)
        if gradients.temperature.numel():
            gradients.temperature.copy_(-along.sum() / tau / tau)


def temperature(call: InfoNCECall) -> float | Tensor:
    return call.temperature if call.temperature_tensor is None else call.temperature_tensor


def _pairs(call: InfoNCECall, like: Tensor) -> tuple[Tensor, Tensor]:
    """Which [V, P] are pairs, and the weight of a pair's loss in its image's total, [V, 1]."""
    globals_, locals_, positives = call.counts
    pairs = like.new_ones(globals_ + locals_, positives, dtype=torch.bool)
    pairs[:globals_].fill_diagonal_(False)  # a global crop is no positive of itself
    weights = like.new_full([globals_ + locals_, 1], call.lg_weight)
    weights[:globals_] = call.gg_weight
    return pairs, weights


def _joined(call: InfoNCECall) -> Tensor:
    """All queries, [B, V, D]."""
    crops = [block for block in (call.global_crops, call.local_crops) if block is not None]
    return crops[0] if len(crops) == 1 else torch.cat(crops, 1)
