"""The learned affinity's pair stage on NVIDIA GPUs: csrc/cuda/{pair_hidden, pair_output, unit}.cu."""

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
            getattr(self._library(), name)(
                self._where(like, summing), *sizes, **addresses(arrays)
            )

    def _call(self, name: str, like: Tensor, summing: bool, *arguments: object) -> None:
        with on_device_of(like):
            getattr(self._library(), name)(self._where(like, summing), *arguments)

    def _where(self, like: Tensor, summing: bool) -> tuple[int, int, int]:
        """(device, stream, address of a workspace); called within `on_device_of`.

        The workspace is for the sums of blocks. Its memory may be given away at once: whoever gets
        it launches later on the same stream.
        """
        device, stream = place(like)
        if not summing:
            return device, stream, 0
        size = self._library().pair_workspace_bytes(device, like.shape[-1])
        workspace = torch.empty(size, dtype=torch.uint8, device=like.device)
        return device, stream, workspace.data_ptr()
