"""The registered operators: schema, fake implementation and dispatch to a backend, side by side.

define + impl + register_fake rather than custom_op: a third of the cost per call. The operators
return gradients as ordinary outputs; `autograd.py` wires them into the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import PairWeights, contrast, resolve
from .backends.buffers import compute_dtype, cosine_result, gradient_like

_library = torch.library.Library("logo_kernels", "DEF")

# Loss, terms and gradients of the cosine LoGo loss; see backends/protocol.py for shapes.
_library.define(
    "cosine(Tensor global_crops, Tensor? local_crops, Tensor? targets, Tensor? features, "
    "float gg_weight, float lg_weight, float ll_weight, bool repulsion, str reduction, "
    "bool grad_global, bool grad_local, bool grad_features, str backend) "
    "-> (Tensor total, Tensor terms, Tensor grad_global, Tensor grad_local, "
    "Tensor grad_features, Tensor row_scale)"
)


def _cosine(
    global_crops: Tensor,
    local_crops: Tensor | None,
    targets: Tensor | None,
    features: Tensor | None,
    gg_weight: float,
    lg_weight: float,
    ll_weight: float,
    repulsion: bool,
    reduction: str,
    grad_global: bool,
    grad_local: bool,
    grad_features: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    chosen = resolve(backend, "cosine", global_crops, local_crops, targets, features)
    return chosen.cosine(
        global_crops, local_crops, targets, features,
        PairWeights(gg_weight, lg_weight, ll_weight), repulsion, reduction,
        grad_global, grad_local, grad_features,
    )  # fmt: skip


def _cosine_fake(
    global_crops: Tensor,
    local_crops: Tensor | None,
    targets: Tensor | None,
    features: Tensor | None,
    gg_weight: float,
    lg_weight: float,
    ll_weight: float,
    repulsion: bool,
    reduction: str,
    grad_global: bool,
    grad_local: bool,
    grad_features: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    return cosine_result(
        global_crops, local_crops, targets, features, reduction,
        grad_global, grad_local, grad_features,
    )  # fmt: skip


# Cosines between all pairs of rows of a and b (b None: a), and their gradients.
_library.define("similarity(Tensor a, Tensor? b, str backend) -> Tensor")
_library.define(
    "similarity_backward(Tensor grad, Tensor a, Tensor? b, bool grad_a, bool grad_b, "
    "str backend) -> (Tensor grad_a, Tensor grad_b)"
)


def _similarity(a: Tensor, b: Tensor | None, backend: str) -> Tensor:
    return resolve(backend, "similarity", a, b).similarity(a, b)


def _similarity_fake(a: Tensor, b: Tensor | None, backend: str) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], a.shape[1] if b is None else b.shape[1])


def _similarity_backward(
    grad: Tensor, a: Tensor, b: Tensor | None, grad_a: bool, grad_b: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return resolve(backend, "similarity", a, b).similarity_backward(grad, a, b, grad_a, grad_b)


def _similarity_backward_fake(
    grad: Tensor, a: Tensor, b: Tensor | None, grad_a: bool, grad_b: bool, backend: str
) -> tuple[Tensor, Tensor]:
    to_a = gradient_like(a) if grad_a else a.new_empty(0)
    to_b = gradient_like(b) if b is not None and grad_b else a.new_empty(0)
    return to_a, to_b


# InfoNCE of queries [B, V, D] with positives [B, P, D] against negatives [K, D], or, without them,
# against the positives of the other images; see backends/contrast.py for what comes back.
_library.define(
    "info_nce(Tensor queries, Tensor positives, Tensor? negatives, float temperature, str backend) "
    "-> (Tensor losses, Tensor pull, Tensor mean)"
)
_library.define(
    "info_nce_backward(Tensor grad, Tensor queries, Tensor positives, Tensor pull, Tensor mean, "
    "float temperature) -> Tensor"
)


def _info_nce(
    queries: Tensor, positives: Tensor, negatives: Tensor | None, temperature: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    others = positives if negatives is None else negatives.unsqueeze(0)
    chosen = resolve(backend, "info_nce", queries, others)
    return contrast.losses(chosen, queries, positives, negatives, temperature)


def _info_nce_fake(
    queries: Tensor, positives: Tensor, negatives: Tensor | None, temperature: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    images, crops, dim = queries.shape
    dtype = compute_dtype(queries, positives, negatives)
    pairs = [images, crops, positives.shape[1]]
    return (
        queries.new_empty(pairs, dtype=dtype),
        queries.new_empty(pairs, dtype=dtype),
        queries.new_empty([images, crops, dim], dtype=dtype),
    )


def _info_nce_backward_fake(
    grad: Tensor, queries: Tensor, positives: Tensor, pull: Tensor, mean: Tensor, temperature: float
) -> Tensor:
    return queries.new_empty(queries.shape)


for _name, _implementation, _fake in (
    ("cosine", _cosine, _cosine_fake),
    ("similarity", _similarity, _similarity_fake),
    ("similarity_backward", _similarity_backward, _similarity_backward_fake),
    ("info_nce", _info_nce, _info_nce_fake),
    ("info_nce_backward", contrast.gradient, _info_nce_backward_fake),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"logo_kernels::{_name}", _fake, lib=_library)

cosine = torch.ops.logo_kernels.cosine.default
similarity = torch.ops.logo_kernels.similarity.default
similarity_backward = torch.ops.logo_kernels.similarity_backward.default
info_nce = torch.ops.logo_kernels.info_nce.default
info_nce_backward = torch.ops.logo_kernels.info_nce_backward.default
