"""Helpers of the autograd Functions: refusals of what they cannot derive, facts about a backward.

Kernels compute values and first derivatives in reverse mode. A second derivative, a forward-mode
derivative or a transform of torch.func would get a number that looks right and is wrong, so each is
refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.autograd import forward_ad

try:  # torch tells only by private names of transforms of torch.func and of batched gradients
    from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
except ImportError:
    is_legacy_batchedtensor = lambda tensor: True  # noqa: E731
    peek_interpreter_stack = lambda: None  # type: ignore[assignment,return-value]  # noqa: E731

# Whether a backward runs with retain_graph, so that saved tensors are needed again.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)

REFUSED = (
    "logo_kernels: this loss can be differentiated once; its gradient, obtained with "
    "create_graph=True, has no derivative (a gradient penalty cannot be trained through it)"
)


class NoSecondDerivative(torch.autograd.Function):
    """The identity on a gradient. Its backward raises.

    `once_differentiable` would not do: where the upstream gradient is a constant, as it is for a
    loss, it takes a gradient penalty for a constant without a word. The gradient depends on
    `inputs`; they join the graph here, so that a derivative to any of them meets the refusal.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, _upstream: Tensor) -> Any:
        raise RuntimeError(REFUSED)


def once(
    gradients: Sequence[Tensor | None], *inputs: Tensor | ReferenceType[Tensor] | None
) -> Sequence[Tensor | None]:
    """`gradients`, guarded against a second derivative where create_graph asks for one."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return gradients  # compiled graphs refuse double backward by themselves
    ties = [one() if isinstance(one, ReferenceType) else one for one in inputs]
    if any(tie is None and one is not None for tie, one in zip(ties, inputs, strict=True)):
        raise RuntimeError(REFUSED)  # at once: what a second derivative would pass through is gone
    return [None if one is None else NoSecondDerivative.apply(one, *ties) for one in gradients]


def references(*inputs: Tensor | None) -> tuple[ReferenceType[Tensor], ...]:
    """For `once`, of inputs that need gradients, so that none is kept for its sake."""
    if torch.compiler.is_compiling():
        return ()
    return tuple([ref(one) for one in inputs if one is not None and one.requires_grad])


def outputs(ctx: Any, total: Tensor, terms: Tensor | None) -> Tensor | tuple[Tensor, Tensor | None]:
    """What a loss's Function returns: its total, and the detached terms where there are any."""
    if terms is None:
        return total
    ctx.mark_non_differentiable(terms)
    ctx.set_materialize_grads(False)  # no zeros for the gradient of terms
    return total, terms


def need_gradients(*tensors: Tensor | None) -> bool:
    return any([tensor is not None and tensor.requires_grad for tensor in tensors])


def reverse_mode_only(name: str, *tensors: Tensor | None) -> None:
    """Refuses tangents and transforms, which would end in zeros or in torch's internal words."""
    if torch.compiler.is_compiling():
        return
    if peek_interpreter_stack() is not None:
        raise RuntimeError(
            f"{name} got tensors inside a transform of torch.func (grad, vmap, jvp, jacfwd, ...), "
            f"which its kernels do not serve; call it on plain tensors, and differentiate by "
            f"backward() or torch.autograd.grad"
        )
    if forward_ad._current_level >= 0:
        no_tangents(name, tensors)


def no_tangents(name: str, tensors: Iterable[Tensor | None]) -> None:
    """Refuses dual tensors; in backward, of an upstream gradient that carries a tangent."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(
                f"{name} has no forward-mode derivative, and got a dual tensor; differentiate "
                f"by backward() or torch.autograd.grad"
            )


def primal(constant: Tensor | None) -> Tensor | None:
    """`constant` without a tangent: a dual tensor has one, which a constant passes on to nobody."""
    if constant is None or torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return constant
    return constant.detach()


def kept(constant: Tensor | None) -> Tensor | None:
    """`constant` for backward; a copy if it is an inference tensor, which autograd cannot save."""
    if constant is None or torch.compiler.is_compiling() or not constant.is_inference():
        return constant
    return constant.clone()


def batched(upstream: Tensor) -> bool:
    """Whether backward runs for many upstream gradients at once (is_grads_batched, vmap)."""
    if torch.compiler.is_compiling():
        return False
    return is_legacy_batchedtensor(upstream) or peek_interpreter_stack() is not None


def has_value(tensor: Tensor) -> bool:
    """Whether looking at it is free, and breaks no graph: on the CPU, neither traced nor fake."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or not tensor.is_cpu:
        return False
    return not batched(tensor)


def graph_is_kept() -> bool:
    """Whether this backward runs with retain_graph, so that saved tensors are needed again.

    Torch tells this only through a private function; where it is missing, assume so.
    """
    return _graph_is_kept is None or _graph_is_kept()
