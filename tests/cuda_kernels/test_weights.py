"""Gradients of bf16 rows as a product with weights, on the tensor cores."""

import pytest
import torch

from logo_kernels import block_cosine_similarity, logo_loss
from oracles import exact_cosine
from support import EPS, crops, error, run_cosine

BF16 = torch.bfloat16
BACKEND = ("emulated", "cpu")
PARTS = 3  # of a weight


def products(emulated):
    """Of 16 × 8 × 16, in the last launch."""
    return emulated.library.statistics().mma


# one vector; less than a panel of 64 columns; a panel; a ragged second one; several to a warp
@pytest.mark.parametrize("dim", [8, 40, 64, 72, 1000, 2048])
@pytest.mark.parametrize(
    ("globals_", "locals_", "both"), [(2, 2, False), (3, 9, False), (2, 5, True)]
)
def test_cosine(emulated, dim, globals_, locals_, both):
    images = 3
    problem = crops(images, globals_, locals_, dim, BF16, targets=both, features=both)
    want, want_grads = exact_cosine(*problem, 0.3, "sum", "mean")
    terms, grads = run_cosine(BACKEND, *problem, repulsion_weight=0.3)
    assert error(terms[0], want[0]) < 1e-5
    for grad, value in zip(grads, want_grads, strict=True):
        assert error(grad, value) <= (EPS[BF16] / 2 + 1e-6) * float(value.abs().max())
    with_gradient = products(emulated)
    logo_loss(*problem[:3], repulsion_features=problem[3], backend="emulated")
    panels = -(-dim // 64)
    assert with_gradient - products(emulated) == images * panels * 8 * PARTS


def test_more_rows_than_one_tile_are_summed(emulated):
    problem = crops(1, 2, 15, 64, BF16)
    run_cosine(BACKEND, *problem)
    with_gradient = products(emulated)
    logo_loss(*problem[:2], backend="emulated")
    assert with_gradient == products(emulated) > 0


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_gradients_that_nobody_wants_are_not_written(emulated, wanted):
    x, y, t, _ = crops(3, 2, 6, 128, BF16, targets=True)
    _, want = exact_cosine(x, y, t, None, 0.3, "sum", "mean")
    leaves = [v.requires_grad_(needed) for v, needed in zip((x, y), wanted, strict=True)]
    logo_loss(*leaves, t, repulsion_weight=0.3, backend="emulated").backward()
    for leaf, value, needed in zip(leaves, want, wanted, strict=False):
        assert (leaf.grad is not None) == needed
        if needed:
            assert error(leaf.grad, value) <= (EPS[BF16] / 2 + 1e-6) * float(value.abs().max())


@pytest.mark.parametrize("dim", [8, 72, 256, 1024])
@pytest.mark.parametrize(("v", "w"), [(10, None), (7, 9), (20, 13), (40, None), (1, 17)])
def test_similarity(emulated, dim, v, w):
    """Of any number of tiles; few panels are shared by groups of warps."""
    generator = torch.Generator().manual_seed(0)
    a, b = (
        None if rows is None else torch.randn(3, rows, dim, generator=generator).to(BF16)
        for rows in (v, w)
    )
    leaves = [z.requires_grad_() for z in (a, b) if z is not None]
    doubles = [z.detach().double().requires_grad_() for z in leaves]
    cosines = block_cosine_similarity(*leaves, backend="emulated")
    upstream = torch.randn(cosines.shape, generator=generator).to(BF16)
    got = torch.autograd.grad(cosines, leaves, upstream)
    unit = [z / z.norm(dim=-1, keepdim=True) for z in doubles]
    want = torch.autograd.grad(unit[0] @ unit[-1].mT, doubles, upstream.double())
    for grad, value in zip(got, want, strict=True):
        assert error(grad, value) <= (EPS[BF16] / 2 + 1e-6) * float(value.abs().max())
    assert products(emulated) > 3 * -(-dim // 64) * 8 * PARTS


def test_no_panel_is_multiplied_twice(emulated):
    """Eight warps, three to a tile of rows, leave two over."""
    v, dim = 128, 192  # beside a Gram matrix of 66 KiB, one block of several stages
    a = torch.randn(1, v, dim, generator=torch.Generator().manual_seed(0)).to(BF16)
    cosines = block_cosine_similarity(a.requires_grad_(), backend="emulated")
    forward = products(emulated)
    torch.autograd.grad(cosines.sum(), a)
    assert emulated.library.statistics().threads == 256
    tiles = v // 16
    assert products(emulated) - forward == tiles * (dim // 64) * tiles * 8 * PARTS


def test_weights_are_as_exact_as_in_fp32(emulated):
    """Rows that all but agree: what is left of their gradients is far below their terms. Weights
    of two parts would be off by 2^−17 of those."""
    dim = 2048
    generator = torch.Generator().manual_seed(0)
    t = (1 + torch.rand(1, 2, dim, generator=generator)).to(BF16)
    t[:, 1] = t[:, 0]
    x = t.clone()
    x[:, :, ::256] *= 1 + 2.0**-7  # the next number, in every 256th column
    _, (want, *_) = exact_cosine(x, None, t, None, 0.0, "sum", "mean")
    _, (got, *_) = run_cosine(BACKEND, x, None, t, None, repulsion_weight=0.0)
    terms = 1 / float(x.double().norm(dim=-1).min()) / dim**0.5  # w/‖x‖ t/‖t‖, at w = 1
    assert float(want.abs().max()) < 2.0**-5 * terms
    left = (got.double() - want).abs() - EPS[BF16] / 2 * want.abs()
    assert float(left.max()) < 2.0**-20 * terms
