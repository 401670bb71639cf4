"""The block-wise cosine-similarity matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, ops
from .autograd import Similarity
from .backends import AUTO, BACKENDS


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
    """
    a = checks.block("a", a, "B, V, D")
    _not_empty("a", a, "V")
    if b is not None:
        b = checks.block("b", b, "B, W, D")
        checks.same_dtype("b", b, "a", a)
        checks.alike("b", b, "a", a, {"B": 0, "D": 2})
        _not_empty("b", b, "W")
    checks.one_of("backend", backend, (AUTO, *BACKENDS))
    if torch.is_grad_enabled() and (a.requires_grad or (b is not None and b.requires_grad)):
        return Similarity.apply(a, b, backend)
    return ops.similarity(a, b, backend)


def _not_empty(name: str, value: Tensor, letter: str) -> None:
    for size, axis in zip(value.shape, ("B", letter, "D"), strict=True):
        if size == 0:
            raise ValueError(f"{name} must not be empty, got {axis} = 0 in {list(value.shape)}")
