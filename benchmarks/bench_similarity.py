"""`block_cosine_similarity`: forward, and backward from a full upstream gradient."""

from __future__ import annotations

from functools import partial

import forms
import peers
from cases import SIMILARITY, SimilarityCase
from comparison import Contest, by_backend, compare, named, of_ours
from inputs import similarity_inputs
from logo_kernels import block_cosine_similarity

CASES = SIMILARITY


def contest(case: SimilarityCase, device: str) -> Contest:
    inputs, upstream = similarity_inputs(case, device)
    by = by_backend(named(block_cosine_similarity), case.operation, device, inputs)
    return Contest(
        inputs,
        ours=of_ours(by, device, case.moved_bytes()),
        reference=partial(block_cosine_similarity, backend="reference"),
        peers=forms.prepare(peers.SIMILARITY, device, case.moved_bytes()),
        upstream=upstream,
    )


def test_similarity(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))
