"""The pass over the negatives against a dense softmax in float64, and what its plan promises."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from architectures import ARCHITECTURES
from logo_kernels.backends.protocol import Request
from logo_kernels.backends.triton import gpu as module
from logo_kernels.backends.triton.gpu import Gpu
from logo_kernels.backends.triton.info_nce_plan import (
    FULL,
    HALF,
    TWO_HALVES,
    misfit,
    operands_for,
    plan_for,
    running_maximum,
    shape_for,
    shared_bytes,
)
from logo_kernels.backends.triton.info_nce_rows import column_scale_of, lift_of, value_of
from logo_kernels.backends.triton.launch import launching
from oracles import softmax_over_negatives, unit
from support import attend

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
EPS = {FP32: 2.0**-23, BF16: 2.0**-8, FP16: 2.0**-11}
TEMPERATURES = [1e-4, 0.02, 0.07, 0.2, 1.0, 1e4]
# Dtypes of queries and negatives.
PAIRS = [(FP32, FP32), (BF16, BF16), (FP16, FP16), (FP32, BF16), (FP32, FP16), (BF16, FP32),
         (FP16, BF16)]  # fmt: skip
# (N, K, D): single ones; less than a tile; several tiles and splits; D in chunks or groups.
SHAPES = [(1, 1, 8), (5, 37, 24), (33, 130, 64), (17, 65, 300)]


class Attention(NamedTuple):
    """Softmax over the negatives, seen from each query."""

    lse: Tensor  # [N]
    mean: Tensor  # [N, D]


def seen(*arguments) -> Attention:
    return Attention(*attend(*arguments))


def rows(n: int, dim: int, dtype: torch.dtype, device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + n + dim)
    return torch.randn(n, dim, generator=generator).to(device, dtype)


def problem(shape, query_dtype, dtype, device) -> tuple[Tensor, Tensor]:
    """Raw queries and negatives, as the caller has them."""
    n, k, dim = shape
    return rows(n, dim, query_dtype, device), 3 * rows(k, dim, dtype, device, seed=1)


@pytest.fixture
def compare(kernels):
    def check(queries, negatives, temperature, own=None, factor=1.0):
        before = queries.clone(), negatives.clone()
        got = seen(kernels.backend, queries, negatives, temperature, own)
        assert torch.equal(queries, before[0])
        assert torch.equal(negatives.nan_to_num(), before[1].nan_to_num()), "written to"
        lse, mean = softmax_over_negatives(queries, negatives, temperature, own)
        assert got.lse.dtype == got.mean.dtype == FP32
        assert got.mean.shape == queries.shape
        # Logits are as exact as the operands are: q̂ in the dtype of the negatives, in one part or
        # two, over τ. A probability is relatively wrong by the error of its logit.
        parts = {FULL: EPS[FP32], HALF: EPS[negatives.dtype],
                 TWO_HALVES: max(EPS[negatives.dtype] ** 2, EPS[FP32])}  # fmt: skip
        rounding = factor * parts[operands_for(queries.dtype, negatives.dtype)]
        size = max(1.0, 1 / temperature)
        assert ((got.lse - lse).abs() <= rounding * size + 4e-6 * lse.abs().clamp_min(1)).all()
        flips = min(2.0, 2 * rounding * size)
        assert ((got.mean - mean).abs() <= (flips + 2 * rounding + 2e-6)).all()
        return got

    return check


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape, dtypes, device, compare) -> None:
    queries, negatives = problem(shape, *dtypes, device)
    for temperature in TEMPERATURES if shape[1] < 100 else (0.01, 0.07, 1.0):
        compare(queries, negatives, temperature)


@pytest.mark.parametrize("dtypes", PAIRS[:5], ids=str)
def test_as_exact_as_eager(dtypes, device, kernels, assert_as_exact) -> None:
    """The loss of one positive and its gradient to q̂ against what a user writes in that dtype."""
    queries, negatives = problem((70, 300, 64), *dtypes, device)
    dtype = dtypes[0]
    queries = F.normalize(queries.float(), dim=-1).to(dtype)
    positives = unit(rows(70, 64, FP32, device, seed=2))
    tau = 0.07
    results = []
    for kind in ("exact", "ours", "eager"):
        if kind == "eager":
            q = queries.clone().requires_grad_()
            n = F.normalize(negatives.to(dtype), dim=-1)
            positive = (q * positives.to(dtype)).sum(1, keepdim=True) / tau
            logits = torch.cat([positive, q @ n.T / tau], 1)
            loss = F.cross_entropy(logits, logits.new_zeros(70).long(), reduction="none")
            loss.sum().backward()
            results.append((loss.detach(), q.grad))
            continue
        if kind == "exact":
            lse, mean = softmax_over_negatives(queries, negatives, tau)
        else:
            lse, mean = (v.double() for v in seen(kernels.backend, queries, negatives, tau))
        positive = (unit(queries) * positives).sum(1) / tau
        loss = F.softplus(lse - positive)
        share = 1 - torch.sigmoid(positive - lse)
        results.append((loss, share[:, None] * (mean - positives) / tau))
    for name, exact, ours, eager in zip(("loss", "gradient"), *results, strict=True):
        assert_as_exact(name, ours, exact, eager, floor=1e-6 / tau)


@pytest.mark.parametrize("own", [(1, 1), (4, 2), (3, 5), (9, 30)], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_own_negatives_are_not_seen(own, temperature, device, compare) -> None:
    """Tiles that all queries of a program see, some see, and none sees; in all splits."""
    images = 19
    shape = (images * own[0], images * own[1], 20)
    compare(*problem(shape, BF16, BF16, device), temperature, own)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_own_negatives_amid_a_split(splits, dtype, device, compare, with_splits) -> None:
    """Whole tiles before and after those that a program's queries do not all see, and a last one
    that is not full."""
    with_splits(splits)
    queries, negatives = problem((48 * 8, 48 * 21, 16), dtype, dtype, device)
    compare(queries, negatives, 0.2, (8, 21))


def test_own_leaves_one(device, compare) -> None:
    """Whole splits that a query does not see."""
    queries, negatives = problem((6, 400, 16), FP32, FP32, device)
    for temperature in (0.01, 1.0):
        compare(queries, negatives, temperature, (3, 200))


@pytest.mark.parametrize("dtypes", [(FP32, FP32), (BF16, BF16)], ids=str)
def test_any_strides(dtypes, device, kernels) -> None:
    queries, negatives = problem((5, 70, 48), *dtypes, device)
    expected = seen(kernels.backend, queries, negatives, 0.1)
    transposed = negatives.T.contiguous().T  # a queue kept as [D, K]
    every_other = torch.stack([negatives, negatives], 1).flatten(0, 1)[::2]
    sparse = torch.stack([negatives, negatives], 2).flatten(1, 2)[:, ::2]
    repeated = negatives[:1].expand(70, 48)
    cases = [(view, negatives, expected) for view in (transposed, every_other, sparse)]
    cases.append(
        (repeated, repeated.clone(), seen(kernels.backend, queries, repeated.clone(), 0.1))
    )
    for view, dense, expected in cases:
        assert torch.equal(view, dense)
        got = seen(kernels.backend, queries, view, 0.1)
        # Another layout of the tile adds the squares of a norm in another order.
        torch.testing.assert_close(got.lse, expected.lse, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got.mean, expected.mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize(
    ("dtypes", "sizes"),
    [
        ((FP32, FP32), (1e38, 1e25, 1e-25, 1e-38, 1e-43)),
        ((BF16, BF16), (1e38, 1e25, 1e-25, 1e-38)),
        ((FP32, BF16), (1e38, 1e-38)),
        ((FP16, FP16), (2e4, 1e3, 1e-3, 1e-4)),
        ((FP32, FP16), (2e4, 1e-4)),
    ],
    ids=str,
)  # fmt: skip
def test_extreme_norms(dtypes, sizes, temperature, device, compare) -> None:
    """Some rows of one tile, the others ordinary; D in one piece and in chunks."""
    for dim in (24, 300):
        queries, negatives = problem((5, 200, dim), *dtypes, device)
        negatives = negatives / 8
        for i, size in enumerate(sizes):
            negatives[40 + i] = (negatives[40 + i].float().clamp(-3, 3) * size).to(dtypes[1])
        assert negatives.isfinite().all()
        compare(queries, negatives, temperature)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("size", [1.0, 2.0**-12], ids=str)
def test_zero_rows(size, dtype, device, compare) -> None:
    """Logit 0 and nothing for the mean, beside ordinary rows and beside tiny ones."""
    queries, negatives = problem((4, 70, 24), dtype, dtype, device)
    negatives = negatives * size
    negatives[3:60] = 0
    queries[1] = 0
    for temperature in (0.01, 0.2):
        compare(queries, negatives, temperature)
    negatives[:] = 0
    got = compare(queries, negatives, 0.2)
    assert (got.mean == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtypes", PAIRS[:4], ids=str)
def test_nan_and_inf(bad, dtypes, device, kernels) -> None:
    for temperature in (0.01, 0.2):
        queries, negatives = problem((4, 70, 24), *dtypes, device)
        negatives[30, 5] = bad
        got = seen(kernels.backend, queries, negatives, temperature)
        assert got.lse.isnan().all()
        assert got.mean.isnan().all()
        queries[2] = float("nan")
        negatives[30, 5] = 1
        got = seen(kernels.backend, queries, negatives, temperature)
        assert got.lse.isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_splits_add_up(temperature, device, kernels, with_splits) -> None:
    queries, negatives = problem((7, 300, 40), FP32, FP32, device)
    results = []
    for splits in (1, 2, 5, 10):
        with_splits(splits)
        results.append(seen(kernels.backend, queries, negatives, temperature))
    for got in results[1:]:
        torch.testing.assert_close(got.lse, results[0].lse, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got.mean, results[0].mean, rtol=2e-5, atol=1e-6)


def test_no_run_differs(device, kernels) -> None:
    queries, negatives = problem((9, 300, 40), BF16, BF16, device)
    first = seen(kernels.backend, queries, negatives, 0.07)
    for _ in range(2):
        again = seen(kernels.backend, queries, negatives, 0.07)
        assert torch.equal(first.lse, again.lse)
        assert torch.equal(first.mean, again.mean)


def test_no_queries(device, kernels) -> None:
    got = seen(kernels.backend, torch.zeros(0, 8, device=device), rows(3, 8, FP32, device), 1)
    assert got.lse.shape == (0,)
    assert got.mean.shape == (0, 8)


def test_refuses(device, kernels) -> None:
    for dim in (1, 2048):
        for dtypes in ({FP32}, {FP32, BF16}, {FP16}):
            request = Request("info_nce", device.type, frozenset(dtypes), 0, dim)
            assert kernels.backend.refuses(request) is None
    request = Request("info_nce", device.type, frozenset({FP32, torch.float64}), 0, 8)
    assert "float64" in kernels.backend.refuses(request)


def test_refuses_a_device_without_room(device, kernels, monkeypatch) -> None:
    """The one that the tensors are on."""
    given = [Gpu(132, 9, 227 << 10), Gpu(20, 8, 48 << 10)]
    monkeypatch.setattr(module, "gpu_of", lambda index: given[index])
    # Asked of torch, it would be an error where there is one GPU.
    monkeypatch.setattr("logo_kernels.backends.triton._capability", lambda index: (8, 0))
    for index, served in enumerate((True, False)):
        request = Request("info_nce", device.type, frozenset({BF16}), 0, 256, index)
        assert (kernels.backend.refuses(request) is None) == served
    assert "shared memory" in kernels.backend.refuses(request)


OPERANDS = [HALF, TWO_HALVES, FULL]
DIMS = (1, 8, 64, 100, 128, 256, 300, 2048)


def device_of(major: int) -> Gpu:
    """The least shared memory that a device of that generation has."""
    least = min(a.shared_per_block for a in ARCHITECTURES if a.major == major)
    return Gpu(132, major, least)


@pytest.mark.parametrize("operands", OPERANDS)
@pytest.mark.parametrize("major", [8, 9, 10, 12])
def test_plans(operands, major) -> None:
    """Splits hold every negative once and none is empty; sizes are what Triton takes."""
    for n in (1, 64, 65, 512, 4096, 16384):
        for k in (1, 63, 64, 65, 4096, 65536, 1_000_003):
            for dim in DIMS:
                plan = plan_for(n, k, dim, operands, device_of(major))
                shape = plan.shape
                tiles = -(-k // shape.block_k)
                assert (plan.splits - 1) * plan.tiles_per_split < tiles
                assert tiles <= plan.splits * plan.tiles_per_split
                assert plan.groups * shape.block_d >= dim
                assert (plan.groups - 1) * shape.block_d < dim
                assert shape.chunk_d <= shape.block_d
                for value in (*shape[:5], shape.resident):
                    assert value & (value - 1) == 0
                for value in shape[:5]:
                    assert value >= 4
                assert shape.num_stages >= 2
                assert plan.splits <= 65535  # of a grid's second dimension
                plan_for.cache_clear()
                assert plan_for(n, k, dim, operands, device_of(major)) == plan


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.id)
@pytest.mark.parametrize("operands", OPERANDS)
def test_plans_fit_shared_memory(operands, architecture) -> None:
    """A program that the device grants, and as many beside it as the plan counts on."""
    given = Gpu(132, architecture.major, architecture.shared_per_block)
    for dim in DIMS:
        assert misfit(dim, operands, given) is None
        for n in (1, 64, 65, 4096):
            shape = plan_for(n, 65536, dim, operands, given).shape
            whole = shape_for(n, dim, operands, architecture.major)
            assert shape[:6] == whole[:6]
            needed = shared_bytes(shape, operands, architecture.major)
            assert needed <= architecture.shared_per_block
            total = shape.resident * (needed + 1024)
            assert total <= architecture.shared_per_multiprocessor
            if shape.resident < whole.resident:
                assert total + needed + 1024 > architecture.shared_per_multiprocessor


def test_less_shared_memory_than_any_device_has() -> None:
    """Fewer tiles in flight where that helps; where it does not, a reason."""
    for dim, operands, given, stages in (
        (128, HALF, Gpu(132, 9, 99 << 10), 2), (256, HALF, Gpu(132, 8, 80 << 10), 1)
    ):  # fmt: skip
        shape = plan_for(4096, 65536, dim, operands, given).shape
        assert shape.num_stages == stages < shape_for(4096, dim, operands, given.major)[5]
        assert shared_bytes(shape, operands, given.major) <= given.shared
    reason = misfit(256, HALF, Gpu(132, 8, 48 << 10))
    assert f"device has {48 << 10}" in reason
    assert "D = 256" in reason
    assert "8.0" in misfit(256, HALF, Gpu(132, 7, 227 << 10))


@pytest.mark.parametrize("major", [8, 9, 10])
@pytest.mark.parametrize("operands", OPERANDS)
@pytest.mark.parametrize("n", [1, 64, 512, 4096, 16384])
def test_plans_fill_the_chip(n, operands, major) -> None:
    """A long queue: at least 4 of 5 multiprocessors at work, on average over the rounds."""
    for dim in (128, 256):
        plan = plan_for(n, 65536, dim, operands, device_of(major))
        programs = -(-n // plan.shape.block_n) * plan.groups * plan.splits
        rounds = -(-programs // 132)
        work = -(-n // plan.shape.block_n) * plan.groups * -(-65536 // plan.shape.block_k)
        assert work >= 0.8 * 132 * rounds * plan.tiles_per_split, plan
    if n == 512 and operands == HALF and major == 9:
        assert 24 <= plan_for(n, 65536, 128, operands, device_of(major)).splits <= 40
    if n == 4096 and operands == HALF and major == 9:
        assert plan_for(n, 65536, 128, operands, device_of(major)).splits <= 8


@pytest.mark.parametrize(
    ("n", "k", "dim", "shape", "splits"),
    [
        (4096, 65536, 128, (64, 128, 128, 128, 4, 3), 4),
        (4096, 1048576, 128, (64, 128, 128, 128, 4, 3), 4),
        (1024, 65536, 128, (64, 128, 128, 128, 4, 3), 16),
        (512, 65536, 128, (64, 128, 128, 128, 4, 3), 32),
        (1024, 4096, 128, (64, 128, 128, 128, 4, 3), 8),
        (16384, 32768, 128, (64, 128, 128, 128, 4, 3), 1),
        (4096, 65536, 64, (64, 128, 64, 64, 4, 4), 4),
        (4096, 65536, 256, (128, 64, 256, 256, 8, 3), 4),
        (16384, 16384, 256, (128, 64, 256, 256, 8, 3), 1),
    ],
)
def test_plans_are_what_was_fastest(n, k, dim, shape, splits) -> None:
    """On an H200, of those that were tried there."""
    plan = plan_for(n, k, dim, HALF, device_of(9))
    assert plan.shape[:6] == shape
    assert plan.splits == splits


def test_partial_results_do_not_grow_with_k() -> None:
    for n in (1, 512, 4096):
        plans = [plan_for(n, k, 128, HALF, device_of(9)) for k in (2**16, 2**20, 2**24)]
        assert max(plan.splits * n for plan in plans) <= 4 * 132 * 128


@triton.jit
def ranges_kernel(tau_ptr, found_ptr, OP: tl.constexpr, RUNNING: tl.constexpr):  # noqa: N803
    column_scale = column_scale_of(value_of(tau_ptr, True), OP, RUNNING)
    tl.store(found_ptr, column_scale)
    tl.store(found_ptr + 1, lift_of(column_scale, OP, RUNNING))


def test_ranges(device) -> None:
    """fp16 weights stay inside fp16, for norms that are not rescaled and any temperature."""
    for temperature in (1e-45, 1e-4, 0.02, 0.07, 0.19, 0.2, 0.3607, 0.7217, 1.0, 1e4, 1e38):
        assert not running_maximum(max(temperature, 0.02), BF16)
        for running in {running_maximum(temperature, FP16), True}:
            tau, found = torch.tensor(temperature, device=device), torch.zeros(2, device=device)
            with launching(tau):
                ranges_kernel[(1,)](tau, found, OP=tl.float16, RUNNING=running)
            column_scale, lift = found.tolist()
            assert lift == round(lift)
            bound = 0.0 if running else 1.4427 / temperature
            largest = 2 ** (bound + lift) * column_scale * 2**5
            assert 2**14 < largest < 65100
            if not running:  # the smallest is normal, but for a factor of two
                assert 2 ** (lift - bound) * column_scale / 2**9 > 2.0**-15
