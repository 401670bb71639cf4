"""The losses as their equations read, differentiated by autograd, with no formula of the package
in them; and what a careful user would write instead, who rounds as we may.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from support import leaves

Terms = tuple[Tensor, Tensor, Tensor, Tensor]  # total, gg, lg, ll


def composed(
    gg: list[Tensor], lg: list[Tensor], ll: list[Tensor], weight: float, pair_reduction: str
) -> Terms:
    """Eqs 3-5 and 9 from what they sum: of ordered global pairs, of local pairs i < j."""
    zero = torch.zeros_like((gg + lg)[0])
    sums = [sum(pairs, zero) for pairs in (gg, lg, ll)]
    means = [s / max(1, len(pairs)) for s, pairs in zip(sums, (gg, lg, ll), strict=True)]
    if pair_reduction == "sum":
        total = sums[0] / 2 + sums[1] + weight * sums[2]
    else:
        total = (sums[0] + sums[1]) / (len(gg) + len(lg)) + weight * means[2]
    return total, *means


def cosine(a: Tensor, b: Tensor) -> Tensor:
    norms = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(norms == 0, 0, (a * b).sum(-1) / torch.where(norms == 0, 1, norms))


def pairwise_cosine(
    x: Tensor,  # [B, G, D]
    y: Tensor | None,  # [B, L, D]
    t: Tensor | None,
    r: Tensor | None,
    weight: float,
    pair_reduction: str,
    repulsion: bool = True,
) -> Terms:
    """Each [B], one pair at a time."""
    t = x.detach() if t is None else t.detach()
    crops, locals_ = x.shape[1], 0 if y is None else y.shape[1]
    gg = [-cosine(x[:, i], t[:, j]) for i in range(crops) for j in range(crops) if i != j]
    lg = [-cosine(y[:, i], t[:, j]) for i in range(locals_) for j in range(crops)]
    r = y if r is None else r
    pairs = [(i, j) for i in range(locals_) for j in range(i + 1, locals_)]
    ll = [cosine(r[:, i], r[:, j]) for i, j in pairs] if repulsion else []
    return composed(gg, lg, ll, weight, pair_reduction)


def exact_cosine(
    x: Tensor,
    y: Tensor | None,
    t: Tensor | None,
    r: Tensor | None,
    weight: float,
    pair_reduction: str,
    reduction: str,
    upstream: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor | None]]:
    """(terms, gradients of x, y, r that are there), in float64; beside `support.run_cosine`."""
    x, y, r = leaves(x, y, r, dtype=torch.float64)
    terms = pairwise_cosine(x, y, None if t is None else t.double(), r, weight, pair_reduction)
    if reduction != "none":
        terms = [v.mean() if reduction == "mean" else v.sum() for v in terms]
    terms[0].backward(upstream)
    return [v.detach() for v in terms], [v.grad for v in (x, y, r) if v is not None]


def eager_cosine(
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


def unit(rows: Tensor) -> Tensor:
    """In float64, of rows of any norm; a zero row stays one."""
    rows = rows.double()
    largest = rows.detach().abs().amax(-1, keepdim=True)
    scaled = rows / torch.where(largest == 0, 1, largest)
    norm = scaled.norm(dim=-1, keepdim=True)
    return scaled / torch.where(norm == 0, 1, norm)


def softmax_over_negatives(
    queries: Tensor,  # [N, D]
    negatives: Tensor,  # [K, D]
    temperature: float | Tensor,
    own: tuple[int, int] | None = None,  # (V, P): query n does not see negatives k//P == n//V
) -> tuple[Tensor, Tensor]:
    """(lse [N], mean [N, D]) in float64: the log of the denominator's sum, and Σ softmax · n̂."""
    units = unit(negatives)
    logits = unit(queries) @ units.mT / temperature
    if own is not None:
        of_query = torch.arange(len(queries), device=queries.device) // own[0]
        of_negative = torch.arange(len(negatives), device=queries.device) // own[1]
        logits = logits.masked_fill(of_query[:, None] == of_negative, -torch.inf)
    return logits.logsumexp(1), logits.softmax(1) @ units


def pairwise_info_nce(q: Tensor, k: Tensor, n: Tensor, temperature: float | Tensor) -> Tensor:
    """Eq. 1 as it stands, one pair at a time: [N, P]."""
    negatives = unit(q) @ unit(n).mT / temperature  # [N, K]
    losses = []
    for p in range(k.shape[1]):
        positive = (unit(q) * unit(k[:, p])).sum(-1, keepdim=True) / temperature
        losses.append(torch.cat([positive, negatives], 1).logsumexp(1) - positive[:, 0])
    return torch.stack(losses, 1)


def eager_info_nce(q: Tensor, k: Tensor, n: Tensor, temperature: float) -> Tensor:
    """What a user writes: normalised crops, a matrix product, cross entropy, in their dtype."""
    qn, kn, nn = (F.normalize(v, dim=-1) for v in (q, k.to(q.dtype), n.to(q.dtype)))
    negatives = qn @ nn.mT / temperature
    losses = []
    for p in range(k.shape[1]):
        positive = (qn * kn[:, p]).sum(-1, keepdim=True) / temperature
        logits = torch.cat([positive, negatives], 1)
        labels = torch.zeros(len(q), dtype=torch.long)
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
    return torch.stack(losses, 1)


def pairwise_contrast(
    x: Tensor,
    y: Tensor | None,
    t: Tensor,
    r: Tensor | None,
    n: Tensor | str,  # [K, D] or "batch"
    temperature: float,
    weight: float,
    pair_reduction: str,
) -> Tensor:
    """The LoGo loss with eq. 1 for attraction: the four terms of each image, [4, B]."""
    images, globals_ = x.shape[:2]
    of_images = []
    for image in range(images):
        others = n
        if isinstance(n, str):
            others = torch.cat([t[other] for other in range(images) if other != image])
        both = x[image] if y is None else torch.cat([x[image], y[image]])
        pairs = pairwise_info_nce(both, t[image].expand(len(both), -1, -1), others, temperature)
        gg = [pairs[i, j] for i in range(globals_) for j in range(globals_) if i != j]
        lg = list(pairs[globals_:].flatten())
        seen = unit((y if r is None else r)[image])
        ll = [seen[i] @ seen[j] for i in range(len(seen)) for j in range(i)]
        of_images.append(torch.stack(composed(gg, lg, ll, weight, pair_reduction)))
    return torch.stack(of_images, 1)
