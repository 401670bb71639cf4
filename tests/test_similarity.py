"""block_cosine_similarity on every backend against float64."""

import pytest
import torch
import torch.nn.functional as F

from logo_kernels import block_cosine_similarity
from support import ALL, EPS, LAYOUTS, error, leaves, serves


def blocks(v, w, dim, dtype=torch.float32, images=3):
    generator = torch.Generator().manual_seed(v * 100 + w)
    return [torch.randn(images, n, dim, generator=generator).to(dtype) for n in (v, w)]


def eager(a, b):
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT


@pytest.mark.parametrize("dtype", ALL)
# one row; the trainer's picture; more than a register tile, D no multiple of a vector; D = 1
@pytest.mark.parametrize(("v", "w", "dim"), [(1, 1, 8), (4, 4, 64), (7, 11, 33), (2, 3, 1)])
@pytest.mark.parametrize("itself", [False, True])
def test_against_float64(backend, dtype, v, w, dim, itself):
    serves(backend, dtype)
    name, device = backend
    a, b = blocks(v, w, dim, dtype)
    b = None if itself else b
    upstream = torch.randn(3, v, v if itself else w, generator=torch.Generator().manual_seed(1))
    results = []
    for kind in ("exact", "eager", "ours"):
        wide = torch.float64 if kind == "exact" else dtype
        at = device if kind == "ours" else "cpu"
        la, lb = leaves(*(None if z is None else z.to(at) for z in (a, b)), dtype=wide)
        if kind == "ours":
            out = block_cosine_similarity(la, lb, backend=name)
            assert out.dtype == dtype
        else:
            out = eager(la, la if itself else lb)
        out.backward(upstream.to(at, wide))
        results.append([out.detach().cpu(), *(z.grad.cpu() for z in (la, lb) if z is not None)])
    # A gradient's terms are of size 1/‖row‖ and cancel where rows are parallel (D = 1: always).
    # Tensor cores take the coefficients as two halves, which is twice the precision of the dtype.
    shortest = min(float(z.double().norm(dim=-1).min()) for z in (a, b) if z is not None)
    floor = max(8 * EPS[torch.float32], EPS[dtype] ** 2 / 8) * max(1, 1 / shortest)
    for exact, peer, ours in zip(*results, strict=True):
        size = float(exact.abs().max())
        assert error(ours, exact) <= 2 * error(peer, exact) + EPS[dtype] * size + floor


@pytest.mark.parametrize("v", [5, 7, 9])
def test_every_column_counts(backend, v):
    """Rows of several chunks, whose sizes depend on how many rows there are."""
    name, device = backend
    if name == "triton":
        pytest.skip("tests/triton_kernels covers its loops over D at less cost")
    a, _ = blocks(v, 1, 1100)
    out = block_cosine_similarity(a.to(device), backend=name)
    assert error(out, eager(a.double(), a.double())) < 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(backend, layout):
    name, device = backend
    a, b = blocks(3, 4, 32)
    want = eager(a, b)
    sa, sb = (LAYOUTS[layout](z).to(device).requires_grad_() for z in (a, b))
    out = block_cosine_similarity(sa, sb, backend=name)
    assert error(out, want) < 1e-6
    upstream = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0)).permute(2, 1, 0)
    ga, gb = torch.autograd.grad(out, (sa, sb), upstream.to(device))
    la, lb = leaves(a, b)
    for ours, exact in zip(
        (ga, gb), torch.autograd.grad(eager(la, lb), (la, lb), upstream), strict=True
    ):
        assert error(ours, exact) < 1e-6


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_zero_and_extreme_rows(backend, size):
    name, device = backend
    a, b = blocks(3, 2, 24)
    want = eager(a, b)
    a[1] *= size
    if size == 0:
        want[1] = 0
    la, lb = leaves(a.to(device), b.to(device))
    out = block_cosine_similarity(la, lb, backend=name)
    assert error(out, want) < 1e-6
    out.sum().backward()
    assert la.grad.isfinite().all()
    assert lb.grad.isfinite().all()
    if size == 0:
        assert (la.grad[1] == 0).all()


def test_gradient_for_one_side_only(backend):
    name, device = backend
    a, b = (z.to(device) for z in blocks(3, 2, 24))
    both = leaves(a, b)
    block_cosine_similarity(*both, backend=name).square().sum().backward()
    for side in (0, 1):
        pair = [a, b]
        pair[side] = pair[side].clone().requires_grad_()
        block_cosine_similarity(*pair, backend=name).square().sum().backward()
        assert error(pair[side].grad, both[side].grad) < 1e-6


A, B = blocks(3, 2, 24)
REFUSED = {
    "rank": ((A[0],), {}, ValueError, r"a must be \[B, V, D\]"),
    "type": ((3,), {}, TypeError, "a must be a tensor"),
    "empty": ((A[:, :0],), {}, ValueError, "V = 0"),
    "B": ((A, B[:2]), {}, ValueError, "b has B = 2"),
    "D": ((A, B[..., :3]), {}, ValueError, "b has D = 3"),
    "dtype": ((A, B.half()), {}, TypeError, "b is torch.float16"),
    "backend": ((A,), {"backend": "x"}, ValueError, "backend"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    arguments, options, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        block_cosine_similarity(*arguments, **options)
