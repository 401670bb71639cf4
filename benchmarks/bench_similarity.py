"""`block_cosine_similarity`: forward, and backward from a full upstream gradient."""

from __future__ import annotations

from functools import partial

import peers
from cases import SIMILARITY
from comparison import compare
from inputs import similarity_inputs
from logo_kernels import block_cosine_similarity
from logo_kernels.backends import resolve

CASES = SIMILARITY


def test_similarity(benchmark, case, device) -> None:
    inputs, upstream = similarity_inputs(case, device)
    leaves, _ = inputs.blocks()
    compare(
        benchmark, case, device,
        backend=resolve("auto", case.operation, *leaves).name,
        inputs=inputs,
        ours=block_cosine_similarity,
        reference=partial(block_cosine_similarity, backend="reference"),
        peers=peers.prepare(peers.SIMILARITY, device, case.moved_bytes()),
        upstream=upstream,
    )  # fmt: skip
