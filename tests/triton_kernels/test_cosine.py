"""`cosine` against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from logo_kernels.backends.protocol import CosineResult, PairWeights

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
WEIGHTS = PairWeights(0.5, 1.0, 0.3)
# (B, G, L, D, simsiam: targets and features given)
SHAPES = [
    (3, 2, 0, 16, False),  # no local crops
    (2, 1, 1, 1, False),  # one number a crop: cosines are ±1; no gg, no ll
    (5, 2, 2, 64, True),  # the paper's, with predictor outputs and projections
    (3, 2, 8, 123, True),  # nothing is a power of two or aligned; 20 rows
    (2, 2, 8, 2048, False),  # the benchmark's: one tile in half precision, blocks in fp32
    (1, 3, 5, 513, False),  # a last block of one column
    (2, 3, 5, 7, True),  # 16 rows exactly, fewer columns than a tile
    (1, 2, 62, 200, False),  # 64 crops
    (1, 2, 62, 40, True),  # 128 rows, the most there are
    (1, 20, 5, 600, False),  # 32 rows in blocks, and more global crops than local ones
    (1, 2, 3, 2500, True),  # 16 rows, too wide for one tile
]


def rows(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    base = torch.randn(shape[0], 1, shape[2], generator=generator)  # crops of an image are alike
    return (base + torch.randn(shape, generator=generator)).to(device, dtype)


def problem(
    shape: tuple[int, int, int, int, bool], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | None, ...]:
    images, g, l, dim, simsiam = shape  # noqa: E741
    x = rows(images, g, dim, dtype=dtype, device=device)
    y = rows(images, l, dim, dtype=dtype, device=device, seed=1) if l else None
    t = rows(images, g, dim, dtype=dtype, device=device, seed=2) if simsiam else None
    r = rows(images, l, dim, dtype=dtype, device=device, seed=3) if simsiam and l else None
    return x, y, t, r


def double(inputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if v is None else v.double() for v in inputs)


def gradients(result: CosineResult, rows: tuple[int, int]) -> list[Tensor]:
    """The three gradients in float64, row scales multiplied in."""
    unscaled = []
    for gradient, first in zip(result[2:5], (0, rows[0], rows[0] + rows[1]), strict=True):
        gradient = gradient.double()
        if gradient.numel() and result.row_scale.numel():
            gradient = gradient * result.row_scale[:, first : first + gradient.shape[1], None]
        unscaled.append(gradient)
    return unscaled


@pytest.fixture
def compare(kernels: Any, reference: Any, assert_as_exact: Callable[..., None]) -> Callable:
    """Runs the kernels, the reference in float64, and the reference as the eager peer."""

    def run(
        inputs: tuple[Tensor | None, ...],
        reduction: str = "mean",
        weights: PairWeights = WEIGHTS,
        repulsion: bool = True,
        asked: tuple[bool, bool, bool] = (True, True, True),
    ) -> CosineResult:
        x, y, _, r = inputs
        wanted = (asked[0], asked[1] and y is not None, asked[2] and r is not None)
        before = [None if v is None else v.clone() for v in inputs]
        options = (weights, repulsion, reduction, *wanted)
        got = kernels.cosine(*inputs, *options)
        for value, copy in zip(inputs, before, strict=True):
            assert value is None or torch.equal(value, copy), "an input was written to"
        exact = reference.cosine(*double(inputs), *options)
        eager = reference.cosine(*inputs, *options)
        # Cosines are about one, whatever their sum is.
        assert_as_exact("total", got.total, exact.total, eager.total, 1e-6 * sum(map(abs, weights)))
        assert_as_exact("terms", got.terms, exact.terms, eager.terms, 1e-6)
        count = x.shape[1], 0 if y is None else y.shape[1]
        for name, *values in zip(
            ("grad_global", "grad_local", "grad_features"),
            gradients(got, count), gradients(exact, count), gradients(eager, count), strict=True,
        ):  # fmt: skip
            # Where a gradient is zero by cancellation, what counts is the size of its parts.
            norms = torch.cat([v.float().norm(dim=-1).flatten() for v in (x, y) if v is not None])
            assert_as_exact(name, *values, floor=1e-6 / norms[norms > 0].min().item())
        return got

    return run


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_eager(shape, dtype, device, compare) -> None:
    compare(problem(shape, dtype, device))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_reductions(reduction, dtype, device, compare) -> None:
    got = compare(problem((5, 2, 3, 32, True), dtype, device), reduction)
    assert got.total.shape == ((5,) if reduction == "none" else ())
    assert got.total.dtype == got.terms.dtype == torch.float32


def test_more_images_than_a_group_of_the_sum(device, compare, monkeypatch) -> None:
    """Sums of groups of images, and of chunks of groups; the last of either is not full."""
    monkeypatch.setattr("logo_kernels.backends.triton.cosine.GROUP", 4)
    compare(problem((37, 1, 2, 4, False), FP32, device), "sum")


@pytest.mark.parametrize("asked", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0), (1, 0, 1)], ids=str)
@pytest.mark.parametrize("dtype", [FP16, FP32], ids=str)
def test_gradients_only_where_asked(asked, dtype, device, compare) -> None:
    got = compare(problem((2, 2, 3, 24, True), dtype, device), asked=tuple(map(bool, asked)))
    for gradient, wanted in zip(got[2:5], asked, strict=True):
        assert (gradient.numel() > 0) == bool(wanted)


@pytest.mark.parametrize(
    "dtypes",  # x and y, t, r
    [
        (BF16, FP32, FP32), (FP32, BF16, FP16), (FP16, FP16, FP32), (BF16, BF16, FP16),
        (FP32, FP32, FP16),
    ],
    ids=str,
)  # fmt: skip
def test_mixed_dtypes(dtypes, device, compare) -> None:
    x, y, t, r = problem((2, 2, 3, 130, True), FP32, device)
    got = compare((x.to(dtypes[0]), y.to(dtypes[0]), t.to(dtypes[1]), r.to(dtypes[2])))
    assert got.grad_global.dtype == dtypes[0]
    assert got.grad_features.dtype == dtypes[2]


def view_major(v: Tensor) -> Tensor:
    return v.transpose(0, 1).contiguous().transpose(0, 1)


def expanded(v: Tensor) -> Tensor:
    return v[:1, :1].expand(v.shape)


def misaligned(v: Tensor) -> Tensor:
    flat = v.new_zeros(v.numel() + 1)
    flat[1:] = v.flatten()
    return flat[1:].view(v.shape)


def strided_over_d(v: Tensor) -> Tensor:
    return v.permute(2, 0, 1).contiguous().permute(1, 2, 0)


def backwards_in_memory(v: Tensor) -> Tensor:
    """Images and crops in the order crop, image, with a gap."""
    wide = v.new_full((v.shape[1], v.shape[0] + 1, v.shape[2] + 3), float("nan"))
    wide[:, 1:, : v.shape[2]] = v.transpose(0, 1)
    return wide[:, 1:, : v.shape[2]].transpose(0, 1)


@pytest.mark.parametrize(
    "layout", [view_major, expanded, misaligned, strided_over_d, backwards_in_memory]
)
def test_layouts(layout, device, compare) -> None:
    """Each tensor alone in another layout, so that no stride stands in for another one's."""
    inputs = problem((2, 2, 3, 48, True), BF16, device)
    compare(tuple(map(layout, inputs)))
    for place in range(4):
        compare((*inputs[:place], layout(inputs[place]), *inputs[place + 1 :]))


def test_view_major_gradient(device, compare) -> None:
    inputs = tuple(map(view_major, problem((3, 2, 3, 48, True), BF16, device)))
    got = compare(inputs)
    assert got.grad_global.stride() == inputs[0].stride()


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-12, 1e12, 1e30, 3e37])
@pytest.mark.parametrize("dim", [40, 300])
def test_extreme_norms(dtype, size, dim, device, kernels, reference) -> None:
    """One row of each tensor, so that both ends meet in one product."""
    x, y, t, r = problem((2, 2, 3, dim, True), dtype, device)
    y[0, 1] *= size
    t[0, 0] *= 1 / size if size >= 1e-30 else 1
    r[1, 2] *= size
    inputs, options = (x, y, t, r), (WEIGHTS, True, "sum", True, True, True)
    got = kernels.cosine(*inputs, *options)
    exact = reference.cosine(*double(inputs), *options)
    torch.testing.assert_close(got.total.double(), exact.total, rtol=1e-5, atol=1e-5)
    limit = torch.finfo(dtype).max
    tolerance = 1e-5 if dtype == FP32 else 2**-7
    for gradient, right in zip(got[2:5], exact[2:5], strict=True):
        right = right.clamp(-limit, limit)
        assert torch.isfinite(gradient).all()
        # Row by row: their sizes lie 60 orders apart.
        largest = right.abs().amax(-1, keepdim=True)
        error = (gradient.double() - right).abs()
        assert (error <= tolerance * largest + 2 * torch.finfo(dtype).smallest_normal).all()


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_denormal_rows_saturate(dtype, device, kernels) -> None:
    x, y, _, _ = problem((1, 2, 2, 40, False), dtype, device)
    y[0, 0] = torch.where(y[0, 0] > 0, 1e-40, -1e-40)
    got = kernels.cosine(x, y, None, None, WEIGHTS, True, "sum", True, True, False)
    assert torch.isfinite(got.total)
    assert torch.isfinite(got.grad_local).all()
    assert got.grad_local[0, 0].abs().amax() == torch.finfo(dtype).max


def test_fp16_from_end_to_end_of_its_range(device, compare) -> None:
    x, y, t, r = problem((2, 2, 3, 40, True), FP16, device)
    y[0, 1] *= 1e4
    t[0, 0] *= 2e-5
    r[1, 2] = torch.where(r[1, 2] > 0, 6e-8, -6e-8)  # its smallest denormals
    compare((x, y, t, r))


def test_fp16_rows_are_stored_where_fp16_is_precise(device, compare) -> None:
    """A gradient of 1e-7 and one of 1e-3 keep the same number of digits."""
    x, y, t, r = problem((4, 2, 3, 2048, True), FP16, device)
    got = compare((x * 60, y * 60, t, r), "mean", PairWeights(0.5, 1.0, 1e-4))
    for gradient in got[2:5]:
        largest = gradient.abs().amax(-1)
        assert (largest > 1).all()
        assert (largest < 2**15).all()
    exponents = got.row_scale.log2()
    assert torch.equal(exponents, exponents.round()), "row scales are powers of two"


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("dim", [40, 2048])
def test_zero_rows(dtype, dim, device, compare) -> None:
    x, y, t, r = problem((3, 2, 3, dim, True), dtype, device)
    x[0, 0], y[0, 1], t[1, 1], r[2, 2] = 0, 0, 0, 0
    x[2], y[2] = 0, 0
    got = compare((x, y, t, r), "none")
    for gradient, value in zip(got[2:5], (x, y, r), strict=True):
        assert (gradient[(value == 0).all(-1)] == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", range(4))
def test_nan_and_inf_give_nan_and_stay_in_their_image(bad, place, device, kernels) -> None:
    inputs = problem((3, 2, 3, 40, True), BF16, device)
    inputs[place][1, 1, 7] = bad
    got = kernels.cosine(*inputs, WEIGHTS, True, "none", True, True, True)
    assert got.total.isnan().tolist() == [False, True, False]
    for gradient in got[2:5]:
        assert torch.isfinite(gradient[[0, 2]]).all()
    total = kernels.cosine(*inputs, WEIGHTS, True, "mean", False, False, False).total
    assert total.isnan()


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_no_repulsion_reads_no_features(dtype, device, kernels, reference) -> None:
    x, y, t, r = problem((2, 2, 3, 40, True), dtype, device)
    r.fill_(float("nan"))
    got = kernels.cosine(x, y, t, r, WEIGHTS, False, "sum", True, True, True)
    exact = reference.cosine(*double((x, y, t, None)), WEIGHTS, False, "sum", True, True, False)
    torch.testing.assert_close(got.total.double(), exact.total, rtol=1e-5, atol=1e-5)
    assert (got.grad_features == 0).all()
    assert torch.isfinite(got.row_scale).all()


def test_huge_and_tiny_weights(device, compare) -> None:
    compare(problem((2, 2, 3, 40, True), BF16, device), weights=PairWeights(1e18, 3e18, 1e-20))


def test_parallel_and_opposite_rows(device, compare) -> None:
    """Gradients are what is left of a difference of equal vectors."""
    x, y, t, _ = problem((2, 2, 3, 333, True), FP32, device)
    x[:, 1], t[:, 0], y[:, 0], y[:, 1] = 3 * x[:, 0], -x[:, 0], 0.1 * x[:, 0], -7 * x[:, 0]
    compare((x, y, t, None))


def test_the_same_bits_every_time(device, kernels) -> None:
    inputs = problem((12, 2, 3, 65, True), BF16, device)
    options = (WEIGHTS, True, "mean", True, True, True)
    first = kernels.cosine(*inputs, *options)
    for _ in range(2):
        again = kernels.cosine(*inputs, *options)
        assert all(torch.equal(a, b) for a, b in zip(first[:5], again[:5], strict=True))


def test_offsets_beyond_32_bits(device, kernels, monkeypatch) -> None:
    """The third image begins 2^31 elements after the first; the memory between is not touched."""
    monkeypatch.setattr("torch.utils.deterministic.fill_uninitialized_memory", False)
    x, y, t, r = problem((3, 2, 3, 16, True), BF16, device)
    memory = torch.empty(2**31 + 64, dtype=BF16, device=device)
    far = memory.as_strided(x.shape, (2**30, 16, 1))
    far.copy_(x)
    options = (WEIGHTS, True, "none", False, True, True)
    got = kernels.cosine(far, y, t, r, *options)
    right = kernels.cosine(x, y, t, r, *options)
    assert torch.equal(got.total, right.total)
    assert torch.equal(got.grad_local, right.grad_local)
