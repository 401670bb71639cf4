"""InfoNCE around a backend's one pass over the negatives: what takes O(N · D) before and after.

Eq. 1 with the positive's logit s⁺ = q̂·k̂⁺/τ and lse the log-sum-exp over the negatives is
ℓ = softplus(lse − s⁺). With O the negatives' softmax-weighted mean (DESIGN, identity 2),

    dℓ/dq̂ = (1 − σ)(O − k̂⁺)/τ,    σ = e^{s⁺}/(e^{s⁺} + e^{lse}),

so that lse and O serve every positive of a query, and any upstream gradient of any pair.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .buffers import compute_dtype
from .protocol import Backend
from .units import Rows, full_precision, saturated


def losses(
    backend: Backend,
    queries: Tensor,  # [B, V, D]
    positives: Tensor,  # [B, P, D]
    negatives: Tensor | None,  # [K, D]; None: the positives of the other images
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(ℓ [B, V, P], 1 − σ [B, V, P], O [B, V, D]), fp32, or fp64 if any input is."""
    images, crops, dim = queries.shape
    with full_precision(queries.device.type):
        dtype = compute_dtype(queries, positives, negatives)
        units = Rows(queries, dtype).unit
        own = None
        if negatives is None:
            negatives, own = positives.flatten(0, 1), (crops, positives.shape[1])
        lse, mean = backend.info_nce(
            units.flatten(0, 1).contiguous(), negatives, temperature, queries.dtype, own
        )
        logits = units @ Rows(positives, dtype).unit.mT / temperature
        gap = lse.view(images, crops, 1) - logits
        # Not softplus with its threshold: above 20 it would drop what fp64 still resolves.
        loss = F.relu(gap) + torch.log1p(torch.exp(-gap.abs()))
        return loss, torch.sigmoid(gap), mean.view(images, crops, dim)


def gradient(
    upstream: Tensor,  # [B, V, P]
    queries: Tensor,  # [B, V, D]
    positives: Tensor,  # [B, P, D]
    pull: Tensor,  # [B, V, P] 1 − σ
    mean: Tensor,  # [B, V, D] O
    temperature: float,
) -> Tensor:
    """Σ over pairs of upstream · dℓ/dq, [B, V, D] in the dtype of the queries."""
    with full_precision(queries.device.type):
        q = Rows(queries, mean.dtype)
        weights = upstream.to(mean.dtype) * pull
        direction = weights.sum(-1, keepdim=True) * mean
        direction = direction - weights @ Rows(positives, mean.dtype).unit
        across = direction - (direction * q.unit).sum(-1, keepdim=True) * q.unit
        result = q.gradient(across / temperature)
        # fp16 reaches inf where a loss scaler is too large: it looks for that.
        return (result if queries.dtype == torch.float16 else saturated(result, queries.dtype)).to(
            queries.dtype
        )
