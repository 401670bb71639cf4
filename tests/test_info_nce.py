"""InfoNCE on every backend: the function, its part in the LoGo loss, against float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from logo_kernels import contrast, info_nce, logo_loss
from oracles import eager_info_nce, pairwise_contrast, pairwise_info_nce
from support import (
    ALL,
    EPS,
    LAYOUTS,
    crops,
    error,
    leaves,
    losses_and_gradient,
    queries_and_keys,
    serves,
)

GOLDEN = Path(__file__).parent / "golden"


# (N, P, K, D): single ones; no multiple of a tile; more rows than a tile; MoCo's D; D of no power
SHAPES = [(1, 1, 1, 8), (5, 2, 37, 24), (70, 2, 130, 64), (9, 8, 300, 128), (6, 1, 65, 300)]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_worse_than_eager(backend, shape, temperature, dtype):
    serves(backend, dtype)
    q, k, n = queries_and_keys(*shape, dtype)
    upstream = torch.randn(shape[:2], generator=torch.Generator().manual_seed(1))
    exact = losses_and_gradient(pairwise_info_nce, q, k, n, temperature, upstream, torch.float64)
    peer = losses_and_gradient(eager_info_nce, q, k, n, temperature, upstream)
    ours = losses_and_gradient(
        info_nce, q, k, n, temperature, upstream, device=backend[1], backend=backend[0]
    )
    assert ours[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert ours[1].dtype == dtype
    floor = EPS[torch.float32 if dtype != torch.float64 else dtype]
    for value, by_eager, by_oracle in zip(ours, peer, exact, strict=True):
        size = max(1.0, 1 / temperature) * floor * 8 + EPS[dtype] * float(by_oracle.abs().max())
        assert error(value, by_oracle) <= 2 * error(by_eager, by_oracle) + size


@pytest.mark.parametrize("temperature", [1e-4, 0.02, 0.2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_temperature(backend, temperature, dtype):
    """Sharp: one negative has it all. Flat: all count alike."""
    q, k, n = queries_and_keys(7, 2, 90, 32, dtype)
    upstream = torch.ones(7, 2)
    exact = losses_and_gradient(pairwise_info_nce, q, k, n, temperature, upstream, torch.float64)
    peer = losses_and_gradient(eager_info_nce, q, k, n, temperature, upstream)
    ours = losses_and_gradient(
        info_nce, q, k, n, temperature, upstream, device=backend[1], backend=backend[0]
    )
    for value, by_eager, by_oracle in zip(ours, peer, exact, strict=True):
        assert value.isfinite().all()
        size = float(by_oracle.abs().max())
        assert error(value, by_oracle) <= 2 * error(by_eager, by_oracle) + 2 * EPS[dtype] * size


@pytest.mark.parametrize("case", sorted(p.stem for p in GOLDEN.glob("nce_*.npz")))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_golden(backend, case, dtype, tolerance):
    """Float64 numbers from outside the project."""
    serves(backend, dtype)
    golden = np.load(GOLDEN / f"{case}.npz")
    name, device = backend
    x, y, t = (
        torch.tensor(golden[key]).to(device, dtype)
        for key in ("global_crops", "local_crops", "targets")
    )
    x, y = x.requires_grad_(), y.requires_grad_()
    negatives = "batch"
    if "negatives" in golden:
        negatives = torch.tensor(golden["negatives"]).to(device, dtype)
    terms = logo_loss(
        x, y, t, similarity="info_nce", negatives=negatives,
        temperature=float(golden["arg_temperature"]), repulsion_weight=float(golden["arg_lam"]),
        pair_reduction=str(golden["arg_pair_reduction"]), return_terms=True, backend=name,
    )  # fmt: skip
    terms.total.backward()
    size = max(1.0, float(golden["total"]))
    for term, key in zip(terms, ("total", "gg", "lg", "ll"), strict=True):
        assert abs(float(term.detach()) - float(golden[key])) < tolerance * size
    for leaf, key in ((x, "grad_global"), (y, "grad_local")):
        assert error(leaf.grad, torch.tensor(golden[key])) < tolerance


@pytest.mark.parametrize("pair_reduction", ["sum", "mean"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("negatives", ["batch", "queue"])
@pytest.mark.parametrize("features", [False, True])
def test_options(backend, pair_reduction, reduction, negatives, features):
    """Every combination; targets and negatives get no gradient, even if they require one."""
    name, device = backend
    x, y, t, r = crops(5, 2, 3, 24, targets=True, features=features)
    n = queries_and_keys(1, 1, 40, 24)[2] if negatives == "queue" else "batch"
    upstream = torch.linspace(-1, 2, 5) if reduction == "none" else torch.tensor(1.5)

    lx, ly, lr = leaves(x, y, r, dtype=torch.float64)
    want = pairwise_contrast(
        lx, ly, t.double(), lr, n if isinstance(n, str) else n.double(), 0.2, 0.3, pair_reduction
    )
    want = {"mean": want.mean(1), "sum": want.sum(1), "none": want}[reduction]
    want[0].backward(upstream.double())

    ox, oy, ot, orr = leaves(*(None if v is None else v.to(device) for v in (x, y, t, r)))
    on = n if isinstance(n, str) else n.to(device).requires_grad_()
    terms = logo_loss(
        ox, oy, ot, similarity="info_nce", negatives=on, repulsion_features=orr,
        repulsion_weight=0.3, pair_reduction=pair_reduction, reduction=reduction,
        return_terms=True, backend=name,
    )  # fmt: skip
    terms.total.backward(upstream.to(device))
    for term, value in zip(terms, want, strict=True):
        assert error(term, value.detach()) < 1e-6 * max(1, float(value.detach().abs().max()))
    for leaf, value in ((ox, lx), (oy, ly), (orr, lr)):
        if value is not None:
            assert error(leaf.grad, value.grad) < 1e-5
    assert ot.grad is None
    assert isinstance(on, str) or on.grad is None


def test_an_image_is_never_its_own_negative(backend):
    """With targets all alike within an image, and orthogonal between images, the loss is known."""
    name, device = backend
    x = torch.eye(4).repeat_interleave(2, 0).view(4, 2, 4).to(device)
    loss = logo_loss(
        x, similarity="info_nce", negatives="batch", temperature=0.1, reduction="none",
        backend=name,
    )  # fmt: skip
    # one unordered pair: −log(e^{10} / (e^{10} + 6 e^0))
    assert error(loss, torch.full((4,), float(np.log1p(6 * np.exp(-10.0))))) < 1e-6


@pytest.mark.parametrize("images", [2, 3, 130, 257])
def test_batch_of_any_size(backend, images):
    """Own negatives within one tile, and at the borders of several."""
    if images > 3 and backend[0] in ("triton", "emulated"):
        pytest.skip("minutes, one block after the other")
    name, device = backend
    x, y, t, _ = crops(images, 2, 1, 12, targets=True)
    results = []
    for chosen, at, dtype in (("reference", "cpu", torch.float64), (name, device, torch.float32)):
        lx, ly = leaves(x.to(at), y.to(at), dtype=dtype)
        loss = logo_loss(
            lx, ly, t.to(at, dtype), similarity="info_nce", negatives="batch", backend=chosen
        )
        loss.backward()
        results.append((loss.detach(), lx.grad, ly.grad))
    for value, exact in zip(results[1], results[0], strict=True):
        assert error(value, exact) < 1e-5


@pytest.mark.parametrize("layout", [*LAYOUTS, "transposed"])
def test_strides(backend, layout):
    name, device = backend
    q, k, n = queries_and_keys(6, 2, 50, 32)
    upstream = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    want = losses_and_gradient(pairwise_info_nce, q, k, n, 0.2, upstream, torch.float64)
    if layout == "transposed":
        arranged = [v.mT.contiguous().mT for v in (q, k, n)]
    else:
        arrange = LAYOUTS[layout]
        arranged = [arrange(q.unsqueeze(1))[:, 0], arrange(k), arrange(n.unsqueeze(1))[:, 0]]
    before = [v.clone() for v in arranged]
    oq, ok, on = (v.to(device) for v in arranged)
    oq = oq.detach().requires_grad_()
    losses = info_nce(oq, ok, on, temperature=0.2, backend=name)
    losses.backward(upstream.to(device))
    assert error(losses, want[0]) < 1e-5
    assert error(oq.grad, want[1]) < 1e-5
    for value, original in zip((oq, ok, on), before, strict=True):
        assert torch.equal(value.detach().cpu(), original)


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1e30])
@pytest.mark.parametrize("which", ["queries", "positives", "negatives", "one negative"])
def test_norms_do_not_matter(backend, which, size):
    """Only directions count; the gradient grows as 1/‖q‖."""
    name, device = backend
    q, k, n = queries_and_keys(5, 2, 40, 24)
    upstream = torch.ones(5, 2)
    want, gradient = losses_and_gradient(pairwise_info_nce, q, k, n, 0.2, upstream, torch.float64)
    at = {"queries": q, "positives": k, "negatives": n, "one negative": n[7]}[which]
    at *= size
    # 1e-40 is subnormal: its few bits make other directions
    exact = losses_and_gradient(pairwise_info_nce, q, k, n, 0.2, upstream, torch.float64)
    want, gradient = exact if size == 1e-40 else (want, gradient)
    scale = size if which == "queries" and size != 1e-40 else 1
    ours, grad = losses_and_gradient(info_nce, q, k, n, 0.2, upstream, device=device, backend=name)
    assert error(ours, want) < 1e-5
    limit = torch.finfo(torch.float32).max
    expected = (gradient / scale).clamp(-limit, limit)
    assert grad.isfinite().all()
    assert error(grad, expected) <= 1e-5 * float(expected.abs().max())


def test_zero_rows(backend):
    """Cosine 0, hence logit 0, and gradient 0."""
    name, device = backend
    q, k, n = queries_and_keys(5, 2, 40, 24)
    q[1], k[2, 0], n[3] = 0, 0, 0
    want, gradient = losses_and_gradient(
        pairwise_info_nce, q, k, n, 0.2, torch.ones(5, 2), torch.float64
    )
    gradient[1] = 0
    ours, grad = losses_and_gradient(
        info_nce, q, k, n, 0.2, torch.ones(5, 2), device=device, backend=name
    )
    assert error(ours, want) < 1e-5
    assert error(grad, gradient) < 1e-5
    assert not grad[1].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_and_inf_come_out_as_nan(backend, which, value):
    name, device = backend
    inputs = queries_and_keys(5, 2, 40, 24)
    inputs[which][1, ..., 3] = value
    ours, _ = losses_and_gradient(
        info_nce, *inputs, 0.2, torch.ones(5, 2), device=device, backend=name
    )
    assert ours[1].isnan().all()
    if which < 2:
        assert ours[[0, 2, 3, 4]].isfinite().all()
    else:
        assert ours.isnan().all()  # every query sees every negative


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16,
                         torch.float32), (torch.float32, torch.float16)])  # fmt: skip
def test_negatives_of_another_precision(backend, dtypes):
    """A half-precision queue beside fp32 queries costs the queries no precision."""
    name, device = backend
    q, k, n = queries_and_keys(6, 2, 70, 64)
    q, k, n = q.to(dtypes[0]), k.to(dtypes[0]), n.to(dtypes[1])
    want = losses_and_gradient(pairwise_info_nce, q, k, n, 0.07, torch.ones(6, 2), torch.float64)
    losses, grad = losses_and_gradient(
        info_nce, q, k, n, 0.07, torch.ones(6, 2), device=device, backend=name
    )
    tight = dtypes[0] == torch.float32
    assert error(losses, want[0]) < (1e-4 if tight else 3e-2)
    size = float(want[1].abs().max())
    assert error(grad, want[1]) < (1e-4 if tight else 2 * EPS[dtypes[0]]) * size


def test_fp16_gradients_are_multiplied_before_they_are_rounded(backend):
    """Gradients below fp16's range come back by the loss scaler's 65536."""
    name, device = backend
    q, k, n = queries_and_keys(6, 2, 70, 48, torch.float16)
    q = q * 64
    upstream = torch.full((6, 2), 65536.0 / 6e3)
    want = losses_and_gradient(pairwise_info_nce, q, k, n, 0.5, upstream, torch.float64)[1]
    grad = losses_and_gradient(info_nce, q, k, n, 0.5, upstream, device=device, backend=name)[1]
    assert error(grad, want) <= 2 * EPS[torch.float16] * float(want.abs().max())


@pytest.mark.parametrize("name", ["cpu", "auto"])
def test_peak_memory_is_flat_in_k(name):
    """Counted by torch's profiler. A logit each would be 256 KB for every 1024 negatives."""

    def peak(count):
        q, k, n = queries_and_keys(64, 2, count, 32)
        q.requires_grad_()
        info_nce(q, k, n, backend=name).sum().backward()
        with torch.profiler.profile(profile_memory=True) as profile:
            info_nce(q, k, n, backend=name).sum().backward()
        held = most = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        return most

    assert peak(262144) <= peak(65536) * 1.05 + 4096


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_gradcheck(name):
    q, k, n = queries_and_keys(3, 2, 7, 5, torch.float64)
    (q,) = leaves(q)
    assert torch.autograd.gradcheck(lambda q: info_nce(q, k, n, backend=name), (q,))


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_gradcheck_loss(name):
    x, y, t, r = crops(3, 2, 2, 5, torch.float64, targets=True, features=True)
    x, y, r = leaves(x, y, r)
    assert torch.autograd.gradcheck(
        lambda x, y, r: logo_loss(
            x, y, t, similarity="info_nce", negatives="batch", repulsion_features=r,
            repulsion_weight=0.5, reduction="none", backend=name,
        ),
        (x, y, r),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_second_derivative_raises(name):
    q, k, n = queries_and_keys(3, 2, 7, 5)
    (q,) = leaves(q)
    losses = info_nce(q, k, n, backend=name)
    (gradient,) = torch.autograd.grad(losses.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        (gradient.square().sum() + q.square().sum()).backward()


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(name, dtype):
    x, y, t, _ = crops(3, 2, 4, 16, dtype, targets=True)
    tau = torch.tensor(0.2)
    for given in (
        (x, y, t, N, 0.2, None, "sum", "mean", False),
        (x, None, t, None, 1.0, tau, "mean", "none", True),
        (None, y, t, N, 1.0, tau, "sum", "pairs", False),
        (x, y, t, torch.cat([t.flatten(0, 1).to(N), N]), 0.2, None, "sum", "mean", True, True),
    ):
        call = contrast.InfoNCECall(*given)
        torch.library.opcheck(contrast.forward.registered, (*call, name))
        total, _, _, pull, mean = contrast.forward(call, name)
        after = contrast.InfoNCEBackwardCall(
            total, call.global_crops, call.local_crops, t, call.temperature_tensor, pull, mean,
            call.temperature, call.global_crops is not None, call.local_crops is not None,
            call.temperature_tensor is not None, None if call.negatives is None else N.dtype,
        )  # fmt: skip
        torch.library.opcheck(contrast.backward.registered, (*after, name))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("which", ["batch", "queue"])
@pytest.mark.parametrize("counts", [(2, 3), (3, 0), (1, 2)])
def test_learned_temperature(backend, reduction, which, counts):
    """A tensor gives the numbers that a float gives, and has the gradient of eq. 1."""
    name, device = backend
    x, y, t, _ = crops(5, *counts, 24, targets=True)
    n = "batch" if which == "batch" else torch.randn(30, 24, generator=torch.manual_seed(3))
    upstream = torch.linspace(-1, 2, 5) if reduction == "none" else torch.tensor(1.5)
    found = []
    for dtype, place, use in ((torch.float64, "cpu", "reference"), (torch.float32, device, name)):
        tau = torch.tensor(0.15, dtype=torch.float32, device=place).to(dtype).requires_grad_()
        x_, y_ = (v.to(place) if v is not None else None for v in leaves(x, y, dtype=dtype))
        keys = n if isinstance(n, str) else n.to(place, dtype)

        def loss(tau, backend=use, x=x_, y=y_, keys=keys, like=tau):
            return logo_loss(
                x, y, t.to(like), similarity="info_nce", negatives=keys, temperature=tau,
                affinity=None, reduction=reduction, backend=backend,
            )  # fmt: skip

        total = loss(tau)
        torch.testing.assert_close(total, loss(tau.item()))
        inputs = [v for v in (x_, y_, tau) if v is not None]
        found.append((total, torch.autograd.grad(total, inputs, upstream.to(total))))
    (exact, wanted), (total, gradients) = found
    assert error(total, exact) < 2e-5
    for got, want in zip(gradients, wanted, strict=True):
        assert got.dtype == torch.float32
        assert error(got, want) < 1e-5 * max(1.0, want.abs().max())


def test_learned_temperature_against_autograd():
    """The reference's formula, against the logits as a user writes them."""
    q, k, n = queries_and_keys(4, 3, 20, 8, torch.float64)
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(4, 3, dtype=torch.float64, generator=torch.manual_seed(1))
    (want,) = torch.autograd.grad((weights * pairwise_info_nce(q, k, n, tau)).sum(), tau)
    ours = info_nce(q, k, n, temperature=tau, backend="reference")
    (got,) = torch.autograd.grad((weights * ours).sum(), tau)
    torch.testing.assert_close(got, want)


def test_a_single_global_crop_is_no_query(monkeypatch):
    """It has no positive: nothing is computed for it, and its gradient is zero."""
    x, y, t, _ = crops(4, 1, 2, 8, targets=True)
    x.requires_grad_()
    y.requires_grad_()
    seen = []
    run = contrast.forward
    monkeypatch.setattr(
        contrast, "forward", lambda call, name: seen.append(call.global_crops) or run(call, name)
    )
    loss = logo_loss(x, y, t, similarity="info_nce", negatives="batch", affinity=None)
    to_x, to_y = torch.autograd.grad(loss, (x, y))
    assert seen == [None]
    assert torch.equal(to_x, torch.zeros_like(x))
    assert to_y.abs().sum() > 0


def step(x, y, t, n, temperature):
    """A training step, whose gradient goes on into the graph."""
    return logo_loss(
        torch.tanh(x), y, t, similarity="info_nce", negatives=n, temperature=temperature,
        repulsion_weight=0.3,
    )  # fmt: skip


def compare_compiled(compiled, images, negatives, temperature):
    x, y, t, _ = crops(images, 2, 3, 16, targets=True, seed=images)
    n = "batch" if negatives == "batch" else N
    results = []
    for function in (step, compiled):
        leaf = leaves(x, y)
        loss = function(*leaf, t, n, temperature)
        loss.backward()
        results.append([loss.detach(), *(v.grad for v in leaf)])
    for a, b in zip(*results, strict=True):
        assert error(a, b) < 1e-5


@pytest.mark.parametrize("negatives", ["batch", "queue"])
def test_compiled_training_step(compiler, negatives):
    """Forward and backward in one graph, the same one for batches of any size."""
    compiled, graphs = compiler(step, dynamic=True), []
    for images in (5, 6, 9):  # unlike G and L: alike, they would be one symbol to torch
        compare_compiled(compiled, images, negatives, 0.2)
        graphs.append(compiler.graphs)
    assert graphs[0] > 0
    assert graphs == graphs[:1] * 3


def test_compiled_with_scheduled_temperature(compiler):
    """τ, a number, may change at every step: after the second nothing is compiled any more."""
    compiled, graphs = compiler(step, backend="aot_eager"), []
    for temperature in (0.2, 0.1, 0.3, 0.25):
        compare_compiled(compiled, 5, "batch", temperature)
        graphs.append(compiler.graphs)
    assert graphs[0] > 0
    assert graphs[1:] == graphs[1:2] * 3


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_autocast(name):
    """bf16 outputs of a layer go in as they are; inside, nothing is rounded to bf16 again."""
    torch.manual_seed(0)
    net = torch.nn.Linear(8, 16)
    images = torch.randn(4, 5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = net(images)
        assert z.dtype == torch.bfloat16
        loss = logo_loss(
            z[:, :2], z[:, 2:], similarity="info_nce", negatives=N, temperature=0.05, backend=name
        )
    assert loss.dtype == torch.float32
    exact = logo_loss(
        z[:, :2].double(), z[:, 2:].double(), similarity="info_nce", negatives=N.double(),
        temperature=0.05, backend="reference",
    )  # fmt: skip
    assert error(loss, exact) < 1e-4
    loss.backward()
    assert net.weight.grad.isfinite().all()
    assert net.weight.grad.any()


Q, K, N = queries_and_keys(4, 2, 30, 16)
REFUSED = {
    "queries' rank": ((K, K, N), {}, ValueError, r"queries must be \[N, D\]"),
    "queries' type": ((3, K, N), {}, TypeError, "queries must be a tensor"),
    "queries' dtype": ((Q.int(), K, N), {}, TypeError, "queries must be float32"),
    "no queries": ((Q[:0], K[:0], N), {}, ValueError, "N = 0"),
    "no columns": ((Q[:, :0], K[..., :0], N[:, :0]), {}, ValueError, "D = 0"),
    "no positives": ((Q, K[:, :0], N), {}, ValueError, "P = 0"),
    "positives' N": ((Q, K[:2], N), {}, ValueError, "positives has N = 2"),
    "positives' D": ((Q, K[..., :3], N), {}, ValueError, "positives has D = 3"),
    "no negatives": ((Q, K, N[:0]), {}, ValueError, "K = 0"),
    "negatives' D": ((Q, K, N[:, :3]), {}, ValueError, "negatives has D = 3"),
    "negatives' rank": ((Q, K, K), {}, ValueError, r"negatives must be \[K, D\]"),
    "negatives' type": ((Q, K, "batch"), {}, TypeError, "negatives must be a tensor"),
    "temperature": ((Q, K, N), {"temperature": 0.0}, ValueError, "temperature must be positive"),
    "infinite": ((Q, K, N), {"temperature": float("inf")}, ValueError, "finite"),
    "backend": ((Q, K, N), {"backend": "x"}, ValueError, "backend"),
    "device": ((Q, K, N.to("meta")), {}, ValueError, "negatives is on meta"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    arguments, options, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        info_nce(*arguments, **options)


LOSS_REFUSED = {
    "no negatives given": ({"negatives": None}, ValueError, "needs negatives"),
    "unknown word": ({"negatives": "queue"}, ValueError, "negatives must be one of 'batch'"),
    "K": ({"negatives": N[:0]}, ValueError, "K = 0"),
    "D": ({"negatives": N[:, :3]}, ValueError, "negatives has D = 3"),
    "type": ({"negatives": 5}, TypeError, "negatives must be a tensor"),
    "temperature": ({"negatives": N, "temperature": -1}, ValueError, "temperature"),
}


@pytest.mark.parametrize("case", LOSS_REFUSED)
def test_loss_refuses(case):
    options, kind, message = LOSS_REFUSED[case]
    x, y, _, _ = crops(3, 2, 2, 16)
    with pytest.raises(kind, match=message):
        logo_loss(x, y, similarity="info_nce", **options)


def test_batch_of_one_image_is_refused():
    x, y, _, _ = crops(1, 2, 2, 16)
    with pytest.raises(ValueError, match="B = 1"):
        logo_loss(x, y, similarity="info_nce", negatives="batch")
    logo_loss(x, y, similarity="info_nce", negatives=N)


def test_negatives_are_refused_for_cosine():
    x, y, _, _ = crops(3, 2, 2, 16)
    with pytest.raises(ValueError, match="info_nce"):
        logo_loss(x, y, negatives=N)


def test_a_temperature_that_changes_is_compiled_once(compiler):
    """A tensor's value is no part of the graph."""

    def step(x, y, tau):
        return logo_loss(
            x, y, similarity="info_nce", negatives="batch", temperature=tau, affinity=None
        )

    compiled, graphs = compiler(step, backend="aot_eager"), []
    for value in (0.2, 0.3, 0.11):
        x, y, _, _ = crops(3, 2, 3, 16)
        x.requires_grad_()
        tau = torch.tensor(value, requires_grad=True)
        results = [
            (loss, *torch.autograd.grad(loss, (x, tau)))
            for loss in (step(x, y, tau), compiled(x, y, tau))
        ]
        for a, b in zip(*results, strict=True):
            assert error(a, b) < 1e-6
        graphs.append(compiler.graphs)
    assert graphs[0] > 0
    assert graphs == graphs[:1] * 3
