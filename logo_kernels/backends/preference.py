"""In which order "auto" asks the backends: one table, with what was measured beside each entry.

Microseconds of GPU time on an H200 (sm_90), forward and backward unless said, caches flushed:
benchmarks/results/nvidia-h200. Where both take about as long, the one whose launch costs the host
less comes first, CUDA. Other architectures were not measured and follow the same table.
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


# By operation, and whether all of its tensors are half precision.
GPU: dict[tuple[str, bool], Entry] = {
    ("cosine", True): Entry(
        CUDA_FIRST,
        "bf16, forward: (8192, 2, 8, 2048) cuda 230, triton 231; (1024, ..) 48, 45; D = 1024 127, "
        "124; D = 256 54, 45; 20 rows 231, 264; fp16 232, 242",
    ),
    ("cosine", False): Entry(
        CUDA_FIRST, "fp32, forward: (8192, 2, 8, 2048) cuda 427, triton 612; (1024, ..) 78, 102"
    ),
    ("similarity", True): Entry(
        TRITON_FIRST, "bf16: (8192, 10, 2048) triton 317, cuda 344; (1024, 64, 256) 83, 225"
    ),
    ("similarity", False): Entry(CUDA_FIRST, "fp32: (8192, 10, 2048) cuda 228 + 557, triton 880"),
    ("info_nce", True): Entry(
        TRITON_FIRST,
        "bf16: 4096 x 65536, D = 128 triton 230, cuda 679; D = 256 437, 1,382; 512 x 65536 60, 134",
    ),
    ("info_nce", False): Entry(TRITON_FIRST, "fp32: 1024 x 65536, D = 128 triton 822, cuda 1,293"),
    ("affinity", True): Entry(CUDA_FIRST, "not measured; as fp32"),
    ("affinity", False): Entry(
        CUDA_FIRST,
        "fp32: (1024, 8, 2048) cuda 2,021, triton 2,464; (1024, 8, 128) 908, 1,375; "
        "(1024, 2, 2048) 526, 535; (256, 2, 128) 162, 172",
    ),
    ("scale", True): Entry(CUDA_FIRST, "1.2 each where nothing is to do; cuda costs the host less"),
    ("scale", False): Entry(CUDA_FIRST, "as for half precision"),
}

# Asked before all others, as long as a verification of theirs goes on (`preferring`).
AHEAD: list[str] = []

_HALVES = frozenset([torch.bfloat16, torch.float16])


def order(request: Request) -> tuple[str, ...]:
    """Names of the backends that may serve `request`, fastest first."""
    names: tuple[str, ...] = ("reference",)
    if request.device == "cpu":
        names = "cpu", "reference"
    elif request.device == "cuda":
        names = GPU[request.operation, request.dtypes <= _HALVES].order
    return *AHEAD, *names
