"""The `cuda` backend: its place in the protocol. Its kernels are not in this version.

What there is already: the build compiles `csrc/cuda` when it finds nvcc, and the extension tells
for which architectures. `refuses` says that no operation has a kernel yet, so "auto" goes on.
"""

from __future__ import annotations

import torch

from .extension import extension, problem
from .protocol import Backend, Problem


class CudaBackend(Backend):
    name = "cuda"

    def missing(self) -> str | None:
        if extension is None:
            return problem
        if not extension.cuda_architectures:
            return (
                "the extension was built without CUDA; install the CUDA toolkit (nvcc) and build "
                "again with LOGO_KERNELS_CUDA=on pip install ."
            )
        if not torch.cuda.is_available():
            return (
                "torch sees no CUDA device; check the driver (nvidia-smi) and that this torch is a "
                "CUDA build (torch.version.cuda)"
            )
        return "its kernels are not in this version of logo_kernels; use 'triton' or 'auto'"

    def refuses(self, problem: Problem) -> str | None:
        return f"there is no CUDA kernel for {problem.operation!r} in this version"
