"""Every GPU kernel once on small problems with odd sizes, checked: what compute-sanitizer watches.

python benchmarks/small_cases.py triton      a backend, on the GPU
"""

from __future__ import annotations

import sys
from functools import partial

import torch

import bench_cosine
import inputs
from cases import CosineCase, SimilarityCase
from gate import Expected
from logo_kernels import block_cosine_similarity

DTYPES = ("float32", "bfloat16", "float16")
# Sizes that fill no tile: rows and columns beyond the data must be masked.
COSINE = [
    CosineCase(*size, dtype, "sanitizer", view_major=view_major, features=features)
    for dtype in DTYPES
    for size, view_major, features in (
        ((3, 2, 3, 37), False, False),
        ((2, 2, 8, 129), True, False),
        ((1, 2, 2, 2050), False, True),
        ((2, 1, 17, 64), True, True),
    )
]
SIMILARITY = [
    SimilarityCase(*size, dtype, "sanitizer")
    for dtype in DTYPES
    for size in ((3, 5, None, 37), (2, 9, 2, 130))
]


def main(backend: str, device: str) -> int:
    wrong = 0
    for case in [*COSINE, *SIMILARITY]:
        if isinstance(case, CosineCase):
            crops, upstream = inputs.cosine_inputs(case, device), None
            function = partial(bench_cosine.loss, backend=backend)
            reference = partial(bench_cosine.loss, backend="reference")
        else:
            crops, upstream = inputs.similarity_inputs(case, device)
            function = partial(block_cosine_similarity, backend=backend)
            reference = partial(block_cosine_similarity, backend="reference")
        difference = Expected(crops, reference, upstream).difference(crops, function, upstream)
        if difference is not None:
            wrong += 1
            print(f"{case.id}: {difference}")
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{backend}: {len(COSINE) + len(SIMILARITY)} cases, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], "cuda" if torch.cuda.is_available() else "cpu"))
