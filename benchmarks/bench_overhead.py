"""What a call costs the host at B = 8, beside an autograd Function that does nothing.

With 16 numbers per crop the kernel's own work vanishes. `empty` takes the same tensors and
allocates the same gradients; what ours takes beyond it is checks, dispatch and the kernel launch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import peers
from bench_cosine import loss
from cases import OVERHEAD
from comparison import by_backend, compare
from inputs import cosine_inputs

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


def test_overhead(benchmark, case, device) -> None:
    inputs = cosine_inputs(case, device)
    compare(
        benchmark, case, device,
        inputs=inputs,
        ours=by_backend(loss, case.operation, device, inputs),
        reference=lambda *crops: loss(*crops, backend="reference"),
        peers=peers.prepare(peers.COSINE, device, case.moved_bytes()),
        baselines={EMPTY: lambda: inputs.step(Empty.apply)},
    )  # fmt: skip
    benchmark.extra_info["operation"] = "overhead"
