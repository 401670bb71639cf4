"""The kernels of the learned affinity, between its products, on every backend against float64."""

import pytest
import torch

from affinity_inputs import CALLS, batch_norm_of, inputs, results, stage_of
from affinity_oracle import Definition
from logo_kernels.backends import unit as reference
from oracles import unit as exact_units
from support import ALL, EPS, error

EXACT = Definition()

# B, L, H, roll: the smallest; a row's end alone, pairs of two images; whole vectors, the last roll;
# vectors and an end, four rows at once and three; H and L of a usual step
SHAPES = [(1, 2, 1, 0), (2, 2, 7, 1), (5, 3, 64, 4), (2, 8, 33, 0), (5, 8, 256, 1)]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(backend, dtype, shape):
    stage = stage_of(backend, dtype, shape[0] * shape[1] ** 2 * shape[2])
    v, there = inputs(shape, dtype), inputs(shape, dtype, backend[1])
    for call in CALLS:
        eager = results(call, Definition(dtype), v)
        ours, exact = results(call, stage, there), results(call, EXACT, v)
        for got, peer, want in zip(ours, eager, exact, strict=True):
            size = max(1.0, float(want.abs().max()))
            floor = (EPS[got.dtype] + 8 * EPS[v.norm.dtype]) * size
            assert got.shape == want.shape, call
            assert error(got, want) <= 2 * error(peer, want) + floor, call


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_of_columns_far_from_zero(backend, offset):
    """The squares of the columns' own means have no part in their variances."""
    stage = stage_of(backend)
    v = inputs((5, 3, 40, 2), torch.float32)
    generator = torch.Generator().manual_seed(1)
    for array in (v.a, v.c, v.y):
        array.copy_(torch.randn(array.shape, generator=generator) + offset)
    device = backend[1]
    found = stage.hidden_moments(v.a.to(device), v.c.to(device), v.roll)
    assert error(found, EXACT.hidden_moments(v.a, v.c, v.roll)) < 1e-5 + 1e-6 * offset
    assert error(stage.output_moments(v.y.to(device)), EXACT.output_moments(v.y)) < (
        1e-5 + 1e-6 * offset
    )


def test_variance_of_pairs_that_hardly_differ(backend):
    """a and c cancel in every pair: nothing may be left over from their sizes."""
    stage = stage_of(backend)
    v = inputs((5, 3, 40, 0), torch.float32)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(5, 1, 40, generator=generator)
    v.a.copy_(image + 2.0**-8 * torch.randn(5, 3, 40, generator=generator))
    v.c.copy_(-image + 2.0**-8 * torch.randn(5, 3, 40, generator=generator))
    exact = EXACT.hidden_moments(v.a, v.c, 0)[1]
    found = stage.hidden_moments(v.a.to(backend[1]), v.c.to(backend[1]), 0)[1]
    assert error(found.cpu() / exact, torch.ones(40)) < 1e-3


def test_nan_is_seen(backend):
    """NaN comes out where the definition has it, and in no other column."""
    stage = stage_of(backend)
    shape = (3, 3, 20, 1)
    v = inputs(shape, torch.float32)
    v.a[1, 2, 3] = v.c[0, 0, 17] = v.y[5, 3] = v.y[9, 19] = torch.nan
    there = inputs(shape, torch.float32, backend[1])
    there.a, there.c, there.y = (z.to(backend[1]) for z in (v.a, v.c, v.y))
    for call in CALLS:
        for got, want in zip(results(call, stage, there), results(call, EXACT, v), strict=True):
            seen, due = got.isnan().cpu(), want.isnan()
            assert (seen | ~due).all(), call
            if call == "hidden_backward":  # sums over all crops less the own one: its whole column
                due = due.flatten(0, 1).any(0)
            assert (due | ~seen).all(), call


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_of_any_size(backend, dtype):
    """To the last digits from e⁻⁸⁰ to 10⁴, and 0 below: every f twice, as the pairs of an image."""
    stage = stage_of(backend, dtype)
    sizes = torch.tensor([0, 1e-6, 0.1, 0.5, 1, 3, 10, 20, 40, 80, 300, 1e4], dtype=dtype)
    y = sizes.repeat_interleave(2).unsqueeze(1)
    norm = torch.tensor([[0.0], [1.0], [0.0]], dtype=dtype)
    for sign in (1.0, -1.0):
        arguments = y, norm, torch.tensor([sign], dtype=dtype), torch.zeros(1, dtype=dtype)
        on_device = [z.to(backend[1]) for z in arguments]
        for link in (0, 1, 2):
            for got, want in zip(
                stage.output(*on_device, 2, link), EXACT.output(*arguments, 2, link), strict=True
            ):
                # f / ln 2 has a rounding of its own where there is no fused multiply-add
                allowed = 1e-5 * want.abs() if dtype == torch.float32 else 1e-13 * want.abs()
                assert ((got.cpu() - want).abs() <= allowed + 1e-37).all()


def close(ours, exact, roundings, dtype):
    size = max(1.0, float(exact.abs().max()))
    assert ours.shape == exact.shape
    assert error(ours, exact) <= roundings * EPS[dtype] * size


@pytest.mark.parametrize("momentum", [0.25, -1.0])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shape", SHAPES)
def test_layers(backend, dtype, shape, batch, momentum):
    """Statistics, the running ones, and what follows from them."""
    stage = stage_of(backend, dtype, shape[0] * shape[1] ** 2 * shape[2])
    v, there = inputs(shape, dtype), inputs(shape, dtype, backend[1])
    wide, width = v.norm.dtype, shape[2]
    for layer in ("hidden", "output"):
        own = batch_norm_of(width, wide, backend[1])
        exact = [s.double() if s.is_floating_point() else s for s in batch_norm_of(width, wide)]
        of = batch, momentum, 1e-2
        if layer == "hidden":
            x, norm = stage.hidden_layer(there.a, there.c, *own, *of, v.roll)
            _, want = EXACT.hidden_layer(v.a, v.c, *exact, *of, v.roll)
            close(x, EXACT.hidden(v.a, v.c, norm.cpu()[:3], v.roll), 4, dtype)
        else:
            last = there.weight, there.bias, v.pairs, 1
            *found, norm = stage.output_layer(there.y, *own, *of, *last)
            _, _, want = EXACT.output_layer(v.y, *exact, *of, v.weight, v.bias, v.pairs, 1)
            right = EXACT.output(v.y, norm.cpu()[:3], v.weight, v.bias, v.pairs, 1)
            for got, due in zip(found, right, strict=True):
                close(got, due, 64, wide)
        close(norm, want, 32, wide)
        assert own[4] == 3 + batch
        for got, due in zip(own, exact, strict=True):
            close(got, due, 8, wide if got.is_floating_point() else torch.float64)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_layers(backend, dtype, shape, batch):
    """And facts: corrections, and gradients to parameters; upstream gradients of any stride."""
    stage = stage_of(backend, dtype, shape[0] * shape[1] ** 2 * shape[2])
    v, there = inputs(shape, dtype), inputs(shape, dtype, backend[1])
    for w in (v, there):
        w.norm = torch.cat([w.norm, w.norm[1:2] / 4])
    for call in (
        lambda s, w: s.hidden_gradient(w.grad_x, w.a, w.c, w.norm, batch, w.roll),
        lambda s, w: s.output_gradient(
            w.y, w.norm, w.weight, w.slope, w.grad, batch, True, w.pairs
        ),
        lambda s, w: s.output_gradient(
            w.y, w.norm, w.weight, w.slope, w.grad[:1].expand(len(w.grad)), batch, False, w.pairs
        ),
    ):
        found, peers, exact = call(stage, there), call(Definition(dtype), v), call(EXACT, v)
        for got, peer, want in zip(found, peers, exact, strict=True):
            size = max(1.0, float(want.abs().max()))
            floor = (EPS[got.dtype] + 16 * EPS[there.norm.dtype]) * size
            assert got.shape == want.shape
            assert error(got, want) <= 2 * error(peer, want) + floor


def test_a_bias_before_batch_norm_has_no_gradient(backend):
    """Not one of any rounding; but NaN is seen."""
    stage = stage_of(backend)
    v = inputs((3, 3, 20, 1), torch.float32, backend[1])
    v.norm = torch.cat([v.norm, v.norm[1:2]])
    v.grad_x[2, 7] = torch.nan
    before = stage.hidden_gradient(v.grad_x, v.a, v.c, v.norm, True, 1)[2][4]
    shown = EXACT.hidden(v.a, v.c, v.norm[:3], 1)[2, 7] > 0
    assert bool(before[7].isnan()) == bool(shown)
    assert not before[torch.arange(20) != 7].any()


def units_of(backend):
    """What makes unit vectors; the reference does so without a pair stage."""
    return reference if backend[0] == "reference" else stage_of(backend)


LAYOUTS = {
    "dense": lambda z: z,
    "view-major": lambda z: z.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda z: z.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda z: z[:1].expand_as(z),
}


def rows_of_any_norm(dim, dtype, device):
    """[4, 3, D]: usual rows, a zero row, and the smallest and largest that there are."""
    z = torch.randn(4, 3, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z[0, 1] = 0
    limits = torch.finfo(dtype)
    for image, size in ((1, limits.max / 8), (2, limits.tiny), (3, limits.tiny * limits.eps * 64)):
        z[image, 0] *= size
    return z.clamp(-limits.max, limits.max).to(dtype).to(device)


DIMS = [1, 7, 64, 300, 1032]  # the last: in vectors, by more than a warp


@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", ALL)
def test_unit(backend, dtype, to):
    stage = units_of(backend)
    for dim in DIMS:
        for layout in LAYOUTS:
            z = LAYOUTS[layout](rows_of_any_norm(dim, dtype, backend[1]))
            unit, factors = stage.unit(z, to)
            assert unit.dtype == to
            assert unit.is_contiguous()
            assert error(unit, exact_units(z.cpu())) <= EPS[to] + 4 * EPS[factors.dtype], (
                dim,
                layout,
            )
            zero = (z == 0).all(-1)
            assert zero.any()
            assert not unit[zero].any()
            assert not factors.view(4, 3, 2)[zero].any()


@pytest.mark.parametrize("view_major", [False, True])
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ALL)
def test_unit_backward(backend, dtype, of, dim, view_major):
    """Relative to the rows' own sizes, since norms are of any; limits where it is beyond them."""
    stage = units_of(backend)
    z = rows_of_any_norm(dim, dtype, backend[1])
    unit, factors = stage.unit(z, of)
    grad = torch.randn(z.shape, generator=torch.Generator().manual_seed(5)).to(of).to(backend[1])
    to_z = stage.unit_backward(grad, unit, factors, dtype, view_major)
    assert to_z.dtype == dtype
    assert to_z.transpose(0, 1).is_contiguous() if view_major else to_z.is_contiguous()
    g, u = grad.cpu().double(), unit.cpu().double()
    along = (g * u).sum(-1, keepdim=True)
    first, second = factors.cpu().double().view(4, 3, 2).split(1, -1)
    limit = torch.finfo(dtype).max
    exact = ((g - along * u) * second * first).clamp(-limit, limit)
    terms = (g.abs() + (along * u).abs()).amax(-1, keepdim=True) * second * first
    # A number of the dtype's own, and what cancelled; none is smaller than the smallest.
    allowed = EPS[dtype] * exact.abs() + 64 * EPS[factors.dtype] * terms
    allowed += torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert ((to_z.cpu().double() - exact).abs() <= allowed).all()
    assert not to_z[0, 1].any()
    assert to_z.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unit_of_long_rows(backend, dtype):
    """Longer than what a block of threads, or a program, keeps of them."""
    stage = units_of(backend)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 2, 9001, generator=generator).to(dtype).to(backend[1])
    z[0, 1] *= 1e-30
    unit, factors = stage.unit(z, torch.float32)
    assert error(unit, exact_units(z.cpu())) <= 4 * EPS[torch.float32]
    grad = torch.randn(z.shape, generator=generator).to(backend[1])
    g, u = grad.cpu().double(), unit.cpu().double()
    exact = (g - (g * u).sum(-1, keepdim=True) * u) * factors.cpu().double().prod(1).view(1, 2, 1)
    to_z = stage.unit_backward(grad, unit, factors, torch.float32, False)
    size = exact.abs().amax(-1, keepdim=True)  # of a row: single elements may all but cancel
    assert error(to_z.cpu() / size, exact / size) <= 4 * EPS[torch.float32]


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_unit_of_what_is_no_row(backend, wrong):
    """NaN all over it, and in no other."""
    stage = units_of(backend)
    z = torch.randn(2, 2, 40).to(backend[1])
    z[1, 0, 39] = wrong
    unit, _ = stage.unit(z, torch.float32)
    assert unit[1, 0].isnan().all()
    assert unit.isnan().sum() == 40
