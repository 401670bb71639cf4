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


class InfoNCECall(NamedTuple):
    """What `Backend.info_nce` is given: eq. 1 of queries with positives, against negatives.

    An image has V queries, its global crops and then its local crops: query n = b·V + v. A
    local crop has all P positives of its image, global crop i those j ≠ i (so P = G there).
    """

    global_crops: Tensor | None  # [B, G, D] queries; None: they are no queries
    local_crops: Tensor | None  # [B, L, D] queries, of the dtype of the global ones
    positives: Tensor  # [B, P, D], constants
    negatives: Tensor | None  # [K, D], constants; None: the positives of the other images
    temperature: float  # τ, unless a tensor gives it
    temperature_tensor: Tensor | None  # [] of `dtype`, on the device of the queries
    gg_weight: float  # of the loss of one pair in its image's total; of a global crop
    lg_weight: float  # of a local crop
    reduction: str  # over images: "mean" | "sum" | "none"; "pairs": no sum at all

    @property
    def queries(self) -> Tensor:
        """Some of them, for what all have in common: B, D, dtype, device."""
        crops = self.local_crops if self.global_crops is None else self.global_crops
        assert crops is not None
        return crops

    @property
    def counts(self) -> tuple[int, int, int]:
        """(G, L, P), of the queries G or L 0 where there are none."""
        globals_, locals_ = self.global_crops, self.local_crops
        return (
            0 if globals_ is None else globals_.shape[1],
            0 if locals_ is None else locals_.shape[1],
            self.positives.shape[1],
        )

    @property
    def dtype(self) -> torch.dtype:
        """In which losses are given: fp64 if any input is fp64, else fp32."""
        negatives = self.positives if self.negatives is None else self.negatives
        wide = torch.float64 in (self.queries.dtype, self.positives.dtype, negatives.dtype)
        return torch.float64 if wide else torch.float32


class InfoNCEResult(NamedTuple):
    """What `Backend.info_nce` fills; in the dtype of the call.

    With s⁺ the logit of a pair's positive, lse the log-sum-exp over the negatives and O their mean
    under the softmax, the loss of a pair is ℓ = softplus(lse − s⁺), and

        dℓ/dq̂ = (1 − σ)(O − k̂⁺)/τ,    σ = e^{s⁺}/(e^{s⁺} + e^{lse}).
    """

    total: Tensor  # [], [B] ("none"), or the loss of each pair [B, V, P] ("pairs")
    terms: Tensor  # [2] or [2, B]: gg, lg, each the mean over its pairs, reduced like total; or [0]
    lse: Tensor  # [B, V] log Σ_k e^{q̂·n̂_k / τ}
    pull: Tensor  # [B, V, P] d(Σ total)/dℓ times 1 − σ: 0 where global crop and positive are one
    mean: Tensor  # [B, V, D] Σ_k softmax_k n̂_k

    @classmethod
    def empty(cls, call: InfoNCECall) -> InfoNCEResult:
        """Uninitialised buffers."""
        queries, dtype = call.queries, call.dtype
        images, _, dim = queries.shape
        globals_, locals_, positives = call.counts
        crops = globals_ + locals_
        over_images = [images] if call.reduction == "none" else []
        terms = [2, *over_images]
        if call.reduction == "pairs":
            over_images, terms = [images, crops, positives], [0]
        return cls(
            queries.new_empty(over_images, dtype=dtype),
            queries.new_empty(terms, dtype=dtype),
            queries.new_empty([images, crops], dtype=dtype),
            queries.new_empty([images, crops, positives], dtype=dtype),
            queries.new_empty([images, crops, dim], dtype=dtype),
        )


class InfoNCEGradients(NamedTuple):
    """What `Backend.info_nce_backward` fills; zero elements where a gradient is not wanted."""

    global_crops: Tensor  # [B, G, D] in the dtype of the crops, unit stride over D
    local_crops: Tensor  # [B, L, D] likewise
    temperature: Tensor  # [] in the dtype of the call


class Problem(NamedTuple):
    """The static facts by which a backend is chosen."""

    operation: str  # "cosine" | "similarity" | "scale" | "info_nce" | "pair_mlp"
    device: str  # torch.device.type
    dtypes: frozenset[torch.dtype]
    crops: int  # rows of one image that are read: crops, targets and features, V + W, or 0
    dim: int
    device_index: int = 0  # among those of its type


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

    def info_nce(self, call: InfoNCECall, result: InfoNCEResult) -> None:
        """Fills `result`: eq. 1 in one pass over the negatives, no [N, K] array.

        Every query sees at least one negative. A zero row has logit 0 and adds nothing to the mean;
        other norms, however extreme, are divided away exactly. NaN or inf in a negative gives NaN.
        """
        raise NotImplementedError(f"{self.name} refuses this operation")

    def info_nce_backward(
        self,
        call: InfoNCECall,
        upstream: Tensor,  # of the shape and dtype of `InfoNCEResult.total`, any strides
        pull: Tensor,
        mean: Tensor,
        gradients: InfoNCEGradients,
    ) -> None:
        """Fills `gradients` from what `info_nce` found; `call` comes without its negatives.

        With w = upstream · pull of a pair and δ = Σ w (O − k̂⁺) over its pairs, a query's gradient
        is (δ − (δ·q̂) q̂)/(τ‖q‖), 0 for a zero row, and that of τ is −Σ δ·q̂ / τ² over all queries.
        Finite gradients that bf16 or fp32 cannot hold saturate; fp16 reaches inf, for which a loss
        scaler looks.
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
