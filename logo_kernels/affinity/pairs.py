"""The pairs of crops around the MLP's second product: records and operators of their two layers.

The first product splits, W₁[zᵢ; zⱼ] = aᵢ + cⱼ with a = U·z, c = V·z + b₁, so that the pairs first
exist with H numbers each, never with 2D. A pair p = (b, i, j), i ≠ j, of ordered crops is

    h_p = a[b, i] + c[(b + roll) mod B, j],     p = (b·L + i)·(L − 1) + j − (j > i),

roll = 0 for crops of one image, else for crops of two. P = B·L·(L − 1). Batch norm, whichever way
its statistics were found, is norm [3, H] = (mean, scale, bias), scale = weight / √(var + ε):

    n(v) = (v − mean)·scale + bias,     hidden:  x_p = relu(n(h_p))      [P, H]
                                        product: y = x·W₂ᵀ + b₂          [P, H'], torch's
                                        output:  f_p = w₃·relu(n(y_p)) + b₃
                                                 value_b = mean over the pairs of b of link(f_p)

A layer is a whole half, its statistics included. The last row of its norm [4, H] is 1/√(var + ε).
Its gradient comes with facts: the two rows of the correction, the gradients to the norm's weight
and bias, the gradient to a bias added to v (zero if the statistics are the batch's), and, after the
second product, the gradient to w₃.

Ranks that share statistics call a layer's parts, and sum in between. Between the sums and the
backward of a half, norm.py sets up the statistics' part of the gradient as correction [2, H] =
(Σ m / N, Σ m·(v − mean) / (N·(var + ε))), zeros where the statistics are constants; m is the
gradient that arrives at n(v).

Sums are in fp32 or better and the same on every run. Tensors are contiguous; a and c share a dtype
T (fp32, bf16, fp16, where a backend has it fp64), as do x and y; numbers without a dtype below are
fp32, fp64 for fp64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import Key
from ..buffers import compute_dtype, empty, present
from ..operators import Operator, Written

# link(f) by number: f, softplus(f), softplus(−f).
LINKS = {"identity": 0, "softplus": 1, "softplus_negated": 2}


def key_of(device: torch.device, dtype: torch.dtype) -> Key:
    """The facts by which a backend is chosen for pairs of crops; their sizes play no part."""
    return "affinity", device, (dtype,), 0, 1


def _wide(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised, of the dtype in which `like` is summed."""
    return empty(like, shape, compute_dtype(like))


def _of_pairs(record: Any) -> Any:
    """Adds to a Call of the hidden layer the facts that backends read, of a [B, L, H]."""

    def sizes(call: Any) -> dict[str, Any]:
        images, crops, width = call.a.shape
        return {"images": images, "crops": crops, "width": width, "dtype": call.a.dtype}

    record.sizes = sizes
    record.key = lambda call: key_of(call.a.device, call.a.dtype)
    return record


def _of_products(record: Any) -> Any:
    """Adds to a Call of the output the facts that backends read, of y [P, H']."""
    if "pairs" not in record._fields:
        record.pairs = 1  # rows for themselves
    upstream, gradient = "grad" in record._fields, hasattr(record, "summed")

    def sizes(call: Any) -> dict[str, Any]:
        rows, width = call.y.shape
        found = {"images": rows // call.pairs, "pairs": call.pairs, "width": width}
        found["dtype"] = call.y.dtype
        if upstream:
            found["grad_stride"] = call.grad.stride(0)
        if gradient:
            found["summed"] = call.summed
        return found

    record.sizes = sizes
    record.key = lambda call: key_of(call.y.device, call.y.dtype)
    return record


def _statistics(call: Any) -> list[Tensor]:
    """The running statistics, where those of the batch are mixed into them."""
    if not call.batch:
        return []
    return present(call.running_mean, call.running_var, call.batches)


# The layers


@_of_pairs
class HiddenLayerCall(NamedTuple):
    a: Tensor  # [B, L, H] T
    c: Tensor
    norm_weight: Tensor  # [H]
    norm_bias: Tensor
    running_mean: Written  # [H]
    running_var: Written
    batches: Written  # [] int64, how many batches the running statistics are of
    batch: bool  # the statistics are of these pairs, and the running ones follow; else those
    momentum: float  # of the running statistics; negative: every batch counts alike
    eps: float
    roll: int

    def written(self) -> list[Tensor]:
        return _statistics(self)


class HiddenLayerResult(NamedTuple):
    x: Tensor  # [P, H] T
    norm: Tensor  # [4, H]

    @classmethod
    def empty(cls, call: HiddenLayerCall) -> HiddenLayerResult:
        images, crops, width = call.a.shape
        x = call.a.new_empty(images * crops * (crops - 1), width)
        return cls(x, _wide(call.a, 4, width))


@_of_pairs
class HiddenGradientCall(NamedTuple):
    grad_x: Tensor  # [P, H] T
    a: Tensor
    c: Tensor
    norm: Tensor  # [4, H]
    batch: bool
    roll: int


class HiddenGradientResult(NamedTuple):
    grad_a: Tensor  # [B, L, H] T
    grad_c: Tensor
    facts: Tensor  # [5, H]
    to_a: Tensor | None  # [B, L, H], scratch, as `HiddenSums` has them
    to_c: Tensor | None  # None: the gradients are scratch first, their dtype being that of sums

    @classmethod
    def empty(cls, call: HiddenGradientCall) -> HiddenGradientResult:
        a = call.a
        facts, grad_a, grad_c = _wide(a, 5, a.shape[2]), torch.empty_like(a), torch.empty_like(a)
        if facts.dtype == a.dtype:
            return cls(grad_a, grad_c, facts, None, None)
        scratch = (torch.empty_like(a, dtype=facts.dtype) for _ in range(2))
        return cls(grad_a, grad_c, facts, *scratch)


@_of_products
class OutputLayerCall(NamedTuple):
    y: Tensor  # [P, H'] T
    norm_weight: Tensor  # [H']
    norm_bias: Tensor
    running_mean: Written
    running_var: Written
    batches: Written
    batch: bool
    momentum: float
    eps: float
    last: Tensor  # w₃ [H']
    last_bias: Tensor  # b₃ [1]
    pairs: int  # of an image
    link: int

    def written(self) -> list[Tensor]:
        return _statistics(self)


class OutputLayerResult(NamedTuple):
    value: Tensor  # [B]
    slope: Tensor  # [P] link′(f_p) / pairs
    norm: Tensor  # [4, H']

    @classmethod
    def empty(cls, call: OutputLayerCall) -> OutputLayerResult:
        count, width = call.y.shape
        y = call.y
        return cls(_wide(y, count // call.pairs), _wide(y, count), _wide(y, 4, width))


@_of_products
class OutputGradientCall(NamedTuple):
    y: Tensor
    norm: Tensor  # [4, H']
    last: Tensor
    slope: Tensor
    grad: Tensor  # [B] of any stride
    batch: bool
    parameters: bool  # whether their gradients are wanted
    pairs: int

    @property
    def summed(self) -> bool:
        """Whether anything reads the facts; zeros otherwise."""
        return self.batch or self.parameters


class OutputGradientResult(NamedTuple):
    grad_y: Tensor  # [P, H'] T
    facts: Tensor  # [6, H']

    @classmethod
    def empty(cls, call: OutputGradientCall) -> OutputGradientResult:
        facts = _wide(call.y, 6, call.y.shape[1])
        return cls(torch.empty_like(call.y), facts if call.summed else facts.zero_())


# Their parts


@_of_pairs
class HiddenMomentsCall(NamedTuple):
    a: Tensor
    c: Tensor
    roll: int


class Moments(NamedTuple):
    moments: Tensor  # [2, H] mean and biased variance over the pairs

    @classmethod
    def empty(cls, call: Any) -> Moments:
        like = call[0]
        return cls(_wide(like, 2, like.shape[-1]))


@_of_pairs
class HiddenCall(NamedTuple):
    a: Tensor
    c: Tensor
    norm: Tensor
    roll: int


class HiddenResult(NamedTuple):
    x: Tensor  # [P, H] T

    @classmethod
    def empty(cls, call: HiddenCall) -> HiddenResult:
        images, crops, width = call.a.shape
        return cls(call.a.new_empty(images * crops * (crops - 1), width))


@_of_pairs
class HiddenSumsCall(NamedTuple):
    grad_x: Tensor  # [P, H] T
    a: Tensor
    c: Tensor
    norm: Tensor
    roll: int


class HiddenSums(NamedTuple):
    """m_p = grad_p where n(h_p) > 0, else 0."""

    to_a: Tensor  # [B, L, H] Σ_j m, for a[b, i]
    to_c: Tensor  # [B, L, H] Σ_i m, for c[b, j]: image b is the roll's, as in h_p
    sums: Tensor  # [2, H] Σ_p m, Σ_p m·(h − mean)

    @classmethod
    def empty(cls, call: HiddenSumsCall) -> HiddenSums:
        a = call.a
        return cls(_wide(a, *a.shape), _wide(a, *a.shape), _wide(a, 2, a.shape[2]))


@_of_pairs
class HiddenBackwardCall(NamedTuple):
    to_a: Tensor
    to_c: Tensor
    a: Tensor
    c: Tensor
    norm: Tensor
    correction: Tensor  # [2, H]
    roll: int


class HiddenGradients(NamedTuple):
    """Sums over their pairs of scale·(m_p − correction₀ − correction₁·(h_p − mean))."""

    grad_a: Tensor  # [B, L, H] T
    grad_c: Tensor

    @classmethod
    def empty(cls, call: HiddenBackwardCall) -> HiddenGradients:
        return cls(torch.empty_like(call.a), torch.empty_like(call.c))


@_of_products
class OutputMomentsCall(NamedTuple):
    y: Tensor


@_of_products
class OutputCall(NamedTuple):
    y: Tensor
    norm: Tensor
    last: Tensor
    last_bias: Tensor
    pairs: int
    link: int


class OutputResult(NamedTuple):
    value: Tensor  # [B]
    slope: Tensor  # [P]

    @classmethod
    def empty(cls, call: OutputCall) -> OutputResult:
        return cls(_wide(call.y, len(call.y) // call.pairs), _wide(call.y, len(call.y)))


@_of_products
class OutputSumsCall(NamedTuple):
    y: Tensor
    norm: Tensor
    slope: Tensor
    grad: Tensor  # [B] dense
    pairs: int


class OutputSums(NamedTuple):
    """Over the pairs where n(y) > 0, of t_p = grad_b · slope_p; w₃ is a factor left out."""

    sums: Tensor  # [2, H'] Σ t, Σ t·(y − mean)

    @classmethod
    def empty(cls, call: OutputSumsCall) -> OutputSums:
        return cls(_wide(call.y, 2, call.y.shape[1]))


@_of_products
class OutputBackwardCall(NamedTuple):
    y: Tensor
    norm: Tensor
    last: Tensor
    slope: Tensor
    grad: Tensor  # [B] dense
    correction: Tensor  # [2, H']
    pairs: int


class OutputGradients(NamedTuple):
    """scale·(m − correction₀ − correction₁·(y − mean)), m = t_p · w₃ where n(y) > 0, else 0."""

    grad_y: Tensor  # [P, H'] T

    @classmethod
    def empty(cls, call: OutputBackwardCall) -> OutputGradients:
        return cls(torch.empty_like(call.y))


hidden_layer = Operator("affinity_hidden_layer", HiddenLayerCall, HiddenLayerResult)
hidden_gradient = Operator("affinity_hidden_gradient", HiddenGradientCall, HiddenGradientResult)
output_layer = Operator("affinity_output_layer", OutputLayerCall, OutputLayerResult)
output_gradient = Operator("affinity_output_gradient", OutputGradientCall, OutputGradientResult)
hidden_moments = Operator("affinity_hidden_moments", HiddenMomentsCall, Moments)
hidden = Operator("affinity_hidden", HiddenCall, HiddenResult)
hidden_sums = Operator("affinity_hidden_sums", HiddenSumsCall, HiddenSums)
hidden_backward = Operator("affinity_hidden_backward", HiddenBackwardCall, HiddenGradients)
output_moments = Operator("affinity_output_moments", OutputMomentsCall, Moments)
output = Operator("affinity_output", OutputCall, OutputResult)
output_sums = Operator("affinity_output_sums", OutputSumsCall, OutputSums)
output_backward = Operator("affinity_output_backward", OutputBackwardCall, OutputGradients)
