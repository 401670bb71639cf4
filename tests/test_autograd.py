"""Gradients as autograd sees them: exactness, memory, and what backward may be asked to do."""

import threading

import pytest
import torch

from logo_kernels import autograd, available_backends, block_cosine_similarity, logo_loss
from logo_kernels.backends import BACKENDS
from support import crops, error, leaves


@pytest.fixture(params=["reference", "cpu"])
def name(request):
    return request.param


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("pair_reduction", ["sum", "mean"])
def test_gradcheck_loss(name, reduction, pair_reduction):
    x, y, t, r = crops(2, 2, 3, 5, torch.float64, targets=True, features=True)
    for features in (r, None):
        for targets in (t, T_AS_X):
            inputs = leaves(x, y, *([features] if features is not None else []))

            def loss(x, y, r=None, targets=targets):
                # the oracle of gradcheck differentiates the default targets too: hold them fixed
                held = X0 if targets is T_AS_X else targets
                return logo_loss(
                    x, y, held, repulsion_features=r, repulsion_weight=0.4,
                    reduction=reduction, pair_reduction=pair_reduction, backend=name,
                )  # fmt: skip

            assert torch.autograd.gradcheck(loss, inputs)


T_AS_X = object()
X0 = crops(2, 2, 3, 5, torch.float64)[0]


def test_gradcheck_similarity(name):
    a, b = leaves(*crops(2, 3, 4, 5, torch.float64)[:2])
    assert torch.autograd.gradcheck(
        lambda a, b: block_cosine_similarity(a, b, backend=name), (a, b)
    )
    assert torch.autograd.gradcheck(lambda a: block_cosine_similarity(a, backend=name), (a,))


@pytest.mark.parametrize(
    "function", [logo_loss, lambda x, y, **o: block_cosine_similarity(x, y, **o).sum()]
)
def test_second_derivative_raises(name, function):
    """Also as a penalty beside another loss, where once_differentiable would be silent."""
    x, y = leaves(*crops(2, 2, 3, 8)[:2])
    (gradient,) = torch.autograd.grad(function(x, y, backend=name), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        (gradient.square().sum() + x.square().sum()).backward()


def test_two_backwards_and_new_upstreams(name):
    """retain_graph: the saved gradient must not have been scaled in place."""
    x, y = leaves(*crops(3, 2, 3, 8)[:2])
    loss = logo_loss(x, y, backend=name)
    (once,) = torch.autograd.grad(loss, x, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, x, retain_graph=True)
    once_copy = once.clone()
    once.zero_()  # what a caller does to his gradient is his own affair
    (last,) = torch.autograd.grad(-2 * loss, x)
    assert torch.equal(thrice, 3 * once_copy)
    assert torch.equal(last, -2 * once_copy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_scales_by_a_kernel_where_there_is_one(monkeypatch, dtype, reduction):
    """What a GPU does: the saved gradient is multiplied in place by Triton's kernel."""
    reason = available_backends()["triton"]
    if reason is not None:
        pytest.skip(f"triton: {reason}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    problem = crops(3, 2, 3, 8, dtype, device=device)[:2]
    upstream = torch.tensor([2.0, -1.0, 0.5] if reduction == "none" else 3.0, device=device)
    results, called = [], []
    for chosen in ("reference", "triton"):
        run = BACKENDS[chosen].scale_

        def counted(*arguments, run=run, chosen=chosen):
            called.append(chosen)
            return run(*arguments)

        monkeypatch.setattr(BACKENDS[chosen], "scale_", counted)
        monkeypatch.setattr(autograd, "resolve", lambda *_, chosen=chosen: BACKENDS[chosen])
        x, y = leaves(*problem)
        logo_loss(x, y, reduction=reduction, backend="reference").backward(upstream)
        results.append((x.grad, y.grad))
    assert called == ["reference", "triton"]  # once each, for both gradients
    for a, b in zip(*results, strict=True):
        assert a.any()
        assert error(a, b) <= 1e-3 * float(a.abs().max())


def test_gradients_accumulate(name):
    x, y = leaves(*crops(3, 2, 3, 8)[:2])
    for _ in range(3):
        logo_loss(x, y, backend=name).backward()
    (once,) = torch.autograd.grad(logo_loss(x, y, backend=name), x)
    assert error(x.grad, 3 * once) < 1e-7


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_what_is_needed(name, wanted):
    """Of crops that need no gradient none is kept, and the other one is as it was."""
    problem = crops(3, 2, 3, 8)[:2]
    both = leaves(*problem)
    logo_loss(*both, backend=name).backward()
    one = [v.requires_grad_(w) for v, w in zip(problem, wanted, strict=True)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda v: kept.append(v.numel()) or v, lambda v: v
    ):
        loss = logo_loss(*one, backend=name)
    loss.backward()
    (leaf,), (same,) = ([v for v, w in zip(two, wanted, strict=True) if w] for two in (one, both))
    assert sum(kept) == leaf.numel()
    assert torch.equal(leaf.grad, same.grad)


def test_no_gradient_needed(name):
    """The value is the same, not 0, and nothing is kept."""
    x, y = leaves(*crops(3, 2, 3, 8)[:2])
    with_graph = logo_loss(x, y, backend=name)
    with torch.no_grad():
        without = logo_loss(x, y, backend=name)
    assert without.grad_fn is None
    assert torch.equal(with_graph, without)
    assert torch.equal(with_graph, logo_loss(x.detach(), y.detach(), backend=name))


def test_through_a_network_view_major(name):
    """One forward over all crops, split by views: as in a training loop."""
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 8)
    images = torch.randn(5, 4, 6)  # [V, B, ·]

    def gradient(function):
        net.zero_grad()
        z = net(images.flatten(0, 1)).view(5, 4, 8).transpose(0, 1)  # [B, V, D], no copy
        function(z[:, :2], z[:, 2:]).backward()
        return net.weight.grad.clone()

    ours = gradient(lambda x, y: logo_loss(x, y, backend=name))
    exact = gradient(lambda x, y: logo_loss(x.double(), y.double(), backend="reference"))
    assert error(ours, exact) < 1e-6


def test_saved_for_backward_is_one_gradient():
    """At most the gradient and scalars are kept (DESIGN section 4)."""
    x, y = leaves(*crops(16, 2, 4, 256)[:2])
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda v: saved.append(v.numel() * v.element_size()) or v, lambda v: v
    ):
        loss = logo_loss(x, y)
    gradient = (x.numel() + y.numel()) * 4
    assert gradient <= sum(saved) <= gradient + 64
    loss.backward()


@pytest.mark.parametrize("scale", [1, 3])
def test_peak_memory_is_one_gradient(scale):
    """Counted by torch's profiler: every allocation of the call, forward and backward."""
    x, y = leaves(*crops(64, 2, 6, 512)[:2])
    gradient = (x.numel() + y.numel()) * 4
    (scale * logo_loss(x, y)).backward()
    x.grad = y.grad = None
    with torch.profiler.profile(profile_memory=True) as profile:
        (scale * logo_loss(x, y)).backward()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert gradient <= peak <= gradient + 4096


def test_two_threads_at_once(name):
    problems = [crops(20, 2, 3, 64, seed=seed)[:2] for seed in range(2)]
    want = [logo_loss(x, y, backend=name) for x, y in problems]
    wrong = []

    def work(index):
        for _ in range(50):
            x, y = leaves(*problems[index])
            loss = logo_loss(x, y, backend=name)
            loss.backward()
            if not torch.equal(loss, want[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
