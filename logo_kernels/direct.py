"""Operators called without torch's dispatcher where nothing but the kernel would see the call.

The learned affinity takes six operators a step, and the dispatcher costs the host as much for each
as its kernel does on a small batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

try:  # torch tells only by private names who looks on; without one of them, assume somebody
    from torch._C import _is_tracing, _len_torch_dispatch_stack, _len_torch_function_stack
    from torch.autograd import _profiler_enabled
except ImportError:
    _is_tracing = lambda: True  # noqa: E731

# Of arguments that nothing overrides: a subclass of Tensor has a say in what is done with it.
_PLAIN = frozenset([Tensor, nn.Parameter, type(None), bool, int, float, str, torch.dtype])


def direct(operator: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    """`operator`, registered to do what `run` does; `run` itself where that is all that happens.

    Not while torch traces or profiles, under a mode, or for a subclass of Tensor.
    """

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or _observed(arguments):
            return operator(*arguments)
        return run(*arguments)

    return call


def _observed(arguments: tuple[Any, ...]) -> bool:
    return (
        _is_tracing()
        or _len_torch_dispatch_stack() > 0
        or _len_torch_function_stack() > 0
        or _profiler_enabled()
        or not _PLAIN.issuperset(map(type, arguments))
    )
