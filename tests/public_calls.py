"""Every public function as (*inputs) -> a tensor, for tests of what torch may do to all of them.

An input is what gradients flow to; what else a call takes is a constant of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from logo_kernels import LocalAffinity, LoGoLoss, block_cosine_similarity, info_nce, logo_loss

SIZES = {"x": (2, 2, 3), "y": (2, 3, 3), "r": (2, 3, 3), "q": (2, 3), "tau": ()}
BACKENDS = ("cpu", "reference")


class Call(NamedTuple):
    """A public function at work: of inputs `names`, in this order."""

    function: Callable[..., Tensor]
    names: tuple[str, ...]

    def inputs(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Of the same values in every dtype."""
        found = []
        for name in self.names:
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            value = torch.randn(SIZES[name], generator=generator, device="cpu", dtype=torch.float32)
            found.append((value if name != "tau" else value.abs() * 0.1 + 0.2).to(dtype))
        return found


def alike(r: Tensor) -> Tensor:
    """An affinity in plain torch."""
    return F.cosine_similarity(r[:, 0], r[:, 1], dim=-1)


def affinity_of(backend: str, dtype: torch.dtype = torch.float64) -> LocalAffinity:
    generator = torch.Generator().manual_seed(4)
    affinity = LocalAffinity(3, (4, 4), backend=backend, device="cpu", dtype=dtype)
    with torch.no_grad():
        for parameter in affinity.parameters():
            noise = torch.randn(parameter.shape, generator=generator, device="cpu", dtype=dtype)
            parameter.copy_(noise)
    return affinity


def calls(backend: str, dtype: torch.dtype = torch.float64) -> dict[str, Call]:
    """By name; `dtype` is that of constants and parameters."""
    generator = torch.Generator().manual_seed(3)

    def rows(*shape: int) -> Tensor:
        made = torch.randn(*shape, 3, generator=generator, device="cpu", dtype=torch.float32)
        return made.to(dtype)

    t, y, n, affinity, on = (
        rows(2, 2),
        rows(2, 3),
        rows(5),
        affinity_of(backend, dtype),
        {"backend": backend},
    )
    nce = {"similarity": "info_nce", "repulsion_weight": 0.5, **on}
    module = LoGoLoss(repulsion_weight=0.5, reduction="none", **on)
    return {
        "cosine": Call(
            lambda x, y, r: logo_loss(x, y, t, repulsion_features=r, repulsion_weight=0.5, **on),
            ("x", "y", "r"),
        ),
        "cosine, each image": Call(
            lambda x, y: logo_loss(x, y, t, reduction="none", repulsion_weight=0.5, **on),
            ("x", "y"),
        ),
        "terms": Call(lambda x, y: logo_loss(x, y, t, return_terms=True, **on).total, ("x", "y")),
        "queue": Call(
            lambda x, y, tau: logo_loss(x, y, t, negatives=n, temperature=tau, **nce),
            ("x", "y", "tau"),
        ),
        "batch": Call(
            lambda x, y, tau: logo_loss(
                x, y, t, negatives="batch", temperature=tau, return_terms=True, reduction="none",
                **nce,
            ).total,
            ("x", "y", "tau"),
        ),
        "one global crop": Call(
            lambda x, y: logo_loss(x[:, :1], y, t[:, :1], negatives=n, temperature=0.3, **nce),
            ("x", "y"),
        ),
        "learned affinity": Call(
            lambda x, r: logo_loss(
                x, y.to(r.dtype), t, affinity=affinity, repulsion_features=r, repulsion_weight=0.5,
                **on,
            ),
            ("x", "r"),
        ),
        "LoGoLoss": Call(lambda x, y: module(x, y, t), ("x", "y")),
        "info_nce": Call(lambda q, tau: info_nce(q, t, n, temperature=tau, **on), ("q", "tau")),
        "similarity": Call(lambda x: block_cosine_similarity(x, **on), ("x",)),
        "similarity of two": Call(lambda x, y: block_cosine_similarity(x, y, **on), ("x", "y")),
        "LocalAffinity": Call(lambda y: affinity(y), ("y",)),
    }  # fmt: skip


NAMES = tuple(calls("reference"))
# Of every call, each input on which it depends: a single global crop attracts nothing.
EACH = [
    (name, index)
    for name, call in calls("reference").items()
    for index in range(len(call.names))
    if (name, index) != ("one global crop", 0)
]
