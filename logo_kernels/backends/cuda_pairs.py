"""The learned affinity's pair stage on NVIDIA GPUs: csrc/cuda/{pair_hidden,pair_output,unit}.cu."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from . import unit as units
from .compiled_pairs import CompiledPairStage, addresses
from .devices import on_device_of, place


class CudaPairStage(CompiledPairStage):
    """`library` gives the compiled launchers."""

    def __init__(self, library: Callable[[], ModuleType]) -> None:
        self._library = library

    def unit(self, z: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if torch.float64 in (z.dtype, dtype):  # crops of a float32 module may be float64
            return units.unit(z, dtype)
        return super().unit(z, dtype)

    def unit_backward(
        self, grad: Tensor, unit: Tensor, factors: Tensor, dtype: torch.dtype, view_major: bool
    ) -> Tensor:
        if factors.dtype == torch.float64:
            return units.unit_backward(grad, unit, factors, dtype, view_major)
        return super().unit_backward(grad, unit, factors, dtype, view_major)

    def _launch(
        self,
        name: str,
        like: Tensor,
        sizes: tuple[int, ...],
        summing: bool,
        arrays: dict[str, Tensor],
    ) -> None:
        with on_device_of(like):
            device, stream = place(like)
            workspace = self._workspace(like, device) if summing else None
            where = device, stream, 0 if workspace is None else workspace.data_ptr()
            getattr(self._library(), name)(where, *sizes, **addresses(arrays))

    def _call(self, name: str, like: Tensor, summing: bool, *arguments: object) -> None:
        with on_device_of(like):
            device, stream = place(like)
            workspace = self._workspace(like, device) if summing else None
            where = device, stream, 0 if workspace is None else workspace.data_ptr()
            getattr(self._library(), name)(where, *arguments)

    def _workspace(self, like: Tensor, device: int) -> Tensor:
        """For the sums of blocks; whoever is given its memory next, is so on this stream."""
        size = self._library().pair_workspace_bytes(device, like.shape[-1])
        return torch.empty(size, dtype=torch.uint8, device=like.device)
