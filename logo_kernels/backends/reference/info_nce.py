"""InfoNCE in readable PyTorch (eq. 1): what every backend's `info_nce` is tested against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ...units import UnitRows, full_precision, near, saturated

if TYPE_CHECKING:
    from ...contrast import InfoNCEBackwardCall, InfoNCECall, InfoNCEGradients, InfoNCEResult


def info_nce(call: InfoNCECall, result: InfoNCEResult) -> None:
    """`Backend.info_nce`."""
    with torch.no_grad(), full_precision(call.queries.device.type):
        queries = UnitRows(_joined(call), call.dtype).unit  # [B, V, D]
        positives = UnitRows(call.positives, call.dtype).unit  # [B, P, D]
        images = len(queries)
        negatives = positives.flatten(0, 1)  # [K, D]
        if call.negatives is not None:
            negatives = UnitRows(call.negatives, call.dtype).unit
        tau = _temperature(call, call.dtype)

        # The sum over the negatives, and their mean under the softmax. Cosines are subtracted
        # before they are divided by τ: a quotient's last digit may be more than one, or infinite.
        cosines = queries @ negatives.mT  # [B, V, K]
        if call.excludes_own:
            image = torch.arange(images, device=cosines.device)
            own = image.repeat_interleave(positives.shape[1]) == image[:, None]  # [B, B·P]
            others = own.new_zeros(images, len(negatives) - own.shape[1])
            own = torch.cat([own, others], 1)  # [B, K]
            cosines = cosines.masked_fill(own.unsqueeze(1), -torch.inf)
        most = cosines.amax(-1, keepdim=True)  # [B, V, 1]
        powers = torch.exp((cosines - most) / tau)
        sums = powers.sum(-1, keepdim=True)
        result.lse.copy_((most / tau + sums.log()).squeeze(-1))
        result.mean.copy_(powers @ negatives / sums)

        # eq. 1 of each pair: −log(e^{s⁺} / (e^{s⁺} + e^{lse})) = softplus(lse − s⁺), without the
        # threshold of torch's softplus: above 20 it would drop what fp64 still resolves. In units
        # of a power of two, so that a sum is a number where the mean is one.
        unit = _loss_unit(tau)
        gap = (most - queries @ positives.mT) * unit / tau + unit * sums.log()  # [B, V, P]
        losses = F.relu(gap) + unit * torch.log1p(torch.exp(-(gap / unit).abs()))
        pairs, weights = _pairs(call, gap)
        share = 1 / images if call.reduction == "mean" else 1.0
        result.pull.copy_(torch.where(pairs, weights * share * torch.sigmoid(gap / unit), 0))
        if call.reduction == "pairs":
            result.total.copy_(saturated(losses / unit, call.dtype))
            return

        # eqs 3, 4, 9
        globals_, locals_, count = call.counts
        losses = torch.where(pairs, losses, 0)
        total = (weights * losses).sum((1, 2))
        gg = losses[:, :globals_].sum((1, 2)) / max(1, globals_ * (globals_ - 1))
        lg = losses[:, globals_:].sum((1, 2)) / max(1, locals_ * count)
        terms = torch.stack([gg, lg])
        if call.reduction != "none":
            total, terms = share * total.sum(), share * terms.sum(1)
        result.total.copy_(saturated(total / unit, call.dtype))
        if result.terms is not None:
            result.terms.copy_(saturated(terms / unit, call.dtype))


def info_nce_backward(call: InfoNCEBackwardCall, result: InfoNCEGradients) -> None:
    """`Backend.info_nce_backward`."""
    upstream, pull, mean = call.upstream, call.pull, call.mean
    with torch.no_grad(), full_precision(call.queries.device.type):
        q = UnitRows(_joined(call), mean.dtype)
        upstream = upstream.view(*upstream.shape, *[1] * (3 - upstream.ndim))  # as [B, V, P]
        weights = upstream * pull
        direction = weights.sum(-1, keepdim=True) * mean
        direction = direction - weights @ UnitRows(call.positives, mean.dtype).unit
        along = (direction * q.unit).sum(-1, keepdim=True)
        tau = _temperature(call, mean.dtype)
        exactly = call.temperature if call.temperature_tensor is None else tau
        gradient = q.gradient_over(direction - along * q.unit, exactly)
        finite = saturated(gradient, call.queries.dtype)
        if call.queries.dtype == torch.float16:  # see `InfoNCEBackwardCall`
            finite = torch.where(upstream.abs().amax(-1, keepdim=True) > 1, gradient, finite)
        globals_ = 0 if call.global_crops is None else call.global_crops.shape[1]
        for buffer, of in (
            (result.grad_global, finite[:, :globals_]),
            (result.grad_local, finite[:, globals_:]),
        ):
            if buffer is not None:
                buffer.copy_(of)
        if result.grad_temperature is not None:
            to_temperature = -along.sum() / tau / tau
            result.grad_temperature.copy_(saturated(to_temperature, mean.dtype))


def _temperature(call: InfoNCECall | InfoNCEBackwardCall, dtype: torch.dtype) -> Tensor:
    """τ [] on the device; NaN in the place of a tensor's value that is not positive."""
    tau = call.temperature_tensor
    if tau is None:  # a GPU would multiply by the inverse of a number, which may be infinite
        return call.positives.new_full((), near(call.temperature, dtype), dtype=dtype)
    return torch.where(tau > 0, tau, torch.nan)


def _loss_unit(tau: Tensor) -> Tensor:
    """The power of two by which losses, as large as 2/τ, are multiplied before they are summed."""
    half = 64 if tau.dtype == torch.float32 else 512
    return torch.ones_like(tau).masked_fill(tau < 2.0 ** (4 - half), 2.0**-half)


def _pairs(call: InfoNCECall, like: Tensor) -> tuple[Tensor, Tensor]:
    """Which [V, P] are pairs, and the weight of a pair's loss in its image's total, [V, 1]."""
    globals_, locals_, positives = call.counts
    pairs = like.new_ones(globals_ + locals_, positives, dtype=torch.bool)
    pairs[:globals_].fill_diagonal_(False)  # a global crop is no positive of itself
    weights = like.new_full([globals_ + locals_, 1], call.lg_weight)
    weights[:globals_] = call.gg_weight
    return pairs, weights


def _joined(call: InfoNCECall | InfoNCEBackwardCall) -> Tensor:
    """All queries, [B, V, D]."""
    crops = [block for block in (call.global_crops, call.local_crops) if block is not None]
    return crops[0] if len(crops) == 1 else torch.cat(crops, 1)
