"""The cosine loss: bytes and operations against counts by hand; every peer computes the loss."""

from functools import partial

import pytest
import torch

import bench_cosine
from bench_cosine import PEERS, CosineCase, inputs_of, pairs
from benchmarks.made import FewRounds, difference
from harness import comparison
from harness.comparison import COPY
from harness.gate import Expected
from harness.timing import OURS


def test_cosine_bytes_by_hand():
    # Rows per image: x 2, y 8 and t 2 read, 10 gradients written. 2048 numbers of 4 bytes each.
    case = CosineCase(256, 2, 8, 2048, "float32", "")
    assert case.moved_bytes() == 256 * 22 * 2048 * 4 == 46_137_344


def test_cosine_bytes_of_the_design():
    # "cosine B=1024 G=2 L=8 D=2048, bf16: 92 MB"
    assert CosineCase(1024, 2, 8, 2048, "bfloat16", "").moved_bytes() == 92_274_688


def test_features_are_read_and_get_a_gradient():
    without = CosineCase(3, 2, 5, 7, "float32", "").moved_bytes()
    with_features = CosineCase(3, 2, 5, 7, "float32", "", features=True).moved_bytes()
    assert with_features - without == 3 * 5 * 7 * 4 * 2


def test_cosine_flops_by_hand():
    # G = L = 2. Norms: 4 online, 2 targets. Cosines: 2 gg, 4 lg, 1 ll. Rows added to gradients:
    # 2 to globals, 4 to locals from targets, 2 from each other, 4 along themselves: 25 times 2D.
    assert CosineCase(1, 2, 2, 10, "float32", "").flops() == 25 * 2 * 10


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("view_major", [False, True])
def test_moved_bytes_are_those_of_the_tensors(view_major, features):
    case = CosineCase(4, 2, 3, 16, "bfloat16", "", view_major=view_major, features=features)
    made = inputs_of(case, "cpu")
    read = sum(tensor.nbytes for tensor in [*made.leaves, *made.constants])
    written = sum(leaf.nbytes for leaf in made.leaves)
    assert case.moved_bytes() == read + written
    leaves, constants = made.blocks()
    assert [block.shape[0] for block in [*leaves, *constants]] == [4] * (len(leaves) + 1)


REFERENCE = partial(bench_cosine.loss, backend="reference")
COSINE_CASES = [
    CosineCase(3, 2, 2, 8, "float32", "the paper's counts"),
    CosineCase(2, 3, 5, 7, "float32", "more global crops", view_major=True),
    CosineCase(3, 2, 4, 8, "float32", "features", features=True),
    CosineCase(1, 2, 8, 16, "bfloat16", "half precision"),
    CosineCase(40, 2, 3, 16, "float16", "half precision", view_major=True, features=True),
    CosineCase(64, 2, 2, 2048, "float16", "rows whose products are large"),
]


@pytest.mark.parametrize("case", COSINE_CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("peer", PEERS)
def test_cosine_peer(peer, case):
    crops = inputs_of(case, "cpu")
    assert difference(crops, REFERENCE, PEERS[peer]) is None
    assert difference(crops, REFERENCE, bench_cosine.loss) is None


@pytest.mark.parametrize("peer", PEERS)
def test_cosine_peer_to_the_last_digits(peer):
    crops = inputs_of(CosineCase(3, 3, 4, 9, "float32", "", features=True), "cpu")
    exact = crops.double()
    value = exact.step(PEERS[peer]).item()
    gradients = [leaf.grad for leaf in exact.leaves]
    expected = Expected(crops, REFERENCE)
    assert value == pytest.approx(expected.value.item(), rel=1e-12)
    for gradient, wanted in zip(gradients, expected.gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


def test_features_reach_the_repulsion():
    case = CosineCase(3, 2, 4, 8, "float32", "", features=True)
    crops = inputs_of(case, "cpu")
    x, y, r = crops.leaves
    (t,) = crops.constants
    assert pairs(x, y, r, t).item() != pytest.approx(pairs(x, y, t).item())


def test_fp16_is_checked_and_timed_under_a_loss_scale(monkeypatch):
    """Gradients of 1e-7 are lost in fp16 with an upstream of one, as any user's would be."""
    case = CosineCase(600, 2, 3, 64, "float16", "")
    made = bench_cosine.contest(case, "cpu")
    assert made.upstream.item() == 65536
    seen = []
    monkeypatch.setattr(
        torch.autograd, "backward",
        lambda value, upstream, backward=torch.autograd.backward: (
            seen.append(upstream.item()), backward(value, upstream)
        ),
    )  # fmt: skip
    monkeypatch.setattr(comparison, "peak_bytes", lambda step, device: 0)
    made.ours = {OURS: made.ours[OURS]}
    made.peers = [peer for peer in made.peers if peer.name in PEERS]
    benchmark = FewRounds()
    comparison.compare(benchmark, case, "cpu", made)
    assert set(seen) == {65536.0}
    assert benchmark.extra_info["excluded"] == {}
    assert set(benchmark.extra_info["contestants"]) == {OURS, *PEERS, COPY}
    assert bench_cosine.contest(CosineCase(3, 2, 3, 8, "float32", ""), "cpu").upstream is None
