"""InfoNCE against constants, without logits in memory (eq. 1): the function, its records, its
operators and its place in the graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from . import checks
from .autograd import (
    kept,
    need_gradients,
    no_tangents,
    once,
    outputs,
    primal,
    reverse_mode_only,
)
from .backends import AUTO, BACKENDS, Key
from .buffers import compute_dtype, gradient_for
from .operators import Operator
from .units import LEAST, near, saturated
from .weights import attraction_weights


def info_nce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float | Tensor = 0.2,
    backend: str = AUTO,
) -> Tensor:
    r"""InfoNCE loss of every query with each of its positives (LoGo, CVPR 2022, eq. 1).

    .. math::
        \ell_{np} = -\log \frac{e^{\hat q_n \cdot \hat k_{np} / \tau}}
        {e^{\hat q_n \cdot \hat k_{np} / \tau} + \sum_k e^{\hat q_n \cdot \hat n_k / \tau}}

    x̂ is x/‖x‖: inputs need not be normalised. The denominator holds this pair's own positive and
    the negatives, no other positive. Loss and gradient come from one pass over the negatives that
    serves all positives of a query; no [N, K] array exists (but in ``backend="reference"``), and
    what is kept for backward is [N, D]. No probability is dropped, however small. A zero row has
    logit 0 and gradient 0. A loss, which grows as 1/τ, or a gradient, that its dtype cannot hold
    saturates at the largest finite value. NaN or inf in a row gives NaN.

    Args:
        queries: [N, D], float32, bfloat16, float16 or float64, any strides; the gradient goes here.
        positives: [N, P, D], any floating dtype; constants even if they require gradients.
        negatives: [K, D], any floating dtype (a bfloat16 queue beside float32 queries, say);
            constants.
        temperature: τ > 0, any number; or a tensor [] on the device of the queries, which gets a
            gradient if it requires one. The host does not look at a tensor's value, so that one
            that changes is compiled once under torch.compile; one that is not positive gives NaN.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        [N, P], float32, or float64 if any input is. It can be differentiated once: a second
        derivative raises.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: a wrong shape, value, name or device, or no negatives (K = 0).
        RuntimeError: a named backend that cannot serve the call, with its reason.

    Examples:
        A positive and a negative that are as like the query as each other, so that ℓ = log 2.

        >>> query = torch.tensor([[1.0, 0.0]], requires_grad=True)
        >>> positive, negative = torch.tensor([[[1.0, 1.0]]]), torch.tensor([[1.0, -1.0]])
        >>> loss = info_nce(query, positive, negative, temperature=0.5)
        >>> [round(one, 4) for one in loss[0].tolist()]
        [0.6931]
        >>> loss.sum().backward()
        >>> bool(query.grad[0, 1] < 0)  # a step against the gradient turns towards the positive
        True
    """
    checks.one_of("backend", backend, (AUTO, *BACKENDS))
    q = checks.matrix("queries", queries, "N, D")
    k = checks.block("positives", positives, "N, P, D")
    for name, size, letter in (
        ("queries", q.shape[0], "N"), ("queries", q.shape[1], "D"), ("positives", k.shape[1], "P"),
    ):  # fmt: skip
        if size == 0:
            raise ValueError(f"{name} must not be empty, got {letter} = 0")
    q = q.unsqueeze(1)
    checks.alike("positives", k, "queries", q, {"N": 0, "D": 2})
    n = checks.negatives(negatives, q, "queries")
    temperature = checks.temperature(temperature)
    if isinstance(temperature, Tensor):
        checks.same_device("temperature", temperature, "queries", q)
    losses, _ = contrast(None, q, k, n, temperature, "sum", "pairs", backend, False)
    return losses.squeeze(1)


class InfoNCECall(NamedTuple):
    """The arguments of a backend's `info_nce`: eq. 1 of queries with positives, against negatives.

    An image has V queries, its global crops and then its local crops: query n = b·V + v. A
    local crop has all P positives of its image, global crop i those j ≠ i (so P = G there). Every
    query sees at least one negative.
    """

    global_crops: Tensor | None  # [B, G, D] queries; None: they are no queries
    local_crops: Tensor | None  # [B, L, D] queries, of the dtype of the global ones
    positives: Tensor  # [B, P, D], constants
    negatives: Tensor | None  # [K, D], constants; None: the positives of the other images
    temperature: float  # τ, unless a tensor gives it
    temperature_tensor: Tensor | None  # [] of `dtype`, on the device of the queries
    pair_reduction: str  # "sum" | "mean"
    reduction: str  # over images: "mean" | "sum" | "none"; "pairs": no sum at all
    terms: bool = True  # whether they are wanted beside the total; of pairs there are none
    own_first: bool = False  # negatives begin with the positives, of which an image sees no own one

    @property
    def queries(self) -> Tensor:
        """One block of queries: B, D, dtype and device are the same in all."""
        return _queries(self.global_crops, self.local_crops)

    def sizes(self) -> dict[str, Any]:
        images, _, dim = self.positives.shape
        return {"images": images, "dim": dim}

    @property
    def excludes_own(self) -> bool:
        """Whether image b does not see the P negatives from b·P on."""
        return self.negatives is None or self.own_first

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
    def gg_weight(self) -> float:
        """Of the loss of one pair in its image's total, of a global crop."""
        _, locals_, positives = self.counts
        return attraction_weights(positives, locals_, self.pair_reduction)[0]

    @property
    def lg_weight(self) -> float:
        """Of a local crop."""
        _, locals_, positives = self.counts
        return attraction_weights(positives, locals_, self.pair_reduction)[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the losses: fp64 if any input is fp64, else fp32."""
        return compute_dtype(self.queries, self.positives, self.negatives)

    def key(self) -> Key:
        of_negatives = None if self.negatives is None else self.negatives.dtype
        return _key(self.queries, self.positives, of_negatives)


class InfoNCEResult(NamedTuple):
    """The results of a backend's `info_nce`, of one pass over the negatives, in the call's dtype.

    With s⁺ the logit of a pair's positive, lse the log-sum-exp over the negatives and O their mean
    under the softmax, the loss of a pair is ℓ = softplus(lse − s⁺), and

        dℓ/dq̂ = (1 − σ)(O − k̂⁺)/τ,    σ = e^{s⁺}/(e^{s⁺} + e^{lse}).

    A zero row has logit 0 and adds nothing to the mean; other norms, however extreme, are divided
    away exactly. NaN or inf in a negative gives NaN, and so does a tensor τ that is not positive.
    Losses, sums and means of them that the dtype cannot hold saturate.
    """

    total: Tensor  # [], [B] ("none"), or the loss of each pair [B, V, P] ("pairs")
    terms: Tensor | None  # [2] or [2, B]: gg, lg, means over their pairs, reduced like total
    lse: Tensor  # [B, V] log Σ_k e^{q̂·n̂_k / τ}, which is about 1/τ; losses do not come from it
    pull: Tensor  # [B, V, P] d(Σ total)/dℓ times 1 − σ: 0 where global crop and positive are one
    mean: Tensor  # [B, V, D] Σ_k softmax_k n̂_k

    @classmethod
    def empty(cls, call: InfoNCECall) -> InfoNCEResult:
        """Uninitialised buffers."""
        images, positives, dim = call.positives.shape
        dtype, device = call.dtype, call.positives.device
        globals_, locals_, _ = call.counts
        crops = globals_ + locals_

        def made(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        pairs, terms = (images, crops, positives), None
        of_total: tuple[int, ...] = (images,) if call.reduction == "none" else ()
        if call.reduction == "pairs":
            of_total = pairs
        elif call.terms:
            terms = made(2, *of_total)
        lse, pull, mean = made(images, crops), made(*pairs), made(images, crops, dim)
        return cls(made(*of_total), terms, lse, pull, mean)


class InfoNCEBackwardCall(NamedTuple):
    """The arguments of a backend's `info_nce_backward`: `info_nce`'s but the negatives, and more.

    With w = upstream · pull of a pair and δ = Σ w (O − k̂⁺) over its pairs, a query's gradient is
    (δ − (δ·q̂) q̂)/(τ‖q‖), 0 for a zero row, and the gradient of τ is −Σ δ·q̂ / τ² over all queries.
    Gradients that the dtype cannot hold saturate, that of τ too; but fp16 reaches inf where the
    upstream gradient (of a query, the largest of its pairs') is more than one: a loss scaler looks
    for it.
    """

    upstream: Tensor  # of the shape and dtype of `InfoNCEResult.total`, any strides
    global_crops: Tensor | None
    local_crops: Tensor | None
    positives: Tensor
    temperature_tensor: Tensor | None
    pull: Tensor  # dense, of `InfoNCEResult`; weights and reduction are in it already
    mean: Tensor
    temperature: float
    grad_global: bool  # whether the gradient to the global crops is wanted
    grad_local: bool
    grad_temperature: bool
    of_negatives: torch.dtype | None  # the dtype of the negatives, if they were no positives

    @property
    def queries(self) -> Tensor:
        return _queries(self.global_crops, self.local_crops)

    def sizes(self) -> dict[str, Any]:
        images, _, dim = self.positives.shape
        return {"images": images, "dim": dim}

    def key(self) -> Key:
        return _key(self.queries, self.positives, self.of_negatives)


class InfoNCEGradients(NamedTuple):
    """The results of a backend's `info_nce_backward`."""

    grad_global: Tensor | None  # [B, G, D] in the dtype of the crops, unit stride over D
    grad_local: Tensor | None  # [B, L, D] likewise
    grad_temperature: Tensor | None  # [] in the dtype of the losses

    @classmethod
    def empty(cls, call: InfoNCEBackwardCall) -> InfoNCEGradients:
        """Uninitialised buffers."""
        return cls(
            gradient_for(call.global_crops, call.grad_global),
            gradient_for(call.local_crops, call.grad_local),
            call.mean.new_empty([]) if call.grad_temperature else None,
        )


def _queries(global_crops: Tensor | None, local_crops: Tensor | None) -> Tensor:
    crops = local_crops if global_crops is None else global_crops
    assert crops is not None
    return crops


def _key(queries: Tensor, positives: Tensor, of_negatives: torch.dtype | None) -> Key:
    """The facts of a call, one and the same forward and backward; rows bind no kernel: 0."""
    dtypes = queries.dtype, positives.dtype
    if of_negatives is not None:
        return "info_nce", queries.device, (*dtypes, of_negatives), 0, queries.shape[2]
    return "info_nce", queries.device, dtypes, 0, queries.shape[2]


forward = Operator("info_nce", InfoNCECall, InfoNCEResult)
backward = Operator("info_nce_backward", InfoNCEBackwardCall, InfoNCEGradients)


def contrast(
    global_crops: Tensor | None,  # [B, G, D] queries
    local_crops: Tensor | None,  # [B, L, D] queries
    positives: Tensor,  # [B, P, D]
    negatives: Tensor | None,  # [K, D]; None: the positives of the other images
    temperature: float | Tensor,
    pair_reduction: str,
    reduction: str,
    backend: str,
    with_terms: bool,
    own_first: bool = False,  # see `InfoNCECall`
) -> tuple[Tensor, Tensor | None]:
    """(total, terms) of `InfoNCEResult`; part of the graph only if an input needs a gradient.

    A single global crop has no positives: it is no query, and its gradient is zero.
    """
    learned = temperature if isinstance(temperature, Tensor) else None
    reverse_mode_only("InfoNCE", global_crops, local_crops, learned)
    positives, negatives = cast(Tensor, primal(positives)), primal(negatives)
    tensor, number = None, 1.0
    if isinstance(temperature, Tensor):
        tensor = temperature
    elif torch.compiler.is_compiling():  # else a new number would be compiled anew
        dtype = compute_dtype(global_crops, local_crops, positives, negatives)
        tensor = positives.new_ones((), dtype=dtype) * near(temperature, dtype)
    else:
        number = float(temperature)
    arguments = (
        global_crops, local_crops, positives, negatives, number, tensor, pair_reduction, reduction
    )  # fmt: skip
    if torch.is_grad_enabled() and need_gradients(global_crops, local_crops, tensor):
        made = InfoNCE.apply(*arguments, backend, with_terms, own_first)
        return made if with_terms else (made, None)
    return forward(_call(*arguments, with_terms, own_first), backend)[:2]


def _tensor_in(dtype: torch.dtype, tau: Tensor) -> Tensor:
    """τ in the dtype of the losses; what is above zero stays so."""
    if tau.dtype is dtype:
        return tau
    near = tau.to(dtype)
    if tau.dtype is torch.float64:
        near = torch.where((tau > 0) & (near == 0), LEAST, near)
    return near


def _call(
    global_crops: Tensor | None,
    local_crops: Tensor | None,
    positives: Tensor,
    negatives: Tensor | None,
    temperature: float,
    tensor: Tensor | None,
    *options: Any,
) -> InfoNCECall:
    crops = global_crops, local_crops, positives, negatives
    if tensor is not None:
        tensor = _tensor_in(compute_dtype(*crops), tensor)
    if global_crops is not None and global_crops.shape[1] == 1:
        global_crops = None
    return InfoNCECall(global_crops, *crops[1:], temperature, tensor, *options)


class InfoNCE(torch.autograd.Function):
    """total or (total, terms) of eq. 1; gradients go to the queries and to a tensor τ.

    Kept for backward: the negatives' mean as each query sees it, and a number per pair. Not the
    negatives: a queue may take new keys before backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        global_crops: Tensor | None,
        local_crops: Tensor | None,
        positives: Tensor,
        negatives: Tensor | None,
        temperature: float,
        tensor: Tensor | None,
        *options: Any,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        *others, backend, with_terms, own_first = options
        numbers = temperature, tensor, *others, with_terms, own_first
        call = _call(global_crops, local_crops, positives, negatives, *numbers)
        total, terms, _, pull, mean = forward(call, backend)
        constants = kept(positives), kept(tensor), pull, mean
        ctx.save_for_backward(kept(call.global_crops), kept(local_crops), *constants)
        ctx.of_negatives = None if negatives is None else negatives.dtype
        ctx.unasked = None  # shape and dtype of crops that are no queries: their gradient is zero
        if global_crops is not None and call.global_crops is None and ctx.needs_input_grad[0]:
            ctx.unasked = global_crops.shape, global_crops.dtype
        ctx.temperature, ctx.backend = temperature, backend
        return outputs(ctx, total, terms)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 11
        no_tangents("InfoNCE", (upstream,))
        to_global, to_local, _, _, _, to_temperature = ctx.needs_input_grad[:6]
        wanted = to_global and ctx.unasked is None, to_local, to_temperature
        saved = ctx.saved_tensors
        queries, locals_, positives, tensor, pull, mean = saved
        tau = None if tensor is None else _tensor_in(mean.dtype, tensor)
        given = upstream, queries, locals_, positives, tau, pull, mean, ctx.temperature
        call = InfoNCEBackwardCall(*given, *wanted, ctx.of_negatives)
        found = once(backward(call, ctx.backend), upstream, queries, locals_, tensor)
        to_queries, to_locals, to_tau = found
        if to_tau is not None and to_tau.dtype is not tensor.dtype:
            narrow = to_tau if tensor.dtype is torch.float64 else saturated(to_tau, tensor.dtype)
            to_tau = narrow.to(tensor.dtype)
        if ctx.unasked is not None:
            shape, dtype = ctx.unasked
            to_queries = upstream.new_zeros(shape, dtype=dtype)
        return to_queries, to_locals, None, None, None, to_tau, None, None, None, None, None
