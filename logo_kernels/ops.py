"""The registered operators: schema, fake implementation and dispatch to a backend, side by side.

define + impl + register_fake rather than custom_op: a third of the cost per call. The operators
return gradients as ordinary outputs; `autograd.py` wires them into the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import PairWeights, resolve
from .backends.buffers import cosine_result, gradient_like

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


for _name, _implementation, _fake in (
    ("cosine", _cosine, _cosine_fake),
    ("similarity", _similarity, _similarity_fake),
    ("similarity_backward", _similarity_backward, _similarity_backward_fake),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"logo_kernels::{_name}", _fake, lib=_library)

cosine = torch.ops.logo_kernels.cosine.default
similarity = torch.ops.logo_kernels.similarity.default
similarity_backward = torch.ops.logo_kernels.similarity_backward.default
