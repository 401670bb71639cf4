"""What only a GPU has: graphs that are replayed, streams side by side, launches none waits for."""

import pytest
import torch

from logo_kernels import logo_loss
from support import crops
from training_steps import STEPS, evaluate, step_of

SIZES = 48, 2, 4, 64  # B, G, L, D


@pytest.fixture(params=[step for step in STEPS if step != "objective"])  # it draws noise
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


def agree(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_replayed_graph(on_gpu, which):
    """Each replay starts from zeroed counters, whatever ran on other streams in between."""
    function, (x, y) = step_of(which, on_gpu, "cuda"), inputs()
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
    function = step_of(which, on_gpu, "cuda")
    compiled = torch.compile(function, mode="reduce-overhead", fullgraph=True)
    for seed in range(4):
        x, y = inputs(seed)
        torch.compiler.cudagraph_mark_step_begin()
        got = [v.clone() for v in evaluate(compiled, x, y)]
        agree(got, evaluate(function, x, y))


def test_streams_side_by_side(on_gpu, which):
    function = step_of(which, on_gpu, "cuda")
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
    function, (x, y) = step_of(which, on_gpu, "cuda"), inputs()
    evaluate(function, x, y)  # compiles, and allocates what is kept
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        evaluate(function, x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def launched(call):
    """How many kernels, copies and fills `call` puts on the device."""
    poisons = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # each a launch
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    torch.utils.deterministic.fill_uninitialized_memory = poisons
    cuda = torch.autograd.DeviceType.CUDA
    return len([event for event in profile.events() if event.device_type == cuda])


def test_launches_of_the_cosine_loss(on_gpu):
    """One forward; one backward for all gradients."""
    x, y = inputs()
    step, upstream, losses = step_of("cosine", on_gpu, "cuda"), torch.tensor(2.0).cuda(), []
    torch.autograd.grad(step(x, y), (x, y), upstream)
    assert launched(lambda: losses.append(step(x, y))) == 1
    assert launched(lambda: torch.autograd.grad(losses[0], (x, y), upstream)) == 1


@pytest.mark.parametrize("counts", [(2, 4), (1, 1), (3, 0)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("which_negatives", ["queue", "batch"])
def test_launches_of_info_nce(on_gpu, which_negatives, reduction, counts):
    x, y, t, _ = crops(48, *counts, 64, targets=True, device="cuda")
    negatives = torch.randn(5000, 64).cuda() if which_negatives == "queue" else "batch"
    # a single global crop is no query, and its zeros are a launch of their own
    leaves = [v.requires_grad_() for v in ((x, y) if counts[0] > 1 else (y,)) if v is not None]
    upstream, losses = torch.full([48] if reduction == "none" else [], 2.0).cuda(), []

    def forward():
        loss = logo_loss(
            x, y, t, similarity="info_nce", negatives=negatives, affinity=None,
            reduction=reduction, backend=on_gpu,
        )  # fmt: skip
        losses.append(loss)

    forward()
    torch.autograd.grad(losses.pop(), leaves, upstream)
    assert launched(forward) <= 4
    assert launched(lambda: torch.autograd.grad(losses[0], leaves, upstream)) <= 1
