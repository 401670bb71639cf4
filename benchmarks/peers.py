"""What a user would write without this package, each at its best.

A cosine peer maps x [B, G, D], y [B, L, D], any r [B, L, D], t [B, G, D] to the scalar
``logo_loss(x, y, t, repulsion_features=r, repulsion_weight=REPULSION)``; gradients come from
autograd. Three ways to the same sums (eqs. 3-5):

- ``pairs``     one cosine per pair of crops, as the published code goes through them
- ``products``  one batched product per kind of pair; the cosines are the products of the raw rows
                times the inverse norms, which spares the normalised copies (measured: up to half
                the time of ``bmm(normalize(x), normalize(t))``)
- ``sums``      no pairs at all: Σ_ij x̂_i·t̂_j = (Σ x̂_i)·(Σ t̂_j); the least work in eager PyTorch

What is summed over images is summed in fp32: an fp16 loss cannot even hold a loss scaler's factor.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from forms import Function

REPULSION = 0.3  # λ: large enough for an error in the repulsion to show in the gate


def pairs(x: Tensor, y: Tensor, *rest: Tensor) -> Tensor:
    """-Σ cos over pairs of global crops, -Σ over local to global, +λ Σ over local pairs."""
    *features, t = rest
    xs, ys, ts = x.unbind(1), y.unbind(1), t.unbind(1)
    rs = features[0].unbind(1) if features else ys
    dtype = summed_in(x)
    loss = x.new_zeros((), dtype=dtype)
    for i, x_i in enumerate(xs):
        for j, t_j in enumerate(ts):
            if i != j:
                loss = loss - 0.5 * cosine_similarity(x_i, t_j, dim=1).mean(dtype=dtype)
    for y_i in ys:
        for t_j in ts:
            loss = loss - cosine_similarity(y_i, t_j, dim=1).mean(dtype=dtype)
    for i, r_i in enumerate(rs):
        for r_j in rs[:i]:
            loss = loss + REPULSION * cosine_similarity(r_i, r_j, dim=1).mean(dtype=dtype)
    return loss


def products(x: Tensor, y: Tensor, *rest: Tensor) -> Tensor:
    """Three batched products of raw rows, scaled to cosines."""
    *features, t = rest
    # In fp16 a loss scaler's gradient times a product of raw rows has no room.
    wide = torch.float32 if x.dtype == torch.float16 else None
    t_scale, y_scale = _inverse_norms(t, wide), _inverse_norms(y, wide)
    r, r_scale = (features[0], _inverse_norms(features[0], wide)) if features else (y, y_scale)
    x_t = (x @ t.mT) * (_inverse_norms(x, wide) * t_scale.mT)  # [B, G, G]
    y_t = (y @ t.mT) * (y_scale * t_scale.mT)  # [B, L, G]
    r_r = (r @ r.mT) * (r_scale * r_scale.mT)  # [B, L, L], ones on the diagonal
    dtype = summed_in(x)
    gg = x_t.sum(dtype=dtype) - x_t.diagonal(dim1=1, dim2=2).sum(dtype=dtype)
    ll = (r_r.sum(dtype=dtype) - r.shape[0] * r.shape[1]) / 2
    return (-0.5 * gg - y_t.sum(dtype=dtype) + REPULSION * ll) / x.shape[0]


def sums(x: Tensor, y: Tensor, *rest: Tensor) -> Tensor:
    """Sums of unit rows in place of pairs; the norms enter as weights of the sums."""
    *features, t = rest
    x_scale, y_scale, t_scale = _inverse_norms(x), _inverse_norms(y), _inverse_norms(t)
    t_sum = t_scale.mT @ t  # [B, 1, D]
    y_sum = y_scale.mT @ y
    r_sum = _inverse_norms(features[0]).mT @ features[0] if features else y_sum
    others = t_sum - t_scale * t  # [B, G, D]: for each global crop, the targets of the others
    dtype = summed_in(x)
    gg = ((x * others).sum(-1, keepdim=True) * x_scale).sum(dtype=dtype)
    lg = (y_sum * t_sum).sum(dtype=dtype)
    ll = ((r_sum * r_sum).sum(dtype=dtype) - y.shape[0] * y.shape[1]) / 2
    return (-0.5 * gg - lg + REPULSION * ll) / x.shape[0]


def summed_in(rows: Tensor) -> torch.dtype:
    """fp32, or fp64 of fp64 rows."""
    return torch.promote_types(rows.dtype, torch.float32)


def _inverse_norms(rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=dtype)
    return norms.clamp_min(1e-12).reciprocal()


def broadcast_similarity(a: Tensor, b: Tensor | None = None) -> Tensor:
    """PyTorch's own cosine_similarity over all pairs at once."""
    b = a if b is None else b
    return cosine_similarity(a.unsqueeze(2), b.unsqueeze(1), dim=-1)


def product_similarity(a: Tensor, b: Tensor | None = None) -> Tensor:
    """One batched product of raw rows, scaled to cosines."""
    a_scale = _inverse_norms(a)
    if b is None:
        return (a @ a.mT) * (a_scale * a_scale.mT)
    return (a @ b.mT) * (a_scale * _inverse_norms(b).mT)


COSINE: dict[str, Function] = {"pairs": pairs, "products": products, "sums": sums}
SIMILARITY: dict[str, Function] = {
    "broadcast": broadcast_similarity,
    "products": product_similarity,
}
