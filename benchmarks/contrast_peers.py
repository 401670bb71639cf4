"""What a user would write for InfoNCE over crops and a queue, each at its best.

A peer maps x [B, G, D], y [B, L, D], t [B, G, D], n [K, D] to the scalar of ``logo_loss(x, y, t,
similarity="info_nce", negatives=n, temperature=TEMPERATURE, affinity=None)``; gradients come from
autograd.

- ``six calls``  one InfoNCE for each pair of crops, as the published code does: 6 for G = L = 2
- ``once``       the logits of every crop with the negatives once, for all its positives
- ``attention``  torch's flash attention with keys = values, called directly: no logits in memory
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.2


def six_calls(x: Tensor, y: Tensor, t: Tensor, n: Tensor) -> Tensor:
    """Cross entropy with the positive in front of the negatives, pair by pair."""
    xs, ys = F.normalize(x, dim=-1).unbind(1), F.normalize(y, dim=-1).unbind(1)
    ts, keys = F.normalize(t, dim=-1).unbind(1), F.normalize(n, dim=-1)

    def call(query: Tensor, key: Tensor) -> Tensor:
        positive = (query * key).sum(-1, keepdim=True)
        logits = torch.cat([positive, query @ keys.mT], 1) / TEMPERATURE
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=x.device))

    loss = x.new_zeros(())
    for i, x_i in enumerate(xs):
        for j, t_j in enumerate(ts):
            if i != j:
                loss = loss + 0.5 * call(x_i, t_j)
    for y_i in ys:
        for t_j in ts:
            loss = loss + call(y_i, t_j)
    return loss


def once(x: Tensor, y: Tensor, t: Tensor, n: Tensor) -> Tensor:
    """log Σ e^logit of every crop once; each pair is a softplus of its difference to that."""
    queries = F.normalize(torch.cat([x, y], 1), dim=-1)
    lse = (queries @ F.normalize(n, dim=-1).mT / TEMPERATURE).logsumexp(-1, keepdim=True)
    return total(lse - queries @ F.normalize(t, dim=-1).mT / TEMPERATURE, x)


def attention(x: Tensor, y: Tensor, t: Tensor, n: Tensor) -> Tensor:
    """The softmax-weighted mean O and the log-sum-exp from one attention call; ∂lse/∂q̂ = O/τ."""
    queries = F.normalize(torch.cat([x, y], 1), dim=-1)
    keys = F.normalize(n, dim=-1)[None, None]
    rows = queries.detach().reshape(1, 1, -1, queries.shape[-1])
    run = (
        torch.ops.aten._scaled_dot_product_flash_attention
        if x.is_cuda
        else torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    )
    mean, lse = run(rows, keys, keys, scale=1 / TEMPERATURE)[:2]
    mean, lse = mean.view_as(queries), lse.reshape(*queries.shape[:2], 1).to(queries.dtype)
    linear = (queries * mean).sum(-1, keepdim=True) / TEMPERATURE
    lse = lse + linear - linear.detach()  # the value of lse, the gradient O/τ
    return total(lse - queries @ F.normalize(t, dim=-1).mT / TEMPERATURE, x)


def total(gap: Tensor, x: Tensor) -> Tensor:
    """Eqs. 3 and 4 from lse − s⁺ of all pairs [B, G + L, G]."""
    losses = F.softplus(gap, threshold=50)
    pairs = losses.sum() - losses.diagonal(dim1=1, dim2=2).sum()
    gg = losses[:, : x.shape[1]]
    return (pairs - 0.5 * (gg.sum() - gg.diagonal(dim1=1, dim2=2).sum())) / x.shape[0]


INFO_NCE: dict[str, Callable[..., Tensor]] = {
    "six calls": six_calls,
    "once": once,
    "attention": attention,
}
