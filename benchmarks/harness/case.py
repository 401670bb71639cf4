"""What every case has, and its inputs as a network would give them.

B images, G global crops, L local crops, D numbers per crop; V, W rows of a similarity block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LOSS_SCALE = 65536.0  # what torch.amp.GradScaler starts with


class Case:
    """A problem to measure: a frozen dataclass of each bench_*.py, with two counts of its own.

    `moved_bytes()`: every input read once and every result written once. No implementation moves
    less, so a copy of as many bytes is the floor that times are held against. `flops()`: what has
    to be computed, as its docstring says.
    """

    operation: str
    dtype: str
    why: str  # it is measured
    view_major = False  # crops as one forward pass of a network gives them: [V, B, D]
    features = False  # repulsion features of their own, as SimSiam passes them
    frozen = False  # parameters are constants: only the crops learn
    smoke = False

    def shape(self) -> tuple[int | str, ...]:
        """The sizes in the order in which tables and names give them."""
        raise NotImplementedError

    @property
    def size(self) -> str:
        return f"({', '.join(map(str, self.shape()))})"

    @property
    def id(self) -> str:
        parts = [self.operation, "x".join(map(str, self.shape())), self.dtype]
        for fact in ("view_major", "features", "frozen"):
            parts += [fact] * getattr(self, fact)
        return "-".join(parts)


@dataclass
class Inputs:
    """Leaves in their memory layout: [B, V, D], or [V, B, D] where a case is view-major."""

    leaves: list[Tensor]  # gradients flow to these
    constants: list[Tensor]
    view_major: bool = False

    def blocks(self) -> tuple[list[Tensor], list[Tensor]]:
        """Leaves and constants as [B, V, D]; part of the timed region, for every contestant."""
        if not self.view_major:
            return self.leaves, self.constants
        return (
            [leaf.transpose(0, 1) for leaf in self.leaves],
            [constant.transpose(0, 1) for constant in self.constants],
        )

    def double(self) -> Inputs:
        """These numbers in float64, as new leaves."""
        return Inputs(
            [leaf.detach().double().requires_grad_() for leaf in self.leaves],
            [constant.double() for constant in self.constants],
            self.view_major,
        )

    def step(self, loss: Callable[..., Tensor], upstream: Tensor | None = None) -> Tensor:
        """Drop the old gradients, forward, backward: what is timed, alike for everyone."""
        for leaf in self.leaves:
            leaf.grad = None
        leaves, constants = self.blocks()
        value = loss(*leaves, *constants)
        torch.autograd.backward(value, upstream)
        return value


def crops(counts: Sequence[int], case: Any, device: str) -> list[Tensor]:
    """A block of each number of crops per image, in the case's dtype and layout.

    Crops of an image share a direction, so that cosines are near a half, as in training, and an
    error in a loss term shows.
    """
    torch.manual_seed(0)
    image = torch.randn(case.images, 1, case.dim, device=device)
    blocks = []
    for count in counts:
        block = image + torch.randn(case.images, count, case.dim, device=device)
        if case.view_major:
            block = block.transpose(0, 1).contiguous()
        blocks.append(block.to(getattr(torch, case.dtype)))
    return blocks


def upstream_of(dtype: str, device: str) -> Tensor | None:
    """The gradient of a loss over inputs of this dtype: a loss scaler's for fp16; None: one.

    Gradients of fp16 crops are too small for fp16 without it, ours and everyone's.
    """
    return torch.tensor(LOSS_SCALE, device=device) if dtype == "float16" else None


def summed_in(rows: Tensor) -> torch.dtype:
    """In what losses are summed over images: fp32, or fp64 of fp64 rows.

    An fp16 loss cannot even hold a loss scaler's factor.
    """
    return torch.promote_types(rows.dtype, torch.float32)


def inverse_norms(rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[..., 1]; what turns products of raw rows into cosines, in peers."""
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=dtype)
    return norms.clamp_min(1e-12).reciprocal()
