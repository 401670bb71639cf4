"""`logo_loss` with similarity="info_nce", against a queue or the batch: forward and backward."""

from __future__ import annotations

from functools import partial

from torch import Tensor

import batch_peers
import contrast_peers
import forms
from cases import INFO_NCE, InfoNCECase
from comparison import Contest, by_backend, compare, named, of_ours
from contrast_peers import TEMPERATURE
from forms import Function
from inputs import info_nce_inputs, upstream_of
from logo_kernels import logo_loss
from timing import matrix_product

CASES = INFO_NCE


def loss(x: Tensor, y: Tensor, t: Tensor, n: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Ours in the peers' signature; without negatives, against the batch."""
    return logo_loss(
        x, y, t,
        similarity="info_nce", negatives="batch" if n is None else n, temperature=TEMPERATURE,
        affinity=None,
        backend=backend,
    )  # fmt: skip


def peers_of(case: InfoNCECase, device: str) -> dict[str, Function]:
    """Against the batch or against a queue; some there are on a GPU only."""
    if case.negatives is None:
        functions, on_a_gpu = batch_peers.BATCH, batch_peers.ON_A_GPU
    else:
        functions, on_a_gpu = contrast_peers.INFO_NCE, contrast_peers.ON_A_GPU
    return functions | on_a_gpu if device == "cuda" else functions


def missing_peers(case: InfoNCECase, device: str) -> dict[str, str]:
    """Those that cannot run at this case -> why."""
    if case.negatives is not None:
        return {}
    reasons = {name: batch_peers.missing(name, case, device) for name in peers_of(case, device)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def contest(case: InfoNCECase, device: str) -> Contest:
    inputs = info_nce_inputs(case, device)
    by = by_backend(named(loss), case.operation, device, inputs)
    return Contest(
        inputs,
        ours=of_ours(by, device, case.moved_bytes()),
        reference=partial(loss, backend="reference"),
        peers=forms.prepare(
            peers_of(case, device), device, case.moved_bytes(), missing_peers(case, device)
        ),
        upstream=upstream_of(case.dtype, device),
        product=matrix_product(case.flops(), case.dtype, device),
    )


def test_info_nce(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))
