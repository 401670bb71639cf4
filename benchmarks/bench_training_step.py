"""A whole step of SimSiam-LoGo on the trainer's small ResNet: with our loss, and pair by pair.

Forward of global and of local crops, loss, backward, SGD. Crops are cut beforehand: augmentation
is the same for both and would only hide the difference. Ours is what backend="auto" chooses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench_cosine import loss, pairs
from hardware import ledger
from harness.case import Case
from harness.comparison import facts_of
from harness.package import serving
from harness.timing import OURS, Pace, clock_of, take_turns

PYTHON = Path(__file__).resolve().parents[1] / "python"
PAIRS = "pairs"


@dataclass(frozen=True)
class StepCase(Case):
    """One optimiser step of SimSiam-LoGo on a small ResNet, crops already cut."""

    images: int
    global_crops: int
    local_crops: int
    global_size: int
    local_size: int
    dim: int
    why: str

    operation = "training_step"
    dtype = "float32"

    def shape(self) -> tuple[int | str, ...]:
        return self.images, self.global_crops, self.local_crops, self.dim


CASES = {
    "cpu": (StepCase(64, 2, 4, 32, 16, 256, "the trainer as it runs by default"),),
    "cuda": (StepCase(256, 2, 8, 32, 16, 2048, "the trainer's small ResNet, D as published"),),
}


class Training:
    """One model with its optimiser; both contestants start from the same weights."""

    def __init__(self, case: StepCase, loss: Callable[..., Tensor], device: str) -> None:
        if str(PYTHON) not in sys.path:
            sys.path.append(str(PYTHON))
        needs = {"reason": "python/ needs the extra [train]", "exc_type": ImportError}
        encoder, model = (pytest.importorskip(name, **needs) for name in ("encoder", "model"))

        self.case, self.loss = case, loss
        torch.manual_seed(0)
        net = encoder.small_resnet(channels=1)
        features = encoder.feature_dim(net, 1, case.global_size)
        self.model = model.SimSiam(net, features, case.dim, case.dim // 4).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.03, 0.9, weight_decay=1e-4)
        self.global_crops, self.local_crops = (
            torch.randn(count * case.images, 1, size, size, device=device)
            for count, size in (
                (case.global_crops, case.global_size),
                (case.local_crops, case.local_size),
            )
        )

    def embeddings(self) -> tuple[Tensor, ...]:
        """x, y, r, t as [B, V, D]: transposed views of what the network gives, [V·B, D]."""
        z_global, h_global = self.model(self.global_crops)
        z_local, h_local = self.model(self.local_crops)
        return tuple(
            rows.view(-1, self.case.images, self.case.dim).transpose(0, 1)
            for rows in (h_global, h_local, z_local, z_global.detach())
        )

    def gradients(self) -> list[Tensor]:
        """Of a first step that changes nothing."""
        self.loss(*self.embeddings()).backward()
        gradients = [parameter.grad for parameter in self.model.parameters()]
        self.optimizer.zero_grad()
        return gradients

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss(*self.embeddings()).backward()
        self.optimizer.step()


def test_training_step(benchmark, case, device) -> None:
    contestants = {
        OURS: Training(case, loss, device),
        PAIRS: Training(case, pairs, device),
    }
    blocks = contestants[OURS].embeddings()
    backend, scaled_by = serving("cosine", *blocks), serving("scale", blocks[0])
    for ours, theirs in zip(
        contestants[OURS].gradients(), contestants[PAIRS].gradients(), strict=True
    ):
        # Rounding grows on its way through batch norm: looser than the gate of the loss itself.
        error = (ours - theirs).norm() / theirs.norm().clamp_min(1e-6)
        assert error < 1e-3, "the two losses train differently; a wrong step is not timed"

    info = benchmark.extra_info
    info |= facts_of(case, device, backend) | {"view_major": True, "features": True}
    info["kernels"] = {OURS: ledger.kernels_of("cosine", backend, scaled_by=scaled_by)}
    steps = {name: training.step for name, training in contestants.items()}
    for step in steps.values():
        step()
    rounds = take_turns(benchmark, steps, clock_of(device), Pace(case_seconds=15))
    if not rounds.seconds:
        return
    ratio = rounds.ratio(PAIRS)
    info["contestants"] = {
        OURS: rounds.summary(OURS),
        PAIRS: rounds.summary(PAIRS) | {"ratio": ratio},
    }
    info |= {"best_peer": PAIRS, "best_ratio": ratio["median"]}
