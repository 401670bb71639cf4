"""What a user would write for InfoNCE over crops and a queue, each at its best.

A peer maps x [B, G, D], y [B, L, D], t [B, G, D], n [K, D] to the scalar of ``logo_loss(x, y, t,
similarity="info_nce", negatives=n, temperature=TEMPERATURE, affinity=None)``; gradients come from
autograd.

- ``six calls``  one InfoNCE for each pair of crops, as the published code does: 6 for G = L = 2
- ``once``       the logits of every crop with the negatives once, for all its positives
- ``attention``  torch's flash attention with keys = values, called directly: no logits in memory
- ``cuDNN``      the same by cuDNN's, on a GPU

On a GPU, the keys of both are given in parts, or few queries would leave most of it idle.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from peers import summed_in

TEMPERATURE = 0.2

# [1, H, N, D] queries and [1, H, K, D] keys, which are the values too -> (O, log-sum-exp).
Engine = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def six_calls(x: Tensor, y: Tensor, t: Tensor, n: Tensor) -> Tensor:
    """Cross entropy with the positive in front of the negatives, pair by pair."""
    xs, ys = F.normalize(x, dim=-1).unbind(1), F.normalize(y, dim=-1).unbind(1)
    ts, keys = F.normalize(t, dim=-1).unbind(1), F.normalize(n, dim=-1)

    def call(query: Tensor, key: Tensor) -> Tensor:
        positive = (query * key).sum(-1, keepdim=True)
        logits = torch.cat([positive, query @ keys.mT], 1) / TEMPERATURE
        first = torch.zeros(len(query), dtype=torch.long, device=x.device)
        return F.cross_entropy(logits, first, reduction="none").mean(dtype=dtype)

    dtype = summed_in(x)
    loss = x.new_zeros((), dtype=dtype)
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
    """By torch's flash attention."""
    return by_attention(flash_engine, x, y, t, n)


def cudnn(x: Tensor, y: Tensor, t: Tensor, n: Tensor) -> Tensor:
    """By cuDNN's attention."""
    return by_attention(cudnn_engine, x, y, t, n)


def by_attention(engine: Engine, x: Tensor, y: Tensor, t: Tensor, n: Tensor) -> Tensor:
    """The softmax-weighted mean O and the log-sum-exp from one attention call; ∂lse/∂q̂ = O/τ."""
    queries = F.normalize(torch.cat([x, y], 1), dim=-1)
    rows = queries.detach().flatten(0, 1)
    keys = F.normalize(n, dim=-1)
    parts = parts_of(len(keys), len(rows), multiprocessors(x)) if x.is_cuda else 1
    mean, lse = attend(engine, rows, keys, parts)
    mean, lse = mean.view_as(queries), lse.view(*queries.shape[:2], 1).to(queries.dtype)
    linear = (queries * mean).sum(-1, keepdim=True) / TEMPERATURE
    lse = lse + linear - linear.detach()  # the value of lse, the gradient O/τ
    return total(lse - queries @ F.normalize(t, dim=-1).mT / TEMPERATURE, x)


def attend(engine: Engine, rows: Tensor, keys: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """(O [N, D], lse [N]) of rows [N, D] and keys [K, D], whose parts are given as heads."""
    heads = keys.view(1, parts, -1, keys.shape[1])
    mean, lse = engine(rows.expand(1, parts, *rows.shape), heads)
    if parts == 1:
        return mean.reshape(rows.shape), lse.reshape(-1)
    lse = lse.reshape(parts, -1, 1)
    share = lse.softmax(0)
    return (mean[0] * share).sum(0).to(rows.dtype), lse.logsumexp(0).reshape(-1)


def parts_of(keys: int, rows: int, multiprocessors: int) -> int:
    """Equal parts of the keys, so that blocks of 128 rows occupy a GPU, two to a multiprocessor."""
    parts = 1
    while keys % (2 * parts) == 0 and 2 * parts * -(-rows // 128) <= 2 * multiprocessors:
        parts *= 2
    return parts


def multiprocessors(tensor: Tensor) -> int:
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def flash_engine(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    run = (
        torch.ops.aten._scaled_dot_product_flash_attention
        if queries.is_cuda
        else torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    )
    return run(queries, keys, keys, scale=1 / TEMPERATURE)[:2]


def cudnn_engine(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    run = torch.ops.aten._scaled_dot_product_cudnn_attention
    return run(queries, keys, keys, None, True, scale=1 / TEMPERATURE)[:2]


def total(gap: Tensor, x: Tensor) -> Tensor:
    """Eqs. 3 and 4 from lse − s⁺ of all pairs [B, G + L, G]."""
    losses = F.softplus(gap, threshold=50)
    dtype = summed_in(x)
    gg = losses[:, : x.shape[1]]
    own = gg.diagonal(dim1=1, dim2=2).sum(dtype=dtype)
    return (losses.sum(dtype=dtype) - own - 0.5 * (gg.sum(dtype=dtype) - own)) / x.shape[0]


INFO_NCE: dict[str, Callable[..., Tensor]] = {
    "six calls": six_calls,
    "once": once,
    "attention": attention,
}

ON_A_GPU: dict[str, Callable[..., Tensor]] = {"cuDNN": cudnn}
