"""What a backend is: its name, the reasons it may give for refusing, and the operations it serves.

A backend receives validated tensors and never validates again. All tensors of a call lie on one
device. Shapes: B images, G global crops, L local crops, D numbers per crop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .pairs import PairStage


class PairWeights(NamedTuple):
    """Weight of one pair in an image's total.

    total = gg Σ_{i≠j} −cos(xᵢ, tⱼ) + lg Σ_{i,j} −cos(yᵢ, tⱼ) + ll Σ_{i<j} cos(rᵢ, rⱼ)
    """

    gg: float
    lg: float
    ll: float


class CosineResult(NamedTuple):
    """What `Backend.cosine` returns; absent tensors have zero elements.

    `grad_*` hold d(Σ total)/d(crops), in the dtype of the crops and the layout that
    `buffers.gradient_like` gives. For fp16 crops, each row is divided by a power of two,
    `row_scale`, so that gradients as small as 1e-7 keep their precision until backward multiplies
    them by the upstream gradient (a loss scaler's 65536, usually).
    """

    total: Tensor  # [] or, for reduction "none", [B]; fp32, fp64 if any input is fp64
    terms: Tensor  # [3] or [3, B]: gg, lg, ll, each the mean over its pairs, reduced like total
    grad_global: Tensor  # [B, G, D]
    grad_local: Tensor  # [B, L, D]
    grad_features: Tensor  # [B, L, D]
    row_scale: Tensor  # [B, G + L + L'] fp32 if a gradient is fp16 (L' = L with features, else 0)


class InfoNCEResult(NamedTuple):
    """What `Backend.info_nce` returns: softmax over the negatives, seen from each query."""

    lse: Tensor  # [N] log Σ_k e^{q̂·n̂_k / τ}; fp32, fp64 for fp64 queries
    mean: Tensor  # [N, D] Σ_k softmax_k n̂_k; of the dtype of lse


class Problem(NamedTuple):
    """The static facts by which a backend is chosen."""

    operation: str  # "cosine" | "similarity" | "scale" | "info_nce" | "pair_mlp"
    device: str  # torch.device.type
    dtypes: frozenset[torch.dtype]
    crops: int  # rows of one image that are read: crops, targets and features, V + W, or 0
    dim: int
    index: int = 0  # type: ignore[assignment]  # of the device; no tuple's method is meant


class Backend(ABC):
    """One implementation of the operations; those that it always refuses need not be written."""

    name: str

    @property
    def pair_stage(self) -> PairStage | None:
        """Of the learned affinity; a backend without one refuses "pair_mlp"."""
        return None

    @abstractmethod
    def missing(self) -> str | None:
        """Why this backend cannot work on this machine and what to do about it, or None."""

    @abstractmethod
    def refuses(self, problem: Problem) -> str | None:
        """Why this backend cannot serve `problem`, or None."""

    def cosine(
        self,
        global_crops: Tensor,  # [B, G, D] x, online
        local_crops: Tensor | None,  # [B, L, D] y, online
        targets: Tensor | None,  # [B, G, D] t, constant; None: global_crops, read once
        features: Tensor | None,  # [B, L, D] r; None: local_crops, read once
        weights: PairWeights,
        repulsion: bool,  # whether ll is computed at all
        reduction: str,  # "mean" | "sum" | "none"
        grad_global: bool,
        grad_local: bool,
        grad_features: bool,
    ) -> CosineResult:
        """Loss and gradient of eqs 2-5 in one pass over the crops."""
        raise NotImplementedError(f"{self.name} refuses this operation")

    def similarity(self, a: Tensor, b: Tensor | None) -> Tensor:
        """cos(a_bv, b_bw): [B, V, D], [B, W, D] (None: a) -> [B, V, W] in the dtype of a."""
        raise NotImplementedError(f"{self.name} refuses this operation")

    def similarity_backward(
        self, grad: Tensor, a: Tensor, b: Tensor | None, grad_a: bool, grad_b: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradients to a and b from grad [B, V, W]; one not asked for has zero elements.

        With b None, the gradient to a is that of both of its roles.
        """
        raise NotImplementedError(f"{self.name} refuses this operation")

    def info_nce(
        self,
        queries: Tensor,  # [N, D] contiguous unit rows (or zero rows), fp32, or fp64
        negatives: Tensor,  # [K, D] of any norms, fp32, bf16, fp16 (fp64), any strides
        temperature: float,
        dtype: torch.dtype,  # of the queries that the user passed: what precision is owed to them
        own: tuple[int, int] | None,  # (V, P): query n does not see negatives k with k//P == n//V
    ) -> InfoNCEResult:
        """Log-sum-exp and softmax-weighted mean of the unit negatives n̂_k (DESIGN, identity 2).

        One pass over the negatives, no [N, K] array. Every query sees at least one negative. A zero
        negative has logit 0 and adds nothing to the mean; other norms, however extreme, are
        divided away exactly. NaN or inf in a negative gives NaN.
        """
        raise NotImplementedError(f"{self.name} refuses this operation")

    def scale_(
        self,
        gradients: Sequence[Tensor],  # one to three [B, V_i, D], each of its dtype; written
        upstream: Tensor,  # [] or [B]
        row_scales: Sequence[Tensor | None],  # of each gradient [B, V_i] fp32, any strides
    ) -> None:
        """Gradients, of unit stride over D, times upstream and their rows' scales, in place.

        Products in fp32 before they are rounded, so that fp16 reaches inf where it must. On a GPU
        one launch for all of them.
        """
        for gradient, row_scale in zip(gradients, row_scales, strict=True):
            gradient.mul_(scale_factor(upstream, row_scale))


def scale_factor(upstream: Tensor, row_scale: Tensor | None) -> Tensor:
    """What a gradient [B, V, D] is multiplied by: [], [B, 1, 1] or [B, V, 1]."""
    if row_scale is not None:
        return row_scale.unsqueeze(-1) * upstream.view(-1, 1, 1)
    return upstream if upstream.ndim == 0 else upstream.view(-1, 1, 1)
