"""Finite in, finite out: τ may be any positive number, and so may what follows from it.

Where the exact loss or gradient lies beyond its dtype, the largest finite number comes.
"""

from itertools import count

import pytest
import torch
from mpmath import mpf

from exact_info_nce import Exact, assert_within, exact_info_nce, largest
from logo_kernels import info_nce, logo_loss
from support import ALL, EPS, queries_and_keys, serves

FP32, FP64 = torch.float32, torch.float64
TEMPERATURES = [1e-45, 1e-40, 1e-38, 1e-30, 1e-20, 1e-10, 1e-5, 7e-4, 1e-3, 0.01, 0.07, 1.0, 1e3,
                1e10, 1e20, 1e38]  # fmt: skip
BEYOND_FP32 = [5e-324, 1e-300, 1e-100, 1e100, 1e300]

# Of a cosine: what products in a dtype's operands may lose.
OF_COSINES = {
    FP64: 8 * 2.0**-52,
    FP32: 8 * 2.0**-23,
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
}


def separate(dtype):
    """(q, k, n) with one largest cosine to every query, by far more than bf16 rounds."""
    for seed in count():
        q, k, n = queries_and_keys(4, 2, 9, 16, dtype, seed)
        q64, k64, n64 = (torch.nn.functional.normalize(rows.double(), dim=-1) for rows in (q, k, n))
        negatives, positives = q64 @ n64.mT, (k64 @ q64.unsqueeze(-1)).squeeze(-1)
        first, second = negatives.topk(2, dim=1).values.unbind(1)
        if min((first - second).min(), (positives - first[:, None]).abs().min()) > 0.08:
            return q, k, n
    raise AssertionError


def tied(dtype):
    """Rows whose unit vectors, and cosines, every dtype has exactly: many are the same.

    Positives that are negatives, once and several times; that win, and that lose; zero rows.
    """
    one, two, four, off, anti, zero = (
        torch.tensor(row)
        for row in (
            [1.0, 0, 0, 0, 0, 0, 0, 0], [0.0, 1, 0, 0, 0, 0, 0, 0], [1.0, 1, 1, 1, 0, 0, 0, 0],
            [0.0, 0, 0, 0, 0, 0, 1, 0], [-1.0, 0, 0, 0, 0, 0, 0, 0], [0.0] * 8,
        )
    )  # fmt: skip
    q = torch.stack([one, two, four, zero, one * 2, off, four * 4, anti])
    k = torch.stack([
        torch.stack(pair)
        for pair in ((one, two), (one, four), (four, one), (one, off), (zero, anti),
                     (one, off), (two, four * 8), (one, anti))
    ])  # fmt: skip
    n = torch.stack([four, one, two * 2, one, off * 0.5, four, four, zero, off, one])
    return q.to(dtype), k.to(dtype), n.to(dtype)


def far(dtype):
    """`tied`, with norms so far from one that neither they nor 1/τ times their inverses hold."""
    factors = [2.0**-14, 2.0**-10, 1.0, 2.0**12] if dtype == torch.float16 else (
        [2.0**-1060, 2.0**-700, 1.0, 2.0**1000] if dtype == FP64 else
        [2.0**-140, 2.0**-100, 1.0, 2.0**120]
    )  # fmt: skip
    q, k, n = (rows.double() for rows in tied(dtype))
    q = q * torch.tensor(factors, dtype=FP64).repeat(2)[:, None]
    n = n * torch.tensor([*factors, *factors, 1.0, 1.0], dtype=FP64)[:, None]
    return q.to(dtype), k.to(dtype), n.to(dtype)


# The least τ of any backend for which no maximum is subtracted (docs/design.md, Temperatures).
NO_MAXIMUM = {FP32: 0.02, FP64: 0.003}

PROBLEMS = {"separate": separate, "tied": tied, "far": far}


def results(backend, q, k, n, temperature, upstream):
    """(losses, gradient of the queries, gradient of τ or None)."""
    name, device = backend
    leaf = q.to(device, copy=True).requires_grad_()
    tau = temperature
    if isinstance(tau, torch.Tensor):
        tau = tau.to(device, copy=True).requires_grad_()
    losses = info_nce(leaf, k.to(device), n.to(device), temperature=tau, backend=name)
    losses.backward(upstream.to(losses))
    return losses, leaf.grad, tau.grad if isinstance(tau, torch.Tensor) else None


def assert_exact(problem, dtype, temperature, exact: Exact, found):
    losses, gradient, to_temperature = found
    tau, wide = mpf(float(temperature)), FP64 if dtype == FP64 else FP32
    what = f"τ={float(temperature):.3g}"
    # Exact cosines err by nothing; others by so much, times 1/τ. Logits, which come up where no
    # maximum is subtracted, have a last digit.
    if problem == "separate":
        cosine = OF_COSINES[dtype]
        of_logit = cosine * max(1, 1 / tau)
    else:
        cosine = 8 * EPS[wide]
        of_logit = EPS[wide] / tau if tau > NO_MAXIMUM[wide] else 0
    rounding = 8 * EPS[wide]
    moved = [of_logit + rounding * (1 + abs(loss)) for row in exact.losses for loss in row]
    assert losses.dtype == wide
    wanted = [loss for row in exact.losses for loss in row]
    assert_within(losses, wanted, moved, largest(wide), f"{what}, loss")

    # Where the softmax is undecided, a logit's error moves a probability.
    share = 4 * cosine + 4 * min(of_logit * exact.undecided, 1)
    if tau > 0.005:  # weights are operands of the queries' dtype; sharper ones here are 0 or 1
        share += EPS[dtype] * exact.undecided
    # The least that the dtype has, twice rounded.
    tiny = 2 * mpf(torch.finfo(dtype).tiny) * EPS[dtype]
    wanted, moved = [], []
    for row, size in zip(exact.gradient, exact.size, strict=True):
        wanted += row
        moved += [share * size + EPS[dtype] * abs(number) + tiny for number in row]
    assert gradient.dtype == dtype
    assert_within(gradient, wanted, moved, largest(dtype), f"{what}, gradient")

    if to_temperature is not None:
        size = (4 * len(exact.losses) * share + 8 * EPS[wide]) / tau / tau
        tiny = 2 * mpf(torch.finfo(wide).tiny) * EPS[wide]
        of_tau = to_temperature.dtype
        wanted = exact.to_temperature
        moved = size + EPS[of_tau] * abs(wanted) + tiny
        assert_within(to_temperature, [wanted], [moved], largest(of_tau), f"{what}, its gradient")


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("given", ["number", "tensor"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_any_temperature(backend, problem, given, dtype):
    """Losses and gradients of queries and of τ, at all that a float of Python holds."""
    serves(backend, dtype)
    q, k, n = PROBLEMS[problem](dtype)
    upstream = torch.linspace(-1, 1, k[..., 0].numel()).view(k.shape[:2])
    temperatures = TEMPERATURES
    if given == "number" or dtype == FP64:
        temperatures = temperatures + BEYOND_FP32
    # Interpreted and emulated, slow: every fourth, of fp32 others than of bf16.
    if backend[0] in ("triton", "emulated"):
        temperatures = temperatures[(given == "number") + 2 * (dtype == torch.bfloat16) :: 4]
    for temperature in temperatures:
        tau = temperature
        if given == "tensor":
            tau = torch.tensor(tau, dtype=FP64 if dtype == FP64 else FP32)
        exact = exact_info_nce(q, k, n, float(tau), upstream)
        found = results(backend, q, k, n, tau, upstream)
        assert_exact(problem, dtype, tau, exact, found)


def of_images(x, y, t, n, temperature, weights):
    """(losses [B, V, P], gradients [B, V, D]) of eq. 1 in the LoGo loss, as `Exact` has them."""
    losses, gradients = [], []
    for image in range(len(x)):
        others = n if n is not None else torch.cat([t[:image], t[image + 1 :]]).flatten(0, 1)
        queries = torch.cat([x[image], y[image]])
        exact = exact_info_nce(
            queries, t[image].expand(len(queries), -1, -1), others, temperature, weights
        )
        losses.append(exact.losses)
        gradients.append(exact.gradient)
    return losses, gradients


# Up to where every single loss is a number, which their sum need not be.
SHARP = {
    FP32: (1e-45, 1e-39, 1.5e-39, 3e-39, 6e-39, 1e-38, 1e-30, 2e-18, 1e-3, 1.0, 1e38),
    FP64: (5e-324, 3e-309, 6e-309, 1e-308, 1e-300, 1e-154, 1e-3, 1.0, 1e300),
}


@pytest.mark.parametrize("dtype", SHARP)
@pytest.mark.parametrize("negatives", ["batch", "queue"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_sums_of_losses(backend, reduction, negatives, dtype):
    """A mean is right where the sum is no number; a sum that is none saturates."""
    serves(backend, dtype)
    name, device = backend
    q, k, n = tied(dtype)
    x, y, t = q[[0, 1, 6, 0, 5, 1]].unflatten(0, (3, 2)), q[[2, 5, 0]].unsqueeze(1), k[:3].flip(0)
    n = None if negatives == "batch" else n
    images, globals_, locals_ = 3, 2, 1
    pairs = torch.ones(3, 2, dtype=FP64)
    pairs[:2].fill_diagonal_(0)
    weights = pairs * torch.tensor([0.5, 0.5, 1.0], dtype=FP64)[:, None]
    weights /= images if reduction == "mean" else 1
    for temperature in SHARP[dtype]:
        losses, gradients = of_images(x, y, t, n, temperature, weights)
        totals, terms = [], []
        for image in losses:
            summed = [
                sum((loss * float(on) for loss, on in zip(row, pairs[v], strict=True)), mpf(0))
                for v, row in enumerate(image)
            ]
            gg, lg = summed[0] + summed[1], summed[2]
            totals.append(gg / 2 + lg)
            terms.append([gg / (globals_ * (globals_ - 1)), lg / (locals_ * globals_)])
        if reduction != "none":
            share = mpf(1) / images if reduction == "mean" else 1
            totals = [share * sum(totals, mpf(0))]
            terms = [[share * sum(column, mpf(0)) for column in zip(*terms, strict=True)]]

        lx, ly = (v.to(device, copy=True).requires_grad_() for v in (x, y))
        found = logo_loss(
            lx, ly, t.to(device), similarity="info_nce",
            negatives="batch" if n is None else n.to(device), temperature=temperature,
            affinity=None, reduction=reduction, return_terms=True, backend=name,
        )  # fmt: skip
        found.total.backward(torch.ones_like(found.total))
        limit, what = largest(dtype), f"τ={temperature}"
        close = 1e-6 if dtype == FP32 else 1e-12
        for value, wanted in ((found.total, totals), (found.gg, [row[0] for row in terms]),
                              (found.lg, [row[1] for row in terms])):  # fmt: skip
            assert_within(value, wanted, [close * (1 + number) for number in wanted], limit, what)
        for leaf, rows in ((lx, slice(0, 2)), (ly, slice(2, 3))):
            wanted = [number for image in gradients for row in image[rows] for number in row]
            room = [close * (abs(number) + 4 / mpf(temperature)) for number in wanted]
            assert_within(leaf.grad, wanted, room, limit, f"{what}, gradient")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, FP64])
def test_a_temperature_of_another_dtype(backend, dtype):
    """Its gradient saturates in its own; one below fp32 is no zero, one beyond it is infinite."""
    q, k, n = tied(FP32)
    upstream = torch.ones(k.shape[:2])
    values = [6e-8, 1e-4, 0.25, 6e4] if dtype == torch.float16 else [1e-38, 1e-25, 1e-3, 1e30]
    for value in values + ([5e-324, 1e-300, 1e300] if dtype == FP64 else []):
        tau = torch.tensor(value, dtype=dtype)
        losses, gradient, to_tau = results(backend, q, k, n, tau, upstream)
        assert to_tau.dtype == dtype
        limit = min(largest(dtype), largest(FP32))
        exact = exact_info_nce(q, k, n, float(tau), upstream)
        size = exact.to_temperature
        room = EPS[dtype] * abs(size) + 1e-5 / mpf(float(tau)) ** 2
        room += mpf(torch.finfo(dtype).tiny) * EPS[dtype] + 1e-37
        assert_within(to_tau, [size], [room], limit, f"τ={value}, its gradient")
        wanted = [loss for row in exact.losses for loss in row]
        room = [1e-6 * (1 + loss) for loss in wanted]
        assert_within(losses, wanted, room, largest(FP32), f"τ={value}")
        assert gradient.isfinite().all()


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan")])
def test_a_tensor_that_is_no_temperature(backend, value):
    """The host does not look at it; so everything is NaN."""
    q, k, n = tied(FP32)
    losses, gradient, to_tau = results(backend, q, k, n, torch.tensor(value), torch.ones(8, 2))
    assert losses.isnan().all()
    assert to_tau.isnan()
    assert gradient[q.any(1)].isnan().all()


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-10, 1e300])
def test_a_compiled_number(compiler, temperature):
    """Traced, τ is a tensor."""
    q, k, n = tied(FP32)

    def step(q, temperature):
        return info_nce(q, k, n, temperature=temperature)

    both = []
    for function in (step, compiler(step, backend="aot_eager", dynamic=True)):
        leaf = q.clone().requires_grad_()
        losses = function(leaf, temperature)
        losses.sum().backward()
        both.append((losses.detach(), leaf.grad))
    for eager, compiled in zip(*both, strict=True):
        assert compiled.isfinite().all()
        assert torch.allclose(eager, compiled, rtol=1e-6)


@pytest.fixture
def flushed():
    """Subnormal numbers are zeros to this thread, but not to the others."""
    before = torch.get_num_threads()
    yield lambda: torch.set_flush_denormal(True)
    torch.set_flush_denormal(False)
    torch.set_num_threads(before)


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-20, 0.2, 1e38])
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_a_thread_that_flushes_subnormals(flushed, name, temperature):
    """Subnormal rows, temperatures and results: the same bits, in whichever thread they come up."""
    q, k, n = queries_and_keys(96, 2, 700, 64)
    q, k, n = (torch.cat([rows[::2], rows[1::2] * 1e-40]) for rows in (q, k, n))
    given = torch.tensor(temperature)

    def found():
        leaf, tau = q.clone().requires_grad_(), given.clone().requires_grad_()
        losses = info_nce(leaf, k, n, temperature=tau, backend=name)
        losses.backward(torch.full_like(losses, 1e-3))
        return losses.detach(), leaf.grad, tau.grad

    wanted = found()
    flushed()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for value, same in zip(found(), wanted, strict=True):
            assert torch.equal(value.view(torch.int32), same.view(torch.int32))
