"""Stubs of other frameworks, by their documented interface: what docs/neighbours.md imports.

Each says what its original computes. The originals are used where they are installed.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NegativeCosineSimilarity(nn.Module):
    """lightly.loss: the negative mean cosine of two batches [B, D]."""

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        return -F.cosine_similarity(x0, x1, dim=1).mean()


class NTXentLoss(nn.Module):
    """lightly.loss, without its memory bank: cross-entropy over the 2B − 1 other views."""

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        units = F.normalize(torch.cat([out0, out1]), dim=1)
        logits = units @ units.T / self.temperature
        logits = logits.fill_diagonal_(-torch.inf)
        other = torch.arange(len(units)).roll(len(out0))
        return F.cross_entropy(logits, other)


def simsiam_loss_func(p: Tensor, z: Tensor) -> Tensor:
    """solo.losses.simsiam: the negative mean cosine, z a constant."""
    return -F.cosine_similarity(p, z.detach(), dim=-1).mean()


def moco_loss_func(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """solo.losses.moco: queries and keys [N, D] are unit vectors, the queue [D, K]."""
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


class DINOHead(nn.Module):
    """vision_transformer of DINO: `mlp`, unit vectors, and a last layer of prototypes."""

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int, bottleneck_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        self.last_layer = nn.Linear(bottleneck_dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class LightningModule(nn.Module):
    """lightning: a module whose `training_step` returns the loss."""

    def log_dict(self, dictionary: dict[str, Any]) -> None:
        raise RuntimeError("a Trainer alone can log")


STUBS: dict[str, dict[str, Any]] = {
    "lightly.loss": {
        "NegativeCosineSimilarity": NegativeCosineSimilarity,
        "NTXentLoss": NTXentLoss,
    },
    "solo.losses.moco": {"moco_loss_func": moco_loss_func},
    "solo.losses.simsiam": {"simsiam_loss_func": simsiam_loss_func},
    "vision_transformer": {"DINOHead": DINOHead},
    "lightning": {"LightningModule": LightningModule},
}


def stand_in(monkeypatch: Any) -> None:
    """Modules of the frameworks that are not installed, for one test."""
    for name, members in STUBS.items():
        parts = name.split(".")
        if parts[0] not in sys.modules and importlib.util.find_spec(parts[0]) is not None:
            continue
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            if path not in sys.modules:
                module = ModuleType(path)
                module.__path__ = []  # type: ignore[attr-defined]
                monkeypatch.setitem(sys.modules, path, module)
        for member, stub in members.items():
            setattr(sys.modules[name], member, stub)
