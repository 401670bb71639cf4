"""Kernels for LoGo self-supervised learning (CVPR 2022): many crops, one pass, exact.

    from logo_kernels import logo_loss
    loss = logo_loss(global_crops, local_crops)  # [B, G, D], [B, L, D]

``python -m logo_kernels`` tells which backends work on this machine and why others do not.
"""

from __future__ import annotations

from .affinity import LocalAffinity
from .backends import BACKENDS
from .contrast import info_nce
from .losses import LoGoLoss, LoGoTerms, logo_loss
from .queue import NegativeQueue
from .similarity import block_cosine_similarity

__version__ = "0.2.0"

__all__ = [
    "LoGoLoss",
    "LoGoTerms",
    "LocalAffinity",
    "NegativeQueue",
    "__version__",
    "available_backends",
    "block_cosine_similarity",
    "info_nce",
    "logo_loss",
]


def available_backends() -> dict[str, str | None]:
    """Each backend's name -> None if it works on this machine, else why not and what to do.

    Returns:
        A new dictionary, by name: "reference", "cpu", "triton" and "cuda". Nothing raises.

    Examples:
        >>> reasons = available_backends()
        >>> sorted(reasons)
        ['cpu', 'cuda', 'reference', 'triton']
        >>> print(reasons["reference"])  # plain PyTorch works everywhere
        None
    """
    return {name: backend.missing() for name, backend in BACKENDS.items()}
