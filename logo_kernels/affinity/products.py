"""The affinity's products, [N, K] with a weight [M, K] and the two of its gradient.

The products are torch's. On a CPU, torch's float32 products go to MKL, which takes AVX2 on
processors that are not Intel's, at half the rate of oneDNN; on Intel's it is the faster one. torch
has oneDNN too and compiles to it, but by an operator without a public name. That operator is taken
if it exists with the expected schema, on other processors than Intel's, for sizes at which it was
measured to be faster, and never while torch traces.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.extension import extension

# Multiplications, and the least of N, K and M: below either, its call costs what it saves.
LEAST_WORK, LEAST_SIDE = 1 << 22, 16
# K of a weight's gradient, from which its inner sums are split over enough tiles.
LEAST_COLUMNS = 1024

_SCHEMA = ["X", "W", "B", "attr", "scalars", "algorithm"]


@functools.cache
def onednn() -> Callable[..., Tensor] | None:
    """(x, w, b) -> x·wᵀ + b in float32, or None."""
    if not torch.backends.mkldnn.is_available():
        return None
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None:
        return None
    if [argument.name for argument in operator.default._schema.arguments] != _SCHEMA:
        return None
    return lambda x, w, b=None: operator.default(x, w, b, "none", [], "")


@functools.cache
def onednn_is_ahead() -> bool:
    """Whether this processor is another maker's than MKL; False where nothing tells."""
    return extension is not None and not extension.intel


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias, [N, M]."""
    fast = _fast(x, weight.shape[0])
    if fast is None:
        return F.linear(x, weight, bias)
    return fast(x.contiguous(), weight.contiguous(), bias)  # strided: up to 200 times slower


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """grad·weight, [N, K], of grad [N, M]."""
    fast = _fast(grad, weight.shape[1])
    if fast is None:
        return torch.mm(grad, weight)
    return fast(grad.contiguous(), weight.contiguous().mT)


def add_input_gradient(grad: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """out += grad·weight."""
    fast = _fast(grad, weight.shape[1])
    if fast is None:
        return out.addmm_(grad, weight)
    return out.add_(fast(grad.contiguous(), weight.contiguous().mT))


def weight_gradient(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """out = gradᵀ·x, [M, K], of grad [N, M] and x [N, K]; out may be part of a larger matrix."""
    fast = _fast(grad, x.shape[1]) if x.shape[1] >= LEAST_COLUMNS else None
    if fast is None:
        return out.addmm_(grad.mT, x, beta=0)
    return out.copy_(fast(grad.contiguous().mT, x.contiguous().mT))


def add_weight_gradient(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """out += gradᵀ·x."""
    fast = _fast(grad, x.shape[1]) if x.shape[1] >= LEAST_COLUMNS else None
    if fast is None:
        return out.addmm_(grad.mT, x)
    return out.add_(fast(grad.contiguous().mT, x.contiguous().mT))


def _fast(rows: Tensor, others: int) -> Callable[..., Tensor] | None:
    """oneDNN's product, for one of `rows` with another side of `others`, where that is faster."""
    if rows.numel() * others < LEAST_WORK or rows.dtype != torch.float32 or not rows.is_cpu:
        return None
    if min(*rows.shape, others) < LEAST_SIDE or torch.compiler.is_compiling():
        return None
    return onednn() if onednn_is_ahead() and torch.backends.mkldnn.enabled else None
