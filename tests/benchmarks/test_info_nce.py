"""InfoNCE: counts by hand; every peer computes the loss, or says why it cannot."""

import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import bench_info_nce
from bench_info_nce import BATCH, QUEUE, InfoNCECase, inputs_of
from benchmarks.made import difference
from harness import forms, memory
from harness.gate import Expected


def test_info_nce_by_hand():
    # 1024 crops with their gradients, 512 targets, 65536 negatives of 128 numbers
    case = InfoNCECase(256, 2, 2, 65536, 128, "float32", "")
    assert case.moved_bytes() == (2 * 1024 + 512 + 65536) * 128 * 4
    assert case.flops() == 4 * 1024 * 65536 * 128


def test_info_nce_in_batch_by_hand():
    # the targets of the other 7 images, 2 each; none is read again as a negative
    case = InfoNCECase(8, 2, 3, None, 16, "float32", "")
    assert case.moved_bytes() == 8 * (2 * 5 + 2) * 16 * 4
    assert case.flops() == 4 * 40 * 14 * 16


REFERENCE = partial(bench_info_nce.loss, backend="reference")


@pytest.mark.parametrize("peer", [name for name in QUEUE if name != "attention"])
def test_info_nce_peer_under_a_loss_scale(peer):
    crops = inputs_of(InfoNCECase(64, 2, 2, 40, 16, "float16", ""), "cpu")
    assert difference(crops, REFERENCE, QUEUE[peer]) is None
    assert difference(crops, REFERENCE, bench_info_nce.loss) is None


@pytest.mark.parametrize("peer", QUEUE)
@pytest.mark.parametrize("counts", [(3, 2, 2, 40, 8), (2, 3, 4, 17, 16)])
def test_info_nce_peer(peer, counts):
    case = InfoNCECase(*counts, "float32", "")
    crops = inputs_of(case, "cpu")
    expected = Expected(crops, REFERENCE)
    assert expected.difference(crops, QUEUE[peer]) is None
    assert expected.difference(crops, bench_info_nce.loss) is None
    assert expected.difference(crops, lambda *all_: bench_info_nce.loss(*all_) * 1.01) is not None


@pytest.mark.parametrize("peer", BATCH)
@pytest.mark.parametrize("counts", [(3, 2, 2), (4, 3, 1)])
def test_batch_peer(peer, counts):
    if peer == "NTXent":
        pytest.importorskip("pytorch_metric_learning")
    crops = inputs_of(InfoNCECase(*counts, None, 8, "float32", ""), "cpu")
    expected = Expected(crops, REFERENCE)
    assert expected.difference(crops, BATCH[peer]) is None
    assert expected.difference(crops, bench_info_nce.loss) is None


@pytest.mark.parametrize("counts", [(24, 2, 2), (24, 1, 3)])
def test_memory_of_ntxent_is_estimated(counts):
    pytest.importorskip("pytorch_metric_learning")
    case = InfoNCECase(*counts, None, 8, "float32", "")
    crops = inputs_of(case, "cpu")
    estimate = bench_info_nce.ntxent_bytes(case)
    peak = memory.peak_bytes(lambda: crops.step(bench_info_nce.ntxent), "cpu")
    assert estimate <= peak <= 3 * estimate


def test_ntxent_asks_for_half_a_terabyte(monkeypatch):
    """Of flags alone, at B = 4096 with G = L = 2, as was seen on an H200."""
    monkeypatch.setattr(bench_info_nce, "find_spec", lambda name: SimpleNamespace())
    case = InfoNCECase(4096, 2, 2, None, 256, "bfloat16", "")
    assert bench_info_nce.ntxent_bytes(case) // 5 == pytest.approx(1024 << 30, rel=1e-3)
    monkeypatch.setattr(bench_info_nce, "free_bytes", lambda device: 139 << 30)
    reasons = bench_info_nce.missing_peers(case, "cuda")
    assert reasons["NTXent"] == "it needs 5119 GiB at the least, and 139 GiB are free"
    assert "one query" in reasons["Inf-CL"]
    assert set(reasons) == {"NTXent", "Inf-CL"}
    small = InfoNCECase(64, 1, 1, None, 256, "bfloat16", "")
    assert bench_info_nce.missing_peers(small, "cuda") == {}


def test_peers_without_their_packages(monkeypatch):
    monkeypatch.setattr(bench_info_nce, "find_spec", lambda name: None)
    case = InfoNCECase(64, 1, 1, None, 256, "bfloat16", "")
    assert bench_info_nce.missing_peers(case, "cuda") == {
        "NTXent": "pytorch_metric_learning is not installed",
        "Inf-CL": "inf_cl is not installed",
    }
    prepared = forms.prepare({"NTXent": None}, "cuda", 1, {"NTXent": "no"})
    assert [(peer.name, peer.missing) for peer in prepared] == [("NTXent", "no")]
    with_queue = InfoNCECase(64, 1, 1, 8, 256, "bfloat16", "")
    assert bench_info_nce.missing_peers(with_queue, "cuda") == {}


@pytest.mark.parametrize("parts", [1, 4])
def test_attention_in_parts(parts):
    """As on a GPU, by the engine that a CPU has."""
    torch.manual_seed(0)
    rows, keys = torch.randn(6, 8), torch.randn(20, 8)
    scores = rows @ keys.T / bench_info_nce.TEMPERATURE
    mean, lse = bench_info_nce.attend(bench_info_nce.flash_engine, rows, keys, parts)
    torch.testing.assert_close(lse, scores.logsumexp(1))
    torch.testing.assert_close(mean, scores.softmax(1) @ keys)


@pytest.mark.parametrize(
    ("keys", "rows", "parts"), [(65536, 4096, 8), (65536, 512, 64), (65536, 40_000, 1), (30, 64, 2)]
)
def test_parts_occupy_a_gpu(keys, rows, parts):
    assert bench_info_nce.parts_of(keys, rows, 132) == parts


def test_infcl_peer(monkeypatch):
    """What it is told, by a stand-in for its kernels, which need a GPU."""

    def cal_flash_loss(q, k, labels=None, scale=None, head_dim=256):
        logits = scale * q.float() @ k.float().T
        return logits.logsumexp(1) - logits.diagonal()

    stand_in = SimpleNamespace(cal_flash_loss=cal_flash_loss)
    monkeypatch.setitem(sys.modules, "inf_cl", stand_in)
    case = InfoNCECase(5, 1, 1, None, 8, "float32", "")
    crops = inputs_of(case, "cpu")
    expected = Expected(crops, REFERENCE)
    assert expected.difference(crops, bench_info_nce.infcl) is None
    assert expected.difference(crops, lambda *all_: bench_info_nce.infcl(*all_) * 1.01) is not None
    assert "Inf-CL" in bench_info_nce.peers_of(case, "cuda")
    with pytest.raises(ValueError, match="one query"):
        bench_info_nce.infcl(torch.ones(3, 2, 4), torch.ones(3, 1, 4), torch.ones(3, 2, 4))
