"""Inputs as a network would give them: leaves that require gradients, and the views of the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cases import AffinityCase, CosineCase, InfoNCECase, SimilarityCase

LOSS_SCALE = 65536.0  # what torch.amp.GradScaler starts with


@dataclass
class Inputs:
    """Leaves in their memory layout: [B, V, D], or [V, B, D] where a case is view-major."""

    leaves: list[Tensor]  # gradients flow to these
    constants: list[Tensor]
    view_major: bool

    def blocks(self) -> tuple[list[Tensor], list[Tensor]]:
        """Leaves and constants as [B, V, D]; part of the timed region, for every contestant."""
        if not self.view_major:
            return self.leaves, self.constants
        return (
            [leaf.transpose(0, 1) for leaf in self.leaves],
            [constant.transpose(0, 1) for constant in self.constants],
        )

    def double(self) -> Inputs:
        """The same numbers in float64, as new leaves."""
        return Inputs(
            [leaf.detach().double().requires_grad_() for leaf in self.leaves],
            [constant.double() for constant in self.constants],
            self.view_major,
        )

    def step(self, loss: Callable[..., Tensor], upstream: Tensor | None = None) -> Tensor:
        """Drop the old gradients, forward, backward: what is timed, the same for everyone."""
        for leaf in self.leaves:
            leaf.grad = None
        leaves, constants = self.blocks()
        value = loss(*leaves, *constants)
        torch.autograd.backward(value, upstream)
        return value


def upstream_of(dtype: str, device: str) -> Tensor | None:
    """The gradient of a loss over inputs of this dtype: a loss scaler's for fp16; None: one.

    Gradients of fp16 crops are too small for fp16 without it, ours and everyone's.
    """
    return torch.tensor(LOSS_SCALE, device=device) if dtype == "float16" else None


def cosine_inputs(case: CosineCase, device: str) -> Inputs:
    """x, y and any r as leaves, t as constant. Crops of an image share a direction.

    So cosines are near a half, as in training, and an error in a loss term shows.
    """
    counts = [case.global_crops, case.local_crops] + [case.local_crops] * case.features
    *leaves, targets = _crops([*counts, case.global_crops], case, device)
    return Inputs([leaf.requires_grad_() for leaf in leaves], [targets], case.view_major)


def similarity_inputs(case: SimilarityCase, device: str) -> tuple[Inputs, Tensor]:
    """Rows a and any b as leaves, and the upstream gradient [B, V, W]."""
    counts = [case.rows] + ([] if case.others is None else [case.others])
    leaves = [leaf.requires_grad_() for leaf in _crops(counts, case, device)]
    upstream = torch.randn(case.images, case.rows, case.others or case.rows, device=device)
    return Inputs(leaves, [], case.view_major), upstream.to(getattr(torch, case.dtype))


def info_nce_inputs(case: InfoNCECase, device: str) -> Inputs:
    """x, y as leaves, t and any negatives n [K, D], unit vectors as in a queue, as constants."""
    counts = [case.global_crops, case.local_crops, case.global_crops]
    x, y, t = _crops(counts, case, device)
    constants = [t]
    if case.negatives is not None:
        n = torch.randn(case.negatives, case.dim, device=device)
        constants.append(torch.nn.functional.normalize(n, dim=1).to(x.dtype))
    return Inputs([x.requires_grad_(), y.requires_grad_()], constants, case.view_major)


def affinity_inputs(case: AffinityCase, device: str) -> Inputs:
    """Crops and θd as leaves, all but the two biases that batch norm takes away again."""
    (z,) = _crops([case.local_crops], case, device)
    torch.manual_seed(1)
    hidden = case.hidden

    def uniform(rows: int, columns: int) -> list[Tensor]:
        """Weight and bias as nn.Linear starts with."""
        bound = columns**-0.5
        weight = torch.empty(rows, columns, device=device).uniform_(-bound, bound)
        return [weight, torch.empty(rows, device=device).uniform_(-bound, bound)]

    def norm() -> list[Tensor]:
        return [
            1 + 0.1 * torch.randn(hidden, device=device),
            0.1 * torch.randn(hidden, device=device),
        ]

    w1, b1 = uniform(hidden, 2 * case.dim)
    w2, b2 = uniform(hidden, hidden)
    leaves = [z, w1, *norm(), w2, *norm(), *uniform(1, hidden)]
    leaves = [leaf.to(z.dtype).requires_grad_() for leaf in leaves]
    return Inputs(leaves, [b1.to(z.dtype), b2.to(z.dtype)], False)


def _crops(
    counts: list[int], case: AffinityCase | CosineCase | SimilarityCase | InfoNCECase, device: str
) -> list[Tensor]:
    torch.manual_seed(0)
    image = torch.randn(case.images, 1, case.dim, device=device)
    blocks = []
    for count in counts:
        block = image + torch.randn(case.images, count, case.dim, device=device)
        if case.view_major:
            block = block.transpose(0, 1).contiguous()
        blocks.append(block.to(getattr(torch, case.dtype)))
    return blocks
