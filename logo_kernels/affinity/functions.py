"""The learned affinity's MLP over pairs as autograd Functions, batch norm included.

`Affinity` and `Objective` are whole: unit vectors, the first product once per crop for each half of
W₁, the pairs' hidden layer, the second product, and each image's mean over its pairs. One Function
each, since a node of autograd costs the host more than a kernel's launch. The formulas: pairs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..autograd import batched, no_tangents, once, references
from ..backends import Backend
from ..buffers import compute_dtype
from ..operators import settled
from . import norm as layers
from . import products
from .pairs import LINKS, key_of
from .units import UnitBackwardCall, UnitCall, is_view_major, unit_backward
from .units import unit as to_units

# Of the MLP as `of_module` gives it: w₁, b₁, the first norm's weight and bias, w₂, b₂, the second
# norm's, w₃, b₃.
PARAMETERS = 10
KEPT = 8  # tensors that a pass over the pairs keeps for its backward

# Constants reach the Functions as one tuple, and none of them needs a gradient.
NONE_NEEDED = (False,) * PARAMETERS

# What is no parameter: the dtype of the products, the states of both norms, the backend.
Settings = tuple[torch.dtype, layers.State, layers.State, str]


def of_module(
    mlp: nn.Sequential, dtype: torch.dtype, backend: str
) -> tuple[Settings, tuple[Tensor, ...]]:
    """What the Functions take of a LocalAffinity: settings, parameters."""
    first, norm, _, second, other, _, last = cast(Any, mlp._modules.values())
    parameters: list[Any] = []
    for layer in (first, norm, second, other, last):
        own = layer._parameters  # an attribute of a module costs the host a microsecond
        parameters += own["weight"], own["bias"]
    return (dtype, layers.state(norm), layers.state(other), backend), tuple(parameters)


class Affinity(torch.autograd.Function):
    """[B]: each image's mean over its pairs of softplus(f), of crops z [B, L, D]."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        settings: Settings,
        constants: tuple[Tensor, ...] | None,  # the parameters, if none of them needs a gradient
        *parameters: Tensor,
    ) -> Tensor:
        dtype, *states, backend = settings
        mlp, needed = parameters, ctx.needs_input_grad[3:]
        if constants is not None:
            mlp, needed = constants, NONE_NEEDED
        ctx.backend, by = backend, settled_for(z, dtype, mlp, states, backend)
        unit, factors = to_units(UnitCall(z, dtype), by)
        a, c, u, v, second = halves(unit, mlp)
        value, ctx.seen, kept = forward(a, c, second, mlp, states, 0, "softplus", needed, by)
        ctx.save_for_backward(unit, factors, u, v, second, *kept)
        ctx.inputs = *references(z), *parameters
        ctx.shared = any(map(layers.is_shared, states))
        ctx.dtype, ctx.view_major = z.dtype, is_view_major(z)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return guarded(affinity_gradients, ctx, grad)


def affinity_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    unit, factors, u, v, second, *kept = saved = ctx.saved_tensors
    of_z, _, _, *of_parameters = ctx.needs_input_grad
    needed = of_parameters or NONE_NEEDED
    to_z = to_weight = None
    backend = settled((grad, *saved), key_of(unit.device, unit.dtype), ctx.backend)
    found = backward(grad, kept, second, ctx.seen, 0, of_z, needed, backend)
    if of_z or needed[0]:
        grad_a, grad_c = found[:2]
        assert grad_a is not None
        assert grad_c is not None
        to_a, to_c = rows_of(grad_a), rows_of(grad_c)
    if needed[0]:
        to_weight = u.new_empty(len(u), 2 * u.shape[1])
        for half, to_half in zip(to_weight.chunk(2, 1), (to_a, to_c), strict=True):
            products.weight_gradient(to_half, rows_of(unit), half)
    if of_z:
        to_unit = products.input_gradient(to_a, u)
        products.add_input_gradient(to_c, v, to_unit)
        call = UnitBackwardCall(to_unit.view(unit.shape), unit, factors, ctx.dtype, ctx.view_major)
        to_z = unit_backward(call, backend).grad_z
    if not of_parameters:
        return to_z, None, None
    return to_z, None, None, *to_parameters(needed, to_weight, *found[2:])


class Objective(torch.autograd.Function):
    """A scalar, the mean over images: of unlike + alike with noise, of unlike − alike without.

    alike: the mean over the pairs of an image; noise [2, B, 1, D] · deviation, if there is any, is
    added to their crops. unlike: the mean over the pairs of an image and the next one. z [B, L, D]
    is a constant.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        settings: Settings,
        noise: Tensor | None,
        deviation: float,
        *mlp: Tensor,
    ) -> Tensor:
        dtype, *states, backend = settings
        ctx.backend, by = backend, settled_for(z, dtype, mlp, states, backend)
        unit, _ = to_units(UnitCall(z, dtype), by)
        a, c, u, v, second = halves(unit, mlp)
        near, far = ("identity", "identity") if noise is None else ("softplus_negated", "softplus")
        noisy_a, noisy_c = a, c
        if noise is not None:  # a product of B rows instead of B·L
            of_a, of_c = (
                products.linear(rows_of(noise[0]), u),
                products.linear(rows_of(noise[1]), v),
            )
            noisy_a = torch.add(a, of_a.unsqueeze(1), alpha=deviation)
            noisy_c = torch.add(c, of_c.unsqueeze(1), alpha=deviation)
        needed = ctx.needs_input_grad[4:]
        alike, seen, kept = forward(noisy_a, noisy_c, second, mlp, states, 0, near, needed, by)
        unlike, far_seen, far_kept = forward(a, c, second, mlp, states, 1, far, needed, by)
        ctx.save_for_backward(unit, noise, second, *kept, *far_kept)
        ctx.shape = len(u), 2 * u.shape[1]
        ctx.inputs = mlp
        ctx.shared = any(map(layers.is_shared, states))
        ctx.seen, ctx.deviation = (seen, far_seen), deviation
        return (unlike - alike if noise is None else unlike + alike).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return guarded(objective_gradients, ctx, grad)


def objective_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    unit, noise, second, *kept = saved = ctx.saved_tensors
    needed, images = ctx.needs_input_grad[4:], unit.shape[0]
    backend = settled((grad, *saved), key_of(unit.device, unit.dtype), ctx.backend)
    share = grad / images
    of_alike = (-share if noise is None else share).expand(images)
    near = backward(of_alike, kept[:KEPT], second, ctx.seen[0], 0, False, needed, backend)
    far = backward(
        share.expand(images), kept[KEPT:], second, ctx.seen[1], 1, False, needed, backend, near[4]
    )
    to_weight = None
    if needed[0]:
        to_weight = second.new_empty(ctx.shape)
        for k, half in enumerate(to_weight.chunk(2, 1)):
            of_near, of_far = near[k], far[k]
            assert of_near is not None
            assert of_far is not None
            products.weight_gradient(rows_of(of_near + of_far), rows_of(unit), half)
            if noise is not None:
                half.addmm_(of_near.sum(1).mT, rows_of(noise[k]), alpha=ctx.deviation)
    facts, other_facts = near[2], near[3].add_(far[3])
    if facts is not None and far[2] is not None:
        facts.add_(far[2])
    last = near[5] + far[5] if near[5] is not None and far[5] is not None else None
    to_mlp = to_parameters(needed, to_weight, facts, other_facts, far[4], last)
    return None, None, None, None, *to_mlp


def settled_for(
    z: Tensor,
    dtype: torch.dtype,
    mlp: Sequence[Tensor],
    states: Sequence[layers.State],
    backend: str,
) -> str | Backend:
    """`settled`, of a forward pass."""
    statistics = (*states[0][:3], *states[1][:3])
    return settled((z, *mlp, *statistics), key_of(z.device, dtype), backend)


def rows_of(crops: Tensor) -> Tensor:
    """[B·L, ..] of [B, L, ..]."""
    return crops.flatten(0, 1)


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`.to`, which costs the host as much as a kernel's launch even where it does nothing."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def halves(unit: Tensor, mlp: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """a = U·ẑ and c = V·ẑ + b₁, [B, L, H]; U, V and W₂; all in the dtype of ẑ [B, L, D].

    W₁ = [U, V].
    """
    dtype, (images, crops, _) = unit.dtype, unit.shape
    weight, second = as_dtype(mlp[0], dtype), as_dtype(mlp[4], dtype)
    u, v = weight.chunk(2, 1)
    rows, shape = rows_of(unit), (images, crops, weight.shape[0])
    a, c = products.linear(rows, u), products.linear(rows, v, as_dtype(mlp[1], dtype))
    return a.view(shape), c.view(shape), u, v, second


def forward(
    a: Tensor,
    c: Tensor,
    second: Tensor,
    mlp: Sequence[Tensor],
    states: Sequence[layers.State],
    roll: int,
    link: str,
    needed: Sequence[bool],
    backend: str | Backend,
) -> tuple[Tensor, tuple[layers.Seen, layers.Seen], tuple[Tensor | None, ...]]:
    """(value [B], what was seen, what is kept) of one pass over pairs."""
    _, _, weight, bias, _, second_bias, other_weight, other_bias, last, last_bias = mlp
    wide, pairs = compute_dtype(a), a.shape[1] * (a.shape[1] - 1)
    last, last_bias = as_dtype(last[0], wide), as_dtype(last_bias, wide)
    weight, bias = as_dtype(weight, wide), as_dtype(bias, wide)
    x, norm, seen = layers.hidden_layer(a, c, weight, bias, states[0], roll, backend)
    y = products.linear(x, second, as_dtype(second_bias, x.dtype))
    weight, bias = as_dtype(other_weight, wide), as_dtype(other_bias, wide)
    value, slope, other_norm, other_seen = layers.output_layer(
        y, weight, bias, states[1], last, last_bias, pairs, LINKS[link], backend
    )
    of_second = x if needed[4] else None  # nothing but the gradient to W₂ takes it
    return value, (seen, other_seen), (a, c, norm, of_second, y, other_norm, last, slope)


# Gradients to a and c; facts of the hidden layer and of the output; to W₂ and to b₃.
Found = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None]


def backward(
    grad: Tensor,
    kept: Sequence[Tensor],
    second: Tensor,
    seen: tuple[layers.Seen, layers.Seen],
    roll: int,
    of_z: bool,
    needed: Sequence[bool],
    backend: str | Backend,
    to_second: Tensor | None = None,
) -> Found:
    """The gradients that z and the `needed` parameters want, from grad [B].

    The gradient to W₂ is added to `to_second`, if there is one.
    """
    a, c, norm, x, y, other_norm, last, slope = kept
    grad_y, other_facts = layers.output_gradient(
        y, other_norm, last, slope, grad, seen[1], any(needed[5:9]), backend
    )
    to_last = None
    if needed[9]:
        if grad.stride(0) == 0:  # upstream was a mean or a sum over images
            to_last = slope.sum() * grad[0]
        else:
            to_last = slope.view(grad.shape[0], -1).sum(1).dot(grad)
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


def to_parameters(
    needed: Sequence[bool],
    to_weight: Tensor | None,
    facts: Tensor | None,
    other_facts: Tensor,
    to_second: Tensor | None,
    to_last: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients in the order of the parameters."""
    if not any(needed):
        return (None,) * PARAMETERS
    _, _, to_norm, to_norm_bias, to_bias = (None,) * 5 if facts is None else facts.unbind()
    _, _, to_other, to_other_bias, to_second_bias, _ = other_facts.unbind()
    found = (
        to_weight, to_bias, to_norm, to_norm_bias, to_second, to_second_bias,
        to_other, to_other_bias, other_facts[5:], None if to_last is None else to_last.view(1),
    )  # fmt: skip
    return tuple(v if wants else None for v, wants in zip(found, needed, strict=True))


def guarded(
    gradients: Callable[[Any, Tensor], tuple[Tensor | None, ...]], ctx: Any, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients that are found, once differentiable."""
    no_tangents("LocalAffinity", (grad,))
    if batched(grad):
        gradients = one_by_one(gradients)
    if not torch.is_grad_enabled():
        return gradients(ctx, grad)
    with torch.no_grad():
        found = gradients(ctx, grad)
    return tuple(once(found, grad, *ctx.inputs))


def one_by_one(
    gradients: Callable[[Any, Tensor], tuple[Tensor | None, ...]],
) -> Callable[[Any, Tensor], tuple[Tensor | None, ...]]:
    """`gradients` of a batched upstream gradient, [] or [B]: they are linear in it.

    Products write in place, which torch refuses for batched tensors, so each image's share is found
    for an upstream gradient of one, and then weighed.
    """

    def summed(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.shared:
            raise RuntimeError(
                "LocalAffinity with SyncBatchNorm over several ranks takes no batched gradients "
                "(is_grads_batched, vmap); loop over the upstream gradients"
            )
        total: list[Tensor | None] = []
        for image in range(grad.numel()):
            one = torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device)
            one.view(-1)[image] = 1
            weight = grad if grad.ndim == 0 else grad[image]
            shares = [None if g is None else (g * weight).to(g.dtype) for g in gradients(ctx, one)]
            total = [added(*both) for both in zip(total, shares, strict=True)] if total else shares
        return tuple(total)

    return summed


def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a + b
