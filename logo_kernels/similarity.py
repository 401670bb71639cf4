"""The block-wise cosine-similarity matrix: the function, its records, operators and Function."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks
from .autograd import kept, need_gradients, no_tangents, once, reverse_mode_only
from .backends import AUTO, BACKENDS, Key
from .buffers import gradient_for
from .operators import Operator


def block_cosine_similarity(a: Tensor, b: Tensor | None = None, *, backend: str = AUTO) -> Tensor:
    r"""Cosine similarity between all pairs of crops of each image.

    .. math:: S_{bvw} = \frac{a_{bv} \cdot b_{bw}}{\lVert a_{bv} \rVert \, \lVert b_{bw} \rVert}

    This is the similarity inside eq. 2 of LoGo (CVPR 2022), for every pair at once. Zero rows have
    cosine 0 and gradient 0; rows of any other finite norm give the right finite cosine.

    Args:
        a: [B, V, D], float32, bfloat16, float16 or float64, any strides.
        b: [B, W, D], dtype and device of ``a``; None: ``a`` itself, read once.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        [B, V, W] in the dtype of ``a``, accumulated in float32 or better. Gradients flow to ``a``
        and ``b``, once: a second derivative raises.

    Raises:
        TypeError: an argument that is no floating tensor, or tensors of different dtypes.
        ValueError: a wrong rank, an empty dimension, or sizes or devices that disagree.
        RuntimeError: a named backend that cannot serve the call, with its reason.

    Examples:
        >>> a = torch.tensor([[[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]])  # the last: no direction
        >>> block_cosine_similarity(a).round(decimals=4)
        tensor([[[1., 0., 0.],
                 [0., 1., 0.],
                 [0., 0., 0.]]])
        >>> block_cosine_similarity(a, torch.tensor([[[1.0, 0.0]]])).shape
        torch.Size([1, 3, 1])
    """
    a = checks.block("a", a, "B, V, D")
    _not_empty("a", a, "V")
    if b is not None:
        b = checks.block("b", b, "B, W, D")
        checks.same_dtype("b", b, "a", a)
        checks.alike("b", b, "a", a, {"B": 0, "D": 2})
        _not_empty("b", b, "W")
    checks.one_of("backend", backend, (AUTO, *BACKENDS))
    reverse_mode_only("block_cosine_similarity", a, b)
    if torch.is_grad_enabled() and need_gradients(a, b):
        return Similarity.apply(a, b, backend)
    return similarity(SimilarityCall(a, b), backend).cosines


def _not_empty(name: str, value: Tensor, letter: str) -> None:
    for size, axis in zip(value.shape, ("B", letter, "D"), strict=True):
        if size == 0:
            raise ValueError(f"{name} must not be empty, got {axis} = 0 in {list(value.shape)}")


class SimilarityCall(NamedTuple):
    """The arguments of a backend's `similarity`."""

    a: Tensor  # [B, V, D]
    b: Tensor | None  # [B, W, D]; None: a

    def sizes(self) -> dict[str, Any]:
        images, _, dim = self.a.shape
        return {"images": images, "dim": dim}

    def key(self) -> Key:
        return _key(self.a, self.b)


class SimilarityResult(NamedTuple):
    cosines: Tensor  # [B, V, W] cos(a_bv, b_bw), in the dtype of a

    @classmethod
    def empty(cls, call: SimilarityCall) -> SimilarityResult:
        """Uninitialised."""
        a, b = call
        return cls(a.new_empty(a.shape[0], a.shape[1], a.shape[1] if b is None else b.shape[1]))


class SimilarityBackwardCall(NamedTuple):
    """The arguments of a backend's `similarity_backward`."""

    grad: Tensor  # [B, V, W], the upstream gradient
    a: Tensor
    b: Tensor | None
    grad_a: bool  # whether the gradient to a is wanted
    grad_b: bool

    def sizes(self) -> dict[str, Any]:
        images, _, dim = self.a.shape
        return {"images": images, "dim": dim}

    def key(self) -> Key:
        return _key(self.a, self.b)


class SimilarityGradients(NamedTuple):
    """Of a and b, in their dtype; with b None, the gradient to a is that of both of its roles."""

    grad_a: Tensor | None  # [B, V, D]
    grad_b: Tensor | None  # [B, W, D]

    @classmethod
    def empty(cls, call: SimilarityBackwardCall) -> SimilarityGradients:
        """Uninitialised."""
        return cls(gradient_for(call.a, call.grad_a), gradient_for(call.b, call.grad_b))


def _key(a: Tensor, b: Tensor | None) -> Key:
    rows = a.shape[1] if b is None else a.shape[1] + b.shape[1]
    return "similarity", a.device, (a.dtype,), rows, a.shape[2]


similarity = Operator("similarity", SimilarityCall, SimilarityResult)
similarity_backward = Operator("similarity_backward", SimilarityBackwardCall, SimilarityGradients)


class Similarity(torch.autograd.Function):
    """Cosines between all pairs of rows; b None stands for a itself."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor | None, backend: str) -> Tensor:
        ctx.save_for_backward(kept(a), kept(b))
        ctx.backend = backend
        return similarity(SimilarityCall(a, b), backend).cosines

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        no_tangents("block_cosine_similarity", (grad,))
        to_a, to_b, _ = ctx.needs_input_grad
        a, b = ctx.saved_tensors
        call = SimilarityBackwardCall(grad, a, b, to_a, to_b)
        found = once(similarity_backward(call, ctx.backend), grad, a, b)
        return *found, None
