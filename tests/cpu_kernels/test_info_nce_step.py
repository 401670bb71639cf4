"""InfoNCE on the CPU around its pass: one operator each way, whatever layout, dtype and norm."""

from collections import Counter

import pytest
import torch

from logo_kernels import info_nce, logo_loss
from logo_kernels.backends import BACKENDS
from logo_kernels.contrast import (
    InfoNCEBackwardCall,
    InfoNCECall,
    InfoNCEGradients,
    InfoNCEResult,
)
from support import EPS, Operators, beside_others, crops, error, leaves

COUNTS = [(2, 3), (3, 0), (1, 2), (0, 4)]  # (G, L)


@pytest.mark.parametrize("negatives", ["batch", "queue"])
def test_operators_of_a_step(negatives):
    """Two of ours. The others are autograd's: they make no pass over crops or losses."""
    x, y, t, _ = crops(5, 2, 3, 24, targets=True)
    x, y = leaves(x, y)
    n = "batch" if negatives == "batch" else torch.randn(30, 24)
    with Operators() as seen:
        loss = logo_loss(x, y, t, similarity="info_nce", negatives=n, affinity=None, backend="cpu")
        loss.backward()
    assert Counter(seen.names) == {
        "info_nce": 1,
        "info_nce_backward": 1,
        "ones_like": 1,  # the upstream gradient of a scalar
        "detach": 2,  # the two gradients, as they become .grad
    }


def call_of(counts, reduction, dtype=torch.float64, queue=True, seed=0, pair_reduction="mean"):
    globals_, locals_ = counts
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return InfoNCECall(
        rows(4, globals_, 19) if globals_ else None,
        rows(4, locals_, 19) if locals_ else None,
        rows(4, globals_ or 3, 19),
        rows(37, 19) if queue else None,
        0.3, None, pair_reduction, reduction,
    )  # fmt: skip


def both_ways(backend, call, upstream):
    """All that the two operators fill; fresh buffers are NaN, where they fill nothing."""
    result = InfoNCEResult.empty(call)
    backend.info_nce(call, result)
    after = InfoNCEBackwardCall(
        upstream, call.global_crops, call.local_crops, call.positives, call.temperature_tensor,
        result.pull, result.mean, call.temperature, True, True, True, None,
    )  # fmt: skip
    gradients = InfoNCEGradients.empty(after)
    backend.info_nce_backward(after, gradients)
    absent = torch.empty(0)
    return tuple(absent if v is None else v for v in (*result, *gradients))


def upstream_of(call, kind):
    """A gradient of `total`, of one layout or another."""
    shape = InfoNCEResult.empty(call).total.shape
    values = torch.linspace(-1, 2, 2 * shape.numel(), dtype=call.dtype)
    if kind == "expanded":
        return values[-1].expand(shape)
    if kind == "strided" and shape:
        return values[::2].view(shape[::-1]).permute(*reversed(range(len(shape))))
    return values[: shape.numel()].view(shape)


@pytest.mark.parametrize("kind", ["dense", "expanded", "strided"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "pairs"])
@pytest.mark.parametrize("queue", [True, False])
@pytest.mark.parametrize("counts", COUNTS)
def test_all_that_is_filled(cpu, counts, queue, reduction, kind):
    """Against the readable form, in fp64: every buffer, for every reduction and upstream layout."""
    call = call_of(counts, reduction, queue=queue)
    upstream = upstream_of(call, kind)
    ours = both_ways(cpu, call, upstream)
    wanted = both_ways(BACKENDS["reference"], call, upstream)
    for value, exact in zip(ours, wanted, strict=True):
        assert value.shape == exact.shape
        assert error(value, exact) <= 1e-13 * max(
            1.0, float(exact.abs().max()) if exact.numel() else 0
        )


@pytest.mark.parametrize("others", [1, 700])
@pytest.mark.parametrize("counts", COUNTS)
def test_own_targets_before_others(cpu, counts, others):
    """As on one of several processes: within a tile of negatives, and beside more of them."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(others, 19, generator=generator, dtype=torch.float64)
    call = beside_others(call_of(counts, "none"), rows)
    upstream = upstream_of(call, "dense")
    seen = both_ways(cpu, call._replace(own_first=False), upstream)
    ours = both_ways(cpu, call, upstream)
    wanted = both_ways(BACKENDS["reference"], call, upstream)
    assert error(seen[0], ours[0]) > 1e-3
    for value, exact in zip(ours, wanted, strict=True):
        assert error(value, exact) <= 1e-13 * max(
            1.0, float(exact.abs().max()) if exact.numel() else 0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_double_constants_beside_narrower_crops(cpu, dtype):
    """Arithmetic in fp64; gradients are rounded once, to the dtype of the crops."""
    call = call_of((2, 3), "sum")
    call = call._replace(
        global_crops=call.global_crops.to(dtype), local_crops=call.local_crops.to(dtype)
    )
    upstream = torch.tensor(1.5, dtype=torch.float64)
    *_, to_global, to_local, _ = both_ways(cpu, call, upstream)
    exact = call._replace(
        global_crops=call.global_crops.double(), local_crops=call.local_crops.double()
    )
    *_, global_, local, _ = both_ways(BACKENDS["reference"], exact, upstream)
    for value, wide in ((to_global, global_), (to_local, local)):
        assert value.dtype == dtype
        assert ((value.double() - wide).abs() <= 0.51 * EPS[dtype] * wide.abs() + 1e-8).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [True, False])
def test_a_gradient_out_of_range(cpu, dtype, wide):
    """It saturates; as fp16 it is inf, for a loss scaler to see. Its neighbours are untouched."""
    q = torch.randn(9, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
    n = torch.randn(40, 5, dtype=torch.float64 if wide or dtype == torch.float64 else torch.float32)
    k = torch.randn(9, 1, 5, dtype=n.dtype)
    ordinary = q.clone().requires_grad_()
    (info_nce(ordinary, k, n, backend="cpu").sum()).backward()
    small = q.clone()
    small[3] = torch.tensor([1, -2, 1, 3, -1], dtype=dtype) * torch.finfo(dtype).smallest_normal
    small.requires_grad_()
    upstream = torch.ones(9, 1, dtype=n.dtype)
    upstream[3] = 1e10
    info_nce(small, k, n, backend="cpu").backward(upstream)
    limit = torch.inf if dtype == torch.float16 else torch.finfo(dtype).max
    assert (small.grad[3].abs() == limit).all()
    others = [row for row in range(9) if row != 3]
    assert torch.equal(small.grad[others], ordinary.grad[others])


def test_a_positive_that_is_nan_is_no_part_of_what_it_is_no_pair_of(cpu):
    """A global crop's own target: its gradient comes from the others alone."""
    call = call_of((3, 2), "sum", torch.float32)
    call.positives[1, 0] = torch.nan
    total, terms, _, pull, _, to_global, to_local, _ = both_ways(cpu, call, torch.tensor(1.0))
    assert total.isnan()
    assert terms.isnan().all()
    assert pull[1, 0].isfinite().all()
    assert to_global.isnan().any(2).nonzero().tolist() == [[1, 1], [1, 2]]
    assert to_local.isnan().any(2).nonzero().tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("counts", COUNTS)
def test_threads_change_nothing(cpu, threads, counts):
    """No bit of any result, backward included."""
    generator = torch.Generator().manual_seed(7)
    call = call_of(counts, "mean", torch.float32)._replace(
        negatives=torch.randn(9000, 19, generator=generator)
    )
    found = []
    for count in (1, 2, 3, 7):
        threads(count)
        found.append(both_ways(cpu, call, torch.tensor(1.0)))
    for several in found[1:]:
        for value, same in zip(several, found[0], strict=True):
            assert torch.equal(value, same)
