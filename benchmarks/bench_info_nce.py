"""`logo_loss` with similarity="info_nce", against a queue or the batch: forward and backward."""

from __future__ import annotations

from functools import partial

from torch import Tensor

import batch_peers
import contrast_peers
import peers
from cases import INFO_NCE, InfoNCECase
from comparison import Contest, by_backend, compare
from contrast_peers import TEMPERATURE
from inputs import info_nce_inputs
from logo_kernels import logo_loss
from timing import matrix_product_step

CASES = INFO_NCE


def loss(x: Tensor, y: Tensor, t: Tensor, n: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Ours in the peers' signature; without negatives, against the batch."""
    return logo_loss(
        x, y, t,
        similarity="info_nce", negatives="batch" if n is None else n, temperature=TEMPERATURE,
        affinity=None,
        backend=backend,
    )  # fmt: skip


def peers_of(case: InfoNCECase, device: str) -> dict[str, peers.Function]:
    """Against the batch or against a queue; some there are on a GPU only."""
    if case.negatives is None:
        functions, on_a_gpu = batch_peers.BATCH, batch_peers.ON_A_GPU
    else:
        functions, on_a_gpu = contrast_peers.INFO_NCE, contrast_peers.ON_A_GPU
    return functions | on_a_gpu if device == "cuda" else functions


def contest(case: InfoNCECase, device: str) -> Contest:
    inputs = info_nce_inputs(case, device)
    return Contest(
        inputs,
        ours=by_backend(loss, case.operation, device, inputs),
        reference=partial(loss, backend="reference"),
        peers=peers.prepare(peers_of(case, device), device, case.moved_bytes()),
        baselines={"matrix product": matrix_product_step(case.flops(), case.dtype, device)},
    )


def test_info_nce(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))
