"""Every peer computes the package's function: else beating it would mean nothing."""

import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import affinity_peers
import batch_peers
import bench_affinity
import bench_cosine
import bench_info_nce
import contrast_peers
import inputs
import peers
from cases import AffinityCase, CosineCase, InfoNCECase, SimilarityCase
from gate import Expected
from logo_kernels import block_cosine_similarity

REFERENCE = partial(bench_cosine.loss, backend="reference")
COSINE_CASES = [
    CosineCase(3, 2, 2, 8, "float32", "the paper's counts"),
    CosineCase(2, 3, 5, 7, "float32", "more global crops", view_major=True),
    CosineCase(3, 2, 4, 8, "float32", "features", features=True),
    CosineCase(1, 2, 8, 16, "bfloat16", "half precision"),
    CosineCase(2, 2, 3, 16, "float16", "half precision", view_major=True, features=True),
]


@pytest.mark.parametrize("case", COSINE_CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("peer", peers.COSINE)
def test_cosine_peer(peer, case):
    crops = inputs.cosine_inputs(case, "cpu")
    assert Expected(crops, REFERENCE).difference(crops, peers.COSINE[peer]) is None


@pytest.mark.parametrize("peer", peers.COSINE)
def test_cosine_peer_to_the_last_digits(peer):
    crops = inputs.cosine_inputs(CosineCase(3, 3, 4, 9, "float32", "", features=True), "cpu")
    exact = crops.double()
    value = exact.step(peers.COSINE[peer]).item()
    gradients = [leaf.grad for leaf in exact.leaves]
    expected = Expected(crops, REFERENCE)
    assert value == pytest.approx(expected.value.item(), rel=1e-12)
    for gradient, wanted in zip(gradients, expected.gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("peer", peers.SIMILARITY)
@pytest.mark.parametrize("others", [None, 3])
def test_similarity_peer(peer, others):
    case = SimilarityCase(2, 4, others, 8, "float32", "", view_major=others is None)
    rows, upstream = inputs.similarity_inputs(case, "cpu")
    expected = Expected(rows, partial(block_cosine_similarity, backend="reference"), upstream)
    assert expected.difference(rows, peers.SIMILARITY[peer], upstream) is None
    assert expected.difference(rows, block_cosine_similarity, upstream) is None


@pytest.mark.parametrize("peer", contrast_peers.INFO_NCE)
@pytest.mark.parametrize("counts", [(3, 2, 2, 40, 8), (2, 3, 4, 17, 16)])
def test_info_nce_peer(peer, counts):
    case = InfoNCECase(*counts, "float32", "")
    crops = inputs.info_nce_inputs(case, "cpu")
    expected = Expected(crops, partial(bench_info_nce.loss, backend="reference"))
    assert expected.difference(crops, contrast_peers.INFO_NCE[peer]) is None
    assert expected.difference(crops, bench_info_nce.loss) is None
    assert expected.difference(crops, lambda *all_: bench_info_nce.loss(*all_) * 1.01) is not None


@pytest.mark.parametrize("counts", [(5, 2, 8), (3, 4, 7)])
def test_affinity_peer(counts):
    crops = inputs.affinity_inputs(AffinityCase(*counts, "float32", "", hidden=12), "cpu")
    expected = Expected(crops, partial(bench_affinity.loss, backend="reference"))
    for peer in affinity_peers.AFFINITY.values():
        assert expected.difference(crops, peer) is None
        assert expected.difference(crops, lambda *all_, peer=peer: peer(*all_) * 1.01) is not None
    assert expected.difference(crops, bench_affinity.loss) is None


@pytest.mark.parametrize("peer", batch_peers.BATCH)
@pytest.mark.parametrize("counts", [(3, 2, 2), (4, 3, 1)])
def test_batch_peer(peer, counts):
    if peer == "NTXent":
        pytest.importorskip("pytorch_metric_learning")
    crops = inputs.info_nce_inputs(InfoNCECase(*counts, None, 8, "float32", ""), "cpu")
    expected = Expected(crops, partial(bench_info_nce.loss, backend="reference"))
    assert expected.difference(crops, batch_peers.BATCH[peer]) is None
    assert expected.difference(crops, bench_info_nce.loss) is None


@pytest.mark.parametrize("parts", [1, 4])
def test_attention_in_parts(parts):
    """As on a GPU, by the engine that a CPU has."""
    torch.manual_seed(0)
    rows, keys = torch.randn(6, 8), torch.randn(20, 8)
    scores = rows @ keys.T / contrast_peers.TEMPERATURE
    mean, lse = contrast_peers.attend(contrast_peers.flash_engine, rows, keys, parts)
    torch.testing.assert_close(lse, scores.logsumexp(1))
    torch.testing.assert_close(mean, scores.softmax(1) @ keys)


@pytest.mark.parametrize(
    ("keys", "rows", "parts"), [(65536, 4096, 8), (65536, 512, 64), (65536, 40_000, 1), (30, 64, 2)]
)
def test_parts_occupy_a_gpu(keys, rows, parts):
    assert contrast_peers.parts_of(keys, rows, 132) == parts


def test_infcl_peer(monkeypatch):
    """What it is told, by a stand-in for its kernels, which need a GPU."""

    def cal_flash_loss(q, k, labels=None, scale=None, head_dim=256):
        logits = scale * q.float() @ k.float().T
        return logits.logsumexp(1) - logits.diagonal()

    stand_in = SimpleNamespace(cal_flash_loss=cal_flash_loss)
    monkeypatch.setitem(sys.modules, "inf_cl", stand_in)
    case = InfoNCECase(5, 1, 1, None, 8, "float32", "")
    crops = inputs.info_nce_inputs(case, "cpu")
    expected = Expected(crops, partial(bench_info_nce.loss, backend="reference"))
    assert expected.difference(crops, batch_peers.infcl) is None
    assert expected.difference(crops, lambda *all_: batch_peers.infcl(*all_) * 1.01) is not None
    assert "Inf-CL" in bench_info_nce.peers_of(case, "cuda")
    with pytest.raises(ValueError, match="one query"):
        batch_peers.infcl(torch.ones(3, 2, 4), torch.ones(3, 1, 4), torch.ones(3, 2, 4))


def test_features_reach_the_repulsion():
    case = CosineCase(3, 2, 4, 8, "float32", "", features=True)
    crops = inputs.cosine_inputs(case, "cpu")
    x, y, r = crops.leaves
    (t,) = crops.constants
    assert peers.pairs(x, y, r, t).item() != pytest.approx(peers.pairs(x, y, t).item())


def wrong_loss(x, y, t):
    return peers.sums(x, y, t) + 1e-3


def wrong_repulsion(x, y, t):
    ys = torch.nn.functional.normalize(y, dim=-1).sum(1)
    return peers.sums(x, y, t) - 1e-3 * (ys * ys).sum() / x.shape[0]


def wrong_scale(x, y, t):
    loss = peers.sums(x, y, t)
    return loss + 1e-3 * (loss - loss.detach())


def not_a_number(x, y, t):
    return peers.sums(x, y, t) * float("nan")


@pytest.mark.parametrize("function", [wrong_loss, wrong_repulsion, wrong_scale, not_a_number])
def test_gate_stops_what_is_wrong(function):
    crops = inputs.cosine_inputs(CosineCase(3, 2, 4, 32, "float32", ""), "cpu")
    expected = Expected(crops, REFERENCE)
    assert expected.difference(crops, peers.sums) is None
    assert expected.difference(crops, function) is not None


def test_gate_takes_a_gradient_of_zero():
    # One global crop has no other: nothing pulls it, and its gradient is exactly zero.
    crops = inputs.cosine_inputs(CosineCase(2, 1, 3, 8, "float32", ""), "cpu")
    expected = Expected(crops, REFERENCE)
    assert expected.gradients[0].abs().max() == 0
    assert expected.difference(crops, bench_cosine.loss) is None
    assert (
        expected.difference(crops, lambda x, y, t: bench_cosine.loss(x, y, t) + x.sum()) is not None
    )
