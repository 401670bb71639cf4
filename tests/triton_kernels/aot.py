"""Kernels compiled ahead of time for GPUs that are not there, and what the compiler says of them.

    python tests/triton_kernels/aot.py [--quick] [--arch 80 90 100]

The backend's own host code runs on CPU tensors with the launch replaced by a recorder, so that what
is compiled is what a launch would compile: tile, warps, and Triton's specialisation of every
argument. No GPU, and none is looked for.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, with its own folder there
from shared_memory import of_launch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from architectures import ARCHITECTURES
from kernels import Kernels
from logo_kernels.backends.triton import (
    TritonBackend,
    affinity_facts,
    affinity_hidden,
    affinity_moments,
    affinity_output,
)
from logo_kernels.backends.triton import cosine as cosine_module
from logo_kernels.backends.triton import info_nce as info_nce_module
from logo_kernels.backends.triton import scale as scale_module
from logo_kernels.backends.triton import similarity as similarity_module
from logo_kernels.backends.triton import unit as unit_module
from logo_kernels.backends.triton.gpu import Gpu
from logo_kernels.backends.triton.info_nce_plan import Shape, shared_bytes

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
KERNELS = Kernels(TritonBackend())
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


BY_NUMBER = {10 * a.major + a.minor: a for a in ARCHITECTURES}


class Case(NamedTuple):
    """One problem of the table."""

    operation: str
    dtype: torch.dtype
    rows: tuple[int, int]  # G, L or V, W; of info_nce N, K; of the affinity B, L
    dim: int
    simsiam: bool = False  # targets and features given
    features: torch.dtype | None = None  # their dtype where it is another one
    queries: torch.dtype | None = None  # of info_nce: theirs, where it is another one
    temperature: float = 0.07
    transposed: bool = False  # of info_nce: negatives [D, K] in memory
    batch: bool = False  # of info_nce: each query has negatives of its own image, not to be seen
    learned: bool = False  # of info_nce: the temperature is a tensor, with a gradient

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.").replace("float", "fp").replace("bfp", "bf")
        extra = " t r" * self.simsiam + f" r:{self.features}" * (self.features is not None)
        extra += (
            f" q:{self.queries}" * (self.queries is not None)
            + " batch" * self.batch
            + " transposed" * self.transposed
            + " learned" * self.learned
        )
        extra += f" τ={self.temperature}" * (self.temperature != 0.07)
        return f"{self.operation} {name} {self.rows[0]}+{self.rows[1]} D={self.dim}{extra}"


class Launch(NamedTuple):
    kernel: Any  # triton.JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]  # num_warps, num_stages


class Report(NamedTuple):
    registers: int
    spills: int  # instructions that store to or load from local memory
    local: int  # bytes of local memory per thread
    shared: int  # bytes
    mma: int  # tensor-core instructions in the SASS
    carried: int  # of them, those that begin with sums made elsewhere: `carried_sums`
    wgmma_groups: int  # how often one or several wgmma are started; as many as those if serialised
    loads: str  # widths in bits of global loads, as "128×16", then of those to shared memory
    stores: str
    seconds: float


class Recorder:
    """Stands for a kernel; remembers its launches instead of making them."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs}
            arguments = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
            self.launches.append(Launch(self.kernel, arguments, options))

        return launch


def specialise(launch: Launch) -> ASTSource:
    """What Triton makes of these arguments: constants, types, divisibility by 16."""
    kernel, signature, constants, attributes = launch.kernel, {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = launch.arguments[parameter.name]
        divisible = False
        free = not parameter.do_not_specialize
        if parameter.is_constexpr or (free and type(value) is int and value == 1):
            kind = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            kind, divisible = TYPES[value.dtype], value.data_ptr() % 16 == 0
        elif isinstance(value, float):
            kind = "fp32"
        else:
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            divisible = free and value % 16 == 0
        signature[parameter.name] = kind
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def widths(sass: str, operation: str) -> str:
    """Counts of global accesses by width in bits."""
    counts: dict[int, int] = {}
    for match in re.finditer(rf"\b{operation}((?:\.\w+)*)(?=\s)", sass):
        wide = [int(w) for w in re.findall(r"\.(?:U)?(8|16|64|128)\b", match[1])]
        width = wide[-1] if wide else 32
        counts[width] = counts.get(width, 0) + 1
    return " ".join(f"{w}×{n}" for w, n in sorted(counts.items(), reverse=True))


def carried_sums(sass: str) -> int:
    """Matrix products that add to what no matrix product has made: sums that a loop carries on.

    What other warps have made comes from shared memory. Of sm_100 this says nothing, whose sums are
    in a memory of their own.
    """
    made_by_product: dict[str, bool] = {}
    carried = 0
    for line in sass.splitlines():
        written = re.search(r"\*/\s+(?:@!?U?P\d+ )?([\w.]+) (R\d+)[,.]", line)
        if written is None:
            continue
        product = written[1].startswith(("HMMA", "HGMMA"))
        if product:
            # The last register is what is added to: "R4, R8, R12, RZ" or "R4, gdesc[UR4], RZ, !UPT"
            added = re.findall(r"\b(RZ|R\d+)\b", line)[-1]
            carried += added != "RZ" and not made_by_product.get(added, False)
        made_by_product[written[2]] = product or written[1].startswith("LDS")
    return carried


def waits_in_place(ttgir: str) -> bool:
    """Whether a barrier stands before every store to where something was loaded from."""
    loaded: set[str] = set()
    for line in ttgir.splitlines():
        if "barrier" in line:
            loaded.clear()
        elif load := re.search(r"tt\.load (%\w+)", line):
            loaded.add(load[1])
        elif (store := re.search(r"tt\.store (%\w+)", line)) and store[1] in loaded:
            return False
    return True


def compile_launch(launch: Launch, arch: int) -> tuple[Report, Any]:
    began = time.perf_counter()
    compiled = triton.compile(
        specialise(launch), target=GPUTarget("cuda", arch, 32), options=launch.options
    )
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [BINARIES / "cuobjdump", "-res-usage", cubin],
            capture_output=True,
            text=True,
            check=True,
        )
        sass = subprocess.run(
            [BINARIES / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True
        ).stdout
    numbers = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout)}
    return (
        Report(
            numbers["REG"],
            len(re.findall(r"\b(?:STL|LDL)\b", sass)),
            numbers["LOCAL"] + numbers["STACK"],
            compiled.metadata.shared,
            len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA|UTCQMMA|OMMA)\b", sass)),
            carried_sums(sass),
            len(re.findall(r"\bWARPGROUP\.ARRIVE\b", sass)),
            widths(sass, "LDG") + (" async " + widths(sass, "LDGSTS") if "LDGSTS" in sass else ""),
            widths(sass, "STG"),
            seconds,
        ),
        compiled,
    )


@contextmanager
def recorded(arch: int) -> Iterator[list[Launch]]:
    """Inside, the backend's functions take CPU tensors and launch nothing."""
    launches: list[Launch] = []
    kept: list[tuple[Any, str, Any]] = []

    def replace(module: Any, name: str, value: Any) -> None:
        kept.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    for module in (
        cosine_module, similarity_module, scale_module, info_nce_module, unit_module,
        affinity_hidden, affinity_output, affinity_moments, affinity_facts,
    ):  # fmt: skip
        if hasattr(module, "launching"):
            replace(module, "launching", lambda tensor: nullcontext())
        for name in list(vars(module)):
            if name.endswith("_kernel"):
                replace(module, name, Recorder(getattr(module, name), launches))
    for module in (cosine_module, info_nce_module):
        replace(
            module,
            "reduction_workspace",
            lambda like, images, groups: (torch.empty(1), torch.zeros(1, dtype=torch.int32)),
        )
    for module in (scale_module, affinity_hidden, affinity_output):
        replace(module, "multiprocessors", lambda device: 132)
    replace(
        info_nce_module,
        "gpu_of",
        lambda index: Gpu(132, arch // 10, BY_NUMBER[arch].shared_per_block),
    )
    try:
        yield launches
    finally:
        for module, name, value in reversed(kept):
            setattr(module, name, value)


INFO_NCE = {
    "prologue": "info_nce_prologue_kernel",
    "info_nce": "info_nce_kernel",
    "epilogue": "info_nce_epilogue_kernel",
    "info_nce_backward": "info_nce_backward_kernel",
}

SMALL_INFO_NCE = tuple(INFO_NCE.keys() - {"info_nce"})


def info_nce_step(
    local: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor | None,
    number: float,
    temperature: torch.Tensor | None,
    pair_reduction: str,
) -> None:
    """Forward and backward of local crops alone."""
    result = KERNELS.info_nce(
        None, local, positives, negatives, number, temperature, pair_reduction, "mean"
    )
    KERNELS.info_nce_backward(
        result.total, None, local, positives, temperature, result.pull, result.mean, number,
        False, True, temperature is not None, None if negatives is None else negatives.dtype,
    )  # fmt: skip


def info_nce_launch(case: Case, arch: int) -> Launch:
    """The launch of the kernel that the case names; memory is reserved, and never touched."""
    n, k = case.rows
    crops = k // n * 2 if case.batch else 1
    local = torch.empty(n // crops, crops, case.dim, dtype=case.queries or case.dtype)
    positives = torch.empty(n // crops, 2, case.dim, dtype=case.dtype)
    negatives = None if case.batch else torch.empty(k, case.dim, dtype=case.dtype)
    if case.transposed:
        negatives = torch.empty(case.dim, k, dtype=case.dtype).T
    temperature = torch.empty([]) if case.learned else None
    with recorded(arch) as launches:
        info_nce_step(local, positives, negatives, case.temperature, temperature, "sum")
    name = INFO_NCE[case.operation]
    (launch,) = (made for made in launches if made.kernel.__name__ == name)
    return launch


def compilations() -> dict[str, list[int]]:
    """Of each kernel of info_nce, over steps whose numbers change: batch, weights, τ, L, P; against
    a queue and within the batch."""
    counts: dict[str, list[int]] = {name: [] for name in INFO_NCE.values()}
    for queue in (torch.empty(65536, 128, dtype=torch.bfloat16), None):
        found: dict[str, set[str]] = {name: set() for name in counts}
        for images, locals_, positives, pair_reduction, tau in (
            (512, 2, 2, "sum", 0.07), (511, 2, 2, "mean", 0.1), (400, 3, 1, "sum", 0.2),
            (256, 16, 16, "mean", 1.0),
        ):  # fmt: skip
            local = torch.empty(images, locals_, 128, dtype=torch.bfloat16)
            constants = torch.empty(images, positives, 128, dtype=local.dtype)
            with recorded(90) as launches:
                info_nce_step(local, constants, queue, tau, None, pair_reduction)
            for launch in launches:
                source = specialise(launch)
                key = source.signature, source.constants, source.attrs, launch.options
                found[launch.kernel.__name__].add(repr(key))
        for name, keys in found.items():
            counts[name].append(len(keys))
    return counts


# The affinity's kernels, by their names without "affinity_"; the last three are second launches.
AFFINITY = (
    "hidden_moments", "hidden", "hidden_sums", "hidden_backward",
    "output_moments", "output", "output_sums", "output_backward", "unit", "unit_backward",
    "moments", "facts", "norm",
)  # fmt: skip


def affinity_launch(case: Case, arch: int) -> Launch:
    """The launch of the kernel that the case names; memory is reserved, never touched."""
    (images, crops), width = case.rows, case.dim
    pairs = crops * (crops - 1)
    a = torch.empty(images, crops, width, dtype=case.dtype)
    y = torch.empty(images * pairs, width, dtype=case.dtype)
    norm, to_a = torch.empty(4, width), torch.empty(a.shape)
    slope, grad = torch.empty(len(y)), torch.empty(images)
    vector, correction, batches = norm[0], norm[:2], torch.zeros((), dtype=torch.int64)
    after_norm = 1e-5, vector, slope[:1], pairs, 1  # arguments of the output layer: ε, w₃, b₃, ..
    with recorded(arch) as launches:
        if case.operation == "hidden_moments":
            KERNELS.hidden_moments(a, a, 1)
        elif case.operation == "hidden":
            KERNELS.hidden(a, a, norm, 1)
        elif case.operation == "hidden_sums":
            KERNELS.hidden_sums(y, a, a, norm, 1)
        elif case.operation == "hidden_backward":
            KERNELS.hidden_backward(to_a, to_a, a, a, norm, correction, 1)
        elif case.operation == "output_moments":
            KERNELS.output_moments(y)
        elif case.operation == "output":
            KERNELS.output(y, norm, vector, slope[:1], pairs, 1)
        elif case.operation == "output_sums":
            KERNELS.output_sums(y, norm, slope, grad, pairs)
        elif case.operation == "output_backward":
            KERNELS.output_backward(y, norm, vector, slope, grad, correction, pairs)
        elif case.operation == "moments":  # with all that becomes of them
            running = vector, vector, batches
            KERNELS.output_layer(y, vector, vector, *running, True, -1.0, *after_norm)
        elif case.operation == "norm":
            running = vector, vector, None
            KERNELS.output_layer(y, vector, vector, *running, False, 0.0, *after_norm)
        elif case.operation == "facts":
            KERNELS.output_gradient(y, norm, vector, slope, grad, True, True, pairs)
        elif case.operation == "unit":
            KERNELS.unit(torch.empty_like(a, dtype=FP32), case.dtype)
        else:
            KERNELS.unit_backward(a, a, torch.empty(images * crops, 2), FP32, False)
    name = f"{case.operation}_kernel"
    if not case.operation.startswith("unit"):
        name = f"affinity_{name}"
    (launch,) = (made for made in launches if made.kernel.__name__ == name)
    return launch


def launch_of(case: Case, arch: int, images: int = 64) -> Launch:
    """The one launch that the backend makes for the case: more would be a failure.

    Of the four of info_nce, the one that the operation names.
    """
    first, second = case.rows
    if case.operation in INFO_NCE:
        return info_nce_launch(case, arch)
    if case.operation in AFFINITY:
        return affinity_launch(case, arch)
    a = torch.zeros(images, first, case.dim, dtype=case.dtype)
    b = torch.zeros(images, second, case.dim, dtype=case.dtype) if second else None
    with recorded(arch) as launches:
        if case.operation == "cosine":
            features = None
            if case.simsiam and b is not None:
                features = torch.zeros(b.shape, dtype=case.features or case.dtype)
            KERNELS.cosine(
                a, b, torch.zeros_like(a) if case.simsiam else None, features,
                1e-4, None, True, "sum", "mean", True, True, features is not None,
            )  # fmt: skip
        elif case.operation == "similarity":
            KERNELS.similarity(a, b)
        elif case.operation == "similarity_backward":
            grad = torch.zeros(images, first, second or first, dtype=case.dtype)
            KERNELS.similarity_backward(grad, a, b, True, True)
        else:
            per_image = case.operation == "scale_rows"
            row_scale = torch.ones(images, first) if case.dtype == torch.float16 else None
            gradients = [a] if b is None else [a, b]
            scale_module.scale_(
                gradients, torch.ones([images] if per_image else []), [row_scale] * len(gradients)
            )
    (launch,) = launches
    return launch


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

# What the tests compile: for each way through tiles.py that users meet most, one case.
QUICK = (
    Case("cosine", BF16, (2, 8), 2048),  # the benchmark's main case
    Case("cosine", BF16, (2, 2), 2048, simsiam=True),  # the paper's
    Case("cosine", BF16, (2, 8), 256),
    Case("cosine", BF16, (2, 8), 2048, simsiam=True),  # 20 rows: V_PAD = 32, in blocks
    Case("cosine", BF16, (2, 62), 2048),  # V_PAD = 64
    Case("cosine", FP16, (2, 8), 2048),  # with row scales
    Case("cosine", FP32, (2, 8), 2048),
    Case("similarity", BF16, (10, 0), 2048),
    Case("similarity_backward", BF16, (10, 0), 2048),
    Case("scale", BF16, (2, 8), 2048),
    Case("info_nce", BF16, (4096, 65536), 128),  # the benchmark's main case
    Case("info_nce", BF16, (4096, 65536), 256),
    Case("info_nce", BF16, (16384, 16384), 256, batch=True),
    Case("info_nce", BF16, (4096, 65536), 128, temperature=0.01),  # with a running maximum
    Case("info_nce", BF16, (4096, 65536), 128, queries=FP32),
    Case("info_nce", BF16, (4096, 65536), 128, transposed=True),  # a queue kept as [D, K]
    Case("info_nce", BF16, (4096, 65536), 512),  # scores in chunks of D
    Case("info_nce", FP16, (4096, 65536), 128),
    Case("cosine", FP32, (2, 62), 2048),  # fp32 products in parts
    Case("similarity_backward", FP32, (64, 64), 2048),
    Case("info_nce", BF16, (4096, 65536), 64),
    Case("info_nce", BF16, (4096, 65536), 128, learned=True),
    Case("prologue", BF16, (512, 65536), 128),
    Case("prologue", BF16, (512, 65536), 128, queries=FP32),
    Case("prologue", BF16, (512, 65536), 128, transposed=True),
    Case("epilogue", BF16, (512, 65536), 128),
    Case("info_nce_backward", BF16, (512, 65536), 128),
    Case("info_nce_backward", FP32, (512, 65536), 2048, learned=True),
    *(Case(operation, BF16, (256, 8), 256) for operation in AFFINITY),
    *(Case(operation, FP32, (256, 8), 256) for operation in AFFINITY[:-3]),
    Case("hidden_sums", FP16, (256, 10), 256),  # 16 crops in a tile: the most registers
    *(Case(operation, FP32, (256, 2), 2048) for operation in ("unit", "unit_backward")),
)

# Compiled for every architecture.
MAIN = (
    QUICK[0],
    Case("cosine", FP32, (2, 8), 2048),
    Case("info_nce", BF16, (4096, 65536), 128),
    Case("info_nce", BF16, (512, 65536), 256),
    Case("info_nce", FP32, (4096, 65536), 128),
    *(Case(operation, BF16, (256, 8), 256) for operation in AFFINITY[:-3]),
)

# The tiles with most shared memory, and fp32 operands: for architectures that have less of it.
SHARED = (
    Case("cosine", BF16, (10, 90), 2048),
    Case("cosine", BF16, (2, 62), 2048),
    Case("cosine", FP32, (2, 62), 2048),
    Case("cosine", BF16, (2, 4), 2048, simsiam=True, features=FP32),
)

# By hand: every tile that tiles.py can choose, in every dtype.
FULL = (
    *QUICK,
    *MAIN[2:5],
    *(Case("cosine", BF16, (2, 8), d) for d in (16, 32, 64, 128, 512, 1024, 4096)),
    *(Case("cosine", BF16, (2, 20), d) for d in (16, 64, 128, 256, 512, 2048)),
    *(Case("cosine", BF16, (2, 62), d) for d in (16, 64, 128, 1024)),
    *(Case("cosine", BF16, (10, 90), d) for d in (16, 64, 2048)),
    *(Case("cosine", FP16, (2, 20), d) for d in (512, 2048)),
    *(Case("cosine", FP16, (2, 62), d) for d in (128, 1024, 2048)),
    Case("cosine", FP16, (10, 90), 2048),
    Case("cosine", FP16, (2, 8), 4096),
    *(Case("cosine", FP32, (2, 8), d) for d in (16, 32, 64, 128)),
    *(Case("cosine", FP32, (2, 20), d) for d in (16, 32, 2048)),
    Case("cosine", FP32, (10, 90), 2048),
    Case("cosine", BF16, (2, 2), 2048, simsiam=True, features=FP32),
    Case("cosine", BF16, (2, 8), 2048, simsiam=True, features=FP32),
    Case("cosine", BF16, (2, 62), 513),  # rows begin anywhere: scalar accesses
    Case("similarity", FP32, (10, 0), 2048),
    Case("similarity", BF16, (8, 8), 256),
    Case("similarity_backward", FP16, (8, 8), 2048),
    Case("similarity_backward", FP16, (64, 64), 2048),
    Case("similarity_backward", BF16, (64, 64), 2048),
    Case("similarity_backward", FP32, (8, 8), 2048),
    Case("scale", FP16, (2, 8), 2048),
    Case("scale_rows", FP32, (10, 0), 256),
    *(Case("info_nce", BF16, (64, 65536), d) for d in (16, 128, 256, 512)),
    *(Case("info_nce", BF16, (4096, 65536), d) for d in (16, 32, 64, 256, 2048)),
    *(Case("info_nce", BF16, (4096, 65536), d, queries=FP32) for d in (64, 256, 2048)),
    *(Case("info_nce", FP32, (4096, 65536), d) for d in (16, 32, 64, 256, 2048)),
    *(Case("info_nce", FP16, (4096, 65536), d, queries=FP32) for d in (128, 256)),
    *(Case("info_nce", FP16, (4096, 65536), d) for d in (256, 512)),
    Case("info_nce", FP32, (16384, 16384), 128, batch=True),
    Case("info_nce", FP32, (4096, 65536), 128, temperature=0.01),
    Case("info_nce", BF16, (4096, 65537), 100),  # scalar accesses
    *(
        Case(operation, dtype, (64, crops), width)
        for operation in AFFINITY[:-3]
        for dtype in (BF16, FP32)
        for crops, width in ((2, 64), (6, 300), (12, 256), (16, 256), (40, 2048))
    ),
)


def programs_at_once(launch: Launch, report: Report, arch: int) -> int:
    """How many programs a multiprocessor holds, by registers, shared memory and warps."""
    warps = launch.options["num_warps"]
    by_registers = 65536 // (warps * 32 * ((report.registers + 7) // 8 * 8))
    by_shared = BY_NUMBER[arch].shared_per_multiprocessor // (report.shared + 1024)
    return min(by_registers, by_shared, 64 // warps, 32)


def shared_estimate(launch: Launch, arch: int) -> int | None:
    """What plans are checked by; None of the small kernels of InfoNCE."""
    if launch.kernel.__name__ not in INFO_NCE.values():
        return of_launch(launch.arguments)
    if launch.kernel.__name__ != "info_nce_kernel":
        return None
    sizes = (launch.arguments[size] for size in ("BLOCK_N", "BLOCK_K", "BLOCK_D", "CHUNK_D"))
    shape = Shape(*sizes, launch.options["num_warps"], launch.arguments["STAGES"], 1)
    return shared_bytes(shape, launch.arguments["OPERANDS"], arch // 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the cases that tests compile")
    parser.add_argument("--main", action="store_true", help="one case in bf16, one in fp32")
    parser.add_argument("--shared", action="store_true", help="those with most shared memory")
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100])
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--compilations", action="store_true", help="counts, and nothing else")
    options = parser.parse_args()
    if options.compilations:
        print(json.dumps(compilations()))
        return
    if not options.json:
        print(f"torch {torch.__version__}, triton {triton.__version__}; accesses as bits×count")
        print(
            f"{'case':50}{'sm':>4} {'warps':>5} {'regs':>5} {'spills':>6} {'local':>5} "
            f"{'shared':>7} {'programs':>8} {'mma':>4}  loads | stores"
        )
    chosen = ("shared", SHARED), ("main", MAIN), ("quick", QUICK)
    cases = next((cases for name, cases in chosen if getattr(options, name)), FULL)
    for case in cases:
        for arch in options.arch:
            launch = launch_of(case, arch)
            report, compiled = compile_launch(launch, arch)
            programs = programs_at_once(launch, report, arch)
            if options.json:
                extra = {
                    "case": str(case),
                    "arch": arch,
                    "products": case.operation
                    not in ("scale", "scale_rows", *SMALL_INFO_NCE, *AFFINITY),
                    "shared_limit": BY_NUMBER[arch].shared_per_block,
                    "shared_estimate": shared_estimate(launch, arch),
                    "programs": programs,
                    "acquire_release": "atom.global.gpu.acq_rel" in compiled.asm["ptx"]
                    or "atom.acq_rel.gpu.global" in compiled.asm["ptx"],
                    "waits_in_place": waits_in_place(compiled.asm["ttgir"]),
                }
                print(json.dumps(report._asdict() | extra), flush=True)
                continue
            print(
                f"{case!s:50}{arch:4} {launch.options['num_warps']:5} {report.registers:5} "
                f"{report.spills:6} {report.local:5} {report.shared:7} {programs:8} "
                f"{report.mma:4}  {report.loads} | {report.stores}",
                flush=True,
            )


if __name__ == "__main__":
    main()
    sys.stdout.flush()
