"""What a step costs the host at B = 8, beside an autograd Function that does nothing.

With 16 numbers per crop the kernel's own work vanishes: argument checks, dispatch, autograd and
allocation are left. The empty Function takes the cosine's tensors and allocates its gradients,
whatever it stands beside; what ours takes beyond it is checks, dispatch and the launches. A step is
forward and backward to all that learns: the crops; of the affinity in an encoder's step, which
freezes it, the crops, and in a step of its own every parameter too. Ratios are of ours called
eagerly, round by round, and the goals are for their median.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import bench_affinity
import bench_cosine
import bench_info_nce
from harness.case import Case
from harness.comparison import Contest, compare
from harness.timing import OURS

COSINE = bench_cosine.CosineCase(8, 2, 2, 16, "float32", "host overhead alone")
CASES: dict[str, tuple[Case, ...]] = {
    device: (
        COSINE,
        bench_info_nce.InfoNCECase(8, 2, 2, 64, 16, "float32", "host overhead alone"),
        bench_affinity.AffinityCase(
            8, 2, 16, "float32", "host overhead alone of an encoder's step", hidden=16, frozen=True
        ),
        bench_affinity.AffinityCase(
            8, 2, 16, "float32", "host overhead alone, all parameters learned", hidden=16
        ),
    )
    for device in ("cpu", "cuda")
}
EMPTY = "empty Function"
MODULES: dict[str, ModuleType] = {
    "cosine": bench_cosine, "info_nce": bench_info_nce, "affinity": bench_affinity
}  # fmt: skip
GOALS = {"cosine": 2.5, "info_nce": 4.0, "affinity": 8.0}  # times an empty Function, at most


class Empty(torch.autograd.Function):
    """The least that any custom loss over (x, y, t) pays: one node, two gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty_like(x), torch.empty_like(y))
        return x.new_empty(())

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.saved_tensors, None


def contest(case: Case, device: str) -> Contest:
    """Ours alone: the smallest of the other cases have peers."""
    made = MODULES[case.operation].contest(case, device)
    crops = bench_cosine.inputs_of(COSINE, device)
    made.baselines = {EMPTY: lambda: crops.step(Empty.apply)}
    made.peers = []
    return made


def test_overhead(benchmark, case, device) -> None:
    rounds = compare(benchmark, case, device, contest(case, device))
    info = benchmark.extra_info
    of = f"{case.operation}, frozen" if case.frozen else case.operation
    info |= {"operation": "overhead", "of": of, "goal": GOALS[case.operation]}
    if rounds.seconds:
        info["times_of_empty"] = rounds.ratio(OURS, EMPTY)
