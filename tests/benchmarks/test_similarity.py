"""Cosines of blocks: bytes against counts by hand; every peer computes them."""

from functools import partial

import pytest

from bench_similarity import PEERS, SimilarityCase, inputs_of
from harness.gate import Expected
from logo_kernels import block_cosine_similarity


def test_similarity_bytes_by_hand():
    # a 3, b 2 rows of 5: read twice, written once; S and dS of 3 x 2
    assert SimilarityCase(7, 3, 2, 5, "float32", "").moved_bytes() == 7 * (3 * 5 * 5 + 2 * 6) * 4


def test_similarity_with_itself_reads_its_rows_once_per_pass():
    assert SimilarityCase(1, 4, None, 8, "bfloat16", "").moved_bytes() == (3 * 4 * 8 + 2 * 16) * 2


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("others", [None, 3])
def test_similarity_peer(peer, others):
    case = SimilarityCase(2, 4, others, 8, "float32", "", view_major=others is None)
    rows, upstream = inputs_of(case, "cpu")
    expected = Expected(rows, partial(block_cosine_similarity, backend="reference"), upstream)
    assert expected.difference(rows, PEERS[peer], upstream) is None
    assert expected.difference(rows, block_cosine_similarity, upstream) is None
