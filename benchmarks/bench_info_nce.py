"""`logo_loss` with similarity="info_nce", against a queue or the batch: forward and backward."""

from __future__ import annotations

from functools import partial

from torch import Tensor

import peers
from batch_peers import BATCH
from cases import INFO_NCE, InfoNCECase
from comparison import Contest, by_backend, compare
from contrast_peers import INFO_NCE as PEERS
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


def contest(case: InfoNCECase, device: str) -> Contest:
    inputs = info_nce_inputs(case, device)
    return Contest(
        inputs,
        ours=by_backend(loss, case.operation, device, inputs),
        reference=partial(loss, backend="reference"),
        peers=peers.prepare(BATCH if case.negatives is None else PEERS, device, case.moved_bytes()),
        baselines={"matrix product": matrix_product_step(case.flops(), case.dtype, device)},
    )


def test_info_nce(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))
