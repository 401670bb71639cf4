"""What the tests of the learned affinity give it, as a module and kernel by kernel."""

from types import SimpleNamespace

import pytest
import torch

from logo_kernels import LocalAffinity
from logo_kernels.backends import BACKENDS, Problem


def affinity_of(dim, hidden, backend, device="cpu", dtype=torch.float32, seed=0):
    """Weights large enough for every ReLU and softplus to bend; running statistics of their own."""
    torch.manual_seed(seed)
    affinity = LocalAffinity(dim, hidden, backend=backend)
    with torch.no_grad():
        for parameter in affinity.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for norm in (affinity[1], affinity[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return affinity.to(device, dtype)


def crops_of(images, crops, dim, dtype=torch.float32, seed=1):
    return torch.randn(images, crops, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(shape, dtype, device="cpu", seed=0):
    """Steps of 1/4 go into batch norm, whose bias is no such step: every dtype gets every sign."""
    images, crops, width, roll = shape
    generator = torch.Generator().manual_seed(seed)
    pairs = crops * (crops - 1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def steps(*size, dtype=dtype):
        return (torch.randint(-8, 9, size, generator=generator) / 4).to(device, dtype)

    def normal(*size, dtype=wide):
        return torch.randn(*size, generator=generator).to(device, dtype)

    scale = 2.0 ** torch.randint(-1, 2, (width,), generator=generator)
    mean, bias = steps(2, width, dtype=wide) / 2
    return SimpleNamespace(
        a=steps(images, crops, width),
        c=steps(images, crops, width),
        norm=torch.stack([mean, scale.to(device, wide), bias + 1 / 32]),
        grad_x=normal(images * pairs, width, dtype=dtype),
        to_a=normal(images, crops, width),
        to_c=normal(images, crops, width),
        correction=normal(2, width) / 8,
        y=steps(images * pairs, width),
        weight=normal(width),
        bias=normal(1),
        slope=normal(images * pairs),
        grad=normal(images),
        pairs=pairs,
        roll=roll,
    )


def batch_norm_of(width, wide, device="cpu"):
    """weight, bias and running statistics."""
    generator = torch.Generator().manual_seed(3)
    weight, bias, mean = torch.randn(3, width, generator=generator).to(device, wide)
    var = (0.5 + torch.rand(width, generator=generator)).to(device, wide)
    return [weight, bias, mean, var, torch.tensor(3, device=device)]


CALLS = {
    "hidden_moments": lambda s, v: s.hidden_moments(v.a, v.c, v.roll),
    "hidden": lambda s, v: s.hidden(v.a, v.c, v.norm, v.roll),
    "hidden_sums": lambda s, v: s.hidden_sums(v.grad_x, v.a, v.c, v.norm, v.roll),
    "hidden_backward": lambda s, v: s.hidden_backward(
        v.to_a, v.to_c, v.a, v.c, v.norm, v.correction, v.roll
    ),
    "output_moments": lambda s, v: s.output_moments(v.y),
    "output, identity": lambda s, v: s.output(v.y, v.norm, v.weight, v.bias, v.pairs, 0),
    "output, softplus": lambda s, v: s.output(v.y, v.norm, v.weight, v.bias, v.pairs, 1),
    "output, negated": lambda s, v: s.output(v.y, v.norm, v.weight, v.bias, v.pairs, 2),
    "output_sums": lambda s, v: s.output_sums(v.y, v.norm, v.slope, v.grad, v.pairs),
    "output_backward": lambda s, v: s.output_backward(
        v.y, v.norm, v.weight, v.slope, v.grad, v.correction, v.pairs
    ),
}


def results(call, stage, v):
    made = CALLS[call](stage, v)
    return made if isinstance(made, tuple) else (made,)


def stage_of(backend, dtype=torch.float32, elements=0):
    name, device = backend
    stage = BACKENDS[name].pair_stage
    if stage is None:
        pytest.skip(f"{name} has no pair stage")
    reason = BACKENDS[name].refuses(Problem("pair_mlp", device, frozenset([dtype]), 0, 64))
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    if name != "cpu" and device == "cpu" and elements > 20_000:
        pytest.skip("the interpreter and the emulator would take too long")
    return stage
