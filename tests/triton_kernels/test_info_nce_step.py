"""`Backend.info_nce` and its backward as a whole: how often they launch, and what comes out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import Kernels
from logo_kernels.backends.triton import info_nce as module
from logo_kernels.backends.triton.environment import interpreted
from logo_kernels.backends.triton.info_nce_plan import PAIRS, POSITIVES
from logo_kernels.contrast import InfoNCECall, InfoNCEGradients, InfoNCEResult
from support import beside_others, error

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


def rows(*shape: int, dtype: torch.dtype = FP32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def view_major(block: Tensor) -> Tensor:
    return block.transpose(0, 1).contiguous().transpose(0, 1)


def sparse(block: Tensor) -> Tensor:
    """Every second element of every second row of memory."""
    return block.repeat_interleave(2, -1).repeat_interleave(2, 1)[:, ::2, ::2]


def a_call(
    device: torch.device,
    counts: tuple[int, int, int],
    *,
    images: int = 5,
    dim: int = 24,
    k: int | None = 50,
    temperature: float | Tensor = 0.2,
    reduction: str = "mean",
    pair_reduction: str = "sum",
    dtype: torch.dtype = FP32,
    negatives: torch.dtype | None = None,
) -> InfoNCECall:
    globals_, locals_, positives = counts
    kept = negatives or dtype
    x, y, t = (
        rows(images, count, dim, dtype=to, seed=seed).to(device) if count else None
        for seed, (count, to) in enumerate(((globals_, dtype), (locals_, dtype), (positives, kept)))
    )
    assert t is not None
    n = None if k is None else rows(k, dim, dtype=kept, seed=3).to(device)
    learned = isinstance(temperature, Tensor)
    return InfoNCECall(
        x, y, t, n, 1.0 if learned else temperature, temperature if learned else None,
        pair_reduction, reduction,
    )  # fmt: skip


def forward(kernels: Kernels, call: InfoNCECall) -> InfoNCEResult:
    return kernels.info_nce(*call)


def backward(
    kernels: Kernels,
    call: InfoNCECall,
    upstream: Tensor,
    result: InfoNCEResult,
    wanted: tuple[bool, bool, bool] = (True, True, True),
) -> InfoNCEGradients:
    of_negatives = None if call.negatives is None else call.negatives.dtype
    return kernels.info_nce_backward(
        upstream, call.global_crops, call.local_crops, call.positives, call.temperature_tensor,
        result.pull, result.mean, call.temperature, *wanted, of_negatives,
    )  # fmt: skip


def upstream_of(call: InfoNCECall, result: InfoNCEResult) -> Tensor:
    return rows(*result.total.shape, seed=4).to(call.queries.device)


def double(call: InfoNCECall) -> InfoNCECall:
    return call._replace(
        **{
            name: value.cpu().double()
            for name, value in call._asdict().items()
            if isinstance(value, Tensor)
        }
    )


TOLERANCE = {FP32: 3e-6, BF16: 2e-2, FP16: 3e-3}


@pytest.fixture
def compare(kernels, reference):
    """Everything against the readable form in float64, relative to the largest number."""

    def check(call: InfoNCECall, upstream: Tensor | None = None, tolerance: float | None = None):
        inputs = [v for v in call if isinstance(v, Tensor)]
        before = [v.clone() for v in inputs]
        got = forward(kernels, call)
        upstream = upstream_of(call, got) if upstream is None else upstream
        gradients = backward(kernels, call, upstream, got)
        for value, original in zip(inputs, before, strict=True):
            assert torch.equal(value, original), "written to"
        exact = double(call)
        want = forward(reference, exact)
        wanted = backward(reference, exact, upstream.cpu().double(), want)
        allowed = tolerance or TOLERANCE[call.queries.dtype]
        for name in (*InfoNCEResult._fields, *InfoNCEGradients._fields):
            ours = getattr(got if name in InfoNCEResult._fields else gradients, name)
            right = getattr(want if name in InfoNCEResult._fields else wanted, name)
            assert (ours is None) == (right is None), name
            if right is not None:
                assert ours.shape == right.shape, name
                size = float(right.abs().max())
                if name == "grad_temperature":  # a sum of terms that cancel
                    size = max(size, 1 / float(module._temperature(call)) ** 2)
                assert error(ours, right) <= allowed * max(1e-30, size), name
        return got, gradients

    return check


@pytest.fixture
def launches(monkeypatch) -> list[str]:
    """The names of kernels that would be launched: none is."""
    made: list[str] = []
    if interpreted():
        from triton.runtime.interpreter import GridExecutor as Launcher

        method = "__call__"
    else:
        from triton.runtime.jit import JITFunction as Launcher

        method = "run"

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(self.fn.__name__)

    monkeypatch.setattr(Launcher, method, counted)
    return made


class Operators(TorchDispatchMode):
    """What torch itself is asked to do, but for memory and views of it."""

    FREE = ("empty", "empty_like", "new_empty", "empty_strided", "detach", "view", "transpose")

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in self.FREE:
            self.called.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "pairs"])
@pytest.mark.parametrize(
    ("counts", "options"),
    [
        ((2, 3, 2), {"k": None}),
        ((0, 1, 1), {"k": 300}),
        ((3, 0, 3), {"k": 200, "negatives": BF16}),
        ((2, 9, PAIRS + 3), {"temperature": "learned", "dtype": FP16, "k": 150}),
    ],
    ids=str,
)
def test_launches(counts, options, reduction, splits, device, kernels, launches, with_splits):
    """Three forward, one backward, and nothing by torch."""
    with_splits(splits)
    if options.get("temperature") == "learned":
        options = options | {"temperature": torch.tensor(0.2, device=device)}
    call = a_call(device, counts, reduction=reduction, **options)
    call = call._replace(positives=view_major(call.positives))
    result = forward(kernels, call)  # the counters of this stream are made
    backward(kernels, call, upstream_of(call, result), result)
    launches.clear()
    with Operators() as operators:
        result = forward(kernels, call)
    assert launches == ["info_nce_prologue_kernel", "info_nce_kernel", "info_nce_epilogue_kernel"]
    upstream = upstream_of(call, result)
    with operators:
        backward(kernels, call, upstream, result)
    assert launches[3:] == ["info_nce_backward_kernel"]
    assert operators.called == []


@pytest.mark.parametrize(("reduction", "splits"), [("mean", 1), ("none", 2), ("pairs", 3)])
@pytest.mark.parametrize(
    ("counts", "options"),
    [
        ((3, 2, 3), {"k": None, "images": 11}),
        ((2, 3, 2), {"pair_reduction": "mean"}),
        ((2, 40, 2), {"k": 70}),  # more rows of an image than a program of the epilogue has
        ((PAIRS + 3, 0, PAIRS + 3), {"images": 2}),
        ((0, 2, POSITIVES + 1), {"temperature": 0.01}),
        ((2, 1, 2), {"dtype": BF16}),
        ((2, 1, 2), {"dtype": FP16, "k": None}),
        ((2, 1, 2), {"dtype": FP32, "negatives": BF16}),
        ((2, 1, 2), {"dtype": BF16, "negatives": FP32}),
    ],
    ids=str,
)
def test_against_the_readable_form(
    counts, options, reduction, splits, device, compare, with_splits
):
    with_splits(splits)
    tolerance = 2e-5 if options.get("negatives") == BF16 else None
    compare(a_call(device, counts, reduction=reduction, **options), tolerance=tolerance)


@pytest.mark.parametrize(("images", "others"), [(3, 1), (40, 300)])
def test_own_targets_before_others(images, others, device, compare):
    """As on one of several processes: tiles of which all, some and no rows are an image's own."""
    call = a_call(device, (2, 1, 2), images=images, k=None)
    compare(beside_others(call, rows(others, 24, seed=9)))


@pytest.mark.parametrize(("images", "k"), [(2, None), (1, 10)])
def test_rows_in_pieces(images, k, device, compare):
    """D beyond what any program has at once."""
    compare(a_call(device, (2, 1, 2), dim=2100, images=images, k=k, dtype=BF16))


@pytest.mark.parametrize("arrange", [view_major, sparse, lambda v: v.mT.contiguous().mT])
@pytest.mark.parametrize("k", [None, 50])
def test_any_strides(arrange, k, device, compare):
    """Bit for bit what contiguous tensors give, but for sums of a tile that lies otherwise."""
    call = a_call(device, (2, 3, 2), k=k, images=9)
    expected, to_expected = compare(call)
    arranged = call._replace(
        global_crops=arrange(call.global_crops), local_crops=arrange(call.local_crops),
        positives=arrange(call.positives),
    )  # fmt: skip
    assert not arranged.positives.is_contiguous()
    got, to_got = compare(arranged)
    for ours, right in zip((*got, *to_got), (*expected, *to_expected), strict=True):
        torch.testing.assert_close(ours, right, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "none", "pairs"])
def test_upstream(reduction, device, compare):
    """Zero; expanded; of any strides."""
    call = a_call(device, (2, 3, 2), reduction=reduction)
    shape = {"mean": (), "none": (5,), "pairs": (5, 5, 2)}[reduction]
    _, gradients = compare(call, torch.zeros(shape, device=device))
    for gradient in gradients:
        assert not gradient.any()
    compare(call, torch.tensor(3.0, device=device).expand(shape))
    reverse = tuple(range(len(shape)))[::-1]
    compare(call, rows(*shape[::-1], seed=5).to(device).permute(reverse))
    doubled = rows(*(2 * size for size in shape), seed=6).to(device)
    compare(call, doubled[tuple(slice(None, None, 2) for _ in shape)])


@pytest.mark.parametrize("to_x", [True, False])
@pytest.mark.parametrize("to_y", [True, False])
def test_only_what_is_wanted(to_x, to_y, device, kernels):
    call = a_call(device, (2, 3, 2))
    result = forward(kernels, call)
    upstream = torch.ones([], device=device)
    whole = backward(kernels, call, upstream, result)
    gradients = backward(kernels, call, upstream, result, (to_x, to_y, False))
    assert gradients.grad_temperature is None
    for wanted, got, right in zip((to_x, to_y), gradients, whole, strict=False):
        assert (got is not None) == wanted
        if wanted:
            assert torch.equal(got, right)


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1e30])
def test_extreme_queries_and_positives(size, device, compare):
    call = a_call(device, (2, 3, 2), temperature=0.5)
    call.positives[1:3] *= size
    compare(call)
    call.global_crops[2] *= max(size, 1e-30)
    call.local_crops[3] *= max(size, 1e-30)
    compare(call)


def test_zero_and_nan_rows(device, kernels, compare):
    call = a_call(device, (2, 3, 2))
    call.global_crops[1] = 0
    call.positives[2, 1] = 0
    _, gradients = compare(call)
    assert not gradients.grad_global[1].any()
    call.local_crops[3, 0, 5] = torch.inf
    call.positives[0, 1, 2] = torch.nan
    got = forward(kernels, call)
    gradients = backward(kernels, call, torch.ones([], device=device), got)
    assert got.total.isnan()
    assert gradients.grad_local[3].isnan().any(-1).tolist() == [True, False, False]
    # Each query of image 0 has the positive that is NaN, but for the global crop that it is of.
    assert gradients.grad_local[0].isnan().all()
    assert gradients.grad_global[4].isfinite().all()


@pytest.mark.parametrize("upstream", [1.0, 1e3])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_gradients_beyond_the_dtype(dtype, upstream, device, kernels):
    """They end at its largest number; but inf in fp16 where a loss scaler may have multiplied."""
    call = a_call(device, (0, 1, 1), dtype=dtype, reduction="sum")
    call.local_crops[2] *= 1e-6 if dtype == FP16 else 1e-37
    result = forward(kernels, call)
    to_y = backward(kernels, call, torch.tensor(upstream, device=device), result).grad_local
    assert to_y[[0, 1, 3, 4]].isfinite().all()
    assert not to_y.isnan().any()
    if dtype == FP16 and upstream > 1:
        assert to_y[2].isinf().any()
    else:
        assert to_y[2].isfinite().all()
        if dtype == FP16 or upstream > 1:
            assert (to_y[2].abs() == torch.finfo(dtype).max).any()


def test_tiny_losses(device, kernels):
    """A positive at hand, a negative opposite: e^−|gap| is all that there is of a loss."""
    call = a_call(device, (0, 1, 1), images=1, temperature=0.05, reduction="pairs")
    q = call.local_crops
    got = forward(kernels, call._replace(positives=q.clone(), negatives=-q[0]))
    assert float(got.total) == pytest.approx(math.exp(-40), rel=1e-5, abs=0)
    assert float(got.pull) == pytest.approx(call.lg_weight * math.exp(-40), rel=1e-5, abs=0)
    got = forward(kernels, call._replace(positives=-q, negatives=q[0]))
    assert float(got.total) == pytest.approx(40, rel=1e-6)
    assert float(got.pull) == pytest.approx(call.lg_weight, rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "pairs"])
def test_no_run_differs(reduction, device, kernels):
    temperature = torch.tensor(0.07, device=device)
    call = a_call(device, (2, 3, 2), images=12, temperature=temperature, reduction=reduction)
    results = []
    for _ in range(3):
        result = forward(kernels, call)
        gradients = backward(kernels, call, upstream_of(call, result), result)
        results.append([value for value in (*result, *gradients) if value is not None])
    for again in results[1:]:
        for first, value in zip(results[0], again, strict=True):
            assert torch.equal(first, value)
