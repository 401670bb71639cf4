"""The `cpu` backend: C++ kernels on host memory, csrc/cpu/."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from .compiled import CompiledBackend
from .extension import extension, reason
from .protocol import Request


class CpuBackend(CompiledBackend):
    name = "cpu"

    @property
    def library(self) -> ModuleType:
        assert extension is not None
        return extension

    def missing(self) -> str | None:
        return reason

    def refuses(self, request: Request) -> str | None:
        if request.device != "cpu":
            return f"it works on CPU tensors, and these are on {request.device!r}"
        return None

    def launcher(self, operation: str) -> Callable[[Any, Any, list[Any]], None]:
        launch, threads = getattr(extension, operation), torch.get_num_threads
        return lambda call, result, arguments: launch(threads(), *arguments)
