"""`scale_`: the saved gradients times the upstream gradient, in place, in one launch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from logo_kernels.backends.triton import scale as scale_module
from logo_kernels.backends.triton.scale import scale_

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


def scaled(gradient: Tensor, upstream: Tensor, row_scale: Tensor | None) -> Tensor:
    factor = upstream.view(-1, 1, 1) * (1 if row_scale is None else row_scale[..., None])
    return (gradient.float() * factor).to(gradient.dtype)


def one(gradient: Tensor, upstream: Tensor, row_scale: Tensor | None = None) -> Tensor:
    scale_([gradient], upstream, [row_scale])
    return gradient


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
    right = scaled(gradient, upstream, row_scale)
    torch.testing.assert_close(one(gradient, upstream, row_scale), right)


# (dtype, V, whether its rows have scales), of gradients that one launch serves
SEVERAL = [
    [(BF16, 2, False), (BF16, 8, False)],
    [(FP16, 2, True), (FP16, 5, True), (FP16, 5, True)],
    [(FP32, 3, False), (FP32, 1, False), (FP16, 1, True)],
    [(BF16, 0, False), (FP16, 70, True), (FP32, 0, False)],  # empty ones, as of unwanted gradients
]


@pytest.mark.parametrize("several", SEVERAL, ids=str)
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize(("images", "dim"), [(1, 3), (300, 33), (3, 2100)])
def test_several(several, per_image, images, dim, device) -> None:
    """More tiles than programs, and fewer; layouts of each its own."""
    gradients, scales = [], []
    for place, (dtype, rows, row_scaled) in enumerate(several):
        memory = torch.randn(images, rows, dim, device=device).to(dtype)
        gradients.append(memory.transpose(0, 1).contiguous().transpose(0, 1) if place else memory)
        scales.append(torch.randn(images, rows, device=device) if row_scaled else None)
    upstream = torch.randn([images] if per_image else [], device=device)
    right = [scaled(g, upstream, s) for g, s in zip(gradients, scales, strict=True)]
    scale_(gradients, upstream, scales)
    for got, wanted in zip(gradients, right, strict=True):
        torch.testing.assert_close(got, wanted)


def test_one_launch(device, monkeypatch) -> None:
    launches = []

    class Counted:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: launches.append(grid)

    monkeypatch.setattr(scale_module, "scale_kernel", Counted())
    gradients = [torch.ones(4, rows, 8, device=device) for rows in (2, 8, 8)]
    scale_(gradients, torch.ones((), device=device), [None] * 3)
    assert len(launches) == 1


def test_strides(device) -> None:
    """A view-major gradient; an upstream that is expanded; a slice of the row scales."""
    memory = torch.randn(3, 6, 20, device=device)
    gradient = memory[:, ::2].transpose(0, 1)  # [3, 3, 20], every second image of the memory
    untouched = memory[:, 1::2].clone()
    upstream = torch.tensor([3.0], device=device).expand(3)
    row_scale = torch.randn(3, 9, device=device)[:, 2:5]
    right = gradient * 3 * row_scale[..., None]
    torch.testing.assert_close(one(gradient, upstream, row_scale), right)
    assert torch.equal(memory[:, 1::2], untouched)


def test_one_touches_nothing(device) -> None:
    """Not even a NaN in a gradient, whose bits a product could change; rows with scales are due."""
    gradient = torch.tensor([float("nan"), 1.0], device=device).view(1, 1, 2)
    bits = gradient.view(torch.int32).clone()
    due = torch.ones(1, 1, 2, device=device)
    row_scale = torch.full((1, 1), 2.0, device=device)
    scale_([gradient, due, gradient], torch.ones((), device=device), [None, row_scale, None])
    assert torch.equal(gradient.view(torch.int32), bits)
    assert (due == 2).all()


def test_nan_upstream(device) -> None:
    gradient = torch.ones(1, 2, 3, device=device)
    assert one(gradient, torch.tensor(float("nan"), device=device)).isnan().all()


def test_fp16_overflows_to_inf(device) -> None:
    """A loss scaler looks for it."""
    gradient = torch.full((1, 1, 4), 1000.0, device=device).half()
    assert one(gradient, torch.tensor(65536.0, device=device)).isinf().all()


def test_fp16_row_scale_and_loss_scale_cancel(device) -> None:
    """The product of the factors comes first: neither alone fits fp16."""
    gradient = torch.full((1, 1, 4), 16384.0, device=device).half()
    row_scale = torch.full((1, 1), 2.0**-36, device=device)
    assert (one(gradient, torch.tensor(65536.0, device=device), row_scale) == 2.0**-6).all()


def test_empty(device) -> None:
    scale_([torch.ones(0, 2, 3, device=device)], torch.tensor(2.0, device=device), [None])
