"""The cosine LoGo loss (eqs. 2-5, 9): its records, its operator and its place in the graph.

The gradient is computed in forward, dX = W·X in the same pass as the loss, and nothing else is
saved; backward multiplies it by the upstream gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .autograd import (
    batched,
    graph_is_kept,
    need_gradients,
    no_tangents,
    once,
    outputs,
    primal,
    references,
    reverse_mode_only,
)
from .backends import AUTO, Key, backend_for
from .backends.protocol import scale_factor
from .buffers import compute_dtype, empty, gradient_for, present
from .operators import Operator
from .weights import attraction_weights, repulsion_weight


class CosineCall(NamedTuple):
    """The arguments of a backend's `cosine`: B images, G global crops x, L local crops y.

    With the weights gg, lg, ll of one pair, an image's loss is

        total = gg Σ_{i≠j} −cos(xᵢ, tⱼ) + lg Σ_{i,j} −cos(yᵢ, tⱼ) + ll Σ_{i<j} cos(rᵢ, rⱼ).
    """

    global_crops: Tensor | None  # [B, G, D] x, online; None: nothing attracts, G = 0
    local_crops: Tensor | None  # [B, L, D] y, online
    targets: Tensor | None  # [B, G, D] t, constants; None: global_crops, read once
    features: Tensor | None  # [B, L, D] r; None: local_crops, read once
    repulsion_weight: float  # λ, unless a tensor gives it: then 1
    repulsion_weight_tensor: Tensor | None  # [] of `dtype`, on the device of the crops
    repulsion: bool  # whether ll is computed at all
    pair_reduction: str  # "sum" | "mean"
    reduction: str  # over images: "mean" | "sum" | "none"
    grad_global: bool  # whether the gradient to x is wanted
    grad_local: bool
    grad_features: bool
    terms: bool = True  # whether they are wanted beside the total

    @property
    def online(self) -> Tensor:
        """One block of online crops: B, D, dtype and device are the same in all."""
        crops = self.local_crops if self.global_crops is None else self.global_crops
        assert crops is not None
        return crops

    def sizes(self) -> dict[str, Any]:
        images, _, dim = self.online.shape
        return {"images": images, "dim": dim}

    @property
    def counts(self) -> tuple[int, int]:
        """(G, L)."""
        x, y = self.global_crops, self.local_crops
        return 0 if x is None else x.shape[1], 0 if y is None else y.shape[1]

    @property
    def gg_weight(self) -> float:
        return attraction_weights(*self.counts, self.pair_reduction)[0]

    @property
    def lg_weight(self) -> float:
        return attraction_weights(*self.counts, self.pair_reduction)[1]

    @property
    def ll_weight(self) -> float:
        """Of an unordered pair; `repulsion_weight_tensor`, if there is one, multiplies it."""
        return self.repulsion_weight * repulsion_weight(self.counts[1], self.pair_reduction)

    @property
    def dtype(self) -> torch.dtype:
        """Of total and terms: fp64 if any input is fp64, else fp32."""
        return compute_dtype(self.online, self.targets, self.features)

    def key(self) -> Key:
        online, dtypes, rows = self.online, [], 0
        for tensor in self[:4]:
            if tensor is not None:
                dtypes.append(tensor.dtype)
                rows += tensor.shape[1]
        return "cosine", online.device, tuple(dtypes), rows, online.shape[2]


class CosineResult(NamedTuple):
    """The results of a backend's `cosine`.

    `grad_*` hold d(Σ total)/d(crops), in the dtype of the crops and the layout that
    `buffers.gradient_like` gives. For fp16 crops, each row is divided by a power of two,
    `row_scale`, so that gradients as small as 1e-7 keep their precision until backward multiplies
    them by the upstream gradient (a loss scaler's 65536, usually).
    """

    total: Tensor  # [] or, for reduction "none", [B]
    terms: Tensor | None  # [3] or [3, B]: gg, lg, ll, means over their pairs, reduced like total
    grad_global: Tensor | None  # [B, G, D]
    grad_local: Tensor | None  # [B, L, D]
    grad_features: Tensor | None  # [B, L, D]
    row_scale: Tensor | None  # [B, G + L + L'] fp32 if a gradient is fp16 (L' = L with features)

    @classmethod
    def empty(cls, call: CosineCall) -> CosineResult:
        """Uninitialised buffers."""
        x, y, _, r = call[:4]
        online, dtype = call.online, call.dtype
        gradients = (
            gradient_for(x, call.grad_global),
            gradient_for(y, call.grad_local),
            gradient_for(r, call.grad_features),
        )
        row_scale = None
        if any([one is not None and one.dtype is torch.float16 for one in gradients]):
            rows = sum(block.shape[1] for block in present(x, y, r))
            row_scale = empty(online, (online.shape[0], rows), torch.float32)
        of_images = (online.shape[0],) if call.reduction == "none" else ()
        terms = empty(online, (3, *of_images), dtype) if call.terms else None
        return cls(empty(online, of_images, dtype), terms, *gradients, row_scale)


cosine = Operator("cosine", CosineCall, CosineResult)


def cosine_loss(
    x: Tensor | None,
    y: Tensor | None,
    t: Tensor | None,
    r: Tensor | None,
    weight: float,  # λ
    repulsion: bool,
    pair_reduction: str,
    reduction: str,
    backend: str,
    with_terms: bool,
) -> tuple[Tensor, Tensor | None]:
    """(total, terms) of `CosineResult`; part of the graph only if an input needs a gradient."""
    tensor = None
    if torch.compiler.is_compiling():  # a number among an operator's arguments would be a constant
        like = y if x is None else x
        tensor = cast(Tensor, like).new_ones((), dtype=compute_dtype(x, y, t, r)) * weight
        weight = 1.0
    else:
        reverse_mode_only("logo_loss", x, y, r)
        t = primal(t)
    options = weight, tensor, repulsion, pair_reduction, reduction
    if torch.is_grad_enabled() and need_gradients(x, y, r):
        made = Cosine.apply(x, y, t, r, options, backend, with_terms)
        return made if with_terms else (made, None)
    return cosine(CosineCall(x, y, t, r, *options, False, False, False, with_terms), backend)[:2]


def repulsion_loss(
    features: Tensor,
    weight: float,
    pair_reduction: str,
    reduction: str,
    backend: str,
    with_terms: bool,
) -> tuple[Tensor, Tensor | None]:
    """(`weight` Σ_{i<j} cos(rᵢ, rⱼ), mean over the pairs) of features r [B, L ≥ 2, D] (eq. 5)."""
    options = True, pair_reduction, reduction, backend, with_terms
    total, terms = cosine_loss(None, features, None, None, weight, *options)
    return total, None if terms is None else terms[2]


class Cosine(torch.autograd.Function):
    """total, or (total, terms); gradients to online crops and features only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor | None,
        y: Tensor | None,
        t: Tensor | None,
        r: Tensor | None,
        numbers: tuple[float, Tensor | None, bool, str, str],  # one, since torch looks at each
        backend: str,
        with_terms: bool,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        to_x, to_y, _, to_r, *_ = ctx.needs_input_grad
        call = CosineCall(x, y, t, r, *numbers, to_x, to_y, to_r, with_terms)
        total, terms, *saved = cosine(call, backend)
        ctx.save_for_backward(*saved)
        ctx.inputs = references(x, y, r)
        if saved[-1] is not None:
            globals_, locals_ = call.counts
            ctx.first_rows = 0, globals_, globals_ + locals_
        return outputs(ctx, total, terms)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 7
        no_tangents("logo_loss", (upstream,))
        *gradients, row_scale = ctx.saved_tensors
        first_rows = (0, 0, 0) if row_scale is None else ctx.first_rows
        found = scaled(gradients, upstream, row_scale, first_rows)
        to_x, to_y, to_r = once(found, upstream, *ctx.inputs)
        return to_x, to_y, None, to_r, None, None, None


def scaled(
    gradients: list[Tensor | None],  # to x, y, r, as `CosineResult` has them
    upstream: Tensor,  # [] or [B]
    row_scale: Tensor | None,
    first_rows: tuple[int, int, int],  # of each gradient, in row_scale
) -> list[Tensor | None]:
    """The gradients times upstream and their rows' scales.

    The saved tensors themselves are returned where that is right: nothing is multiplied when
    upstream is one, and no second gradient is allocated unless the graph is kept for another
    backward.
    """
    kept = torch.compiler.is_compiling() or batched(upstream) or graph_is_kept()
    plain = not kept and row_scale is None and type(upstream) is Tensor
    if plain and upstream.is_cpu and upstream.ndim == 0 and upstream.item() == 1:
        return gradients
    found: list[Tensor | None] = [None] * len(gradients)
    work, scales = [], []
    for index, (gradient, first) in enumerate(zip(gradients, first_rows, strict=True)):
        if gradient is None:
            continue
        rows = None
        if row_scale is not None and gradient.dtype == torch.float16:
            rows = row_scale[:, first : first + gradient.shape[1]]
        if kept:
            found[index] = (gradient * scale_factor(upstream, rows)).to(gradient.dtype)
        else:
            found[index] = gradient
            work.append(gradient)
            scales.append(rows)
    if work:
        key = "scale", work[0].device, tuple(one.dtype for one in work), 0, work[0].shape[2]
        backend_for(AUTO, key).scale_(work, upstream, scales)
    return found
