"""The learned affinity's MLP over pairs as autograd Functions, batch norm included.

`Affinity` and `Objective` are whole: unit vectors, the first product once per crop for each half of
W₁, the pairs' hidden layer, the second product, and each image's mean over its pairs. One Function
each, since a node of autograd costs the host more than a kernel's launch. What is computed, and by
which formula, stands in backends/pairs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import pair_layers as layers
from . import pair_ops as ops
from . import products
from .autograd import differentiated_once
from .backends.buffers import compute_dtype
from .backends.pairs import LINKS
from .backends.unit import is_view_major

# Of the MLP as `of_module` gives it: w₁, b₁, the first norm's weight and bias, w₂, b₂, the second
# norm's, w₃, b₃; then the states of both norms.
PARAMETERS = 10
KEPT = 8  # tensors that a pass over the pairs keeps for its backward


def of_module(mlp: nn.Sequential) -> tuple[Any, ...]:
    """The MLP's parameters and states."""
    first, norm, _, second, other, _, last = mlp
    return (
        first.weight, first.bias, norm.weight, norm.bias,
        second.weight, second.bias, other.weight, other.bias, last.weight, last.bias,
        *layers.state(norm), *layers.state(other),
    )  # fmt: skip


class Affinity(torch.autograd.Function):
    """[B]: each image's mean over its pairs of softplus(f), of crops z [B, L, D].

    Products are of `dtype`.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, dtype: torch.dtype, backend: str, *mlp: Any) -> Tensor:
        unit, factors = ops.unit(z, dtype, backend)
        a, c, weight, second = halves(unit, mlp)
        value, ctx.seen, kept = forward(a, c, second, mlp, 0, "softplus", backend)
        ctx.save_for_backward(unit, factors, weight, second, *kept)
        ctx.backend, ctx.dtype, ctx.view_major = backend, z.dtype, is_view_major(z)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        unit, factors, weight, second, *kept = ctx.saved_tensors
        of_z, _, _, *needed = ctx.needs_input_grad
        to_z = to_weight = None
        with torch.no_grad():
            found = backward(grad, kept, second, ctx.seen, 0, of_z, needed, ctx.backend)
            if of_z or needed[0]:
                rows, to_a, to_c = (v.flatten(0, 1) for v in (unit, *found[:2]))
            if needed[0]:
                to_weight = torch.empty_like(weight)
                for half, to_half in zip(split(to_weight), (to_a, to_c), strict=True):
                    products.weight_gradient(to_half, rows, half)
            if of_z:
                u, v = split(weight)
                to_unit = products.input_gradient(to_a, u)
                products.add_input_gradient(to_c, v, to_unit)
                to_z = ops.unit_backward(
                    to_unit.view_as(unit), unit, factors, ctx.dtype, ctx.view_major, ctx.backend
                )
            to_mlp = of_parameters(to_weight, *found[2:])
        return guarded(ctx, (to_z, None, None, *to_mlp))


class Objective(torch.autograd.Function):
    """Over images of a pair each, the mean of `unlike` − or, with noise, + `alike`: a scalar.

    Pairs of an image, to whose crops noise [2, B, 1, D] · deviation is added if it is given, and
    pairs of an image and the next one. z [B, L, D] is a constant.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        dtype: torch.dtype,
        backend: str,
        noise: Tensor | None,
        deviation: float,
        *mlp: Any,
    ) -> Tensor:
        unit, _ = ops.unit(z, dtype, backend)
        a, c, weight, second = halves(unit, mlp)
        near, far = ("identity", "identity") if noise is None else ("softplus_negated", "softplus")
        if noise is None:
            noisy = a, c
        else:  # a product of B rows instead of B·L
            noisy = tuple(
                torch.add(v, products.linear(n.flatten(0, 1), half).unsqueeze(1), alpha=deviation)
                for v, n, half in zip((a, c), noise.unbind(), split(weight), strict=True)
            )
        alike, *of_alike = forward(*noisy, second, mlp, 0, near, backend)
        unlike, *of_unlike = forward(a, c, second, mlp, 1, far, backend)
        ctx.save_for_backward(unit, noise, weight, second, *of_alike[1], *of_unlike[1])
        ctx.seen, ctx.backend, ctx.deviation = (of_alike[0], of_unlike[0]), backend, deviation
        return (unlike - alike if noise is None else unlike + alike).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        unit, noise, weight, second, *kept = ctx.saved_tensors
        needed = ctx.needs_input_grad[5:]
        images = len(unit)
        to_weight = None
        with torch.no_grad():
            share = grad / images
            of_alike = (-share if noise is None else share).expand(images)
            near = backward(
                of_alike, kept[:KEPT], second, ctx.seen[0], 0, False, needed, ctx.backend
            )
            far = backward(
                share.expand(images), kept[KEPT:], second, ctx.seen[1], 1, False, needed,
                ctx.backend, near[4],
            )  # fmt: skip
            if needed[0]:
                to_weight = torch.empty_like(weight)
                rows = unit.flatten(0, 1)
                for k, half in enumerate(split(to_weight)):
                    both = (near[k] + far[k]).flatten(0, 1)
                    products.weight_gradient(both, rows, half)
                    if noise is not None:
                        of_image = near[k].sum(1)
                        half.addmm_(of_image.mT, noise[k].flatten(0, 1), alpha=ctx.deviation)
            sums = (
                None if one is None else one.add_(other)
                for one, other in zip(near[2:4], far[2:4], strict=True)
            )
            last = None if near[5] is None else near[5] + far[5]
            to_mlp = of_parameters(to_weight, *sums, far[4], last)
        return guarded(ctx, (None,) * 5 + to_mlp)


def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """U and V, each [H, D], of W₁ = [U, V] [H, 2 D]."""
    u, v = weight.split(weight.shape[1] // 2, 1)
    return u, v


def halves(unit: Tensor, mlp: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a = U·ẑ and c = V·ẑ + b₁, [B, L, H]; and W₁ and W₂, all in the dtype of ẑ [B, L, D]."""
    dtype = unit.dtype
    weight, second = mlp[0].to(dtype), mlp[4].to(dtype)
    u, v = split(weight)
    rows, shape = unit.flatten(0, 1), (*unit.shape[:2], len(weight))
    a, c = products.linear(rows, u), products.linear(rows, v, mlp[1].to(dtype))
    return a.view(shape), c.view(shape), weight, second


def forward(
    a: Tensor,
    c: Tensor,
    second: Tensor,
    mlp: Sequence[Any],
    roll: int,
    link: str,
    backend: str,
) -> tuple[Tensor, tuple[layers.Seen, layers.Seen], tuple[Tensor, ...]]:
    """(value [B], what was seen, what is kept) of one pass over pairs."""
    _, _, weight, bias, _, second_bias, other_weight, other_bias, last, last_bias = mlp[:PARAMETERS]
    state, other = mlp[PARAMETERS : -layers.STATE], mlp[-layers.STATE :]
    wide, pairs = compute_dtype(a), a.shape[1] * (a.shape[1] - 1)
    last = last[0].to(wide)
    x, norm, seen = layers.hidden_layer(a, c, weight, bias, state, roll, backend)
    y = products.linear(x, second, second_bias.to(x.dtype))
    value, slope, other_norm, other_seen = layers.output_layer(
        y, other_weight, other_bias, other, last, last_bias.to(wide), pairs, LINKS[link], backend
    )
    return value, (seen, other_seen), (a, c, norm, x, y, other_norm, last, slope)


# Gradients to a and c; facts of the hidden layer and of the output; to W₂ and to b₃.
Found = tuple[
    Tensor | None, Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None
]


def backward(
    grad: Tensor,
    kept: Sequence[Tensor],
    second: Tensor,
    seen: tuple[layers.Seen, layers.Seen],
    roll: int,
    of_z: bool,
    needed: Sequence[bool],
    backend: str,
    to_second: Tensor | None = None,
) -> Found:
    """From grad [B], as far as the parameters that are `needed`, or z, want it.

    The gradient to W₂ is added to `to_second` if that is given.
    """
    a, c, norm, x, y, other_norm, last, slope = kept
    grad_y, other_facts = layers.output_gradient(
        y, other_norm, last, slope, grad, seen[1], any(needed[5:9]), backend
    )
    to_last = None
    if needed[9]:
        if grad.stride(0) == 0:  # the mean over images
            to_last = slope.sum() * grad[0]
        else:
            to_last = slope.view(len(grad), -1).sum(1).dot(grad)
    if needed[4]:
        if to_second is None:
            to_second = products.weight_gradient(grad_y, x, torch.empty_like(second))
        else:
            products.add_weight_gradient(grad_y, x, to_second)
    if not of_z and not any(needed[:4]):
        return None, None, None, other_facts, to_second, to_last
    grad_x = products.input_gradient(grad_y, second)
    del grad_y
    grad_a, grad_c, facts = layers.hidden_gradient(grad_x, a, c, norm, seen[0], roll, backend)
    return grad_a, grad_c, facts, other_facts, to_second, to_last


def of_parameters(
    to_weight: Tensor | None,
    facts: Tensor | None,
    other_facts: Tensor | None,
    to_second: Tensor | None,
    to_last: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients in the order of the parameters."""
    nothing = (None,) * 5
    _, _, to_norm, to_norm_bias, to_bias = nothing if facts is None else facts.unbind()
    assert other_facts is not None
    _, _, to_other, to_other_bias, to_second_bias, to_last_weight = other_facts.unbind()
    return (
        to_weight, to_bias, to_norm, to_norm_bias, to_second, to_second_bias,
        to_other, to_other_bias, to_last_weight.unsqueeze(0),
        None if to_last is None else to_last.unsqueeze(0),
    )  # fmt: skip


def guarded(ctx: Any, made: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The gradients that are asked for, once differentiable, one for each argument."""
    needed = ctx.needs_input_grad
    answers = [
        differentiated_once(gradient) if gradient is not None and wants else None
        for gradient, wants in zip(made, needed, strict=False)
    ]
    return *answers, *(None,) * (len(needed) - len(made))
