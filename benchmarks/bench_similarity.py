"""`block_cosine_similarity`: forward, and backward from a full upstream gradient.

A peer maps a [B, V, D] and any b [B, W, D] to [B, V, W]; gradients come from autograd.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from harness.case import ELEMENT_BYTES, Case, Inputs, crops, inverse_norms
from harness.comparison import Contest, compare, contest_of, named
from harness.forms import Function
from logo_kernels import block_cosine_similarity


@dataclass(frozen=True)
class SimilarityCase(Case):
    images: int
    rows: int  # V
    others: int | None  # W; None: the rows against themselves
    dim: int
    dtype: str
    why: str
    view_major: bool = False

    operation = "similarity"

    def shape(self) -> tuple[int | str, ...]:
        return self.images, self.rows, self.others or "self", self.dim

    def rows_and_cosines(self) -> tuple[int, int]:
        return self.rows + (self.others or 0), self.rows * (self.others or self.rows)

    def moved_bytes(self) -> int:
        """Forward reads the rows and writes S; backward reads dS and the rows, writes their grads.

        The rows are read twice: dS is not known in forward.
        """
        rows, block = self.rows_and_cosines()
        return self.images * (3 * rows * self.dim + 2 * block) * ELEMENT_BYTES[self.dtype]

    def flops(self) -> int:
        """2D for each cosine, and for each of its shares in a gradient row; norms as well."""
        rows, block = self.rows_and_cosines()
        return 2 * self.dim * self.images * (3 * block + 2 * rows)


CASES = {
    "cpu": (
        SimilarityCase(8, 4, None, 128, "float32", "the smallest: overhead decides"),
        SimilarityCase(256, 10, None, 2048, "float32", "all crops of an image with each other"),
        SimilarityCase(256, 8, 2, 2048, "float32", "local crops with global crops (eq. 4)"),
        SimilarityCase(256, 10, None, 2048, "bfloat16", "all crops, half the bytes"),
        SimilarityCase(256, 8, 2, 256, "float32", "short rows, view-major", view_major=True),
    ),
    "cuda": (
        SimilarityCase(8192, 10, None, 2048, "bfloat16", "all crops: bandwidth alone decides"),
        SimilarityCase(8, 4, None, 128, "float32", "the smallest: overhead decides"),
        SimilarityCase(1024, 8, 2, 2048, "bfloat16", "local crops with global crops (eq. 4)"),
        SimilarityCase(1024, 10, None, 2048, "float32", "all crops in fp32"),
        SimilarityCase(1024, 64, None, 256, "bfloat16", "many crops: the products weigh most"),
        SimilarityCase(256, 10, None, 2048, "float32", "the README's, beside the CPU's"),
    ),
}


def inputs_of(case: SimilarityCase, device: str) -> tuple[Inputs, Tensor]:
    """Rows a and any b as leaves, and the upstream gradient [B, V, W]."""
    counts = [case.rows] + ([] if case.others is None else [case.others])
    leaves = [leaf.requires_grad_() for leaf in crops(counts, case, device)]
    upstream = torch.randn(case.images, case.rows, case.others or case.rows, device=device)
    return Inputs(leaves, [], case.view_major), upstream.to(getattr(torch, case.dtype))


def broadcast(a: Tensor, b: Tensor | None = None) -> Tensor:
    """PyTorch's own cosine_similarity over all pairs at once."""
    b = a if b is None else b
    return cosine_similarity(a.unsqueeze(2), b.unsqueeze(1), dim=-1)


def products(a: Tensor, b: Tensor | None = None) -> Tensor:
    """One batched product of raw rows, scaled to cosines."""
    a_scale = inverse_norms(a)
    if b is None:
        return (a @ a.mT) * (a_scale * a_scale.mT)
    return (a @ b.mT) * (a_scale * inverse_norms(b).mT)


PEERS: dict[str, Function] = {"broadcast": broadcast, "products": products}


def contest(case: SimilarityCase, device: str) -> Contest:
    inputs, upstream = inputs_of(case, device)
    ours = named(block_cosine_similarity)
    return contest_of(case, device, inputs, ours, PEERS, upstream=upstream)


def test_similarity(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))
