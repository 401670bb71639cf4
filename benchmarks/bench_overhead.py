"""What a call costs the host at B = 8, beside an autograd Function that does nothing.

With 16 numbers per crop the kernel's own work vanishes. `empty` takes the same tensors and
allocates the same gradients; what ours takes beyond it is checks, dispatch and the kernel launch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import bench_cosine
from cases import OVERHEAD, CosineCase
from comparison import Contest, compare

CASES = OVERHEAD
EMPTY = "empty Function"


class Empty(torch.autograd.Function):
    """The least that any custom loss over (x, y, t) pays: one node, two gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty_like(x), torch.empty_like(y))
        return x.new_empty(())

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.saved_tensors, None


def contest(case: CosineCase, device: str) -> Contest:
    made = bench_cosine.contest(case, device)
    made.baselines = {EMPTY: lambda: made.inputs.step(Empty.apply)}
    return made


def test_overhead(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))
    benchmark.extra_info["operation"] = "overhead"
