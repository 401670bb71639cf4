"""The learned affinity's pair stage on NVIDIA GPUs: csrc/cuda/pair_hidden.cu and pair_output.cu."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from .compiled_pairs import CompiledPairStage, addresses
from .devices import on_device_of, place


class CudaPairStage(CompiledPairStage):
    """`library` gives the compiled launchers."""

    def __init__(self, library: Callable[[], ModuleType]) -> None:
        self._library = library

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
            device, stream = place(like)
            # For the sums of blocks. Whoever is given its memory next, is so on this stream.
            size = library.pair_workspace_bytes(device, like.shape[-1]) if summing else 0
            workspace = torch.empty(size, dtype=torch.uint8, device=like.device)
            where = device, stream, workspace.data_ptr()
            getattr(library, name)(where, *sizes, **addresses(arrays))
