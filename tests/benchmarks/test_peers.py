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
import forms
import inputs
import memory
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
    CosineCase(40, 2, 3, 16, "float16", "half precision", view_major=True, features=True),
    CosineCase(64, 2, 2, 2048, "float16", "rows whose products are large"),
]


def difference(crops, reference, function):
    """As the benchmarks ask for it: fp16 under a loss scaler's upstream."""
    upstream = inputs.upstream_of(str(crops.leaves[0].dtype).removeprefix("torch."), "cpu")
    return Expected(crops, reference, upstream).difference(crops, function, upstream)


@pytest.mark.parametrize("case", COSINE_CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("peer", peers.COSINE)
def test_cosine_peer(peer, case):
    crops = inputs.cosine_inputs(case, "cpu")
    assert difference(crops, REFERENCE, peers.COSINE[peer]) is None
    assert difference(crops, REFERENCE, bench_cosine.loss) is None


@pytest.mark.parametrize("peer", [name for name in contrast_peers.INFO_NCE if name != "attention"])
def test_info_nce_peer_under_a_loss_scale(peer):
    crops = inputs.info_nce_inputs(InfoNCECase(64, 2, 2, 40, 16, "float16", ""), "cpu")
    reference = partial(bench_info_nce.loss, backend="reference")
    assert difference(crops, reference, contrast_peers.INFO_NCE[peer]) is None
    assert difference(crops, reference, bench_info_nce.loss) is None


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
    case = AffinityCase(*counts, "float32", "", hidden=12)
    crops = inputs.affinity_inputs(case, "cpu")
    expected = Expected(crops, bench_affinity.loss_by(case, "cpu", "reference"))
    for peer in affinity_peers.AFFINITY.values():
        assert expected.difference(crops, peer) is None
        assert expected.difference(crops, lambda *all_, peer=peer: peer(*all_) * 1.01) is not None
    assert expected.difference(crops, bench_affinity.loss_by(case, "cpu")) is None


@pytest.mark.parametrize("peer", batch_peers.BATCH)
@pytest.mark.parametrize("counts", [(3, 2, 2), (4, 3, 1)])
def test_batch_peer(peer, counts):
    if peer == "NTXent":
        pytest.importorskip("pytorch_metric_learning")
    crops = inputs.info_nce_inputs(InfoNCECase(*counts, None, 8, "float32", ""), "cpu")
    expected = Expected(crops, partial(bench_info_nce.loss, backend="reference"))
    assert expected.difference(crops, batch_peers.BATCH[peer]) is None
    assert expected.difference(crops, bench_info_nce.loss) is None


@pytest.mark.parametrize("counts", [(24, 2, 2), (24, 1, 3)])
def test_memory_of_ntxent_is_estimated(counts):
    pytest.importorskip("pytorch_metric_learning")
    case = InfoNCECase(*counts, None, 8, "float32", "")
    crops = inputs.info_nce_inputs(case, "cpu")
    estimate = batch_peers.ntxent_bytes(case)
    peak = memory.peak_bytes(lambda: crops.step(batch_peers.ntxent), "cpu")
    assert estimate <= peak <= 3 * estimate


def test_ntxent_asks_for_half_a_terabyte(monkeypatch):
    """Of flags alone, at B = 4096 with G = L = 2, as was seen on an H200."""
    monkeypatch.setattr(batch_peers, "find_spec", lambda name: SimpleNamespace())
    case = InfoNCECase(4096, 2, 2, None, 256, "bfloat16", "")
    assert batch_peers.ntxent_bytes(case) // 5 == pytest.approx(1024 << 30, rel=1e-3)
    monkeypatch.setattr(batch_peers, "free_bytes", lambda device: 139 << 30)
    reasons = bench_info_nce.missing_peers(case, "cuda")
    assert reasons["NTXent"] == "it needs 5119 GiB at the least, and 139 GiB are free"
    assert "one query" in reasons["Inf-CL"]
    assert set(reasons) == {"NTXent", "Inf-CL"}
    small = InfoNCECase(64, 1, 1, None, 256, "bfloat16", "")
    assert bench_info_nce.missing_peers(small, "cuda") == {}


def test_peers_without_their_packages(monkeypatch):
    monkeypatch.setattr(batch_peers, "find_spec", lambda name: None)
    case = InfoNCECase(64, 1, 1, None, 256, "bfloat16", "")
    assert bench_info_nce.missing_peers(case, "cuda") == {
        "NTXent": "pytorch_metric_learning is not installed",
        "Inf-CL": "inf_cl is not installed",
    }
    prepared = forms.prepare({"NTXent": None}, "cuda", 1, {"NTXent": "no"})
    assert [(peer.name, peer.missing) for peer in prepared] == [("NTXent", "no")]
    with_queue = InfoNCECase(64, 1, 1, 8, 256, "bfloat16", "")
    assert bench_info_nce.missing_peers(with_queue, "cuda") == {}


@pytest.mark.parametrize(
    ("device", "moved", "names"),
    [
        ("cpu", 1, ["a", "a, compiled"]),
        ("cuda", forms.CUDA_GRAPH_BYTES, ["a", "a, compiled", "a, compiled, CUDA graph"]),
        ("cuda", forms.CUDA_GRAPH_BYTES + 1, ["a", "a, compiled"]),
    ],
)
def test_forms(device, moved, names):
    prepared = forms.in_every_form("a", peers.sums, device, moved)
    assert [peer.name for peer in prepared] == names
    assert [forms.split(name) for name in names] == [
        ("a", form) for form in list(forms.FORMS)[: len(names)]
    ]


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
