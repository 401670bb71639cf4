"""The affinity's CUDA kernels in the emulator, against their definition in float64."""

import pytest
import torch

from affinity_oracle import Definition, normalised, pairs_of
from emulation.backend import emulate
from kernels import Kernels
from logo_kernels.affinity.pairs import LINKS
from logo_kernels.backends import Request

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ALL = (FP32, BF16, FP16)
ROUNDING = {FP32: 1e-6, BF16: 2.0**-8, FP16: 2.0**-10}
EXACT = Definition()

# (images, crops, width, roll): one lane to two tiles of them, in vectors and not; crops that fill
# no part and no chunk of columns; more images than a block has at once.
SHAPES = [
    (1, 2, 1, 0),
    (2, 2, 8, 1),
    (5, 3, 7, 2),
    (2, 8, 64, 0),
    (3, 8, 33, 1),
    (2, 9, 256, 1),
    (1, 5, 300, 0),
    (40, 3, 16, 7),
    (1, 18, 24, 0),
]


def numbers(*shape, dtype=FP32, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) + offset).to(dtype)


def norm_of(width, seed=9):
    return torch.stack([
        numbers(width, seed=seed), 0.5 + numbers(width, seed=seed + 1).abs(),
        0.3 * numbers(width, seed=seed + 2),
    ])  # fmt: skip


def halves(images, crops, width, dtype=FP32):
    shape = images, crops, width
    return numbers(*shape, dtype=dtype, seed=1), numbers(*shape, dtype=dtype, seed=2)


def assert_close(got, want, relative, floor=0.0):
    """Relative to the largest of the result."""
    assert got.shape == want.shape
    assert torch.equal(got.isnan(), want.isnan())
    scale = want.nan_to_num().abs().max()
    assert (got.double() - want).nan_to_num().abs().max() <= relative * scale + floor


def hidden_arguments(shape, dtype):
    """All that the four kernels take: pairs near the corner of ReLU are moved off it."""
    images, crops, width, roll = shape
    a, c = halves(images, crops, width, dtype)
    norm = norm_of(width)
    grad = numbers(images * crops * (crops - 1), width, dtype=dtype, seed=3)
    grad[normalised(pairs_of(a.double(), c.double(), roll), norm).abs() < 1e-4] = 0
    return a, c, norm, grad


def output_arguments(images, pairs, width, dtype):
    y, norm = numbers(images * pairs, width, dtype=dtype, seed=4), norm_of(width)
    corner = normalised(y.double(), norm).abs() < 1e-4
    y[corner] = (norm[0] + 1).expand_as(y)[corner].to(dtype)
    return y, norm, numbers(width, seed=5) / width**0.5, numbers(1, seed=6)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hidden(emulated, shape, dtype):
    stage, roll = Kernels(emulated), shape[3]
    a, c, norm, grad = hidden_arguments(shape, dtype)

    moments = stage.hidden_moments(a, c, roll)
    assert moments.dtype == FP32
    assert_close(moments, EXACT.hidden_moments(a, c, roll), 1e-6)

    x = stage.hidden(a, c, norm, roll)
    assert x.dtype == dtype
    assert_close(x, EXACT.hidden(a, c, norm, roll), ROUNDING[dtype])

    to_a, to_c, sums = stage.hidden_sums(grad, a, c, norm, roll)
    want = EXACT.hidden_sums(grad, a, c, norm, roll)
    for got, exact in zip((to_a, to_c, sums), want, strict=True):
        assert got.dtype == FP32
        assert_close(got, exact, 2e-6)

    correction = 0.1 * numbers(2, shape[2], seed=7)
    given = to_a, to_c, a, c, norm, correction, roll
    want = EXACT.hidden_backward(*given)
    for got, exact in zip(stage.hidden_backward(*given), want, strict=True):
        assert got.dtype == dtype
        assert_close(got, exact, ROUNDING[dtype])


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_hidden_moments_of_distant_numbers(emulated, dtype):
    """A mean of thousands of deviations, a first row that is far off, and halves that cancel."""
    a, c = halves(6, 4, 16)
    stage = Kernels(emulated)
    far = 512.0 if dtype == BF16 else 4e4  # what bf16 still resolves
    for shift_a, shift_c in ((far, far), (far, -far)):
        given = (a * 3 + shift_a).to(dtype), (c * 3 + shift_c).to(dtype), 1
        got, want = stage.hidden_moments(*given), EXACT.hidden_moments(*given)
        assert_close(got[1], want[1], 1e-6)
        assert_close(got[0], want[0], 1e-6, 1e-6)
    a[0, 0] = 1e5
    given = a.to(dtype), c.to(dtype), 0
    assert_close(stage.hidden_moments(*given)[1], EXACT.hidden_moments(*given)[1], 1e-6)
    # L = 2: h of an image are a_0 + c_1 and a_1 + c_0, here alike though the halves are not.
    a, c = halves(4, 2, 8)
    c = (3 - 1000 * a).flip(1)
    got = stage.hidden_moments(1000 * a, c, 0)
    want = EXACT.hidden_moments(1000 * a, c, 0)
    assert (got[1].double() - want[1]).abs().max() < 1e-8
    assert (got[0].double() - want[0]).abs().max() < 1e-6


def test_hidden_backward_of_distant_numbers(emulated):
    """Halves that cancel do not cost the sum of their pairs its digits."""
    a, c = halves(3, 8, 16)
    norm, correction = norm_of(16), 0.1 * numbers(2, 16, seed=7)
    given = torch.zeros(3, 8, 16), torch.zeros(3, 8, 16), a + 1e3, c - 1e3, norm, correction, 1
    for got, exact in zip(
        Kernels(emulated).hidden_backward(*given), EXACT.hidden_backward(*given), strict=True
    ):
        assert_close(got, exact, 1e-5)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("link", LINKS.values(), ids=list(LINKS))
@pytest.mark.parametrize(
    ("images", "pairs", "width"),
    # a part of what a warp takes at once, and more than all warps take; two walks along a row
    [(1, 2, 1), (5, 6, 7), (2, 56, 64), (1, 20, 300), (2, 12, 520), (1, 132, 16), (70, 2, 8)],
)
def test_output(emulated, images, pairs, width, link, dtype):
    stage = Kernels(emulated)
    y, norm, weight, bias = output_arguments(images, pairs, width, dtype)
    grad = numbers(images, seed=8)

    moments = stage.output_moments(y)
    assert moments.dtype == FP32
    assert_close(moments, EXACT.output_moments(y), 1e-6)

    value, slope = stage.output(y, norm, weight, bias, pairs, link)
    assert value.dtype == slope.dtype == FP32
    want = EXACT.output(y, norm, weight, bias, pairs, link)
    assert_close(value, want[0], 2e-6)
    assert_close(slope, want[1], 2e-6)

    sums = stage.output_sums(y, norm, slope, grad, pairs)
    assert sums.dtype == FP32
    assert_close(sums, EXACT.output_sums(y, norm, slope, grad, pairs), 2e-6)

    given = y, norm, weight, slope, grad, 0.1 * numbers(2, width, seed=7), pairs
    got = stage.output_backward(*given)
    assert got.dtype == dtype
    assert_close(got, EXACT.output_backward(*given), ROUNDING[dtype])


@pytest.mark.parametrize("rows", [3, 2000])
@pytest.mark.parametrize("width", [8, 5])
def test_output_moments_of_distant_numbers(emulated, rows, width):
    """At least as near as torch's own; a first row that is far off, and rows that are all alike."""
    stage = Kernels(emulated)
    y = numbers(rows, width, offset=1e4)
    exact = EXACT.output_moments(y)
    assert_close(stage.output_moments(y)[1], exact[1], 1e-6)
    off = numbers(rows, width)
    off[0] = 1e4
    assert_close(stage.output_moments(off), EXACT.output_moments(off), 1e-6)
    constant = torch.full((rows, width), 1234.5678)
    assert not stage.output_moments(constant)[1].any()
    assert torch.equal(stage.output_moments(constant)[0], constant[0])


@pytest.mark.parametrize("link", LINKS.values(), ids=list(LINKS))
def test_links_of_extreme_scores(emulated, link):
    f = torch.tensor([-1e4, -200.0, -90.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 90.0, 200.0, 1e4, 0.5])
    y, norm = f.abs().unsqueeze(1), torch.tensor([[0.0], [1.0], [0.0]])
    y = torch.cat([y, y], 1) * torch.stack([f > 0, f < 0], 1)
    norm, weight, bias = norm.expand(3, 2).contiguous(), torch.tensor([1.0, -1.0]), torch.zeros(1)
    given = y.contiguous(), norm, weight, bias, 1, link
    value, slope = Kernels(emulated).output(*given)
    want = EXACT.output(*given)
    for got, exact in zip((value, slope), want, strict=True):
        assert ((got.double() - exact).abs() <= 3e-7 * exact.abs() + 1e-38).all()
        assert got.isfinite().all()


@pytest.mark.parametrize("width", [8, 5])
def test_nan_in_the_hidden_layer(emulated, width):
    stage = Kernels(emulated)
    a, c, norm, grad = hidden_arguments((3, 4, width, 1), FP32)
    for which in (a, c):
        wrong = [t.clone() for t in (a, c)]
        wrong[0 if which is a else 1][1, 2, 3] = float("nan")
        for got, want in (
            (stage.hidden_moments(*wrong, 1), EXACT.hidden_moments(*wrong, 1)),
            (stage.hidden(*wrong, norm, 1), EXACT.hidden(*wrong, norm, 1)),
            *zip(
                stage.hidden_sums(grad, *wrong, norm, 1),
                EXACT.hidden_sums(grad, *wrong, norm, 1), strict=True,
            ),
        ):  # fmt: skip
            assert want.isnan().any() or want.shape == a.shape  # to_a, to_c: ReLU is shut
            assert_close(got, want, 1e-5)
    grad[5, 3] = float("nan")
    for got, want in zip(
        stage.hidden_sums(grad, a, c, norm, 1), EXACT.hidden_sums(grad, a, c, norm, 1), strict=True
    ):
        assert torch.equal(got.isnan(), want.isnan())


@pytest.mark.parametrize("width", [8, 5])
@pytest.mark.parametrize("link", LINKS.values(), ids=list(LINKS))
def test_nan_in_the_output(emulated, width, link):
    stage = Kernels(emulated)
    y, norm, weight, bias = output_arguments(3, 20, width, FP32)
    y[27, 3] = float("nan")
    assert_close(stage.output_moments(y), EXACT.output_moments(y), 1e-5)
    got = stage.output(y, norm, weight, bias, 20, link)
    want = EXACT.output(y, norm, weight, bias, 20, link)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, 1e-5)
    assert got[0].isnan().tolist() == [False, True, False]
    slope, grad, correction = torch.ones(60), numbers(3), numbers(2, width)
    sums = stage.output_sums(y, norm, slope, grad, 20)
    assert_close(sums, EXACT.output_sums(y, norm, slope, grad, 20), 1e-5)
    given = y, norm, weight, slope, grad, correction, 20
    assert_close(stage.output_backward(*given), EXACT.output_backward(*given), 1e-5)


@pytest.mark.parametrize("dtype", ALL)
def test_arrays_that_are_not_aligned(emulated, dtype):
    """One number at a time; the same result."""
    stage, shape = Kernels(emulated), (2, 4, 16, 1)
    a, c, norm, grad = hidden_arguments(shape, dtype)

    def shifted(tensor):
        buffer = tensor.new_empty(tensor.numel() + 1)[1:]
        return buffer.view_as(tensor).copy_(tensor)

    assert torch.equal(stage.hidden(shifted(a), c, norm, 1), stage.hidden(a, c, norm, 1))
    want = stage.hidden_sums(grad, a, c, norm, 1)
    for got, other in zip(stage.hidden_sums(shifted(grad), a, c, norm, 1), want, strict=True):
        assert_close(got, other.double(), 2e-6)
    y, norm, weight, bias = output_arguments(2, 12, 16, dtype)
    got, want = (stage.output(v, norm, weight, bias, 12, 1) for v in (shifted(y), y))
    assert_close(got[0], want[0].double(), 2e-6)
    assert_close(stage.output_moments(shifted(y)), stage.output_moments(y).double(), 1e-6)


def all_results(stage, shape, dtype):
    images, crops, width, roll = shape
    a, c, norm, grad = hidden_arguments(shape, dtype)
    to_a, to_c, sums = stage.hidden_sums(grad, a, c, norm, roll)
    correction = 0.1 * numbers(2, width, seed=7)
    pairs = crops * (crops - 1)
    y, norm, weight, bias = output_arguments(images, pairs, width, dtype)
    value, slope = stage.output(y, norm, weight, bias, pairs, 1)
    upstream = numbers(images)
    return [
        stage.hidden_moments(a, c, roll), stage.hidden(a, c, norm, roll), to_a, to_c, sums,
        *stage.hidden_backward(to_a, to_c, a, c, norm, correction, roll),
        stage.output_moments(y), value, slope,
        stage.output_sums(y, norm, slope, upstream, pairs),
        stage.output_backward(y, norm, weight, slope, upstream, correction, pairs),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("shape", [(9, 5, 24, 2), (3, 11, 40, 1), (4, 8, 13, 0)], ids=str)
def test_any_order_of_threads(monkeypatch, shape, dtype):
    """A missing barrier shows in some order, and so does a sum whose order is not fixed."""
    results = []
    for seed in range(4):
        stage = Kernels(emulate(monkeypatch, 80, seed))
        results.append(all_results(stage, shape, dtype))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("shape", [(300, 3, 16, 5), (2, 9, 2056, 1)], ids=str)
def test_blocks_walk_on(device, shape):
    """More rows than the blocks of a small device have at once, and more tiles than blocks."""
    stage = Kernels(device(multiprocessors=1))
    images, crops, width, roll = shape
    a, c, norm, grad = hidden_arguments(shape, BF16)
    assert_close(stage.hidden_moments(a, c, roll), EXACT.hidden_moments(a, c, roll), 1e-6)
    assert_close(stage.hidden(a, c, norm, roll), EXACT.hidden(a, c, norm, roll), ROUNDING[BF16])
    sums = stage.hidden_sums(grad, a, c, norm, roll)
    for got, want in zip(sums, EXACT.hidden_sums(grad, a, c, norm, roll), strict=True):
        assert_close(got, want, 2e-6)
    given = *sums[:2], a, c, norm, torch.ones(2, width), roll
    for got, want in zip(stage.hidden_backward(*given), EXACT.hidden_backward(*given), strict=True):
        assert_close(got, want, ROUNDING[BF16])
    pairs = crops * (crops - 1)
    y, norm, weight, bias = output_arguments(images, pairs, width, BF16)
    assert_close(stage.output_moments(y), EXACT.output_moments(y), 1e-6)
    value, slope = stage.output(y, norm, weight, bias, pairs, 1)
    assert_close(value, EXACT.output(y, norm, weight, bias, pairs, 1)[0], 2e-6)
    upstream = numbers(images)
    given = y, norm, slope, upstream, pairs
    assert_close(stage.output_sums(*given), EXACT.output_sums(*given), 2e-6)
    given = y, norm, weight, slope, upstream, torch.ones(2, width), pairs
    assert_close(stage.output_backward(*given), EXACT.output_backward(*given), ROUNDING[BF16])


def test_any_order_where_blocks_walk_on(device):
    """What warps leave of an image is not written over before it is read."""
    backend = device(multiprocessors=1)
    y, norm, weight, bias = output_arguments(40, 72, 16, BF16)
    want = EXACT.output(y, norm, weight, bias, 72, 1)[0]
    for seed in range(4):
        backend.library.settings.seed = seed
        value, _ = Kernels(backend).output(y, norm, weight, bias, 72, 1)
        assert_close(value, want, 2e-6)
    assert backend.library.statistics().blocks < 40


def test_launches(emulated):
    """One for what streams, a second one where blocks' sums are added up."""
    stage, library = Kernels(emulated), emulated.library
    a, c, norm, grad = hidden_arguments((2, 4, 8, 0), BF16)
    y, _, weight, bias = output_arguments(2, 12, 8, BF16)
    slope, upstream, correction = torch.ones(24), torch.ones(2), torch.ones(2, 8)
    fp32 = torch.ones(2, 4, 8)
    norm4, ones, one = torch.ones(4, 8), torch.ones(8), torch.ones(1)
    running = torch.zeros(8), torch.ones(8), torch.tensor(0)
    follows, constants = (*running, True, 0.1, 1e-5), (*running[:2], None, False, 0.0, 1e-5)
    unit, factors = stage.unit(fp32, BF16)
    for count, run in (
        (1, lambda: stage.unit(fp32, BF16)),
        (1, lambda: stage.unit_backward(unit, unit, factors, FP32, True)),
        (3, lambda: stage.hidden_layer(a, c, ones, ones, *follows, 0)),
        (2, lambda: stage.hidden_layer(a, c, ones, ones, *constants, 0)),
        (3, lambda: stage.hidden_gradient(grad, a, c, norm4, True, 0)),
        (3, lambda: stage.output_layer(y, ones, ones, *follows, ones, one, 12, 1)),
        (2, lambda: stage.output_layer(y, ones, ones, *constants, ones, one, 12, 1)),
        (3, lambda: stage.output_gradient(y, norm4, ones, slope, upstream, True, False, 12)),
        (1, lambda: stage.output_gradient(y, norm4, ones, slope, upstream, False, False, 12)),
        (2, lambda: stage.hidden_moments(a, c, 0)),
        (1, lambda: stage.hidden(a, c, norm, 0)),
        (2, lambda: stage.hidden_sums(grad, a, c, norm, 0)),
        (1, lambda: stage.hidden_backward(fp32, fp32, a, c, norm, correction, 0)),
        (2, lambda: stage.output_moments(y)),
        (1, lambda: stage.output(y, norm, weight, bias, 12, 1)),
        (2, lambda: stage.output_sums(y, norm, slope, upstream, 12)),
        (1, lambda: stage.output_backward(y, norm, weight, slope, upstream, correction, 12)),
    ):
        before = library.launches()
        run()
        assert library.launches() - before == count


def test_a_failed_launch_says_which(emulated):
    a, c = halves(3, 4, 8, BF16)
    library = emulated.library

    def launch(name, **given):
        fields = (given.get(field, 0) for field, _ in library.fields[name])
        getattr(library, name)((5, 0, 0), *fields)

    sizes, data = {"images": 3, "width": 8}, a.data_ptr()
    with pytest.raises(RuntimeError, match=r"affinity_hidden, B=3 L=4 H=8 bfloat16, on device 5"):
        launch("affinity_hidden", **sizes, crops=4, dtype=2, a=data, c=c.data_ptr())
    with pytest.raises(RuntimeError, match=r"affinity_output, B=3 of 12 pairs H=8 float16, on dev"):
        launch("affinity_output", **sizes, pairs=12, dtype=3, y=data)


def test_what_is_refused(emulated):
    def refusal(dtype, dim=4096, device="cpu"):
        return emulated.refuses(Request("affinity", device, frozenset([dtype]), 0, dim))

    assert refusal(BF16) is None
    assert refusal(FP32, 1) is None
    assert "float64" in refusal(torch.float64)
    assert "cuda" in refusal(BF16, device="cuda")
