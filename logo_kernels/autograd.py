"""The autograd Functions over the registered operators.

`Cosine` computes its gradient in forward (DESIGN: dX = W·X in the same pass as the loss) and saves
nothing else; backward multiplies it by the upstream gradient. Neither can be differentiated twice:
a second derivative raises. `once_differentiable` would not do: where the upstream gradient is a
constant, as that of a loss is, it lets a gradient penalty pass for a constant, silently.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from .backends import AUTO, PairWeights, resolve
from .backends.protocol import scale_factor


class Cosine(torch.autograd.Function):
    """(total, terms) of the cosine LoGo loss; gradients to online crops and features only."""

    @staticmethod
    def forward(
        ctx: Any,
        global_crops: Tensor,  # [B, G, D]
        local_crops: Tensor | None,  # [B, L, D]
        targets: Tensor | None,  # [B, G, D]
        features: Tensor | None,  # [B, L, D]
        weights: PairWeights,
        repulsion: bool,
        reduction: str,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3])
        total, terms, *saved = ops.cosine(
            global_crops, local_crops, targets, features,
            *weights, repulsion, reduction, *wanted, backend,
        )  # fmt: skip
        ctx.save_for_backward(*saved)
        # The rows of row_scale [B, R] lie in the order global, local, features.
        rows = global_crops.shape[1], 0 if local_crops is None else local_crops.shape[1]
        ctx.first_rows = (0, rows[0], rows[0] + rows[1])
        ctx.wanted = wanted
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)  # no zeros for the gradient of terms
        return total, terms

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _terms: Any) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 8
        *gradients, row_scale = ctx.saved_tensors
        wanted = [index for index in range(3) if ctx.wanted[index]]
        scaled = scale(
            [gradients[index] for index in wanted],
            upstream,
            [row_scales_of(gradients[index], row_scale, ctx.first_rows[index]) for index in wanted],
        )
        found: list[Tensor | None] = [None, None, None]
        for index, gradient in zip(wanted, scaled, strict=True):
            found[index] = differentiated_once(gradient)
        return found[0], found[1], None, found[2], None, None, None, None


class Similarity(torch.autograd.Function):
    """Cosines between all pairs of rows; b None stands for a itself."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor | None, backend: str) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.backend = backend
        return ops.similarity(a, b, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        needs_a, needs_b = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        to_a, to_b = ops.similarity_backward(grad, a, b, needs_a, needs_b, ctx.backend)
        return (
            differentiated_once(to_a) if needs_a else None,
            differentiated_once(to_b) if needs_b else None,
            None,
        )


class NoSecondDerivative(torch.autograd.Function):
    """The identity on a gradient; raises when somebody differentiates it."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, _anchor: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, _upstream: Tensor) -> Any:
        raise RuntimeError(
            "logo_kernels: this loss can be differentiated once; its gradient, obtained with "
            "create_graph=True, has no derivative (a gradient penalty cannot be trained through it)"
        )


def differentiated_once(gradient: Tensor) -> Tensor:
    """`gradient`, guarded against a second derivative where create_graph asks for one."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return gradient  # compiled graphs refuse double backward by themselves
    anchor = torch.empty(0, device=gradient.device, requires_grad=True)  # ties it into the graph
    return NoSecondDerivative.apply(gradient, anchor)


def row_scales_of(gradient: Tensor, row_scale: Tensor, first: int) -> Tensor | None:
    """[B, V] of what an fp16 gradient [B, V, D] was divided by, from row `first` on; else None."""
    if gradient.dtype != torch.float16:
        return None
    return row_scale[:, first : first + gradient.shape[1]]


def scale(
    gradients: list[Tensor], upstream: Tensor, row_scales: list[Tensor | None]
) -> list[Tensor]:
    """Gradients [B, V_i, D] times upstream ([] or [B]) and their rows' scales ([B, V_i] or None).

    Returns the saved tensors themselves where that is right: nothing is multiplied when upstream is
    one, and no second gradient is allocated unless the graph is kept for another backward.
    """
    if torch.compiler.is_compiling() or graph_is_kept():
        return [
            (gradient * scale_factor(upstream, rows)).to(gradient.dtype)
            for gradient, rows in zip(gradients, row_scales, strict=True)
        ]
    left = list(zip(gradients, row_scales, strict=True))
    # Reading the value of a tensor is free on the CPU alone; elsewhere it would stop the host.
    if upstream.ndim == 0 and upstream.is_cpu and upstream.item() == 1:
        left = [(gradient, rows) for gradient, rows in left if rows is not None]
    if left:
        written, of_rows = [pair[0] for pair in left], [pair[1] for pair in left]
        resolve(AUTO, "scale", *written).scale_(written, upstream, of_rows)
    return gradients


def graph_is_kept() -> bool:
    """Whether this backward runs with retain_graph, so that the saved gradient is needed again.

    Torch tells this only through a private function; where it is missing, assume so.
    """
    tell = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return tell is None or tell()
