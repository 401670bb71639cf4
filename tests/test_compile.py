"""The registered operators under opcheck, torch.compile and autocast."""

import itertools

import pytest
import torch

from logo_kernels import block_cosine_similarity, logo_loss
from logo_kernels.cosine import cosine
from logo_kernels.similarity import similarity, similarity_backward
from support import crops, error, leaves


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck_cosine(backend, dtype, reduction):
    for targets, features, view_major in itertools.product((False, True), repeat=3):
        x, y, t, r = crops(3, 2, 4, 16, dtype, targets=targets, features=features)
        if view_major:
            x, y = (v.transpose(0, 1).contiguous().transpose(0, 1) for v in (x, y))
        torch.library.opcheck(
            cosine.registered,
            (x, y, t, r, 0.1, None, True, "sum", reduction, True, True, features, targets, backend),
        )


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_opcheck_similarity(backend):
    a, b, _, _ = crops(3, 2, 4, 16)
    torch.library.opcheck(similarity.registered, (a, b, backend))
    torch.library.opcheck(similarity.registered, (a, None, backend))
    torch.library.opcheck(
        similarity_backward.registered, (torch.randn(3, 2, 4), a, b, True, True, backend)
    )
    torch.library.opcheck(
        similarity_backward.registered, (torch.randn(3, 2, 2), a, None, True, False, backend)
    )


@pytest.mark.parametrize("options", [{}, {"reduction": "none", "pair_reduction": "mean"}])
def test_compiled_training_step(compiler, options):
    """Forward and backward in one graph, the same one for batches of any size."""

    def step(x, y, t, r):
        z = torch.tanh(x)  # the gradient goes on into the compiled graph
        return logo_loss(z, y, t, repulsion_features=r, repulsion_weight=0.3, **options).sum()

    compiled, graphs = compiler(step, dynamic=True), []
    for images in (5, 6, 9):  # unlike G and L: alike, they would be one symbol to torch
        problem = crops(images, 2, 3, 16, targets=True, features=True, seed=images)
        results = []
        for function in (step, compiled):
            x, y, r = leaves(problem[0], problem[1], problem[3])
            loss = function(x, y, problem[2], r)
            loss.backward()
            results.append([loss.detach(), x.grad, y.grad, r.grad])
        for a, b in zip(*results, strict=True):
            assert error(a, b) < 1e-6
        graphs.append(compiler.graphs)
    assert graphs[0] > 0
    assert graphs == graphs[:1] * 3


def test_compiled_with_scheduled_weight(compiler):
    """λ may change at every step: after the second value nothing is compiled any more."""
    compiled = compiler(lambda x, y, weight: logo_loss(x, y, repulsion_weight=weight))
    x, y, _, _ = crops(3, 2, 3, 16)
    graphs = []
    for weight in (0.1, 0.2, 0.3, 0.4):
        assert error(compiled(x, y, weight), logo_loss(x, y, repulsion_weight=weight)) < 1e-6
        graphs.append(compiler.graphs)
    assert graphs[0] > 0
    assert graphs[1:] == graphs[1:2] * 3


def test_compiled_fp16_and_terms(compiler):
    compiled = compiler(lambda x, y: logo_loss(x, y, return_terms=True))
    x, y, _, _ = crops(4, 2, 3, 16, torch.float16)
    results = []
    for function in (lambda x, y: logo_loss(x, y, return_terms=True), compiled):
        lx, ly = leaves(x, y)
        terms = function(lx, ly)
        (terms.total * 1024).backward()
        results.append([*(v.detach() for v in terms), lx.grad, ly.grad])
    for a, b in zip(*results, strict=True):
        assert error(a, b) <= 1e-3 * float(b.abs().max())
    assert compiler.graphs > 0


def test_compiled_similarity(compiler):
    compiled = compiler(block_cosine_similarity)
    a, b = leaves(*crops(3, 2, 4, 16)[:2])
    out = compiled(a, b)
    assert error(out, block_cosine_similarity(a, b)) < 1e-6
    ours = torch.autograd.grad(out.square().sum(), (a, b))
    eager = torch.autograd.grad(block_cosine_similarity(a, b).square().sum(), (a, b))
    for x, y in zip(ours, eager, strict=True):
        assert error(x, y) < 1e-6
    assert compiler.graphs > 0


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_autocast(backend):
    """bf16 outputs of a layer go in as they are; inside, nothing is rounded to bf16 again."""
    torch.manual_seed(0)
    net = torch.nn.Linear(8, 32)
    images = torch.randn(4, 5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = net(images)
        assert z.dtype == torch.bfloat16
        loss = logo_loss(z[:, :2], z[:, 2:], z[:, :2].detach().float(), backend=backend)
    assert loss.dtype == torch.float32
    exact = logo_loss(z[:, :2].double(), z[:, 2:].double(), backend="reference")
    assert error(loss, exact) < 1e-5
    loss.backward()
    assert net.weight.grad.isfinite().all()
    assert net.weight.grad.any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fp32 = logo_loss(z[:, :2].float(), z[:, 2:].float(), backend=backend)
    assert error(fp32, exact) < 1e-5
