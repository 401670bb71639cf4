"""InfoNCE's CUDA kernels in the emulator: every layout of operands, against dense float64."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from architectures import ARCHITECTURES
from logo_kernels.backends import Request
from oracles import softmax_over_negatives, unit
from support import attend, error

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ALL = (FP32, BF16, FP16)
SHAPES = [(1, 1, 8), (5, 37, 24), (33, 130, 64), (70, 200, 128), (17, 65, 300)]
# Of a score's and a weight's operands, relative; fp32 has three parts of 16 bits, or two of fp16.
PRECISION = {FP32: 2.0**-21, BF16: 2.0**-8, FP16: 2.0**-11}


def problem(queries, negatives, dim, owed=FP32, kept=FP32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(queries, dim, generator=generator).to(owed),
        torch.randn(negatives, dim, generator=generator).to(kept),
    )


class Seen(NamedTuple):
    """The negatives, from each query."""

    lse: Tensor
    mean: Tensor


def seen(backend, queries, negatives, temperature, own=None):
    return Seen(*attend(backend, queries, negatives, temperature, own))


def owed_precision(owed, kept):
    """bf16 operands where the queries are bf16 against halves; else what the queries are owed."""
    if kept == FP32:
        return PRECISION[FP32]
    return PRECISION[kept] if owed == BF16 else PRECISION[owed]


def assert_exact(backend, queries, negatives, temperature, own=None):
    got = seen(backend, queries, negatives, temperature, own)
    lse, mean = softmax_over_negatives(queries, negatives, temperature, own)
    precision = owed_precision(queries.dtype, negatives.dtype)
    # A query's rounded elements move its logits by so much, and with them its weights.
    logit = precision / temperature
    assert got.lse.dtype == got.mean.dtype == FP32
    # And ulps of fp32 numbers as large as 1/τ.
    assert error(got.lse, lse) < 0.5 * logit + 1e-6
    assert error(got.mean, mean) < min(2 * precision + logit, 1)
    return got


def main(backend):
    """Statistics of a call's pass over the negatives, the launch before the last."""
    return backend.library.statistics(before=1)


@pytest.mark.parametrize("owed", ALL)
@pytest.mark.parametrize("kept", ALL)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(emulated, shape, kept, owed):
    assert_exact(emulated, *problem(*shape, owed, kept), 0.2)


@pytest.mark.parametrize("kept", ALL)
@pytest.mark.parametrize("temperature", [1e-4, 0.02, 0.025, 0.07, 1, 1e4])
def test_temperatures(emulated, temperature, kept):
    """Both sides of where the running maximum begins."""
    for shape in SHAPES[1:3]:
        assert_exact(emulated, *problem(*shape, kept, kept), temperature)


@pytest.mark.parametrize("kept", ALL)
@pytest.mark.parametrize("owed", ALL)
def test_no_worse_than_eager(emulated, kept, owed):
    """At most twice the error of products in the less precise of the two dtypes, plus a floor."""
    queries, negatives = problem(40, 500, 128, owed, kept, seed=3)
    dtype = owed if kept == FP32 or FP32 in (kept, owed) else max(owed, kept, key=PRECISION.get)
    for temperature in (0.02, 0.07, 0.5):
        n = F.normalize(negatives.float(), dim=1).to(dtype)
        logits = F.normalize(queries.float(), dim=1).to(dtype) @ n.mT / temperature
        lse, mean = softmax_over_negatives(queries, negatives, temperature)
        got = seen(emulated, queries, negatives, temperature)
        assert error(got.lse, lse) <= 2 * error(logits.logsumexp(1), lse) + 1e-6
        assert error(got.mean, mean) <= 2 * error(logits.softmax(1) @ n, mean) + 1e-7


@pytest.mark.parametrize("kept", ALL)
@pytest.mark.parametrize("temperature", [0.002, 0.03, 0.2])
def test_one_negative_on_either_side(emulated, kept, temperature):
    """The largest and the smallest power that a logit can have."""
    queries = torch.zeros(2, 16, dtype=kept)
    queries[:, 3] = 1
    for sign in (1, -1):
        negatives = torch.zeros(1, 16, dtype=kept)
        negatives[0, 3] = sign
        got = seen(emulated, queries, negatives, temperature)
        assert error(got.lse * temperature, torch.full((2,), sign)) < 1e-6
        assert error(got.mean, sign * queries) < PRECISION[kept]  # of its one weight


@pytest.mark.parametrize("kept", ALL)
@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize(
    ("images", "own"), [(2, (3, 1)), (9, (8, 4)), (40, (2, 3)), (3, (1, 70)), (70, (1, 1))]
)
def test_own_negatives_are_not_seen(emulated, images, own, temperature, kept):
    queries, negatives = problem(images * own[0], images * own[1], 24, kept, kept)
    negatives[:: own[1]] *= 30  # what is left out would change the mean
    assert_exact(emulated, queries, negatives, temperature, own=own)


def test_splits_that_see_nothing(device):
    """A block whose negatives are all of the one image of its queries."""
    backend = device(multiprocessors=16)
    for kept in ALL:
        queries, negatives = problem(8, 128, 16, kept, kept)
        for temperature in (0.01, 0.2):
            assert_exact(backend, queries, negatives, temperature, own=(4, 64))
            # One tile of queries: as many parts as blocks.
            assert main(backend).blocks > 1


def layouts(negatives):
    keys, dim = negatives.shape
    columns = negatives.t().contiguous().t()
    wide = negatives.new_zeros(2 * keys, dim + 3)
    misaligned, apart = wide[:keys, 1 : dim + 1], wide[keys:, :dim]
    misaligned.copy_(negatives)
    apart.copy_(negatives)
    spread = negatives.new_zeros(keys, 2 * dim)[:, ::2].copy_(negatives)
    aligned = negatives.new_zeros(keys, dim + 16)[:, :dim].copy_(negatives)
    return {"columns": columns, "misaligned": misaligned, "pitch": apart, "every second": spread,
            "aligned": aligned}  # fmt: skip


@pytest.mark.parametrize("dim", [32, 40, 7, 280])
@pytest.mark.parametrize("kept", ALL)
def test_strides(emulated, kept, dim):
    """However rows lie; nothing is written to."""
    queries, negatives = problem(5, 70, dim, kept, kept)
    want = assert_exact(emulated, queries, negatives, 0.1)
    for name, view in layouts(negatives).items():
        before = view.clone()
        got = assert_exact(emulated, queries, view, 0.1)
        if name == "aligned":  # others' norms are summed in another order
            assert torch.equal(got.mean, want.mean)
        assert torch.equal(view, before)


def test_one_row_for_all(emulated):
    queries, negatives = problem(5, 1, 32)
    got = assert_exact(emulated, queries, negatives.expand(50, 32), 0.1)
    assert error(got.mean, unit(negatives).expand(5, 32)) < 1e-6


@pytest.mark.parametrize("dim", [1, 2, 15, 17, 129, 256, 257, 520, 1030])
def test_any_dim(emulated, dim):
    for kept in ALL:
        queries, negatives = problem(3, 20, dim, kept, kept)
        assert_exact(emulated, queries, negatives, 0.1)


@pytest.mark.parametrize("shared", [99, 64])
def test_devices_with_less_shared_memory(device, shared):
    """sm_86, and older: chunks of columns where one stage of all does not fit."""
    backend = device(shared_per_block=shared << 10)
    for kept in ALL:
        assert_exact(backend, *problem(9, 70, 256, FP32, kept), 0.1)
        assert_exact(backend, *problem(9, 70, 200, kept, kept), 0.1)


@pytest.mark.parametrize("kept", ALL)
@pytest.mark.parametrize("temperature", [0.02, 0.03, 0.2])
@pytest.mark.parametrize("dim", [64, 280])
def test_extreme_norms(emulated, kept, temperature, dim):
    """Alone and beside each other; each is exact as if it were of unit norm."""
    queries, negatives = problem(6, 70, dim, kept, kept)
    largest = 2.0**13 if kept == FP16 else 2.0**124
    smallest = 2.0**-15 if kept == FP16 else 2.0**-120
    middle = 2.0**8 if kept == FP16 else 2.0**45
    for scale in (largest, smallest, middle, 1 / middle):
        for rows in (slice(None), slice(40, None, 7)):
            some = negatives.clone()
            some[rows] *= scale
            assert_exact(emulated, queries, some, temperature)
    mixed = negatives * torch.tensor([largest, 1, smallest, 1 / middle, middle]).repeat(14)[:, None]
    assert_exact(emulated, queries, mixed.to(kept), temperature)


@pytest.mark.parametrize("kept", ALL)
def test_the_smallest_and_the_largest_numbers(emulated, kept):
    queries, negatives = problem(4, 33, 32, kept, kept)
    tiny = torch.finfo(kept).smallest_normal * torch.finfo(kept).eps
    negatives[3] = 0
    negatives[3, 5] = tiny
    negatives[7] = torch.finfo(kept).max
    negatives[32] = -tiny
    for temperature in (0.01, 0.2):
        assert_exact(emulated, queries, negatives, temperature)


@pytest.mark.parametrize("kept", ALL)
@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_zero_rows(emulated, kept, temperature):
    """A zero negative has logit 0 and no part in the mean; a zero query weighs all alike."""
    queries, negatives = problem(5, 40, 24, kept, kept)
    negatives[::3] = 0
    queries[2] = 0
    got = assert_exact(emulated, queries, negatives, temperature)
    assert abs(float(got.lse[2]) - torch.tensor(40.0).log()) < 1e-6
    got = seen(emulated, queries, torch.zeros_like(negatives), temperature)
    assert error(got.lse, torch.tensor(40.0).log().expand(5)) < 1e-6
    assert not got.mean.any()


@pytest.mark.parametrize("kept", ALL)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_nan_and_inf_come_through(emulated, kept, value, temperature):
    queries, negatives = problem(3, 40, 24, kept, kept)
    for row in (0, 39):
        wrong = negatives.clone()
        wrong[row, 5] = value
        got = seen(emulated, queries, wrong, temperature)
        assert got.lse.isnan().all()
        assert got.mean.isnan().all()
    queries[1, 2] = float("nan")
    got = seen(emulated, queries, negatives, temperature)
    assert got.lse.isnan().tolist() == [False, True, False]
    assert got.mean.isnan().all(1).tolist() == got.mean.isnan().any(1).tolist()
    assert got.mean.isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("owed", [None, FP32])
@pytest.mark.parametrize("kept", ALL)
@pytest.mark.parametrize("dim", [48, 300])
def test_any_order_of_threads_and_copies(emulated, kept, owed, dim):
    """A missing barrier, or a stage that is filled or read too early, shows in some order."""
    queries, negatives = problem(20, 300, dim, owed or kept, kept)
    negatives[40::60] *= 2.0**12 if kept == FP16 else 2.0**60  # rescaled in shared memory
    results = []
    for seed in range(4):
        emulated.library.settings.seed = seed
        results.append(assert_exact(emulated, queries, negatives, 0.1))
    for result in results[1:]:
        assert torch.equal(result.lse, results[0].lse)
        assert torch.equal(result.mean, results[0].mean)


@pytest.mark.parametrize("kept", ALL)
@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_splits_add_up(device, kept, temperature):
    queries, negatives = problem(5, 500, 32, kept, kept)
    queries = queries.repeat(60, 1)
    results = []
    for multiprocessors in (1, 7, 200):
        backend = device(multiprocessors)
        results.append(assert_exact(backend, queries, negatives, temperature))
        blocks = main(backend).blocks  # 300 queries are 3 or 5 tiles
        assert blocks > 5 if multiprocessors > 1 else blocks == (5 if kept == FP32 else 3)
    for result in results[1:]:
        assert error(result.lse, results[0].lse) < 1e-6 + 1e-7 / temperature
        # Weights are rounded relative to the largest of their own part.
        assert error(result.mean, results[0].mean) < PRECISION[kept]


@pytest.mark.parametrize("kept", ALL)
def test_hardware_that_is_used(emulated, kept):
    """Tensor cores and asynchronous copies, both in the pass over the negatives alone."""
    queries, negatives = problem(1100, 64, 64, kept, kept)
    assert_exact(emulated, queries, negatives, 0.1)
    statistics = main(emulated)
    assert emulated.library.launches() == 3
    for others in (0, 2):
        assert emulated.library.statistics(before=others).mma == 0
    products = 6 if kept == FP32 else 1
    rows = -(-1100 // (64 if kept == FP32 else 128)) * (64 if kept == FP32 else 128)
    # Both products, 16 × 8 × 16 each.
    assert statistics.mma == 2 * products * (rows // 16) * (64 // 8) * (64 // 16)
    assert statistics.async_copies > 0


def test_a_failed_launch_says_which(emulated, monkeypatch):
    monkeypatch.setattr("logo_kernels.backends.cuda.place", lambda tensor: (5, 0))
    queries, negatives = problem(3, 20, 64, FP16, BF16)
    with pytest.raises(RuntimeError, match=r"info_nce, N=3 K=20 D=64 bfloat16 for float16, on dev"):
        seen(emulated, queries, negatives, 0.1)


def test_what_is_refused(emulated, device):
    def refusal(dtype, dim, backend=emulated):
        return backend.refuses(Request("info_nce", "cpu", frozenset([dtype]), 0, dim))

    assert refusal(BF16, 2048) is None
    assert refusal(FP32, 1) is None
    assert "float64" in refusal(torch.float64, 8)
    assert "16 KiB" in refusal(BF16, 128, device(shared_per_block=16 << 10))
    # Three parts of bf16 take more than fp32.
    assert "32 KiB" in refusal(BF16, 128, device(shared_per_block=32 << 10))


H100 = {"multiprocessors": 132, "shared_per_block": 227 << 10}
A100 = {"multiprocessors": 108, "shared_per_block": 163 << 10}


@pytest.mark.parametrize("device", [H100, A100], ids=["H100", "A100"])
def test_two_blocks_on_a_multiprocessor(emulated, device):
    for dim in (64, 128, 256):
        plan = emulated.library.info_nce_plan(4096, 65536, dim, 2, 1, **device)
        assert plan["resident"] == 2
        assert plan["chunks"] == 1


@pytest.mark.parametrize("queries", [1, 128, 512, 4096, 16384])
@pytest.mark.parametrize("dim", [128, 256])
def test_blocks_fill_the_device(emulated, queries, dim):
    """Few queries are split over K; whole waves are nearly full."""
    plan = emulated.library.info_nce_plan(queries, 65536, dim, 2, 1, **H100)
    together = 132 * plan["resident"]
    waves = -(-plan["blocks"] // together)
    assert plan["blocks"] >= 0.85 * waves * together
    assert plan["splits"] * plan["tile"] <= 65536
    # What parts leave in memory grows with the device, not with K.
    assert plan["workspace_bytes"] < 4 * 65536 + 2 * queries * dim * 2 + 50e6


@pytest.mark.parametrize("negatives", [1, 31, 33, 1000])
def test_no_part_is_empty(emulated, negatives):
    for multiprocessors in (1, 132):
        plan = emulated.library.info_nce_plan(
            5, negatives, 64, 2, 1, multiprocessors=multiprocessors, shared_per_block=227 << 10
        )
        assert 1 <= plan["splits"] <= -(-negatives // plan["tile"])


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.id)
def test_every_architecture_is_served(emulated, architecture):
    """Smaller where memory is short, and never at an error of the launch."""
    for dim in (1, 16, 128, 200, 256, 300, 768, 2048, 8192):
        for bytes_, planes in ((2, 1), (2, 2), (2, 3), (4, 1)):
            plan = emulated.library.info_nce_plan(
                4096, 65536, dim, bytes_, planes, 100, architecture.shared_per_block
            )
            assert plan["threads"] > 0
            taken = plan["shared_bytes"] + 1024  # the system's
            assert plan["shared_bytes"] <= architecture.shared_per_block
            assert plan["resident"] * taken <= architecture.shared_per_multiprocessor
            if dim <= 256 and planes == 1 and bytes_ == 2:
                assert plan["chunks"] == 1


@pytest.mark.parametrize("shared", [48, 64, 99, 163, 227])
@pytest.mark.parametrize(("bytes_", "planes"), [(2, 1), (2, 2), (2, 3), (4, 1)])
def test_shared_memory_suffices(emulated, shared, bytes_, planes):
    for dim in (1, 16, 128, 200, 256, 300, 768, 2048):
        plan = emulated.library.info_nce_plan(
            64, 4096, dim, bytes_, planes, multiprocessors=80, shared_per_block=shared << 10
        )
        if plan["threads"] == 0:
            assert shared == 48
            continue
        assert plan["shared_bytes"] <= shared << 10
        assert plan["resident"] * (plan["shared_bytes"] + 1024) <= (shared + 1) << 10
        assert plan["chunk"] % 16 == 0
        assert plan["chunk"] * plan["chunks"] >= dim
        assert 2 <= plan["stages"] <= 3
