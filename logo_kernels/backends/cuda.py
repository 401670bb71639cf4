"""The `cuda` backend: CUDA C++ kernels, csrc/cuda/{cosine, similarity, scale, info_nce*}.cu.

Those of the learned affinity's pairs are in cuda_pairs.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .arguments import DTYPES, NO_ROWS, REDUCTIONS, Rows, matrix_rows, pairs_rows, rows
from .buffers import cosine_result, gradient_like
from .cuda_pairs import CudaPairStage
from .devices import Zeros, on_device_of, place
from .extension import extension, problem
from .pairs import PairStage
from .protocol import (
    Backend,
    CosineResult,
    InfoNCECall,
    InfoNCEGradients,
    InfoNCEResult,
    PairWeights,
    Problem,
)


@functools.cache
def _missing() -> str | None:
    if torch.version.hip is not None:
        return (
            "its kernels are for NVIDIA GPUs, and this torch is a ROCm build; "
            "backend='reference' works on AMD GPUs"
        )
    if extension is None:
        return problem
    if not extension.cuda.architectures:
        return (
            "the extension was built without CUDA; install the CUDA toolkit (nvcc) and build "
            "again with LOGO_KERNELS_CUDA=on pip install ."
        )
    if not torch.cuda.is_available():
        return (
            "torch sees no CUDA device; check the driver (nvidia-smi) and that this torch is a "
            "CUDA build (torch.version.cuda)"
        )
    return None


@functools.cache
def _unfit(device: int) -> str | None:
    """Why this GPU does not run the kernels of this build, or None."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0, and this device is older"
    try:
        with torch.cuda.device(device):  # the probe makes it the current one
            extension.cuda.probe(device)  # type: ignore[union-attr]
    except RuntimeError as error:
        return (
            f"its kernels, built for {extension.cuda.architectures}, do not run "  # type: ignore[union-attr]
            f"here ({error}); update the driver, or build on this machine: pip install ."
        )
    return None


def _address(number: Tensor | None) -> int:
    """Of what may be absent."""
    return 0 if number is None else number.data_ptr()


def _one_per_row(numbers: Tensor | None) -> Rows:
    """Numbers [B, V] as rows of one element each."""
    return rows(None if numbers is None else numbers.unsqueeze(-1))


def _three(given: list[Rows]) -> tuple[Rows, Rows, Rows]:
    first, second, third = [*given, NO_ROWS, NO_ROWS][:3]
    return first, second, third


class CudaBackend(Backend):
    name = "cuda"
    device_type = "cuda"

    def __init__(self) -> None:
        self._zeros = Zeros(torch.uint8)
        # A training loop asks for one size at every step.
        self._info_nce_bytes = functools.lru_cache(maxsize=64)(
            lambda *sizes: self.library.info_nce_workspace_bytes(*sizes)
        )

    @property
    def library(self) -> ModuleType:
        """The compiled launchers."""
        return extension.cuda  # type: ignore[union-attr]

    @functools.cached_property
    def pair_stage(self) -> PairStage:
        return CudaPairStage(lambda: self.library)

    def missing(self) -> str | None:
        return _missing()

    def refuses(self, problem: Problem) -> str | None:
        if problem.device != self.device_type:
            return f"it works on {self.device_type} tensors, and these are on {problem.device!r}"
        if torch.float64 in problem.dtypes:
            return "it has no float64; backend='reference' has"
        if self.device_type == "cuda" and (reason := _unfit(problem.device_index)) is not None:
            return reason
        if problem.operation in ("scale", "pair_mlp"):
            return None
        if problem.crops > self.library.max_rows:
            return (
                f"it takes at most {self.library.max_rows} rows of an image (crops, targets and "
                f"features together), and these are {problem.crops}"
            )
        shared = self.library.shared_bytes(problem.device_index)
        if problem.operation == "info_nce":
            # The operands that take the most: fp32, or three parts of bf16. The number of rows
            # plays no part.
            plans = (
                self.library.info_nce_plan(1, 1, problem.dim, *operands, 1, shared)
                for operands in ((4, 1), (2, 3))
            )
            if all(plan["threads"] > 0 for plan in plans):
                return None
            return (
                f"the {shared >> 10} KiB of shared memory that a block has on this device do not "
                f"hold a tile of queries and negatives"
            )
        # Rows of one dtype are kept in it, others in fp32.
        element_bytes = next(iter(problem.dtypes)).itemsize if len(problem.dtypes) == 1 else 4
        plan = self.library.plan(problem.crops, problem.dim, element_bytes, shared)
        if plan["threads"] == 0:
            return (
                f"the {shared >> 10} KiB of shared memory that a block has on this device do not "
                f"hold the products of {problem.crops} rows"
            )
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
        with on_device_of(global_crops):
            result = cosine_result(
                global_crops, local_crops, targets, features, reduction,
                grad_global, grad_local, grad_features,
            )  # fmt: skip
            device, stream = place(global_crops)
            # The counter and the sums of blocks, which launches on a stream share.
            size = self.library.workspace_bytes(global_crops.device.index or 0)
            workspace = self._zeros.take(global_crops, size)
            self.library.cosine(
                device, stream, workspace.data_ptr(), global_crops.shape[0], global_crops.shape[2],
                rows(global_crops), rows(local_crops), rows(targets), rows(features),
                *weights, repulsion, REDUCTIONS[reduction],
                rows(result.grad_global) if grad_global else NO_ROWS,
                rows(result.grad_local) if grad_local else NO_ROWS,
                rows(result.grad_features) if grad_features else NO_ROWS,
                result.row_scale.data_ptr() if result.row_scale.numel() else 0,
                result.total.data_ptr(), result.terms.data_ptr(),
            )  # fmt: skip
        return result

    def similarity(self, a: Tensor, b: Tensor | None) -> Tensor:
        cosines = a.new_empty(a.shape[0], a.shape[1], a.shape[1] if b is None else b.shape[1])
        if cosines.numel() == 0:
            return cosines
        with on_device_of(a):
            self.library.similarity(
                *place(a), a.shape[0], a.shape[2], rows(a), rows(b), rows(cosines)
            )
        return cosines

    def similarity_backward(
        self, grad: Tensor, a: Tensor, b: Tensor | None, grad_a: bool, grad_b: bool
    ) -> tuple[Tensor, Tensor]:
        to_a = gradient_like(a) if grad_a else a.new_empty(0)
        to_b = gradient_like(b) if b is not None and grad_b else a.new_empty(0)
        if grad.numel() == 0 or not (to_a.numel() or to_b.numel()):
            return to_a, to_b
        with on_device_of(a):
            self.library.similarity_backward(
                *place(a), a.shape[0], a.shape[2], rows(grad), rows(a), rows(b),
                rows(to_a) if to_a.numel() else NO_ROWS,
                rows(to_b) if to_b.numel() else NO_ROWS,
            )  # fmt: skip
        return to_a, to_b

    def info_nce(self, call: InfoNCECall, result: InfoNCEResult) -> None:
        queries, positives, negatives = call.queries, call.positives, call.negatives
        images, crops = result.lse.shape
        dim, seen = queries.shape[2], positives if negatives is None else negatives
        with on_device_of(queries):
            device, stream = place(queries)
            size = self._info_nce_bytes(
                device, images * crops, seen.numel() // dim, dim,
                DTYPES[queries.dtype], DTYPES[seen.dtype],
            )  # fmt: skip
            workspace = torch.empty(size, dtype=torch.uint8, device=queries.device)
            self.library.info_nce(
                device, stream, workspace.data_ptr(), images, dim,
                rows(call.global_crops), rows(call.local_crops), rows(positives),
                matrix_rows(negatives), call.temperature, _address(call.temperature_tensor),
                call.gg_weight, call.lg_weight, REDUCTIONS[call.reduction],
                result.total.data_ptr(), result.terms.data_ptr(), result.lse.data_ptr(),
                rows(result.pull), rows(result.mean),
            )  # fmt: skip

    def info_nce_backward(
        self,
        call: InfoNCECall,
        upstream: Tensor,
        pull: Tensor,
        mean: Tensor,
        gradients: InfoNCEGradients,
    ) -> None:
        queries, learned = call.queries, gradients.temperature.numel() > 0
        with on_device_of(queries):
            device, stream = place(queries)
            zeros = None
            if learned:  # its gradient is summed over blocks
                zeros = self._zeros.take(queries, self.library.workspace_bytes(device))
            self.library.info_nce_backward(
                device, stream, _address(zeros), queries.shape[0], queries.shape[2],
                rows(call.global_crops), rows(call.local_crops), rows(call.positives),
                call.temperature, _address(call.temperature_tensor),
                pairs_rows(upstream), rows(pull), rows(mean),
                rows(gradients.global_crops), rows(gradients.local_crops),
                gradients.temperature.data_ptr() if learned else 0,
            )  # fmt: skip

    def scale_(
        self, gradients: Sequence[Tensor], upstream: Tensor, row_scales: Sequence[Tensor | None]
    ) -> None:
        first = gradients[0]
        if first.shape[0] == 0 or first.shape[2] == 0:
            return
        stride = upstream.stride(0) if upstream.ndim else 0
        with on_device_of(first):
            self.library.scale(
                *place(first), first.shape[0], first.shape[2],
                _three([rows(gradient) for gradient in gradients]),
                (upstream.data_ptr(), DTYPES[upstream.dtype], 1, stride, 0, 1),
                _three([_one_per_row(row_scale) for row_scale in row_scales]),
            )  # fmt: skip
