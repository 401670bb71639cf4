"""`similarity` and `similarity_backward` against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# (B, V, W or 0 for b = None, D)
SHAPES = [
    (2, 1, 0, 1),
    (3, 10, 0, 64),  # all crops of an image
    (2, 3, 5, 123),
    (2, 16, 0, 7),  # no padding of rows
    (1, 17, 30, 300),  # 64 rows, in blocks
    (1, 10, 0, 2048),
    (1, 64, 64, 40),  # the most rows there are
]


def rows(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    base = torch.randn(shape[0], 1, shape[2], generator=generator)
    return (base + torch.randn(shape, generator=generator)).to(device, dtype)


def problem(shape, dtype, device) -> tuple[Tensor, Tensor | None, Tensor]:
    images, v, w, dim = shape
    a = rows(images, v, dim, dtype=dtype, device=device)
    b = rows(images, w, dim, dtype=dtype, device=device, seed=1) if w else None
    return a, b, rows(images, v, w or v, dtype=dtype, device=device, seed=2)


def run(backend, a, b, grad, asked=(True, True)) -> tuple[Tensor, Tensor, Tensor]:
    asked_b = asked[1] and b is not None
    return (backend.similarity(a, b), *backend.similarity_backward(grad, a, b, asked[0], asked_b))


@pytest.fixture
def compare(kernels, reference, assert_as_exact):
    def check(a, b, grad, asked=(True, True)) -> tuple[Tensor, Tensor, Tensor]:
        before = [None if v is None else v.clone() for v in (a, b, grad)]
        got = run(kernels, a, b, grad, asked)
        for value, copy in zip((a, b, grad), before, strict=True):
            assert value is None or torch.equal(value, copy), "an input was written to"
        exact = run(reference, a.double(), None if b is None else b.double(), grad.double(), asked)
        eager = run(reference, a, b, grad, asked)
        assert got[0].dtype == got[1].dtype == got[2].dtype == a.dtype
        for name, *values in zip(("cosines", "grad_a", "grad_b"), got, exact, eager, strict=True):
            norm = a.float().norm(dim=-1)
            floor = 1e-6 if name == "cosines" else 1e-6 / norm[norm > 0].min().item()
            assert_as_exact(name, *values, floor=floor)
        return got

    return check


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_eager(shape, dtype, device, compare) -> None:
    compare(*problem(shape, dtype, device))


@pytest.mark.parametrize("asked", [(True, False), (False, True), (False, False)])
def test_gradients_only_where_asked(asked, device, compare) -> None:
    got = compare(*problem((2, 3, 4, 20), BF16, device), asked)
    assert (got[1].numel() > 0, got[2].numel() > 0) == asked


def test_strides(device, compare) -> None:
    a, b, grad = problem((3, 2, 5, 48), FP32, device)
    view_major = a.transpose(0, 1).contiguous().transpose(0, 1)
    over_d = b.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    compare(view_major, b, grad)
    compare(a, over_d, grad)
    compare(a, b, grad.mT.contiguous().mT)
    compare(a, b, grad[:1, :1, :1].expand(grad.shape))
    got = compare(view_major, None, a.new_ones(3, 2, 2))
    assert got[1].stride() == view_major.stride()


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_zero_rows(dtype, device, compare) -> None:
    a, b, grad = problem((2, 3, 4, 40), dtype, device)
    a[0, 1], b[1, 2], b[0] = 0, 0, 0
    cosines, to_a, to_b = compare(a, b, grad)
    assert (cosines[0] == 0).all()
    assert (to_a[0] == 0).all()
    assert (to_b[0] == 0).all()


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_extreme_norms(dtype, size, device, kernels, reference) -> None:
    a, b, grad = problem((2, 3, 4, 40), dtype, device)
    a[0, 1] *= size
    b[0, 2] /= size
    got = run(kernels, a, b, grad)
    exact = run(reference, a.double(), b.double(), grad.double())
    tolerance = 1e-5 if dtype == FP32 else 2**-7
    assert ((got[0].double() - exact[0]).abs() <= tolerance).all()
    for gradient, right in zip(got[1:], exact[1:], strict=True):
        largest = right.abs().amax(-1, keepdim=True)
        assert ((gradient.double() - right).abs() <= tolerance * largest).all()


def test_gradients_saturate(device, kernels) -> None:
    """fp16 rows of norm 1e-6 and an upstream gradient as loss scalers send it."""
    a, b, grad = problem((1, 2, 3, 40), FP16, device)
    to_a, _ = kernels.similarity_backward(grad * 8192, a * 2**-19, b, True, False)
    assert torch.isfinite(to_a).all()
    assert to_a.abs().amax() == 65504


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf(bad, device, kernels) -> None:
    a, b, grad = problem((2, 3, 4, 40), BF16, device)
    a[1, 1, 3] = bad
    cosines, to_a, _ = run(kernels, a, b, grad)
    assert cosines[1, 1].isnan().all()
    assert torch.isfinite(cosines[1, [0, 2]]).all()
    assert torch.isfinite(cosines[0]).all()
    assert torch.isfinite(to_a[0]).all()
