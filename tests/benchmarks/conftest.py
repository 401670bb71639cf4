"""The benchmarks' modules lie beside the package, not in it: put their folder on the path."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))

# A project in small: one kernel of each kind, what they are compiled from, and what is no kernel.
KERNEL = "logo_kernels/backends/triton/cosine.py"
TRITON_SOURCES = {
    KERNEL: (
        "import triton\nfrom .rows import load\n\n\n"
        "@triton.jit\ndef cosine_kernel(p):\n    load(p)\n\n\n"
        "def cosine(x):\n    cosine_kernel[(1,)](x)\n"
    ),
    "logo_kernels/backends/triton/rows.py": (
        "import triton\nfrom . import tiles\n\n\n@triton.jit\ndef load(p):\n    return p\n"
    ),
    "logo_kernels/backends/triton/tiles.py": "SIZE = 64\n",
    "logo_kernels/backends/triton/environment.py": "import os\n",
}
CUDA_KERNEL = "csrc/cuda/cosine.cu"
CUDA_SOURCES = {
    CUDA_KERNEL: (
        '#include <cuda_runtime.h>\n#include "copy.cuh"\n/*\n#include "cuda/scale.cuh"\n*/\n'
        "template <class T>\n__global__ void __launch_bounds__(256)\n    cosine(T* x) {}\n"
    ),
    "csrc/cuda/scale.cu": '#include "cuda/scale.cuh"\n__global__ void scale() {}\n',
    "csrc/cuda/architectures.cu": "// no __global__ here\n/* nor a\n__global__ there */\nint x;\n",
    "csrc/cuda/copy.cuh": '  #  include "cuda/plan.h"\n__global__ void helper();\n',
    "csrc/cuda/plan.h": '#pragma once\n#include "logo/math.h"\n#include "copy.cuh"\n',
    "csrc/cuda/scale.cuh": "#pragma once\n",
    "csrc/include/logo/math.h": "#pragma once\n#include <cmath>\n",
    "csrc/include/logo/unused.h": "#pragma once\n",
}


@pytest.fixture
def tree(tmp_path):
    """The small project, in a folder of its own."""
    for name, text in {**TRITON_SOURCES, **CUDA_SOURCES}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path
