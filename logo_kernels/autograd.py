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
        scaled = [
            differentiated_once(scale(gradient, upstream, row_scale, first)) if wanted else None
            for gradient, first, wanted in zip(gradients, ctx.first_rows, ctx.wanted, strict=True)
        ]
        return scaled[0], scaled[1], None, scaled[2], None, None, None, None


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


class InfoNCE(torch.autograd.Function):
    """Losses [B, V, P] of eq. 1; the gradient goes to the queries only.

    Kept for backward: the negatives' mean as each query sees it, and a number per pair.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,  # [B, V, D]
        positives: Tensor,  # [B, P, D]
        negatives: Tensor | None,  # [K, D]; None: the positives of the other images
        temperature: float,
        backend: str,
    ) -> Tensor:
        losses, pull, mean = ops.info_nce(queries, positives, negatives, temperature, backend)
        ctx.save_for_backward(queries, positives, pull, mean)
        ctx.temperature = temperature
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient = ops.info_nce_backward(upstream, *ctx.saved_tensors, ctx.temperature)
        return differentiated_once(gradient), None, None, None, None


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


def scale(gradient: Tensor, upstream: Tensor, row_scale: Tensor, first: int) -> Tensor:
    """gradient [B, V, D] times upstream ([] or [B]) and, for fp16, its rows' scales.

    Returns the saved tensor itself where that is right: nothing is multiplied when upstream is one,
    and no second gradient is allocated unless the graph is kept for another backward.
    """
    rows = None
    if gradient.dtype == torch.float16:
        rows = row_scale[:, first : first + gradient.shape[1]]  # [B, V]
    if torch.compiler.is_compiling() or graph_is_kept():
        return (gradient * scale_factor(upstream, rows)).to(gradient.dtype)
    # Reading the value of a tensor is free on the CPU alone; elsewhere it would stop the host.
    if rows is None and upstream.ndim == 0 and upstream.is_cpu and upstream.item() == 1:
        return gradient
    return resolve(AUTO, "scale", gradient).scale_(gradient, upstream, rows)


def graph_is_kept() -> bool:
    """Whether this backward runs with retain_graph, so that the saved gradient is needed again.

    Torch tells this only through a private function; where it is missing, assume so.
    """
    tell = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return tell is None or tell()
