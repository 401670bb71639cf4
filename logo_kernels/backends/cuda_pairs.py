"""The learned affinity's pair stage on NVIDIA GPUs: csrc/cuda/pair_hidden.cu and pair_output.cu."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from .compiled_pairs import CompiledPairStage, addresses
from .devices import Workspaces, on_device_of, place


class CudaPairStage(CompiledPairStage):
    """`library` gives the compiled launchers."""

    def __init__(self, library: Callable[[], ModuleType]) -> None:
        self._library = library
        self._workspaces: Workspaces[Tensor] = Workspaces()

    def _launch(
        self,
        name: str,
        like: Tensor,
        sizes: tuple[int, ...],
        summing: bool,
        arrays: dict[str, Tensor],
    ) -> None:
        library = self._library()
        with on_device_of(like):
            workspace = self._workspace(library, like).data_ptr() if summing else 0
            getattr(library, name)((*place(like), workspace), *sizes, **addresses(arrays))

    def _workspace(self, library: ModuleType, like: Tensor) -> Tensor:
        """The sums of blocks, which launches on a stream share."""
        needed = library.pair_workspace_bytes(like.device.index or 0, like.shape[-1])
        return self._workspaces.take(
            like,
            lambda kept: kept.numel() >= needed,
            lambda: torch.empty(needed, dtype=torch.uint8, device=like.device),
        )
