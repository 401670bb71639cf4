"""`scale_`: the saved gradient times the upstream gradient, in place."""

from __future__ import annotations

import pytest
import torch

from logo_kernels.backends.triton.scale import scale_

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("row_scaled", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (5, 3, 123),  # several rows in a tile, the last one not full
        (700, 10, 16),  # more tiles than programs
        (2, 3, 2100),  # two tiles over D, the second not full
    ],
    ids=str,
)
def test_product(dtype, per_image, row_scaled, shape, device) -> None:
    gradient = torch.randn(shape, device=device).to(dtype)
    upstream = torch.randn(shape[:1] if per_image else (), device=device)
    row_scale = torch.randn(shape[:2], device=device) if row_scaled else None
    factor = upstream.view(-1, 1, 1) * (1 if row_scale is None else row_scale[..., None])
    right = (gradient.float() * factor).to(dtype)
    assert scale_(gradient, upstream, row_scale) is gradient
    torch.testing.assert_close(gradient, right)


def test_strides(device) -> None:
    """A view-major gradient; an upstream that is expanded; a slice of the row scales."""
    memory = torch.randn(3, 6, 20, device=device)
    gradient = memory[:, ::2].transpose(0, 1)  # [3, 3, 20], every second image of the memory
    untouched = memory[:, 1::2].clone()
    upstream = torch.tensor([3.0], device=device).expand(3)
    row_scale = torch.randn(3, 9, device=device)[:, 2:5]
    right = gradient * 3 * row_scale[..., None]
    scale_(gradient, upstream, row_scale)
    torch.testing.assert_close(gradient, right)
    assert torch.equal(memory[:, 1::2], untouched)


def test_one_touches_nothing(device) -> None:
    """Not even a NaN in the gradient, whose bits a product could change."""
    gradient = torch.tensor([float("nan"), 1.0], device=device).view(1, 1, 2)
    bits = gradient.view(torch.int32).clone()
    scale_(gradient, torch.ones((), device=device))
    assert torch.equal(gradient.view(torch.int32), bits)


def test_nan_upstream(device) -> None:
    gradient = torch.ones(1, 2, 3, device=device)
    assert scale_(gradient, torch.tensor(float("nan"), device=device)).isnan().all()


def test_fp16_overflows_to_inf(device) -> None:
    """A loss scaler looks for it."""
    gradient = torch.full((1, 1, 4), 1000.0, device=device).half()
    assert scale_(gradient, torch.tensor(65536.0, device=device)).isinf().all()


def test_fp16_row_scale_and_loss_scale_cancel(device) -> None:
    """The product of the factors comes first: neither alone fits fp16."""
    gradient = torch.full((1, 1, 4), 16384.0, device=device).half()
    row_scale = torch.full((1, 1), 2.0**-36, device=device)
    scale_(gradient, torch.tensor(65536.0, device=device), row_scale)
    assert (gradient == 2.0**-6).all()


def test_empty(device) -> None:
    assert scale_(torch.ones(0, 2, 3, device=device), torch.tensor(2.0, device=device)).numel() == 0
