"""`logo_loss` with similarity="cosine": forward, and backward to the online crops and features.

A peer maps x [B, G, D], y [B, L, D], any r [B, L, D], t [B, G, D] to the scalar
``logo_loss(x, y, t, repulsion_features=r, repulsion_weight=REPULSION)``; gradients come from
autograd. Three ways to the sums of eqs. 3-5, each at its best:

- ``pairs``     one cosine per pair of crops, as the published code goes through them
- ``products``  one batched product per kind of pair; the cosines are the products of the raw rows
                times the inverse norms, which spares the normalised copies (measured: up to half
                the time of ``bmm(normalize(x), normalize(t))``)
- ``sums``      no pairs at all: Σ_ij x̂_i·t̂_j = (Σ x̂_i)·(Σ t̂_j); the least work in eager PyTorch
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from harness.case import ELEMENT_BYTES, Case, Inputs, crops, inverse_norms, summed_in, upstream_of
from harness.comparison import Contest, compare, contest_of, named
from harness.forms import Function
from logo_kernels import logo_loss

REPULSION = 0.3  # λ: large enough for an error in the repulsion to show in the gate


@dataclass(frozen=True)
class CosineCase(Case):
    images: int
    global_crops: int
    local_crops: int
    dim: int
    dtype: str
    why: str
    view_major: bool = False
    features: bool = False
    smoke: bool = False

    operation = "cosine"

    def shape(self) -> tuple[int | str, ...]:
        return self.images, self.global_crops, self.local_crops, self.dim

    def online(self) -> int:
        """Rows of an image that get a gradient."""
        return self.global_crops + self.local_crops * (1 + self.features)

    def moved_bytes(self) -> int:
        """Read x [B, G, D], y [B, L, D], t [B, G, D] and any r [B, L, D]; write dx, dy, dr.

        The loss and its terms, a handful of scalars, are left out.
        """
        rows = 2 * self.online() + self.global_crops  # read online and targets, write gradients
        return self.images * rows * self.dim * ELEMENT_BYTES[self.dtype]

    def flops(self) -> int:
        """Cosines pair by pair, and each gradient row as a combination of the rows it met.

        2D for each product of two rows and for each row added with a weight. An upper figure: the
        sums of eqs. 3-5 can be had for less, and no roof of arithmetic is near at any case here.
        """
        g, l = self.global_crops, self.local_crops  # noqa: E741
        norms = self.online() + g
        pairs = g * (g - 1) + l * g + l * (l - 1) // 2
        # to globals, to locals, repelled locals, and each row along itself
        combined = g * (g - 1) + l * g + l * (l - 1) + self.online()
        return 2 * self.dim * self.images * (norms + pairs + combined)


CASES = {
    "cpu": (
        CosineCase(8, 2, 2, 128, "float32", "the smallest: call overhead decides", smoke=True),
        CosineCase(8, 2, 8, 256, "float32", "small batch, many crops: overhead and little data"),
        CosineCase(256, 2, 2, 2048, "float32", "the paper's SimSiam-LoGo"),
        CosineCase(
            256, 2, 2, 2048, "float32", "the paper's, as its trainer calls it: h(z), z, view-major",
            view_major=True, features=True,
        ),
        CosineCase(256, 2, 8, 256, "float32", "fits the last-level cache"),
        CosineCase(256, 2, 8, 2048, "float32", "many crops, larger than the caches"),
        CosineCase(256, 2, 8, 2048, "float32", "many crops, strided over images", view_major=True),
        CosineCase(1024, 2, 8, 256, "float32", "many images, short rows"),
        CosineCase(8, 2, 2, 128, "bfloat16", "the smallest, under autocast"),
        CosineCase(256, 2, 8, 256, "bfloat16", "half the bytes, converted on the way"),
        CosineCase(256, 2, 8, 2048, "bfloat16", "half the bytes, larger than the caches"),
    ),
    # The largest first: if time runs out, they are what was worth measuring.
    "cuda": (
        CosineCase(8192, 2, 8, 2048, "bfloat16", "12 times the L2: bandwidth alone decides"),
        CosineCase(1024, 2, 8, 2048, "bfloat16", "a usual step under autocast"),
        CosineCase(1024, 2, 8, 2048, "float32", "a usual step"),
        CosineCase(8, 2, 2, 128, "float32", "the smallest: host overhead decides", smoke=True),
        CosineCase(1024, 2, 8, 2048, "float16", "fp16: gradients carry scales per row"),
        CosineCase(1024, 2, 8, 2048, "bfloat16", "strided over images", view_major=True),
        CosineCase(
            256, 2, 2, 2048, "bfloat16", "the paper's, as its trainer calls it",
            view_major=True, features=True,
        ),
        CosineCase(256, 2, 8, 2048, "float32", "fits the L2"),
        CosineCase(256, 2, 8, 2048, "bfloat16", "fits the L2 twice"),
        CosineCase(1024, 2, 8, 256, "bfloat16", "many images, short rows"),
        CosineCase(256, 2, 8, 256, "float32", "a few microseconds of data"),
        CosineCase(256, 2, 2, 2048, "float32", "the paper's SimSiam-LoGo"),
        CosineCase(8, 2, 8, 256, "bfloat16", "small batch, many crops"),
        CosineCase(8192, 2, 8, 2048, "float32", "1.5 GB moved"),
    ),
}  # fmt: skip


def inputs_of(case: CosineCase, device: str) -> Inputs:
    """x, y and any r as leaves, t as constant."""
    counts = [case.global_crops, case.local_crops] + [case.local_crops] * case.features
    *leaves, targets = crops([*counts, case.global_crops], case, device)
    return Inputs([leaf.requires_grad_() for leaf in leaves], [targets], case.view_major)


def loss(x: Tensor, y: Tensor, *rest: Tensor, backend: str = "auto") -> Tensor:
    """Ours in the peers' signature: x, y, any r, t."""
    *features, t = rest
    return logo_loss(
        x, y, t,
        repulsion_features=features[0] if features else None,
        repulsion_weight=REPULSION,
        backend=backend,
    )  # fmt: skip


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
    t_scale, y_scale = inverse_norms(t, wide), inverse_norms(y, wide)
    r, r_scale = (features[0], inverse_norms(features[0], wide)) if features else (y, y_scale)
    x_t = (x @ t.mT) * (inverse_norms(x, wide) * t_scale.mT)  # [B, G, G]
    y_t = (y @ t.mT) * (y_scale * t_scale.mT)  # [B, L, G]
    r_r = (r @ r.mT) * (r_scale * r_scale.mT)  # [B, L, L], ones on the diagonal
    dtype = summed_in(x)
    gg = x_t.sum(dtype=dtype) - x_t.diagonal(dim1=1, dim2=2).sum(dtype=dtype)
    ll = (r_r.sum(dtype=dtype) - r.shape[0] * r.shape[1]) / 2
    return (-0.5 * gg - y_t.sum(dtype=dtype) + REPULSION * ll) / x.shape[0]


def sums(x: Tensor, y: Tensor, *rest: Tensor) -> Tensor:
    """Sums of unit rows in place of pairs; the norms enter as weights of the sums."""
    *features, t = rest
    x_scale, y_scale, t_scale = inverse_norms(x), inverse_norms(y), inverse_norms(t)
    t_sum = t_scale.mT @ t  # [B, 1, D]
    y_sum = y_scale.mT @ y
    r_sum = inverse_norms(features[0]).mT @ features[0] if features else y_sum
    others = t_sum - t_scale * t  # [B, G, D]: for each global crop, the targets of the others
    dtype = summed_in(x)
    gg = ((x * others).sum(-1, keepdim=True) * x_scale).sum(dtype=dtype)
    lg = (y_sum * t_sum).sum(dtype=dtype)
    ll = ((r_sum * r_sum).sum(dtype=dtype) - y.shape[0] * y.shape[1]) / 2
    return (-0.5 * gg - lg + REPULSION * ll) / x.shape[0]


PEERS: dict[str, Function] = {"pairs": pairs, "products": products, "sums": sums}


def contest(case: CosineCase, device: str) -> Contest:
    return contest_of(
        case, device, inputs_of(case, device), named(loss), PEERS,
        upstream=upstream_of(case.dtype, device),
    )  # fmt: skip


def test_cosine(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))
