"""What only a GPU has: graphs that are replayed, streams side by side, launches none waits for."""

import pytest
import torch

from logo_kernels import LocalAffinity, block_cosine_similarity, logo_loss
from support import crops

SIZES = 48, 2, 4, 64  # B, G, L, D


def loss_of(which, name):
    """A function of x [B, G, D] and y [B, L, D] that ends in a scalar."""
    if which == "cosine":
        return lambda x, y: logo_loss(x, y, repulsion_weight=0.1, backend=name)
    if which == "similarity":
        return lambda x, y: block_cosine_similarity(x, y, backend=name).square().sum()
    if which == "info_nce":
        negatives = torch.randn(500, SIZES[3], generator=torch.Generator().manual_seed(9)).cuda()
        return lambda x, y: logo_loss(
            x, y, similarity="info_nce", negatives=negatives, affinity=None, backend=name
        )
    affinity = LocalAffinity(SIZES[3], (32, 16), backend=name, device="cuda")
    return lambda x, y: logo_loss(x, y, affinity=affinity, repulsion_weight=1.0, backend=name)


@pytest.fixture(params=["cosine", "similarity", "info_nce", "affinity"])
def which(request):
    return request.param


@pytest.fixture
def on_gpu(backend):
    name, device = backend
    if device != "cuda":
        pytest.skip("there is no GPU, or this backend does not use it")
    return name


def inputs(seed=0):
    x, y, _, _ = crops(*SIZES, seed=seed, device="cuda")
    return x.requires_grad_(), y.requires_grad_()


def evaluate(function, x, y):
    loss = function(x, y)
    return loss, *torch.autograd.grad(loss, (x, y))


def agree(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_replayed_graph(on_gpu, which):
    """Each replay starts from zeroed counters, whatever ran on other streams in between."""
    function, (x, y) = loss_of(which, on_gpu), inputs()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            evaluate(function, x, y)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = evaluate(function, x, y)
    for seed in (1, 2):
        with torch.no_grad():
            for leaf, other in zip((x, y), inputs(seed), strict=True):
                leaf.copy_(other)
        want = evaluate(function, x, y)
        graph.replay()
        agree(found, want)


def test_compiled_to_graphs(on_gpu, which):
    """torch.compile's CUDA graphs refuse a step that keeps memory of their pool."""
    function = loss_of(which, on_gpu)
    compiled = torch.compile(function, mode="reduce-overhead")
    for seed in range(4):
        x, y = inputs(seed)
        torch.compiler.cudagraph_mark_step_begin()
        got = [v.clone() for v in evaluate(compiled, x, y)]
        agree(got, evaluate(function, x, y))


def test_streams_side_by_side(on_gpu, which):
    function = loss_of(which, on_gpu)
    problems = [inputs(seed) for seed in range(4)]
    wanted = [evaluate(function, *problem) for problem in problems]
    streams, found = [torch.cuda.Stream() for _ in problems], []
    torch.cuda.synchronize()
    for _ in range(5):
        found.clear()
        for stream, problem in zip(streams, problems, strict=True):
            with torch.cuda.stream(stream):
                found.append(evaluate(function, *problem))
    torch.cuda.synchronize()
    for got, want in zip(found, wanted, strict=True):
        agree(got, want)


def test_nothing_waits_for_the_device(on_gpu, which):
    function, (x, y) = loss_of(which, on_gpu), inputs()
    evaluate(function, x, y)  # compiles, and allocates what is kept
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        evaluate(function, x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_launches_of_the_cosine_loss(on_gpu):
    """Forward is one launch; so is backward, which scales all gradients."""
    x, y = inputs()
    upstream = torch.tensor(2.0, device="cuda")
    function = loss_of("cosine", on_gpu)
    torch.autograd.grad(function(x, y), (x, y), upstream)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        loss = function(x, y)
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    assert len([event for event in profile.events() if event.device_type == cuda]) == 1
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch.autograd.grad(loss, (x, y), upstream)
        torch.cuda.synchronize()
    assert len([event for event in profile.events() if event.device_type == cuda]) == 1
