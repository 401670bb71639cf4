"""The loss in readable PyTorch, equation by equation: any device, any float dtype.

Every other backend is tested against this one in float64. Equation numbers are those of the paper
(LoGo, CVPR 2022, arXiv 2203.17205). Gradients are written out rather than taken by autograd, so
that this file states all that a kernel has to compute; tests hold them against autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference_info_nce
from .buffers import compute_dtype, cosine_result, gradient_like
from .protocol import (
    Backend,
    CosineResult,
    InfoNCECall,
    InfoNCEGradients,
    InfoNCEResult,
    PairWeights,
    Problem,
)
from .units import Rows, full_precision, saturated


class ReferenceBackend(Backend):
    name = "reference"

    def missing(self) -> str | None:
        return None

    def refuses(self, problem: Problem) -> str | None:
        return None

    def cosine(
        self,
        global_crops: Tensor,
        local_crops: Tensor | None,
        targets: Tensor | None,
        features: Tensor | None,
        weights: PairWeights,
        repulsion: bool,
        reduction: str,
        grad_global: bool,
        grad_local: bool,
        grad_features: bool,
    ) -> CosineResult:
        dtype = compute_dtype(global_crops, targets, features)
        result = cosine_result(
            global_crops, local_crops, targets, features, reduction,
            grad_global, grad_local, grad_features,
        )  # fmt: skip
        with full_precision(global_crops.device.type):
            x = Rows(global_crops, dtype)
            t = x if targets is None else Rows(targets, dtype)
            images, crops = x.unit.shape[:2]

            # eqs 2, 3: L_gg, the mean of −cos over the ordered pairs i ≠ j, targets constant
            x_t = x.unit @ t.unit.mT  # [B, G, G]
            pairs = x_t.new_ones(crops, crops).fill_diagonal_(0)
            gg = -(pairs * x_t).sum((1, 2))
            total = weights.gg * gg
            gg = gg / max(1, crops * (crops - 1))
            to_global = x.gradient(x.pull(-weights.gg * pairs.expand_as(x_t), t, x_t))
            to_local = to_features = None

            lg, ll = torch.zeros_like(gg), torch.zeros_like(gg)
            if local_crops is not None:
                # eqs 2, 4: L_lg, the mean of −cos over all pairs (local i, target j)
                y = Rows(local_crops, dtype)
                locals_ = y.unit.shape[1]
                y_t = y.unit @ t.unit.mT  # [B, L, G]
                lg = -y_t.sum((1, 2))
                total = total + weights.lg * lg
                lg = lg / (locals_ * crops)
                pull_local = y.pull(torch.full_like(y_t, -weights.lg), t, y_t)

                if repulsion and locals_ > 1:
                    # eq. 5 with ℓa = cos: L_ll over the unordered pairs i < j; as a sum over
                    # ordered pairs each one counts half, and each crop has a gradient from both
                    r = y if features is None else Rows(features, dtype)
                    r_r = r.unit @ r.unit.mT  # [B, L, L]
                    pairs = r_r.new_ones(locals_, locals_).fill_diagonal_(0)
                    ll = 0.5 * (pairs * r_r).sum((1, 2))
                    total = total + weights.ll * ll
                    ll = ll / (locals_ * (locals_ - 1) / 2)
                    push = r.pull(weights.ll * pairs.expand_as(r_r), r, r_r)
                    if features is None:
                        pull_local = pull_local + push
                    else:
                        to_features = r.gradient(push)
                to_local = y.gradient(pull_local)

            # eq. 9, and the reduction over images
            terms = torch.stack([gg, lg, ll])  # [3, B]
            if reduction != "none":
                total, terms = total.sum(), terms.sum(1)
            if reduction == "mean":
                total, terms = total / images, terms / images
            result.total.copy_(total)
            result.terms.copy_(terms)

            if to_features is None and features is not None:
                to_features = torch.zeros(features.shape, dtype=dtype, device=features.device)
            per_image = 1 / images if reduction == "mean" else 1.0
            first = 0
            for gradient, buffer in (
                (to_global, result.grad_global),
                (to_local, result.grad_local),
                (to_features, result.grad_features),
            ):
                if gradient is None:
                    continue
                rows = gradient.shape[1]
                if buffer.numel():
                    row_scale = result.row_scale[:, first : first + rows]
                    store_gradient(per_image * gradient, buffer, row_scale)
                first += rows
        return result

    def similarity(self, a: Tensor, b: Tensor | None) -> Tensor:
        with full_precision(a.device.type):
            x = Rows(a, compute_dtype(a))
            y = x if b is None else Rows(b, compute_dtype(b))
            return (x.unit @ y.unit.mT).to(a.dtype)

    def info_nce(self, call: InfoNCECall, result: InfoNCEResult) -> None:
        reference_info_nce.info_nce(call, result)

    def info_nce_backward(
        self,
        call: InfoNCECall,
        upstream: Tensor,
        pull: Tensor,
        mean: Tensor,
        gradients: InfoNCEGradients,
    ) -> None:
        reference_info_nce.info_nce_backward(call, upstream, pull, mean, gradients)

    def similarity_backward(
        self, grad: Tensor, a: Tensor, b: Tensor | None, grad_a: bool, grad_b: bool
    ) -> tuple[Tensor, Tensor]:
        to_a = gradient_like(a) if grad_a else a.new_empty(0)
        to_b = gradient_like(b) if b is not None and grad_b else a.new_empty(0)
        with full_precision(a.device.type):
            dtype = compute_dtype(a)
            upstream = grad.to(dtype)
            x = Rows(a, dtype)
            if b is None:  # a in both roles
                if grad_a:
                    both = upstream + upstream.mT
                    to_a.copy_(saturated(x.gradient(x.pull(both, x, x.unit @ x.unit.mT)), a.dtype))
                return to_a, to_b
            y = Rows(b, dtype)
            cosines = x.unit @ y.unit.mT
            if grad_a:
                to_a.copy_(saturated(x.gradient(x.pull(upstream, y, cosines)), a.dtype))
            if grad_b:
                to_b.copy_(saturated(y.gradient(y.pull(upstream.mT, x, cosines.mT)), b.dtype))
        return to_a, to_b


def store_gradient(gradient: Tensor, buffer: Tensor, row_scale: Tensor) -> None:
    """Writes gradient [B, V, D] to its buffer; fp16 rows divided by a power of two (see protocol).

    The scale puts the largest magnitude of a row in [2¹³, 2¹⁴): four times below the end of fp16.
    """
    if buffer.dtype != torch.float16:
        buffer.copy_(saturated(gradient, buffer.dtype))
        if row_scale.numel():
            row_scale.fill_(1)
        return
    gradient = saturated(gradient, torch.float16)
    _, exponent = torch.frexp(gradient.abs().amax(-1))  # magnitude in [2^(e−1), 2^e)
    scale = torch.ldexp(torch.ones_like(gradient[..., 0]), exponent - 14)
    row_scale.copy_(scale)
    buffer.copy_(gradient / scale.unsqueeze(-1))
