"""The learned affinity's pair stage on the CPU: csrc/cpu/{pair_hidden, pair_output, unit}.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from .compiled_pairs import CompiledPairStage, addresses
from .extension import extension


class CpuPairStage(CompiledPairStage):
    def _launch(
        self,
        name: str,
        like: Tensor,
        sizes: tuple[int, ...],
        summing: bool,
        arrays: dict[str, Tensor],
    ) -> None:
        getattr(extension, name)(torch.get_num_threads(), *sizes, **addresses(arrays))

    def _call(self, name: str, like: Tensor, summing: bool, *arguments: object) -> None:
        getattr(extension, name)(torch.get_num_threads(), *arguments)
