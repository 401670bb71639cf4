"""The learned affinity: counts by hand; its peer computes it."""

import pytest

from bench_affinity import PEERS, AffinityCase, inputs_of, loss_by
from harness.gate import Expected


def test_affinity_by_hand():
    # 24 crops of 16 numbers; W₁ is [5, 32], W₂ [5, 5]; 48 ordered pairs
    case = AffinityCase(8, 3, 16, "float32", "", hidden=5)
    assert case.moved_bytes() == 2 * (24 * 16 + 5 * 32 + 25) * 4
    assert case.flops() == 3 * 2 * (24 * 32 * 5 + 48 * 25)


@pytest.mark.parametrize("counts", [(5, 2, 8), (3, 4, 7)])
def test_affinity_peer(counts):
    case = AffinityCase(*counts, "float32", "", hidden=12)
    crops = inputs_of(case, "cpu")
    expected = Expected(crops, loss_by(case, "cpu", "reference"))
    for peer in PEERS.values():
        assert expected.difference(crops, peer) is None
        assert expected.difference(crops, lambda *all_, peer=peer: peer(*all_) * 1.01) is not None
    assert expected.difference(crops, loss_by(case, "cpu")) is None
