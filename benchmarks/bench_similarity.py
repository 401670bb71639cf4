"""`block_cosine_similarity`: forward, and backward from a full upstream gradient."""

from __future__ import annotations

from functools import partial

import peers
from cases import SIMILARITY, SimilarityCase
from comparison import Contest, by_backend, compare
from inputs import similarity_inputs
from logo_kernels import block_cosine_similarity

CASES = SIMILARITY


def contest(case: SimilarityCase, device: str) -> Contest:
    inputs, upstream = similarity_inputs(case, device)
    return Contest(
        inputs,
        ours=by_backend(block_cosine_similarity, case.operation, device, inputs),
        reference=partial(block_cosine_similarity, backend="reference"),
        peers=peers.prepare(peers.SIMILARITY, device, case.moved_bytes()),
        upstream=upstream,
    )


def test_similarity(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))
