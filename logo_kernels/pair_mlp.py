"""The learned affinity's pair stage as autograd Functions, batch norm included.

`Halves` is the first product, `hidden` maps its two halves to the pairs' hidden layer, `Product` is
the second one, and `output` maps it to each image's mean over its pairs. What is computed, and by
which formula, stands in backends/pairs.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from . import pair_ops as ops
from . import products
from .autograd import differentiated_once


def hidden(norm: BatchNorm, a: Tensor, c: Tensor, roll: int, backend: str) -> Tensor:
    """relu(norm(h)) of all pairs: a, c [B, L, H] -> [P, H]; updates norm's running statistics."""
    images, crops, _ = a.shape
    seen = statistics(
        norm,
        lambda: ops.hidden_moments(a.detach(), c.detach(), roll, backend),
        images * crops * (crops - 1),
    )
    return PairHidden.apply(a, c, norm.weight, norm.bias, *seen, norm.eps, roll, backend)


def output(
    norm: BatchNorm, last: nn.Linear, y: Tensor, pairs: int, link: int, backend: str
) -> Tensor:
    """Mean over each image's pairs of link(last(relu(norm(y)))): [P, H'] -> [P / pairs]."""
    seen = statistics(norm, lambda: ops.output_moments(y.detach(), backend), len(y))
    return PairOutput.apply(
        y, norm.weight, norm.bias, last.weight, last.bias, *seen, norm.eps, pairs, link, backend
    )


class Statistics(NamedTuple):
    """By what a batch norm normalises, and what its gradient needs to know about them."""

    mean: Tensor  # [H]
    var: Tensor  # [H], biased
    size: int | Tensor  # how many values mean and var are of, over all ranks; 0: constants
    group: Any  # the process group that shares them, or None


def statistics(norm: BatchNorm, moments: Callable[[], Tensor], count: int) -> Statistics:
    """Those of the batch (and then the running ones follow), or the running ones."""
    if not norm.training and norm.running_mean is not None and norm.running_var is not None:
        return Statistics(norm.running_mean, norm.running_var, 0, None)
    group = None
    if norm.training and isinstance(norm, nn.SyncBatchNorm) and dist.is_initialized():
        group = norm.process_group or dist.group.WORLD
        group = group if dist.get_world_size(group) > 1 else None
    with torch.no_grad():
        mean, var = moments()
        total: int | Tensor = count
        if group is not None:
            mean, var, total = over_ranks(mean, var, count, group)
        elif count == 1:
            raise ValueError(
                "batch norm in training mode needs more than one pair, got 1: pass more images or "
                "crops, or call .eval()"
            )
        if norm.training and norm.running_mean is not None:
            follow(norm, mean, var * (total / (total - 1)))
    return Statistics(mean, var, total, group)


def over_ranks(mean: Tensor, var: Tensor, count: int, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of the values of all ranks together."""
    own = torch.cat([mean, var, mean.new_tensor([count])])
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group)
    width = len(mean)
    means, variances, counts = torch.stack(every).split([width, width, 1], 1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    var = (counts * (variances + (means - mean).square())).sum(0) / total
    return mean, var, total


def follow(norm: BatchNorm, mean: Tensor, unbiased: Tensor) -> None:
    """Running statistics, as torch's batch norm keeps them."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share: Any = norm.momentum
    if share is None:  # the mean over all batches
        share = 1 / norm.num_batches_tracked.to(norm.running_mean.dtype)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)


class Product(torch.autograd.Function):
    """y = x·Wᵀ + b in the dtype of x: [N, K], [M, K], [M] -> [N, M]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.dtypes = weight.dtype, bias.dtype
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        return products.linear(x, weight, bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        answers: list[Tensor | None] = [None] * 3
        with torch.no_grad():
            if ctx.needs_input_grad[0]:
                answers[0] = products.input_gradient(grad, weight)
            if ctx.needs_input_grad[1]:
                to_weight = products.weight_gradient(grad, x, torch.empty_like(weight))
                answers[1] = to_weight.to(ctx.dtypes[0])
            if ctx.needs_input_grad[2]:
                answers[2] = grad.sum(0).to(ctx.dtypes[1])
        return tuple(wanted(answers, ctx.needs_input_grad))


class Halves(torch.autograd.Function):
    """a = U·z and c = V·z + b, [B, L, H], for W = [U, V] [H, 2 D] and z [B, L, D].

    By itself autograd would add two gradients to z and put that to W together from two.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.dtypes = z.dtype, weight.dtype, bias.dtype
        rows, weight = z.to(dtype).flatten(0, 1), weight.to(dtype)
        ctx.save_for_backward(rows, weight)
        u, v = weight.split(z.shape[-1], 1)
        a, c = products.linear(rows, u), products.linear(rows, v, bias.to(dtype))
        return a.unflatten(0, z.shape[:2]), c.unflatten(0, z.shape[:2])

    @staticmethod
    def backward(ctx: Any, grad_a: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        dim = rows.shape[1]
        of_z, of_weight, of_bias = ctx.dtypes
        answers: list[Tensor | None] = [None] * 3
        with torch.no_grad():
            to_a, to_c = grad_a.flatten(0, 1), grad_c.flatten(0, 1)
            if ctx.needs_input_grad[0]:
                u, v = weight.split(dim, 1)
                to_z = products.input_gradient(to_a, u).add_(products.input_gradient(to_c, v))
                answers[0] = to_z.unflatten(0, grad_a.shape[:2]).to(of_z)
            if ctx.needs_input_grad[1]:
                to_weight = torch.empty_like(weight)
                for half, grad in zip(to_weight.split(dim, 1), (to_a, to_c), strict=True):
                    products.weight_gradient(grad, rows, half)
                answers[1] = to_weight.to(of_weight)
            if ctx.needs_input_grad[2]:
                answers[2] = to_c.sum(0).to(of_bias)
        return *wanted(answers, ctx.needs_input_grad), None


class PairHidden(torch.autograd.Function):
    """x [P, H] = relu(norm(a_i + c_j)); keeps a and c, not the pairs."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,  # [B, L, H]
        c: Tensor,  # [B, L, H]
        weight: Tensor,  # [H]
        bias: Tensor,  # [H]
        mean: Tensor,
        var: Tensor,
        size: int | Tensor,
        group: Any,
        eps: float,
        roll: int,
        backend: str,
    ) -> Tensor:
        norm, inverse = folded(weight, bias, mean, var, eps, a)
        ctx.save_for_backward(a, c, norm, inverse)
        ctx.size, ctx.group, ctx.roll, ctx.backend = size, group, roll, backend
        return ops.hidden(a, c, norm, roll, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, c, norm, inverse = ctx.saved_tensors
        to_a, to_c, sums = ops.hidden_sums(grad.contiguous(), a, c, norm, ctx.roll, ctx.backend)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            correction = corrections(sums, inverse, ctx.size, ctx.group)
            to_a, to_c = ops.hidden_backward(
                to_a, to_c, a, c, norm, correction, ctx.roll, ctx.backend
            )
        answers = (to_a, to_c, sums[1] * inverse, sums[0])
        return *wanted(answers, ctx.needs_input_grad), *(None,) * 7


class PairOutput(torch.autograd.Function):
    """value [P / pairs]: each image's mean over its pairs of link(w·relu(norm(y)) + b)."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,  # [P, H']
        weight: Tensor,  # [H']
        bias: Tensor,  # [H']
        last_weight: Tensor,  # [1, H']
        last_bias: Tensor,  # [1]
        mean: Tensor,
        var: Tensor,
        size: int | Tensor,
        group: Any,
        eps: float,
        pairs: int,
        link: int,
        backend: str,
    ) -> Tensor:
        norm, inverse = folded(weight, bias, mean, var, eps, y)
        last = last_weight[0].to(norm.dtype)
        value, slope = ops.output(y, norm, last, last_bias.to(norm.dtype), pairs, link, backend)
        ctx.save_for_backward(y, norm, inverse, last, slope)
        ctx.size, ctx.group, ctx.pairs, ctx.backend = size, group, pairs, backend
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, norm, inverse, last, slope = ctx.saved_tensors
        pairs, backend = ctx.pairs, ctx.backend
        grad = grad.contiguous()
        answers: list[Tensor | None] = [None] * 5
        if isinstance(ctx.size, Tensor) or ctx.size > 0 or any(ctx.needs_input_grad[1:4]):
            sums = ops.output_sums(y, norm, slope, grad, pairs, backend)
            weighted = sums * last
            answers[1], answers[2] = weighted[1] * inverse, weighted[0]
            answers[3] = torch.addcmul(sums[1] * norm[1], sums[0], norm[2]).unsqueeze(0)
            correction = corrections(weighted, inverse, ctx.size, ctx.group)
        else:
            correction = torch.zeros_like(norm[:2])
        if ctx.needs_input_grad[4]:
            answers[4] = slope.view(-1, pairs).sum(1).dot(grad).unsqueeze(0)
        if ctx.needs_input_grad[0]:
            answers[0] = ops.output_backward(y, norm, last, slope, grad, correction, pairs, backend)
        return *wanted(answers, ctx.needs_input_grad), *(None,) * 8


def folded(
    weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Batch norm as (mean, scale, bias) [3, H], and 1/√(var + ε) [H]; fp32, fp64 for fp64."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    inverse = (var.to(dtype) + eps).rsqrt()
    return torch.stack([mean.to(dtype), weight.to(dtype) * inverse, bias.to(dtype)]), inverse


def corrections(sums: Tensor, inverse: Tensor, size: int | Tensor, group: Any) -> Tensor:
    """What the statistics' own gradients subtract, [2, H]; sums are (Σ m, Σ m·(v − mean))."""
    if not isinstance(size, Tensor) and size == 0:
        return torch.zeros_like(sums)
    if group is not None:
        sums = sums.clone()
        dist.all_reduce(sums, group=group)
    return torch.stack([sums[0], sums[1] * inverse.square()]) / size


def wanted(
    answers: tuple[Tensor | None, ...] | list[Tensor | None], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """The gradients that are asked for, once differentiable."""
    pairs = zip(answers, needed, strict=False)
    return [differentiated_once(g) if wants and g is not None else None for g, wants in pairs]
