"""InfoNCE's CUDA launches around the pass over the negatives, in the emulator: what they find, and
how many they are. The oracle is the reference backend in float64.
"""

import weakref
from types import SimpleNamespace

import pytest
import torch

from logo_kernels.backends import BACKENDS
from logo_kernels.contrast import (
    InfoNCEBackwardCall,
    InfoNCECall,
    InfoNCEGradients,
    InfoNCEResult,
)
from support import EPS, beside_others, error

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ALL = (FP32, BF16, FP16)
REDUCTIONS = ("mean", "sum", "none", "pairs")
BATCH = None  # in the place of a number of negatives

# (G, L, P): a global crop has as many positives as there are global crops.
COUNTS = [(2, 3, 2), (3, 0, 3), (0, 1, 1), (0, 2, 40)]


def problem(
    counts, keys, dim, dtype=FP32, *, images=4, temperature=0.2, learned=False, reduction="mean",
    pair_reduction="sum", constants=FP32, seed=0,
):  # fmt: skip
    """Negatives in fp32 cost queries of any dtype no precision."""
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape, of=dtype):
        return torch.randn(*shape, dim, generator=generator).to(of)

    globals_, locals_, positives = counts
    return InfoNCECall(
        rows(images, globals_) if globals_ else None,
        rows(images, locals_) if locals_ else None,
        rows(images, positives, of=constants),
        None if keys is BATCH else rows(keys, of=constants),
        1.0 if learned else temperature,
        torch.tensor(temperature) if learned else None,
        pair_reduction,
        reduction,
    )


def forward(backend, call):
    result = InfoNCEResult.empty(call)
    backend.info_nce(call, result)
    return result


def backward(backend, call, result, upstream, wanted=(True, True, True)):
    after = InfoNCEBackwardCall(
        upstream, call.global_crops, call.local_crops, call.positives, call.temperature_tensor,
        result.pull, result.mean, call.temperature, *wanted, None,
    )  # fmt: skip
    gradients = InfoNCEGradients.empty(after)
    backend.info_nce_backward(after, gradients)
    return gradients


def upstream_of(result):
    shape = result.total.shape
    return torch.linspace(-1, 2, max(1, shape.numel())).to(result.total).reshape(shape)


def double(call):
    return InfoNCECall(*(v.double() if isinstance(v, torch.Tensor) else v for v in call))


def expected(call, upstream):
    reference, exact = BACKENDS["reference"], double(call)
    result = forward(reference, exact)
    return result, backward(reference, exact, result, upstream.double())


def assert_right(backend, call, upstream=None, exact=None):
    """To ulps of fp32, of logits as large as 1/τ among them; gradients as their dtype rounds."""
    result = forward(backend, call)
    upstream = upstream_of(result) if upstream is None else upstream
    gradients = backward(backend, call, result, upstream)
    want, want_gradients = exact or expected(call, upstream)
    tau = call.temperature if call.temperature_tensor is None else float(call.temperature_tensor)
    moved = 2e-6 / min(tau, 1)
    for name in InfoNCEResult._fields:
        found, right = getattr(result, name), getattr(want, name)
        if found is None:
            assert right is None
            continue
        size = float(right.abs().max()) if right.numel() else 0.0
        assert error(found, right) <= moved * max(1, size), name
    for name in InfoNCEGradients._fields:
        found, right = getattr(gradients, name), getattr(want_gradients, name)
        if found is None:
            assert right is None
            continue
        allowed = moved * float(right.abs().max()) + EPS[found.dtype] * right.abs() / 2
        if found.dtype == FP16:
            allowed = allowed + 2.0**-25  # of the smallest numbers
        assert bool(((found.double() - right).abs() <= allowed).all()), name
    return result, gradients


# Words of four numbers that lanes hold, and more; single ones, and more of these.
@pytest.mark.parametrize("dim", [24, 600, 26, 131])
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_crops_of_any_number_and_dtype(emulated, counts, dtype, dim):
    assert_right(emulated, problem(counts, 50, dim, dtype))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("keys", [BATCH, 50])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(emulated, reduction, keys, learned):
    for counts, of_pairs in zip(COUNTS[:3], ("sum", "mean", "mean"), strict=True):
        assert_right(
            emulated,
            problem(
                counts, keys, 24, reduction=reduction, pair_reduction=of_pairs, learned=learned,
                images=9,
            ),
        )  # fmt: skip


@pytest.mark.parametrize("others", [1, 300])
@pytest.mark.parametrize("images", [3, 40])
def test_own_targets_before_others(emulated, images, others):
    """As on one of several processes: tiles of which all, some and no rows are an image's own."""
    for dtype in (FP32, BF16):
        call = problem((2, 1, 2), BATCH, 24, dtype, images=images)
        assert_right(emulated, beside_others(call, torch.randn(others, 24)))


def test_many_queries(emulated):
    """More than blocks take at once, and images than threads sum."""
    for reduction in ("mean", "none"):
        assert_right(emulated, problem((0, 1, 2), 5, 8, images=600, reduction=reduction))


def test_parts_of_the_negatives_are_added_up(device):
    """More of them than lanes, and columns beyond a lane's first word."""
    backend = device(multiprocessors=24)
    for dim in (24, 250):
        call = problem((0, 1, 1), 1500, dim)
        assert_right(backend, call)
        assert backend.library.statistics(before=2).blocks > 32  # of one tile of queries


@pytest.mark.parametrize("temperature", [1e-3, 0.02, 0.03, 5.0])
def test_temperatures(emulated, temperature):
    for learned in (False, True):
        assert_right(emulated, problem((2, 1, 2), 40, 24, temperature=temperature, learned=learned))


@pytest.mark.parametrize("constants", [BF16, FP16])
def test_positives_of_another_dtype(emulated, constants):
    """fp32 queries are owed fp32."""
    call = problem((2, 1, 2), 40, 48, constants=constants)
    assert_right(emulated, call)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("dim", [24, 600, 26, 131])
def test_extreme_norms(emulated, dtype, dim):
    """Beside each other; what gradients cannot hold saturates, and in fp16 becomes inf."""
    call = problem((2, 3, 2), 30, dim, dtype, constants=dtype, images=3)
    sizes = [2.0**-14, 2.0**10] if dtype == FP16 else [2.0**-135, 2.0**110, 2.0**-45, 2.0**45]
    queries = torch.cat([call.global_crops, call.local_crops], 1)
    for index, size in enumerate(sizes):
        queries[index % 3, index] *= size
        call.positives[index % 3, index % 2] *= size
    queries[2, 4] = 0
    call.positives[0, 1] = 0
    call = call._replace(
        global_crops=queries[:, :2], local_crops=queries[:, 2:], negatives=call.negatives.float()
    )
    result = forward(emulated, call)
    upstream = torch.tensor(1e4 if dtype == FP16 else 64.0)
    gradients = backward(emulated, call, result, upstream)
    exact, exact_gradients = expected(call, upstream)
    for found, right in zip(result, exact, strict=True):
        assert error(found, right) < 2e-5
    limit = torch.finfo(dtype).max
    for found, right in zip(gradients[:2], exact_gradients[:2], strict=True):
        # Of each row, whose gradient goes with the inverse of its norm.
        largest = right.abs().amax(-1, keepdim=True)
        within = 2e-5 * largest + EPS[dtype] * right.abs() + (2.0**-24 if dtype == FP16 else 0)
        beyond = right.abs() > limit * (1 + EPS[dtype])
        wanted = torch.where(beyond, right.sign() * (torch.inf if dtype == FP16 else limit), right)
        near = (found.double() - wanted).abs() <= within
        assert bool((near | (found.double() == wanted) | (right.abs() > limit * 0.999)).all())
        assert bool((found.double() == wanted)[beyond].all())
    if dtype == FP16:
        assert any(bool(found.isinf().any()) for found in gradients[:2])
    else:
        assert all(bool(found.isfinite().all()) for found in gradients[:2])
        assert any(bool((found.abs() == limit).any()) for found in gradients[:2])
    assert not gradients.grad_local[2, 2].any()


def test_a_zero_row_has_no_gradient_whatever_it_sees(emulated):
    call = problem((0, 2, 1), 30, 24)
    call.local_crops[1, 0] = 0
    call.negatives[3, 5] = torch.nan
    result = forward(emulated, call)
    gradients = backward(emulated, call, result, torch.tensor(1.0))
    assert not gradients.grad_local[1, 0].any()
    assert gradients.grad_local[1, 1].isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ALL)
def test_nan_and_inf_come_through(emulated, value, dtype):
    """In a query: its pairs alone. In a positive: those of its image, but the crop's own."""
    call = problem((2, 1, 2), 30, 24, dtype, constants=dtype, reduction="none")
    call.local_crops[1, 0, 3] = value
    call.positives[2, 1, 23] = value
    result = forward(emulated, call)
    assert result.total.isnan().tolist() == [False, True, True, False]
    assert result.pull.isnan()[1].tolist() == [[False, False], [False, False], [True, True]]
    assert result.pull.isnan()[2].tolist() == [[False, True], [False, False], [False, True]]
    gradients = backward(emulated, call, result, torch.ones(4))
    assert gradients.grad_local.isnan().all(-1).flatten().tolist() == [False, True, True, False]


def arranged(rows):
    """View-major; misaligned; columns apart."""
    yield rows.transpose(0, 1).contiguous().transpose(0, 1)
    images, crops, dim = rows.shape
    wide = rows.new_zeros(images, crops, dim + 1)
    yield wide[..., 1:].copy_(rows)
    yield rows.new_zeros(images, crops, 2 * dim)[..., ::2].copy_(rows)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("keys", [BATCH, 40])
def test_strides(emulated, keys, dtype):
    """Rows are read where they lie: no launch more, nothing written to."""
    call = problem((2, 3, 2), keys, 24, dtype, images=5)
    exact = expected(call, torch.tensor(-1.0))
    for names in (["global_crops"], ["local_crops"], ["positives"], ["global_crops", "positives"]):
        for views in zip(*(arranged(getattr(call, name)) for name in names), strict=True):
            view = call._replace(**dict(zip(names, views, strict=True)))
            before = [v.clone() for v in views]
            launches = emulated.library.launches()
            assert_right(emulated, view, exact=exact)
            assert emulated.library.launches() == launches + 3 + 1
            assert all(torch.equal(v, w) for v, w in zip(views, before, strict=True))


@pytest.mark.parametrize("positives", [1, 3, 64])
def test_negatives_of_the_batch_in_any_order(emulated, positives):
    """Image by image or view by view: the same negatives in the same order."""
    call = problem((0, 2, positives), BATCH, 24, images=7)
    want = forward(emulated, call)
    view_major = next(arranged(call.positives))
    for result, right in zip(
        forward(emulated, call._replace(positives=view_major)), want, strict=True
    ):
        assert torch.equal(result, right)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_upstream_of_any_strides(emulated, reduction):
    call = problem((2, 3, 2), 30, 24, reduction=reduction)
    shape = InfoNCEResult.empty(call).total.shape
    uneven = torch.linspace(-1, 2, 400)[: 3 * max(1, shape.numel()) : 3].reshape(shape[::-1])
    assert_right(emulated, call, upstream=uneven.permute(tuple(reversed(range(uneven.ndim)))))
    assert_right(emulated, call, upstream=torch.tensor(1.5).expand(shape))


def test_gradients_have_strides_of_their_own(emulated):
    call = problem((2, 3, 2), 30, 24)
    exact = expected(call, torch.tensor(-1.0))
    rows = next(arranged(call.local_crops))
    _, gradients = assert_right(emulated, call._replace(local_crops=rows), exact=exact)
    assert gradients.grad_local.stride() == rows.stride()


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False),
                                    (False, False, True)])  # fmt: skip
def test_only_what_is_wanted(emulated, wanted):
    call = problem((2, 3, 2), 30, 24)
    result = forward(emulated, call)
    everything = backward(emulated, call, result, torch.tensor(1.0))
    some = backward(emulated, call, result, torch.tensor(1.0), wanted)
    for gradient, right, wants in zip(some, everything, wanted, strict=True):
        assert torch.equal(gradient, right) if wants else gradient is None


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_any_order_of_threads_and_blocks(device, reduction):
    """Sums over images, and the temperature's gradient, do not depend on who comes last."""
    backend = device(multiprocessors=2)
    call = problem((2, 1, 2), 200, 24, images=70, learned=True, reduction=reduction)
    found = []
    for seed in range(4):
        backend.library.settings.seed = seed
        result = forward(backend, call)
        found.append((*result, *backward(backend, call, result, upstream_of(result))))
    for other in found[1:]:
        assert all(torch.equal(v, w) for v, w in zip(other, found[0], strict=True))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_launches_of_a_step(emulated, reduction):
    """Three and one, whatever the counts of crops, whether negatives are split or not."""
    library = emulated.library
    for counts in COUNTS:
        for keys in (BATCH, 16, 500):
            call = problem(counts, keys, 16, reduction=reduction, learned=True)
            before = library.launches()
            result = forward(emulated, call)
            assert library.launches() == before + 3
            if keys is not BATCH:  # one tile of queries, and one of negatives or many
                assert (library.statistics(before=1).blocks > 1) == (keys == 500)
            backward(emulated, call, result, upstream_of(result))
            assert library.launches() == before + 4


def test_the_counter_outlives_the_launch_that_counts(emulated, monkeypatch):
    """In a captured graph nobody else keeps it."""
    kept = []

    def take(like, size):
        made = torch.zeros(size, dtype=torch.uint8)
        kept.append(weakref.ref(made))
        return made

    def launch(where, *_):
        assert kept[0]() is not None
        assert where[2] == kept[0]().data_ptr()
        kept.append("launched")

    call = problem((2, 0, 2), 8, 16, learned=True)
    result = forward(emulated, call)
    monkeypatch.setattr(emulated, "_zeros", SimpleNamespace(take=take))
    monkeypatch.setattr(emulated.library, "info_nce_backward", launch)
    backward(emulated, call, result, torch.tensor(1.0))
    assert kept[1:] == ["launched"]


def test_a_failed_launch_of_backward_says_which(emulated, monkeypatch):
    call = problem((0, 3, 1), 20, 64, BF16)
    result = forward(emulated, call)
    monkeypatch.setattr("logo_kernels.backends.cuda.place", lambda tensor: (5, 0))
    with pytest.raises(RuntimeError, match="info_nce_backward, N=12 P=1 D=64 bfloat16, on dev"):
        backward(emulated, call, result, torch.tensor(1.0), (True, True, False))
