"""The `triton` backend: fused kernels for NVIDIA GPUs, or for a CPU under Triton's interpreter.

Importing this module imports no Triton; the kernels' modules are imported where a kernel is first
called for.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..pairs import PairStage
from ..protocol import (
    Backend,
    CosineResult,
    InfoNCECall,
    InfoNCEGradients,
    InfoNCEResult,
    PairWeights,
    Problem,
)
from .environment import installed, interpreted
from .tiles import MAX_ROWS

__all__ = ["TritonBackend"]


@functools.cache
def _missing() -> str | None:
    if not installed():
        return "triton is not installed; pip install triton"
    if interpreted():
        return None
    if torch.version.hip is not None:
        return (
            "its kernels are written for NVIDIA GPUs and tested there alone, and this torch is a "
            "ROCm build; backend='reference' works on AMD GPUs"
        )
    if not torch.cuda.is_available():
        return (
            "there is no CUDA device; check the driver (nvidia-smi) and that this torch is a CUDA "
            "build, or run the kernels on CPU tensors, slowly, with TRITON_INTERPRET=1"
        )
    return None


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    """Of the device of that index; the least that is served, under the interpreter."""
    return (8, 0) if interpreted() else torch.cuda.get_device_capability(index)


class TritonBackend(Backend):
    name = "triton"

    def missing(self) -> str | None:
        return _missing()

    def refuses(self, problem: Problem) -> str | None:
        served = "cpu" if interpreted() else "cuda"
        if problem.device != served:
            mode = "under TRITON_INTERPRET=1" if interpreted() else "without TRITON_INTERPRET=1"
            return f"{mode} it works on {served} tensors, and these are on {problem.device!r}"
        if torch.float64 in problem.dtypes:
            return "it has no float64; backend='reference' has"
        if problem.operation != "info_nce" and problem.crops > MAX_ROWS:
            return (
                f"it takes at most {MAX_ROWS} rows of an image (crops, targets and features "
                f"together), and these are {problem.crops}"
            )
        if (capability := _capability(problem.device_index)) < (8, 0):
            return (
                "its products are of tf32 and bf16, which compute capability 8.0 began with, and "
                f"cuda:{problem.device_index} has {capability[0]}.{capability[1]}"
            )
        if problem.operation == "info_nce":
            from .facts import facts_of
            from .info_nce_plan import FULL, HALF, TWO_HALVES, misfit

            facts = facts_of(problem.device_index)
            reasons = (misfit(problem.dim, kind, facts) for kind in (HALF, TWO_HALVES, FULL))
            return next((reason for reason in reasons if reason is not None), None)
        return None

    def cosine(
        self,
        global_crops: Tensor,
        local_crops: Tensor | None,
        targets: Tensor | None,
        features: Tensor | None,
        weights: PairWeights,
        repulsion: bool,
        reduction: str,
        grad_global: bool,
        grad_local: bool,
        grad_features: bool,
    ) -> CosineResult:
        from .cosine import cosine

        return cosine(
            global_crops, local_crops, targets, features, weights, repulsion, reduction,
            grad_global, grad_local, grad_features,
        )  # fmt: skip

    def similarity(self, a: Tensor, b: Tensor | None) -> Tensor:
        from .similarity import similarity

        return similarity(a, b)

    def similarity_backward(
        self, grad: Tensor, a: Tensor, b: Tensor | None, grad_a: bool, grad_b: bool
    ) -> tuple[Tensor, Tensor]:
        from .similarity import similarity_backward

        return similarity_backward(grad, a, b, grad_a, grad_b)

    def info_nce(self, call: InfoNCECall, result: InfoNCEResult) -> None:
        from .info_nce import info_nce

        info_nce(call, result)

    def info_nce_backward(
        self,
        call: InfoNCECall,
        upstream: Tensor,
        pull: Tensor,
        mean: Tensor,
        gradients: InfoNCEGradients,
    ) -> None:
        from .info_nce import info_nce_backward

        info_nce_backward(call, upstream, pull, mean, gradients)

    def scale_(
        self,
        gradients: Sequence[Tensor],
        upstream: Tensor,
        row_scales: Sequence[Tensor | None],
    ) -> None:
        from .scale import scale_

        scale_(gradients, upstream, row_scales)

    @functools.cached_property
    def pair_stage(self) -> PairStage:
        from .pair_mlp import TritonPairStage

        return TritonPairStage()
