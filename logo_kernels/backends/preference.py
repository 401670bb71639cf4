"""In which order "auto" asks the backends: one table, with what was measured beside each entry.

Microseconds of GPU time on an H200 (sm_90), forward and backward unless said, of kernels before
they were rewritten to what that run showed: benchmarks/results/nvidia-h200/f123f2a.md. Other
architectures were not measured and follow the same table.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .protocol import Request

CUDA_FIRST = ("cuda", "triton", "reference")
TRITON_FIRST = ("triton", "cuda", "reference")


class Entry(NamedTuple):
    order: tuple[str, ...]
    measured: str


# By operation, and whether all of its tensors are half precision: Triton multiplied fp32 images by
# FMAs when it was timed, and does so in parts of tf32 since, which was not.
GPU: dict[tuple[str, bool], Entry] = {
    ("cosine", True): Entry(
        TRITON_FIRST, "bf16 (8192, 2, 8, 2048): triton 238, cuda 263; (1024, ..): 54, 54"
    ),
    ("cosine", False): Entry(CUDA_FIRST, "fp32 (8192, 2, 8, 2048): cuda 601, triton 1,551"),
    ("similarity", True): Entry(
        TRITON_FIRST,
        "bf16 (8192, 10, 2048): triton 330, cuda 558; (1024, 64, 256): triton 117, cuda 282",
    ),
    ("similarity", False): Entry(CUDA_FIRST, "not measured; the products of cosine, fp32"),
    ("info_nce", True): Entry(
        TRITON_FIRST,
        "bf16 4096 x 65536: pass alone, D = 128, triton 219, cuda 745; whole, D = 256, 757, 2,036",
    ),
    ("info_nce", False): Entry(TRITON_FIRST, "not measured; as for half precision"),
    ("affinity", True): Entry(CUDA_FIRST, "not measured; as fp32"),
    ("affinity", False): Entry(
        CUDA_FIRST,
        "fp32 (1024, 8, 2048): cuda 2,486, triton 2,966; (1024, 8, 128): 1,017, 1,495; "
        "(256, 2, 128): 247, 263",
    ),
    ("scale", True): Entry(CUDA_FIRST, "2.5 each; cuda costs the host less"),
    ("scale", False): Entry(CUDA_FIRST, "as for half precision"),
}

# Asked before all others, as long as a verification of theirs goes on (`preferring`).
AHEAD: list[str] = []

_HALVES = frozenset([torch.bfloat16, torch.float16])


def order(request: Request) -> tuple[str, ...]:
    """Names of the backends that may serve `problem`, fastest first."""
    names: tuple[str, ...] = ("reference",)
    if request.device == "cpu":
        names = "cpu", "reference"
    elif request.device == "cuda":
        names = GPU[request.operation, request.dtypes <= _HALVES].order
    return *AHEAD, *names
