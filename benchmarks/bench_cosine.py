"""`logo_loss` with similarity="cosine": forward and backward through the public function."""

from __future__ import annotations

from functools import partial

from torch import Tensor

import peers
from cases import COSINE, CosineCase
from comparison import Contest, by_backend, compare
from inputs import cosine_inputs
from logo_kernels import logo_loss

CASES = COSINE


def loss(x: Tensor, y: Tensor, *rest: Tensor, backend: str = "auto") -> Tensor:
    """Ours in the peers' signature: x, y, any r, t."""
    *features, t = rest
    return logo_loss(
        x, y, t,
        repulsion_features=features[0] if features else None,
        repulsion_weight=peers.REPULSION,
        backend=backend,
    )  # fmt: skip


def contest(case: CosineCase, device: str) -> Contest:
    inputs = cosine_inputs(case, device)
    return Contest(
        inputs,
        ours=by_backend(loss, case.operation, device, inputs),
        reference=partial(loss, backend="reference"),
        peers=peers.prepare(peers.COSINE, device, case.moved_bytes()),
    )


def test_cosine(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))
