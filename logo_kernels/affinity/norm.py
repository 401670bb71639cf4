"""The affinity's two layers with batch norm, and the statistics that each of them takes.

A layer is one kernel call if its statistics are the running ones or come from this process's pairs.
Otherwise it is a call for each of its parts, with small operators of torch between them: ranks
share the statistics (SyncBatchNorm), or the running ones have another dtype than the sums.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from ..backends import Backend
from ..buffers import compute_dtype
from . import pairs as ops

# The running statistics mean, var and batches, or None; then batch, momentum and eps as the layers'
# records have them; then the ranks that share the statistics, or None.
State = tuple[Tensor | None, Tensor | None, Tensor | None, bool, float, float, Any]

# What the gradient needs to know of the statistics: whether they are a batch's; of a layer in
# parts, the number of their values over all ranks, and the ranks.
Seen = tuple[bool, int | Tensor | None, Any]


def state(norm: BatchNorm) -> State:
    """The statistics of a batch norm, read from its module."""
    training, buffers = norm.training, norm._buffers
    mean, var = buffers["running_mean"], buffers["running_var"]
    if not training and mean is not None and var is not None:
        return mean, var, None, False, 0.0, norm.eps, None
    if not training or mean is None:
        return None, None, None, True, 0.0, norm.eps, _group(norm) if training else None
    momentum = -1.0 if norm.momentum is None else norm.momentum
    return mean, var, buffers["num_batches_tracked"], True, momentum, norm.eps, _group(norm)


def _group(norm: BatchNorm) -> Any:
    if not isinstance(norm, nn.SyncBatchNorm) or not dist.is_initialized():
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def is_shared(of: State) -> bool:
    """Whether ranks share the statistics."""
    return of[6] is not None


def _in_parts(of: State, wide: torch.dtype) -> bool:
    mean, _, _, batch, _, _, group = of
    return group is not None or (batch and mean is not None and mean.dtype != wide)


def hidden_layer(
    a: Tensor, c: Tensor, weight: Tensor, bias: Tensor, of: State, roll: int, backend: str | Backend
) -> tuple[Tensor, Tensor, Seen]:
    """(X [P, H], norm [4, H], what its gradient needs to know) from a, c [B, L, H].

    weight and bias, of batch norm, are of the dtype of sums, here as below.
    """
    wide = compute_dtype(a)
    if _in_parts(of, wide):
        images, crops, _ = a.shape
        moments = ops.hidden_moments(ops.HiddenMomentsCall(a, c, roll), backend).moments
        norm, seen = _norm(moments, images * crops * (crops - 1), weight, bias, of)
        return ops.hidden(ops.HiddenCall(a, c, norm, roll), backend).x, norm, seen
    mean, var, batches, batch, momentum, eps, _ = of
    if not batch:
        assert mean is not None
        assert var is not None
        mean, var = mean.to(wide), var.to(wide)
    call = ops.HiddenLayerCall(a, c, weight, bias, mean, var, batches, batch, momentum, eps, roll)
    x, norm = ops.hidden_layer(call, backend)
    return x, norm, (batch, None, None)


def hidden_gradient(
    grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, seen: Seen, roll: int, backend: str | Backend
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to a and c, and facts [5, H]."""
    batch, total, group = seen
    if total is None:
        call = ops.HiddenGradientCall(grad, a, c, norm, batch, roll)
        return ops.hidden_gradient(call, backend)[:3]
    to_a, to_c, sums = ops.hidden_sums(ops.HiddenSumsCall(grad, a, c, norm, roll), backend)
    correction = _correction(sums, norm[3], total, group)
    after = ops.HiddenBackwardCall(to_a, to_c, a, c, norm, correction, roll)
    grad_a, grad_c = ops.hidden_backward(after, backend)
    before = grad_c.sum((0, 1), dtype=norm.dtype)
    facts = torch.stack([*correction, sums[1] * norm[3], sums[0], before])
    return grad_a, grad_c, facts


def output_layer(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    of: State,
    last: Tensor,
    last_bias: Tensor,
    pairs: int,
    link: int,
    backend: str | Backend,
) -> tuple[Tensor, Tensor, Tensor, Seen]:
    """(value [P / pairs], slope [P], norm [4, H'], what its gradient needs to know)."""
    wide = compute_dtype(y)
    if _in_parts(of, wide):
        moments = ops.output_moments(ops.OutputMomentsCall(y), backend).moments
        norm, seen = _norm(moments, len(y), weight, bias, of)
        made = ops.output(ops.OutputCall(y, norm, last, last_bias, pairs, link), backend)
        return *made, norm, seen
    mean, var, batches, batch, momentum, eps, _ = of
    if not batch:
        assert mean is not None
        assert var is not None
        mean, var = mean.to(wide), var.to(wide)
    call = ops.OutputLayerCall(
        y, weight, bias, mean, var, batches, batch, momentum, eps, last, last_bias, pairs, link
    )
    return *ops.output_layer(call, backend), (batch, None, None)


def output_gradient(
    y: Tensor,
    norm: Tensor,
    last: Tensor,
    slope: Tensor,
    grad: Tensor,
    seen: Seen,
    parameters: bool,
    backend: str | Backend,
) -> tuple[Tensor, Tensor]:
    """Gradient to y, and facts [6, H']."""
    batch, total, group = seen
    pairs = y.shape[0] // grad.shape[0]
    if total is None:
        call = ops.OutputGradientCall(y, norm, last, slope, grad, batch, parameters, pairs)
        return ops.output_gradient(call, backend)
    grad = grad.contiguous()
    sums = ops.output_sums(ops.OutputSumsCall(y, norm, slope, grad, pairs), backend).sums
    weighted = sums * last
    correction = _correction(weighted, norm[3], total, group)
    after = ops.OutputBackwardCall(y, norm, last, slope, grad, correction, pairs)
    grad_y = ops.output_backward(after, backend).grad_y
    facts = torch.stack(
        [
            *correction, weighted[1] * norm[3], weighted[0], grad_y.sum(0, dtype=norm.dtype),
            torch.addcmul(sums[1] * norm[1], sums[0], norm[2]),
        ]
    )  # fmt: skip
    return grad_y, facts


def _norm(
    moments: Tensor, count: int, weight: Tensor, bias: Tensor, of: State
) -> tuple[Tensor, Seen]:
    """norm [4, H] from this process's moments; the running statistics follow."""
    mean, var, batches, _, momentum, eps, group = of
    batch_mean, batch_var = moments
    total: int | Tensor = count
    if group is not None:
        batch_mean, batch_var, total = over_ranks(batch_mean, batch_var, count, group)
    if mean is not None and var is not None and batches is not None:
        batches.add_(1)
        share: Any = momentum if momentum >= 0 else 1 / batches.to(mean.dtype)
        mean.lerp_(batch_mean.to(mean.dtype), share)
        var.lerp_((batch_var * (total / (total - 1))).to(var.dtype), share)
    inverse = (batch_var + eps).rsqrt()
    return torch.stack([batch_mean, weight * inverse, bias, inverse]), (True, total, group)


def over_ranks(mean: Tensor, var: Tensor, count: int, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of the values of all ranks together."""
    own = torch.cat([mean, var, mean.new_full((1,), count)])
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group)
    width = len(mean)
    means, variances, counts = torch.stack(every).split([width, width, 1], 1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    var = (counts * (variances + (means - mean).square())).sum(0) / total
    return mean, var, total


def _correction(sums: Tensor, inverse: Tensor, total: int | Tensor, group: Any) -> Tensor:
    """The gradient's part through the statistics, [2, H], from sums (Σ m, Σ m·(v − mean))."""
    if group is not None:
        sums = sums.clone()
        dist.all_reduce(sums, group=group)
    return torch.stack([sums[0], sums[1] * inverse.square()]) / total
