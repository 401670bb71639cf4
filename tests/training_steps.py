"""Every public function as a training step, for tests of what all of them have to bear."""

from collections.abc import Callable

import torch
from torch import Tensor

from logo_kernels import LocalAffinity, block_cosine_similarity, info_nce, logo_loss

# (x [B, G, D], y [B, L, D]) -> a scalar
Step = Callable[[Tensor, Tensor], Tensor]
DIM = 64


def step_of(which: str, backend: str, device: str, dim: int = DIM) -> Step:
    """The step `which` of STEPS by `backend`; what it needs besides the crops is on `device`."""
    generator = torch.Generator().manual_seed(9)

    def rows(*shape: int) -> Tensor:
        made = torch.randn(*shape, dim, generator=generator, device="cpu", dtype=torch.float32)
        return made.to(device)

    if which == "cosine":
        return lambda x, y: logo_loss(x, y, repulsion_weight=0.1, backend=backend)
    if which == "terms":
        return lambda x, y: logo_loss(
            x, y, repulsion_weight=0.1, reduction="none", return_terms=True, backend=backend
        ).total.sum()
    if which == "similarity":
        return lambda x, y: block_cosine_similarity(x, y, backend=backend).square().sum()
    if which == "info_nce":
        negatives = rows(50)
        return lambda x, y: info_nce(x[:, 0], y, negatives, backend=backend).sum() + 0 * y.sum()
    if which == "queue":
        negatives = rows(500)
        return lambda x, y: logo_loss(
            x, y, similarity="info_nce", negatives=negatives, repulsion_weight=0.1, backend=backend
        )
    if which == "single":
        negatives = rows(30)  # what is no query, a single global crop, gets zeros
        return lambda x, y: logo_loss(
            x[:, :1], y, similarity="info_nce", negatives=negatives, affinity=None, backend=backend
        )
    if which == "batch":
        tau = torch.full([], 0.2, device=device, dtype=torch.float32, requires_grad=True)
        return lambda x, y: logo_loss(
            x, y, similarity="info_nce", negatives="batch", temperature=tau, affinity=None,
            return_terms=True, backend=backend,
        ).total  # fmt: skip
    options = {"backend": backend, "device": device, "dtype": torch.float32}
    affinity = LocalAffinity(dim, (32, 16), **options)
    if which == "affinity":
        return lambda x, y: logo_loss(
            x, y, affinity=affinity, repulsion_weight=1.0, backend=backend
        )
    form = {"objective": "logistic", "difference": "difference"}[which]
    return lambda x, y: affinity.objective(y, form) + 0 * (x.sum() + y.sum())


STEPS = (
    "cosine", "terms", "similarity", "info_nce", "queue", "single", "batch",
    "affinity", "objective", "difference",
)  # fmt: skip


def evaluate(step: Step, x: Tensor, y: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
    """The loss and its gradients."""
    loss = step(x, y)
    return loss, *torch.autograd.grad(loss, (x, y), create_graph=create_graph)
