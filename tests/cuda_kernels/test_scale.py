"""Backward's launch: gradients times upstream, in place."""

import pytest
import torch

from logo_kernels import logo_loss
from support import crops, error

ALL = (torch.float32, torch.bfloat16, torch.float16)


def gradient(dtype, images=5, crops=3, dim=48, seed=0):
    values = torch.randn(images, crops, dim, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype)


def product(values, upstream, row_scale):
    factor = upstream.view(-1, 1, 1) if upstream.ndim else upstream
    if row_scale is not None:
        factor = factor * row_scale.unsqueeze(-1)
    return (values.float() * factor).to(values.dtype)


@pytest.mark.parametrize("dtype", ALL)
# in vectors; misaligned; many rows to a block; longer than a block; one number
@pytest.mark.parametrize("dim", [48, 33, 8, 2048, 1500, 1])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
def test_products(emulated, dtype, dim, per_image, per_row):
    values = gradient(dtype, dim=dim)
    upstream = torch.linspace(0.5, 2, 5) if per_image else torch.tensor(1.7)
    row_scale = torch.rand(5, 7)[:, 2:5] + 0.5 if per_row else None
    want = product(values, upstream, row_scale)
    assert emulated.scale_([values], upstream, [row_scale]) is None
    assert torch.equal(values, want)
    assert emulated.library.launches() == 1


@pytest.mark.parametrize("images", [1, 5, 700])  # 700: blocks walk on to further rows
def test_three_gradients_of_two_dtypes_in_one_launch(emulated, images):
    """Each with its number of crops and its layout; row scales for the fp16 ones alone."""
    kinds = [(torch.float16, 2), (torch.float16, 7), (torch.float32, 5)]
    given = [gradient(dtype, images, count, 24, seed=count) for dtype, count in kinds]
    given[1] = given[1].transpose(0, 1).contiguous().transpose(0, 1)  # view-major
    numbers = torch.rand(images, 9) + 0.5
    row_scales = [numbers[:, :2], numbers[:, 2:9], None]
    upstream = torch.linspace(0.5, 2, images)
    want = [product(v, upstream, s) for v, s in zip(given, row_scales, strict=True)]
    emulated.scale_(given, upstream, row_scales)
    for got, value in zip(given, want, strict=True):
        assert torch.equal(got, value)
    assert emulated.library.launches() == 1


@pytest.mark.parametrize("view", ["view-major", "every second image"])
def test_strides(emulated, view):
    """Only what belongs to the gradient is written."""
    whole = gradient(torch.float32, 6, 6)
    part = whole.transpose(0, 1)[:, ::2] if view == "view-major" else whole[::2]
    want = part * 3
    untouched = whole[1::2].clone()
    emulated.scale_([part], torch.tensor(3.0), [None])
    assert torch.equal(part, want)
    assert torch.equal(whole[1::2], untouched)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_upstream_of_any_dtype(emulated, dtype):
    values = gradient(torch.float32)
    want = values * 0.5
    emulated.scale_([values], torch.tensor(0.5, dtype=dtype), [None])
    assert torch.equal(values, want)


def test_expanded_upstream(emulated):
    """The gradient of a sum: one number for all images, of stride 0."""
    values = gradient(torch.float32)
    want = values * 2
    emulated.scale_([values], torch.tensor(2.0).expand(5), [None])
    assert torch.equal(values, want)


def test_one_leaves_all_but_scaled_rows(emulated):
    values = [gradient(torch.bfloat16), gradient(torch.float16)]
    scale = torch.full((5, 3), 0.25)
    want = values[0].clone(), values[1] / 4
    emulated.scale_(values, torch.tensor(1.0), [None, scale])
    assert torch.equal(values[0], want[0])
    assert torch.equal(values[1], want[1])
    assert emulated.library.launches() == 1


def test_nan_and_overflow_come_through(emulated):
    def scaled(upstream, row_scale=None):
        values = gradient(torch.float16)
        emulated.scale_([values], torch.tensor(upstream), [row_scale])
        return values

    assert scaled(float("nan")).isnan().all()
    # 2^20 alone is no fp16 number; the product of the three is
    out = scaled(2.0**20, torch.full((5, 3), 2.0**-18))
    assert error(out, gradient(torch.float16).double() * 4) < 2e-2
    assert scaled(2.0**20).isinf().any()


def test_nothing_to_scale(emulated):
    for shape in ((0, 3, 8), (3, 0, 8), (3, 2, 0)):
        emulated.scale_([torch.zeros(shape)], torch.tensor(2.0), [None])
    assert emulated.library.launches() == 0


@pytest.mark.parametrize("of_features", [torch.bfloat16, torch.float32])
def test_backward_is_one_launch(emulated, monkeypatch, of_features):
    """Of global, local and feature gradients, with an upstream gradient that is not one."""
    # On CPU tensors "auto" takes the C++ backend.
    monkeypatch.setattr("logo_kernels.cosine.backend_for", lambda *_: emulated)
    x, y, _, r = crops(4, 2, 3, 32, torch.bfloat16, features=True)
    leaves = [x.requires_grad_(), y.requires_grad_(), r.to(of_features).requires_grad_()]
    loss = logo_loss(*leaves[:2], repulsion_features=leaves[2], backend="emulated")
    want = torch.autograd.grad(loss, leaves, retain_graph=True)  # upstream is one
    assert emulated.library.launches() == 1
    got = torch.autograd.grad(loss, leaves, torch.tensor(2.0))
    assert emulated.library.launches() == 2
    for gradient_, value in zip(got, want, strict=True):
        assert torch.equal(gradient_, value * 2)
