"""Backward's launch: gradient times upstream, in place."""

import pytest
import torch

from support import error

ALL = (torch.float32, torch.bfloat16, torch.float16)


def gradient(dtype, images=5, crops=3, dim=48):
    values = torch.randn(images, crops, dim, generator=torch.Generator().manual_seed(0))
    return values.to(dtype)


@pytest.mark.parametrize("dtype", ALL)
# in vectors; misaligned; longer than a block's share of a row
@pytest.mark.parametrize("dim", [48, 33, 1500])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
def test_products(emulated, dtype, dim, per_image, per_row):
    values = gradient(dtype, dim=dim)
    upstream = torch.linspace(0.5, 2, 5) if per_image else torch.tensor(1.7)
    row_scale = torch.rand(5, 7)[:, 2:5] + 0.5 if per_row else None
    factor = (upstream.view(-1, 1, 1) if per_image else upstream) * (
        row_scale.unsqueeze(-1) if per_row else 1
    )
    want = (values.float() * factor).to(dtype)
    kept = values.clone()
    assert emulated.scale_(kept, upstream, row_scale) is kept
    assert torch.equal(kept, want)


@pytest.mark.parametrize("view", ["view-major", "every second image"])
def test_strides(emulated, view):
    """Only what belongs to the gradient is written."""
    whole = gradient(torch.float32, 6, 6)
    part = whole.transpose(0, 1)[:, ::2] if view == "view-major" else whole[::2]
    want = part * 3
    untouched = whole[1::2].clone()
    emulated.scale_(part, torch.tensor(3.0), None)
    assert torch.equal(part, want)
    assert torch.equal(whole[1::2], untouched)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_upstream_of_any_dtype(emulated, dtype):
    values = gradient(torch.float32)
    want = values * 0.5
    assert torch.equal(emulated.scale_(values, torch.tensor(0.5, dtype=dtype), None), want)


def test_expanded_upstream(emulated):
    """The gradient of a sum: one number for all images, of stride 0."""
    values = gradient(torch.float32)
    want = values * 2
    assert torch.equal(emulated.scale_(values, torch.tensor(2.0).expand(5), None), want)


def test_one_changes_nothing(emulated):
    values = gradient(torch.bfloat16)
    want = values.clone()
    assert torch.equal(emulated.scale_(values, torch.tensor(1.0), None), want)
    assert emulated.library.launches() == 1


def test_nan_and_overflow_come_through(emulated):
    values = gradient(torch.float16)
    assert emulated.scale_(values.clone(), torch.tensor(float("nan")), None).isnan().all()
    # 2^20 alone is no fp16 number; the product of the three is
    scale = torch.full((5, 3), 2.0**-18)
    out = emulated.scale_(values.clone(), torch.tensor(2.0**20), scale)
    assert error(out, values.double() * 4) < 2e-2
    assert emulated.scale_(values.clone(), torch.tensor(2.0**20), None).isinf().any()


def test_nothing_to_scale(emulated):
    empty = torch.zeros(0, 3, 8)
    assert emulated.scale_(empty, torch.tensor(2.0), None) is empty
    assert emulated.library.launches() == 0
