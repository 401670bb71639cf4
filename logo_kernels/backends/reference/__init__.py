"""The loss in readable PyTorch, equation by equation: any device, any float dtype.

Every other backend is tested against this one in float64. Equation numbers are those of the paper
(LoGo, CVPR 2022, arXiv 2203.17205). Gradients are written out rather than taken by autograd, so
that this file states all that a kernel has to compute; tests hold them against autograd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...buffers import compute_dtype
from ...units import UnitRows, full_precision, saturated, unit, unit_backward
from ..protocol import Backend, Request
from .info_nce import info_nce, info_nce_backward

if TYPE_CHECKING:
    from ...cosine import CosineCall, CosineResult
    from ...similarity import (
        SimilarityBackwardCall,
        SimilarityCall,
        SimilarityGradients,
        SimilarityResult,
    )


class ReferenceBackend(Backend):
    name = "reference"
    fuses_affinity = False
    info_nce = staticmethod(info_nce)
    info_nce_backward = staticmethod(info_nce_backward)
    unit = staticmethod(unit)
    unit_backward = staticmethod(unit_backward)

    def missing(self) -> str | None:
        return None

    def refuses(self, request: Request) -> str | None:
        return None

    @torch.no_grad()
    def cosine(self, call: CosineCall, result: CosineResult) -> None:
        dtype, images = call.dtype, call.online.shape[0]
        with full_precision(call.online.device.type):
            gg = lg = ll = call.online.new_zeros(images, dtype=dtype)
            total = torch.zeros_like(gg)
            to_global = to_local = to_features = None

            if call.global_crops is not None:
                # eqs 2, 3: L_gg, the mean of −cos over the ordered pairs i ≠ j, targets constant
                x = UnitRows(call.global_crops, dtype)
                t = x if call.targets is None else UnitRows(call.targets, dtype)
                crops = x.unit.shape[1]
                x_t = x.unit @ t.unit.mT  # [B, G, G]
                pairs = x_t.new_ones(crops, crops).fill_diagonal_(0)
                gg = -(pairs * x_t).sum((1, 2))
                total = total + call.gg_weight * gg
                gg = gg / max(1, crops * (crops - 1))
                to_global = x.gradient(x.pull(-call.gg_weight * pairs.expand_as(x_t), t, x_t))

            if call.local_crops is not None:
                y = UnitRows(call.local_crops, dtype)
                locals_ = y.unit.shape[1]
                pull_local = torch.zeros_like(y.unit)
                if call.global_crops is not None:
                    # eqs 2, 4: L_lg, the mean of −cos over all pairs (local i, target j)
                    y_t = y.unit @ t.unit.mT  # [B, L, G]
                    lg = -y_t.sum((1, 2))
                    total = total + call.lg_weight * lg
                    lg = lg / (locals_ * crops)
                    pull_local = y.pull(torch.full_like(y_t, -call.lg_weight), t, y_t)

                if call.repulsion and locals_ > 1:
                    # eq. 5 with ℓa = cos: L_ll over the unordered pairs i < j; as a sum over
                    # ordered pairs each one counts half, and each crop has a gradient from both
                    r = y if call.features is None else UnitRows(call.features, dtype)
                    r_r = r.unit @ r.unit.mT  # [B, L, L]
                    pairs = r_r.new_ones(locals_, locals_).fill_diagonal_(0)
                    ll = 0.5 * (pairs * r_r).sum((1, 2))
                    weight: float | Tensor = call.ll_weight
                    if call.repulsion_weight_tensor is not None:
                        weight = weight * call.repulsion_weight_tensor
                    total = total + weight * ll
                    ll = ll / (locals_ * (locals_ - 1) / 2)
                    push = r.pull(weight * pairs.expand_as(r_r), r, r_r)
                    if call.features is None:
                        pull_local = pull_local + push
                    else:
                        to_features = r.gradient(push)
                to_local = y.gradient(pull_local)

            # eq. 9, and the reduction over images
            terms = torch.stack([gg, lg, ll])  # [3, B]
            if call.reduction != "none":
                total, terms = total.sum(), terms.sum(1)
            if call.reduction == "mean":
                total, terms = total / images, terms / images
            result.total.copy_(total)
            if result.terms is not None:
                result.terms.copy_(terms)

            if to_features is None and call.features is not None:
                to_features = torch.zeros_like(call.features, dtype=dtype)
            per_image = 1 / images if call.reduction == "mean" else 1.0
            first = 0
            for gradient, buffer in (
                (to_global, result.grad_global),
                (to_local, result.grad_local),
                (to_features, result.grad_features),
            ):
                if gradient is None:
                    continue
                rows = gradient.shape[1]
                if buffer is not None:
                    scale = result.row_scale
                    row_scale = None if scale is None else scale[:, first : first + rows]
                    store_gradient(per_image * gradient, buffer, row_scale)
                first += rows

    @torch.no_grad()
    def similarity(self, call: SimilarityCall, result: SimilarityResult) -> None:
        a, b = call
        with full_precision(a.device.type):
            x = UnitRows(a, compute_dtype(a))
            y = x if b is None else UnitRows(b, compute_dtype(b))
            result.cosines.copy_(x.unit @ y.unit.mT)

    @torch.no_grad()
    def similarity_backward(
        self, call: SimilarityBackwardCall, result: SimilarityGradients
    ) -> None:
        a, b = call.a, call.b
        to_a, to_b = result
        with full_precision(a.device.type):
            dtype = compute_dtype(a)
            upstream = call.grad.to(dtype)
            x = UnitRows(a, dtype)
            if b is None:  # a in both roles
                if to_a is not None:
                    both = upstream + upstream.mT
                    gradient = x.gradient(x.pull(both, x, x.unit @ x.unit.mT))
                    to_a.copy_(saturated(gradient, a.dtype))
                return
            y = UnitRows(b, dtype)
            cosines = x.unit @ y.unit.mT
            if to_a is not None:
                to_a.copy_(saturated(x.gradient(x.pull(upstream, y, cosines)), a.dtype))
            if to_b is not None:
                to_b.copy_(saturated(y.gradient(y.pull(upstream.mT, x, cosines.mT)), b.dtype))


def store_gradient(gradient: Tensor, buffer: Tensor, row_scale: Tensor | None) -> None:
    """Writes gradient [B, V, D] to its buffer; fp16 rows over a power of two (`CosineResult`).

    The scale puts the largest magnitude of a row in [2¹³, 2¹⁴): four times below the end of fp16.
    """
    if buffer.dtype != torch.float16:
        buffer.copy_(saturated(gradient, buffer.dtype))
        if row_scale is not None:
            row_scale.fill_(1)
        return
    assert row_scale is not None
    gradient = saturated(gradient, torch.float16)
    _, exponent = torch.frexp(gradient.abs().amax(-1))  # magnitude in [2^(e−1), 2^e)
    scale = torch.ldexp(torch.ones_like(gradient[..., 0]), exponent - 14)
    row_scale.copy_(scale)
    buffer.copy_(gradient / scale.unsqueeze(-1))
