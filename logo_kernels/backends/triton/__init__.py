"""The `triton` backend: fused kernels for NVIDIA GPUs, or for a CPU under Triton's interpreter.

Importing this module imports no Triton: an operation's module is imported where the operation is
first called for.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from ..protocol import Backend, Request
from .environment import installed, interpreted
from .tiles import MAX_ROWS

__all__ = ["TritonBackend"]

# Each method of the backend: its module, and its function there.
OPERATIONS = {
    "cosine": ("cosine", "cosine"),
    "similarity": ("similarity", "similarity"),
    "similarity_backward": ("similarity", "similarity_backward"),
    "info_nce": ("info_nce", "info_nce"),
    "info_nce_backward": ("info_nce", "info_nce_backward"),
    "scale_": ("scale", "scale_"),
    "unit": ("unit", "unit"),
    "unit_backward": ("unit", "unit_backward"),
    "affinity_hidden_layer": ("affinity_hidden", "hidden_layer"),
    "affinity_hidden_gradient": ("affinity_hidden", "hidden_gradient"),
    "affinity_hidden_moments": ("affinity_hidden", "hidden_moments"),
    "affinity_hidden": ("affinity_hidden", "hidden"),
    "affinity_hidden_sums": ("affinity_hidden", "hidden_sums"),
    "affinity_hidden_backward": ("affinity_hidden", "hidden_backward"),
    "affinity_output_layer": ("affinity_output", "output_layer"),
    "affinity_output_gradient": ("affinity_output", "output_gradient"),
    "affinity_output_moments": ("affinity_output", "output_moments"),
    "affinity_output": ("affinity_output", "output"),
    "affinity_output_sums": ("affinity_output", "output_sums"),
    "affinity_output_backward": ("affinity_output", "output_backward"),
}


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
    """Its operations are those of the table above; each fills the result of its call."""

    name = "triton"

    def missing(self) -> str | None:
        return _missing()

    def refuses(self, request: Request) -> str | None:
        served = "cpu" if interpreted() else "cuda"
        if request.device != served:
            mode = "under TRITON_INTERPRET=1" if interpreted() else "without TRITON_INTERPRET=1"
            return f"{mode} it works on {served} tensors, and these are on {request.device!r}"
        if torch.float64 in request.dtypes:
            return "it has no float64; backend='reference' has"
        if request.operation != "info_nce" and request.crops > MAX_ROWS:
            return (
                f"it takes at most {MAX_ROWS} rows of an image (crops, targets and features "
                f"together), and these are {request.crops}"
            )
        if (capability := _capability(request.device_index)) < (8, 0):
            return (
                "its products are of tf32 and bf16, which compute capability 8.0 began with, and "
                f"cuda:{request.device_index} has {capability[0]}.{capability[1]}"
            )
        if request.operation == "info_nce":
            from .gpu import gpu_of
            from .info_nce_plan import FULL, HALF, TWO_HALVES, misfit

            gpu = gpu_of(request.device_index)
            reasons = (misfit(request.dim, kind, gpu) for kind in (HALF, TWO_HALVES, FULL))
            return next((reason for reason in reasons if reason is not None), None)
        return None


def _method(module: str, function: str) -> Callable[..., None]:
    """The function as a method of the backend, imported where it is first called."""

    @functools.cache
    def imported() -> Callable[..., None]:
        found: Callable[..., None] = getattr(
            importlib.import_module(f".{module}", __name__), function
        )
        return found

    def method(self: TritonBackend, *arguments: Any) -> None:
        imported()(*arguments)

    return method


for _operation, _place in OPERATIONS.items():
    setattr(TritonBackend, _operation, _method(*_place))
