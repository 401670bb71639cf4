"""Oracles and inputs for the tests, independent of the package's own formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from logo_kernels.backends import Backend
from logo_kernels.backends.protocol import InfoNCECall, InfoNCEResult


def pairwise_loss(
    x: Tensor,
    y: Tensor | None,
    t: Tensor | None,
    r: Tensor | None,
    weight: float,
    pair_reduction: str,
    repulsion: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(total, gg, lg, ll), each [B], one pair at a time from eqs 2-5 and 9, by autograd."""
    t = x.detach() if t is None else t.detach()
    crops, locals_ = x.shape[1], 0 if y is None else y.shape[1]
    zero = torch.zeros(x.shape[0], dtype=x.dtype)

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        norms = a.norm(dim=-1) * b.norm(dim=-1)
        return torch.where(norms == 0, 0, (a * b).sum(-1) / torch.where(norms == 0, 1, norms))

    gg = [-cosine(x[:, i], t[:, j]) for i in range(crops) for j in range(crops) if i != j]
    lg = [-cosine(y[:, i], t[:, j]) for i in range(locals_) for j in range(crops)]
    r = y if r is None else r
    pairs = [(i, j) for i in range(locals_) for j in range(i + 1, locals_)]
    ll = [cosine(r[:, i], r[:, j]) for i, j in pairs] if repulsion else []
    sums = [sum(terms, zero) for terms in (gg, lg, ll)]
    means = [s / max(1, len(terms)) for s, terms in zip(sums, (gg, lg, ll), strict=True)]
    if pair_reduction == "sum":
        total = sums[0] / 2 + sums[1] + weight * sums[2]
    else:
        total = (sums[0] + sums[1]) / (len(gg) + len(lg)) + weight * means[2]
    return total, *means


def eager_loss(
    x: Tensor, y: Tensor | None, t: Tensor | None, r: Tensor | None, weight: float
) -> Tensor:
    """What a careful user writes: matrix products of normalised crops. [B], pair_reduction sum."""
    xn = F.normalize(x, dim=-1)
    tn = xn.detach() if t is None else F.normalize(t.detach(), dim=-1).to(x.dtype)
    gg = xn @ tn.mT
    total = -0.5 * (gg.sum((1, 2)) - gg.diagonal(dim1=1, dim2=2).sum(1))
    if y is not None:
        yn = F.normalize(y, dim=-1)
        total = total - (yn @ tn.mT).sum((1, 2))
        rn = yn if r is None else F.normalize(r, dim=-1)
        ll = rn @ rn.mT
        total = total + weight * 0.5 * (ll.sum((1, 2)) - ll.diagonal(dim1=1, dim2=2).sum(1))
    return total


def crops(
    images: int,
    globals_: int,
    locals_: int,
    dim: int,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    targets: bool = False,
    features: bool = False,
    device: str = "cpu",
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """x, y, t, r with values that every dtype represents alike (they come from `dtype`)."""
    generator = torch.Generator().manual_seed(seed)

    def block(count: int) -> Tensor:
        return torch.randn(images, count, dim, generator=generator).to(dtype).to(device)

    return (
        block(globals_),
        block(locals_) if locals_ else None,
        block(globals_) if targets else None,
        block(locals_) if locals_ and features else None,
    )


def leaves(*tensors: Tensor | None, dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """Copies that require gradients, with the strides of the originals."""
    return [
        None if v is None else v.detach().clone().to(dtype or v.dtype).requires_grad_()
        for v in tensors
    ]


def error(value: Tensor, exact: Tensor) -> float:
    """Largest absolute difference, in fp64; NaN counts as infinite."""
    difference = (value.detach().double().cpu() - exact.detach().double().cpu()).abs()
    if difference.isnan().any():
        return float("inf")
    return float(difference.max()) if difference.numel() else 0.0


EPS = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
}


def attend(
    backend: Backend,
    queries: Tensor,  # [N, D]
    negatives: Tensor,  # [K, D]
    temperature: float | Tensor,
    own: tuple[int, int] | None = None,  # (V, P): query n does not see negatives k//P == n//V
) -> tuple[Tensor, Tensor]:
    """(lse [N], mean [N, D]): the softmax over the negatives that `Backend.info_nce` finds."""
    local, positives = queries.unsqueeze(1), torch.zeros_like(queries).unsqueeze(1)
    if own is not None:
        local, positives = (
            rows.unflatten(0, (-1, count))
            for rows, count in zip((queries, negatives), own, strict=True)
        )
    learned = isinstance(temperature, Tensor)
    call = InfoNCECall(
        None, local, positives, None if own else negatives,
        1.0 if learned else temperature, temperature if learned else None, 0.0, 1.0, "none",
    )  # fmt: skip
    result = InfoNCEResult.empty(call)
    for buffer in result:
        buffer.fill_(torch.nan)  # what is not written shows
    backend.info_nce(call, result)
    return result.lse.flatten(), result.mean.flatten(0, 1)
