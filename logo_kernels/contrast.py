"""InfoNCE against constants, without logits in memory (eq. 1): the function, its operators and its
place in the graph.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from . import checks
from .autograd import differentiated_once
from .backends import AUTO, BACKENDS, Backend, PairWeights, remembered
from .backends.buffers import compute_dtype, gradient_like
from .backends.protocol import InfoNCECall, InfoNCEGradients, InfoNCEResult


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
    logit 0 and gradient 0. NaN or inf in a row gives NaN.

    Args:
        queries: [N, D], float32, bfloat16, float16 or float64, any strides; the gradient goes here.
        positives: [N, P, D], any floating dtype; constants even if they require gradients.
        negatives: [K, D], any floating dtype (a bfloat16 queue beside float32 queries, say);
            constants.
        temperature: τ > 0, a number; or a tensor [] on the device of the queries, which gets a
            gradient if it requires one. The host does not look at a tensor's value, so that one
            that changes is compiled once under torch.compile.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        [N, P], float32, or float64 if any input is. It can be differentiated once: a second
        derivative raises.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: a wrong shape, value, name or device, or no negatives (K = 0).
        RuntimeError: a named backend that cannot serve the call, with its reason.
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
    checks.temperature(temperature)
    if isinstance(temperature, Tensor):
        checks.same_device("temperature", temperature, "queries", q)
    return contrast(None, q, k, n, temperature, _ONE_EACH, "pairs", backend)[0].squeeze(1)


_ONE_EACH = PairWeights(0.0, 1.0, 0.0)


def contrast(
    global_crops: Tensor | None,  # [B, G, D] queries
    local_crops: Tensor | None,  # [B, L, D] queries
    positives: Tensor,  # [B, P, D]
    negatives: Tensor | None,  # [K, D]; None: the positives of the other images
    temperature: float | Tensor,
    weights: PairWeights,
    reduction: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(total, terms) as `InfoNCEResult` has them, by way of the graph only where it is needed."""
    tensor, number = None, 1.0
    if isinstance(temperature, Tensor):
        tensor = temperature.to(compute_dtype(global_crops, local_crops, positives, negatives))
    else:
        number = float(temperature)
    arguments = (
        global_crops, local_crops, positives, negatives, tensor, number,
        weights.gg, weights.lg, reduction, backend,
    )  # fmt: skip
    if torch.is_grad_enabled() and any(
        v is not None and v.requires_grad for v in (global_crops, local_crops, tensor)
    ):
        return InfoNCE.apply(*arguments)
    total, terms, *_ = forward(_queries(global_crops), *arguments[1:])
    return total, terms


def _queries(global_crops: Tensor | None) -> Tensor | None:
    """The global crops where they have positives: a single one has none."""
    return None if global_crops is None or global_crops.shape[1] == 1 else global_crops


class InfoNCE(torch.autograd.Function):
    """(total, terms) of eq. 1; gradients go to the queries and to a temperature that is a tensor.

    Kept for backward: the negatives' mean as each query sees it, and a number per pair.
    """

    @staticmethod
    def forward(
        ctx: Any,
        global_crops: Tensor | None,
        local_crops: Tensor | None,
        positives: Tensor,
        negatives: Tensor | None,
        tensor: Tensor | None,
        number: float,
        gg_weight: float,
        lg_weight: float,
        reduction: str,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        queries = _queries(global_crops)
        total, terms, _, pull, mean = forward(
            queries, local_crops, positives, negatives, tensor, number,
            gg_weight, lg_weight, reduction, backend,
        )  # fmt: skip
        # Not the negatives: a queue may take new keys before backward.
        ctx.save_for_backward(queries, local_crops, positives, tensor, pull, mean)
        ctx.of_negatives = None if negatives is None else negatives.dtype
        ctx.unasked = None  # of crops that are no queries, shape and dtype
        if queries is None and ctx.needs_input_grad[0] and global_crops is not None:
            ctx.unasked = global_crops.shape, global_crops.dtype
        ctx.number, ctx.backend = number, backend
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)  # no zeros for the gradient of terms
        return total, terms

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _terms: Any) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 10
        to_global, to_local, to_temperature = (ctx.needs_input_grad[i] for i in (0, 1, 4))
        wanted = to_global and ctx.unasked is None, to_local, to_temperature
        found = backward(
            upstream, *ctx.saved_tensors, ctx.number, *wanted, ctx.of_negatives, ctx.backend
        )
        gradients = [
            differentiated_once(gradient) if wants else None
            for gradient, wants in zip(found, wanted, strict=True)
        ]
        if ctx.unasked is not None:
            shape, dtype = ctx.unasked
            gradients[0] = upstream.new_zeros(shape, dtype=dtype)
        return gradients[0], gradients[1], None, None, gradients[2], *(None,) * 5


_library = torch.library.Library("logo_kernels", "FRAGMENT")
_library.define(
    "info_nce(Tensor? global_crops, Tensor? local_crops, Tensor positives, Tensor? negatives, "
    "Tensor? temperature_tensor, float temperature, float gg_weight, float lg_weight, "
    "str reduction, str backend) "
    "-> (Tensor total, Tensor terms, Tensor lse, Tensor pull, Tensor mean)"
)
_library.define(
    "info_nce_backward(Tensor upstream, Tensor? global_crops, Tensor? local_crops, "
    "Tensor positives, Tensor? temperature_tensor, Tensor pull, Tensor mean, float temperature, "
    "bool grad_global, bool grad_local, bool grad_temperature, ScalarType? of_negatives, "
    "str backend) "
    "-> (Tensor grad_global, Tensor grad_local, Tensor grad_temperature)"
)


def _run(
    global_crops: Tensor | None,
    local_crops: Tensor | None,
    positives: Tensor,
    negatives: Tensor | None,
    temperature_tensor: Tensor | None,
    temperature: float,
    gg_weight: float,
    lg_weight: float,
    reduction: str,
    backend: str,
    fake: bool = False,
) -> InfoNCEResult:
    call = InfoNCECall(
        global_crops, local_crops, positives, negatives, temperature, temperature_tensor,
        gg_weight, lg_weight, reduction,
    )  # fmt: skip
    result = InfoNCEResult.empty(call)
    if not fake:
        of_negatives = None if negatives is None else negatives.dtype
        _backend(backend, call, of_negatives).info_nce(call, result)
    return result


def _run_backward(
    upstream: Tensor,
    global_crops: Tensor | None,
    local_crops: Tensor | None,
    positives: Tensor,
    temperature_tensor: Tensor | None,
    pull: Tensor,
    mean: Tensor,
    temperature: float,
    grad_global: bool,
    grad_local: bool,
    grad_temperature: bool,
    of_negatives: torch.dtype | None,
    backend: str,
    fake: bool = False,
) -> InfoNCEGradients:
    # What weights and reduction did to the gradient is in `pull`.
    call = InfoNCECall(
        global_crops, local_crops, positives, None, temperature, temperature_tensor,
        1.0, 1.0, "pairs",
    )  # fmt: skip
    gradients = InfoNCEGradients(
        gradient_like(global_crops) if grad_global and global_crops is not None else _none(mean),
        gradient_like(local_crops) if grad_local and local_crops is not None else _none(mean),
        mean.new_empty([]) if grad_temperature else _none(mean),
    )
    if not fake:
        _backend(backend, call, of_negatives).info_nce_backward(
            call, upstream, pull, mean, gradients
        )
    return gradients


def _none(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _backend(name: str, call: InfoNCECall, of_negatives: torch.dtype | None) -> Backend:
    """The one for a call, the same forward and backward; how many rows there are binds none."""
    queries = call.queries
    dtypes = [queries.dtype, call.positives.dtype]
    if of_negatives is not None:
        dtypes.append(of_negatives)
    return remembered(name, "info_nce", queries.device, tuple(dtypes), 0, queries.size(2))


for _name, _implementation in (("info_nce", _run), ("info_nce_backward", _run_backward)):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"logo_kernels::{_name}", functools.partial(_implementation, fake=True), lib=_library
    )

forward = torch.ops.logo_kernels.info_nce.default
backward = torch.ops.logo_kernels.info_nce_backward.default
