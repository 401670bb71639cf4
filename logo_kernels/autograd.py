"""What the autograd Functions share: a second derivative is refused.

`once_differentiable` would not do: where the upstream gradient is a constant, as that of a loss is,
it lets a gradient penalty pass for a constant, silently.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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


def guarded(gradient: Tensor | None) -> Tensor | None:
    """`differentiated_once` of a gradient that may be absent."""
    return None if gradient is None else differentiated_once(gradient)


def graph_is_kept() -> bool:
    """Whether this backward runs with retain_graph, so that saved tensors are needed again.

    Torch tells this only through a private function; where it is missing, assume so.
    """
    tell = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return tell is None or tell()
