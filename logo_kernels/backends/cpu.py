"""The `cpu` backend: C++ kernels on host memory, csrc/cpu/{cosine, similarity, info_nce}.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import NO_ROWS, REDUCTIONS, matrix_rows, pairs_rows, rows
from .buffers import cosine_result, gradient_like
from .cpu_pairs import CpuPairStage
from .extension import extension, problem
from .protocol import (
    Backend,
    CosineResult,
    InfoNCECall,
    InfoNCEGradients,
    InfoNCEResult,
    PairWeights,
    Problem,
)


class CpuBackend(Backend):
    name = "cpu"
    pair_stage = CpuPairStage()

    def missing(self) -> str | None:
        return problem

    def refuses(self, problem: Problem) -> str | None:
        if problem.device != "cpu":
            return f"it works on CPU tensors, and these are on {problem.device!r}"
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
        result = cosine_result(
            global_crops, local_crops, targets, features, reduction,
            grad_global, grad_local, grad_features,
        )  # fmt: skip
        extension.cosine(  # type: ignore[union-attr]
            global_crops.shape[0], global_crops.shape[2],
            rows(global_crops), rows(local_crops), rows(targets), rows(features),
            *weights, repulsion, REDUCTIONS[reduction], result.total.dtype == torch.float64,
            rows(result.grad_global) if grad_global else NO_ROWS,
            rows(result.grad_local) if grad_local else NO_ROWS,
            rows(result.grad_features) if grad_features else NO_ROWS,
            result.row_scale.data_ptr() if result.row_scale.numel() else 0,
            result.total.data_ptr(), result.terms.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return result

    def similarity(self, a: Tensor, b: Tensor | None) -> Tensor:
        cosines = a.new_empty(a.shape[0], a.shape[1], a.shape[1] if b is None else b.shape[1])
        extension.similarity(  # type: ignore[union-attr]
            a.shape[0], a.shape[2], rows(a), rows(b), rows(cosines), torch.get_num_threads()
        )
        return cosines

    def similarity_backward(
        self, grad: Tensor, a: Tensor, b: Tensor | None, grad_a: bool, grad_b: bool
    ) -> tuple[Tensor, Tensor]:
        to_a = gradient_like(a) if grad_a else a.new_empty(0)
        to_b = gradient_like(b) if b is not None and grad_b else a.new_empty(0)
        extension.similarity_backward(  # type: ignore[union-attr]
            a.shape[0], a.shape[2], rows(grad), rows(a), rows(b),
            rows(to_a) if grad_a else NO_ROWS,
            rows(to_b) if b is not None and grad_b else NO_ROWS,
            torch.get_num_threads(),
        )  # fmt: skip
        return to_a, to_b

    def info_nce(self, call: InfoNCECall, result: InfoNCEResult) -> None:
        queries = call.queries
        extension.info_nce(  # type: ignore[union-attr]
            queries.shape[0], queries.shape[2],
            rows(call.global_crops), rows(call.local_crops), rows(call.positives),
            matrix_rows(call.negatives), _temperature(call), rows(result.pull), rows(result.mean),
            call.gg_weight, call.lg_weight, REDUCTIONS[call.reduction],
            result.total.data_ptr(), result.terms.data_ptr(), result.lse.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip

    def info_nce_backward(
        self,
        call: InfoNCECall,
        upstream: Tensor,
        pull: Tensor,
        mean: Tensor,
        gradients: InfoNCEGradients,
    ) -> None:
        pull, mean = pull.contiguous(), mean.contiguous()
        to_temperature = gradients.temperature
        extension.info_nce_backward(  # type: ignore[union-attr]
            call.queries.shape[0], call.queries.shape[2],
            rows(call.global_crops), rows(call.local_crops), rows(call.positives),
            _temperature(call), rows(pull), rows(mean), pairs_rows(upstream),
            rows(gradients.global_crops), rows(gradients.local_crops),
            to_temperature.data_ptr() if to_temperature.numel() else 0,
            torch.get_num_threads(),
        )  # fmt: skip


def _temperature(call: InfoNCECall) -> float:
    tensor = call.temperature_tensor
    return call.temperature if tensor is None else tensor.item()
