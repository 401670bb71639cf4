"""InfoNCE against constants, without logits in memory: the public function."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, ops
from .autograd import InfoNCE
from .backends import AUTO, BACKENDS


def info_nce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 0.2,
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
        temperature: τ > 0.
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
    checks.temperature(temperature)
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
    return contrast(q, k, n, temperature, backend).squeeze(1)


def contrast(
    queries: Tensor,  # [B, V, D]
    positives: Tensor,  # [B, P, D]
    negatives: Tensor | None,  # [K, D]; None: the positives of the other images
    temperature: float,
    backend: str,
) -> Tensor:
    """Losses [B, V, P], by way of the graph only where the queries need a gradient."""
    if torch.is_grad_enabled() and queries.requires_grad:
        return InfoNCE.apply(queries, positives, negatives, float(temperature), backend)
    return ops.info_nce(queries, positives, negatives, float(temperature), backend)[0]
