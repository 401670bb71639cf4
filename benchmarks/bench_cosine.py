"""`logo_loss` with similarity="cosine": forward and backward through the public function."""

from __future__ import annotations

from functools import partial

from torch import Tensor

import forms
import peers
from cases import COSINE, CosineCase
from comparison import Contest, by_backend, compare, named, of_ours
from inputs import cosine_inputs, upstream_of
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
    by = by_backend(named(loss), case.operation, device, inputs)
    return Contest(
        inputs,
        ours=of_ours(by, device, case.moved_bytes()),
        reference=partial(loss, backend="reference"),
        peers=forms.prepare(peers.COSINE, device, case.moved_bytes()),
        upstream=upstream_of(case.dtype, device),
    )


def test_cosine(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))
