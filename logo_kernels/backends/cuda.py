"""The `cuda` backend: CUDA C++ kernels, csrc/cuda/."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..units import unit, unit_backward
from .compiled import DTYPES, NO_ROWS, CompiledBackend, RowsArgument, pairs, rows
from .devices import Zeros, on_device_of, place
from .extension import extension
from .extension import reason as not_built
from .protocol import Request


@functools.cache
def _missing() -> str | None:
    if torch.version.hip is not None:
        return (
            "its kernels are for NVIDIA GPUs, and this torch is a ROCm build; "
            "backend='reference' works on AMD GPUs"
        )
    if extension is None:
        return not_built
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


def _one_per_row(numbers: Tensor | None) -> RowsArgument:
    """Numbers [B, V] as rows of one element each."""
    return rows(None if numbers is None else numbers.unsqueeze(-1))


def _three(given: list[RowsArgument]) -> tuple[RowsArgument, RowsArgument, RowsArgument]:
    first, second, third = [*given, NO_ROWS, NO_ROWS][:3]
    return first, second, third


class CudaBackend(CompiledBackend):
    name = "cuda"
    device_type = "cuda"

    def __init__(self) -> None:
        self._zeros = Zeros(torch.uint8)
        # A training loop asks for one size at every step.
        self._info_nce_bytes = functools.lru_cache(maxsize=64)(
            lambda *sizes: self.library.info_nce_workspace_bytes(*sizes)
        )
        self._unit, self._unit_backward = self.filler("unit"), self.filler("unit_backward")
        # The memory that launches of an operation need; others need none.
        self._workspaces: dict[str, Callable[[Any, Any, Tensor], Tensor | None]] = {
            "cosine": self._for_sums_of_blocks,
            "info_nce": self._for_negatives,
            "info_nce_backward": self._for_the_temperature,
            "affinity_hidden_layer": self._for_statistics,
            "affinity_hidden_gradient": self._for_sums,
            "affinity_hidden_moments": self._for_sums,
            "affinity_hidden_sums": self._for_sums,
            "affinity_output_layer": self._for_statistics,
            "affinity_output_gradient": self._for_facts,
            "affinity_output_moments": self._for_sums,
            "affinity_output_sums": self._for_sums,
        }

    @property
    def library(self) -> ModuleType:
        assert extension is not None
        return extension.cuda

    def missing(self) -> str | None:
        return _missing()

    def refuses(self, request: Request) -> str | None:
        if request.device != self.device_type:
            return f"it works on {self.device_type} tensors, and these are on {request.device!r}"
        if torch.float64 in request.dtypes:
            return "it has no float64; backend='reference' has"
        if self.device_type == "cuda" and (reason := _unfit(request.device_index)) is not None:
            return reason
        if request.operation in ("scale", "affinity"):
            return None
        if request.crops > self.library.max_rows:
            return (
                f"it takes at most {self.library.max_rows} rows of an image (crops, targets and "
                f"features together), and these are {request.crops}"
            )
        shared = self.library.shared_bytes(request.device_index)
        if request.operation == "info_nce":
            # The operands that take the most: fp32, or three parts of bf16. The number of rows
            # plays no part.
            plans = (
                self.library.info_nce_plan(1, 1, request.dim, *operands, 1, shared)
                for operands in ((4, 1), (2, 3))
            )
            if all(plan["threads"] > 0 for plan in plans):
                return None
            return (
                f"the {shared >> 10} KiB of shared memory that a block has on this device do not "
                f"hold a tile of queries and negatives"
            )
        # Rows of one dtype are kept in it, others in fp32.
        element_bytes = next(iter(request.dtypes)).itemsize if len(request.dtypes) == 1 else 4
        plan = self.library.plan(request.crops, request.dim, element_bytes, shared)
        if plan["threads"] == 0:
            return (
                f"the {shared >> 10} KiB of shared memory that a block has on this device do not "
                f"hold the products of {request.crops} rows"
            )
        return None

    def launcher(self, operation: str) -> Callable[[Any, Any, list[Any]], None]:
        make = self._workspaces.get(operation)

        def launch(call: Any, result: Any, arguments: list[Any]) -> None:
            like = next((tensor for tensor in result if tensor is not None), None)
            if like is None or like.numel() == 0:
                return  # nothing to compute, and no grid of no blocks
            with on_device_of(like):
                device, stream = place(like)
                workspace = None if make is None else make(call, result, like)
                where = device, stream, 0 if workspace is None else workspace.data_ptr()
                getattr(self.library, operation)(where, *arguments)

        return launch

    def _for_sums_of_blocks(self, call: Any, result: Any, like: Tensor) -> Tensor:
        """The counter and the sums of blocks, which launches on a stream share: zeros."""
        return self._zeros.take(like, self.library.workspace_bytes(like.device.index or 0))

    def _for_the_temperature(self, call: Any, result: Any, like: Tensor) -> Tensor | None:
        """Its gradient is summed over blocks."""
        if result.grad_temperature is None:
            return None
        return self._for_sums_of_blocks(call, result, result.grad_temperature)

    def _for_negatives(self, call: Any, result: Any, like: Tensor) -> Tensor:
        images, crops = result.lse.shape
        seen = call.positives if call.negatives is None else call.negatives
        size = self._info_nce_bytes(
            like.device.index or 0, images * crops, seen.numel() // seen.shape[-1], seen.shape[-1],
            DTYPES[call.queries.dtype], DTYPES[seen.dtype],
        )  # fmt: skip
        return like.new_empty(size, dtype=torch.uint8)

    def _for_sums(self, call: Any, result: Any, like: Tensor) -> Tensor:
        """Memory for the sums of blocks over columns; once freed, for this stream alone again."""
        size = self.library.affinity_workspace_bytes(like.device.index or 0, call.sizes()["width"])
        return like.new_empty(size, dtype=torch.uint8)

    def _for_statistics(self, call: Any, result: Any, like: Tensor) -> Tensor | None:
        return self._for_sums(call, result, like) if call.batch else None

    def _for_facts(self, call: Any, result: Any, like: Tensor) -> Tensor | None:
        return self._for_sums(call, result, like) if call.summed else None

    def unit(self, call: Any, result: Any) -> None:
        # crops of a float32 module may be float64
        fill = unit if call.wide else self._unit
        fill(call, result)

    def unit_backward(self, call: Any, result: Any) -> None:
        fill = unit_backward if call.wide else self._unit_backward
        fill(call, result)

    def scale_(
        self, gradients: Sequence[Tensor], upstream: Tensor, row_scales: Sequence[Tensor | None]
    ) -> None:
        first = gradients[0]
        if first.shape[0] == 0 or first.shape[2] == 0:
            return
        with on_device_of(first):
            self.library.scale(
                *place(first), first.shape[0], first.shape[2],
                _three([rows(gradient) for gradient in gradients]),
                pairs(upstream),
                _three([_one_per_row(row_scale) for row_scale in row_scales]),
            )  # fmt: skip
