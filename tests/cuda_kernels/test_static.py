"""The CUDA kernels as nvcc compiles them: registers, spills, instructions, blocks that fit."""

from __future__ import annotations

import json

import pytest

from cuda_kernels.nvcc import DEFAULT_ARCHITECTURES, static_report, tool
from logo_kernels.backends.extension import extension

# One worker of pytest-xdist makes the report and runs the tests of it.
pytestmark = pytest.mark.xdist_group("static")

COSINE = "_ZN4logo4cuda41_GLOBAL__N__a1fb1a30_9_cosine_cu_b0fa5f9913cosine_kernel"
BF16 = COSINE + "INS_4bf16EEEvNS1_15CosineArgumentsE"
FP32 = COSINE + "IfEEvNS1_15CosineArgumentsE"
BACKWARD = (
    "_ZN4logo4cuda46_GLOBAL__N__a994d0a6_13_similarity_cu_791145c9"
    "26similarity_backward_kernelINS_3f16EEEvNS1_19SimilarityArgumentsE"
)
SCALE = (
    "_ZN4logo4cuda39_GLOBAL__N__53d0b2c8_8_scale_cu_6b8a9f0312scale_kernelENS1_14ScaleArgumentsE"
)

USAGE = f"""

Resource usage:
 Common:
  GLOBAL:0
 Function {FP32}:
  REG:116 STACK:0 SHARED:5632 LOCAL:0 CONSTANT[0]:1112 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function {BF16}:
  REG:64 STACK:48 SHARED:0 LOCAL:16 CONSTANT[0]:1112 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

SASS = f"""\
\t.headerflags\t@"EF_CUDA_SM90"
//--------------------- .text.{BF16} --------------------------
\t.section\t.text.{BF16},"ax",@progbits
.text.{BF16}:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0020*/              @!P0 STL.64 [R1+0x8], R2 ;
        /*0030*/               @P1 LDL R2, [R1+0x8] ;
        /*0040*/                   STG.E.EF.128 desc[UR4][R2.64], R4 ;
        /*0050*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0060*/              @UP0 UBLKCP.S.G [UR20], [UR18], UR4 ;
        /*10070*/                  STS.128 [R2], R4 ;
//--------------------- .text.{FP32} --------------------------
.text.{FP32}:
        /*0000*/                   LDGSTS.E.BYPASS.128 [R33], desc[UR14][R28.64] ;
        /*0010*/                   LDG.E.128 R4, desc[UR14][R28.64] ;
"""


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        (FP32, ("cosine", "fp32")),
        (BF16, ("cosine", "bf16")),
        (BACKWARD, ("similarity_backward", "fp16")),
        (SCALE, ("scale", "any")),
    ],
)
def test_instantiations_are_named(symbol, name) -> None:
    assert static_report.identity(symbol) == name


def test_a_kernel_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no kernel of this project"):
        static_report.identity("_Z6kernelPf")


@pytest.mark.parametrize(("architecture", "shared"), [("sm_80", 5632), ("sm_90a", 4608)])
def test_registers_and_memory_are_found(architecture, shared) -> None:
    """Since sm_90 the system's KiB of a block is counted as its own, where it has any."""
    found = static_report.parse_usage(USAGE, architecture)
    clean = {"registers": 116, "static_shared": shared, "stack": 0, "local": 0}
    spilt = {"registers": 64, "static_shared": 0, "stack": 48, "local": 16}
    assert found == {("cosine", "fp32"): clean, ("cosine", "bf16"): spilt}


def test_a_list_without_registers_is_refused() -> None:
    with pytest.raises(ValueError, match=f"how many registers {FP32}"):
        static_report.parse_usage(USAGE.replace("REG:116", "some"), "sm_80")


def test_instructions_are_counted() -> None:
    found = static_report.parse_sass(SASS)
    assert found == {
        ("cosine", "bf16"): {
            "tensor_core": 1, "local_memory": 2, "stores_128": 1, "copies_16": 0, "copies_bulk": 1,
        },
        ("cosine", "fp32"): {
            "tensor_core": 0, "local_memory": 0, "stores_128": 0, "copies_16": 1, "copies_bulk": 0,
        },
    }  # fmt: skip


# Expected values of occupancy are from the toolkit's cuda_occupancy.h.
SM_80, SM_90A = static_report.ARCHITECTURES[:2]


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared_bytes", "blocks", "limited_by"),
    [
        (SM_90A, 32, 16, 0, 32, "blocks"),
        (SM_90A, 512, 32, 0, 4, "threads"),
        (SM_90A, 512, 33, 0, 3, "registers"),  # 40 are allocated
        (SM_90A, 96, 104, 0, 5, "registers"),  # 16 warps of 13 KiB of registers: 4 to a partition
        (SM_90A, 32, 16, 227 << 10, 1, "shared memory"),
        (SM_90A, 32, 16, (227 << 10) + 128, 0, "shared memory"),  # no block may have so much
        (SM_90A, 96, 32, 14528, 14, "shared memory"),  # in parcels of 128 bytes
        (SM_80, 256, 104, 90 << 10, 1, "shared memory"),
        (SM_80, 256, 104, 81 << 10, 2, "shared memory"),
        (SM_80, 256, 104, (81 << 10) + 1, 1, "shared memory"),  # a reserved KiB for each
    ],
)
def test_blocks_that_fit(architecture, threads, registers, shared_bytes, blocks, limited_by):
    allowed = static_report.blocks_by(architecture, threads, registers, shared_bytes)
    assert min(allowed.values()) == blocks
    assert allowed[limited_by] == blocks


def test_bytes_in_flight() -> None:
    """Ten rows of 2048 halves are 40 KiB."""
    working, best = static_report.bytes_in_flight(2, 3, 10, 2048, 2)
    assert (working, best) == (2 * 2 * 40960, 2 * 3 * 40960)


def test_littles_law() -> None:
    device = static_report.Device("made up", bandwidth=1e12, multiprocessors=100)
    assert device.bytes_in_flight() == pytest.approx(1e10 * static_report.LATENCY)


def test_rows_read_are_those_of_the_layout() -> None:
    assert static_report.Problem("cosine", (2, 8), 2048).rows_read() == 10
    assert static_report.Problem("cosine", (2, 8), 2048, simsiam=True).rows_read() == 20


@pytest.fixture(scope="module")
def report():
    if extension is None or extension.cuda.architectures != DEFAULT_ARCHITECTURES:
        pytest.skip("the installed extension was not built with CUDA for the default architectures")
    for name in ("cuobjdump", "nvdisasm"):
        tool(name)
    return static_report.report()


OF_ROWS = ("cosine", "similarity", "similarity_backward")


# Of the learned affinity: each in 16-byte vectors, and one number at a time.
OF_PAIRS = [
    f"affinity_{half}{suffix}"
    for half in ("hidden", "output")
    for suffix in ("", "_moments", "_sums", "_backward")
]
WRITES_PAIRS = (
    "affinity_hidden", "affinity_hidden_sums", "affinity_hidden_backward",
    "affinity_output_backward",
)  # fmt: skip


# InfoNCE's: words of four numbers or one, and rows that lanes hold or not.
OF_BACKWARD = [f"info_nce_backward<{word}, {held}>" for word in (1, 4) for held in (0, 1)]


def in_vectors(kernel: str, dtype: str) -> str:
    return f"{kernel}<{4 if dtype == 'fp32' else 8}>"


def is_attention(kernel: str) -> bool:
    """InfoNCE's pass over the negatives, in one of its forms."""
    return kernel.startswith("info_nce<")


@pytest.fixture(scope="module")
def kernels(report):
    # All of them are there: a loop over none would pass.
    names = {(k["kernel"], k["dtype"]) for k in report["kernels"]}
    helpers = ("info_nce_prologue", "info_nce_epilogue", *OF_BACKWARD)
    assert ("scale", "any") in names
    for dtype in static_report.DTYPES:
        assert {(kernel, dtype) for kernel in (*OF_ROWS, *helpers)} <= names
        assert any(is_attention(kernel) and of == dtype for kernel, of in names)
        assert {(in_vectors(kernel, dtype), dtype) for kernel in OF_PAIRS} <= names
        assert {(f"{kernel}<1>", dtype) for kernel in OF_PAIRS} <= names
    assert len(report["kernels"]) == len(names) * len(static_report.ARCHITECTURES)
    return report["kernels"]


def test_nothing_is_kept_in_local_memory(kernels) -> None:
    for kernel in kernels:
        kept = {k: kernel[k] for k in ("stack", "local", "local_memory")}
        assert not any(kept.values()), kernel


def test_static_shared_memory_fits_every_architecture(kernels) -> None:
    """What is not asked for at launch, by a plan, is bounded alike everywhere."""
    assert any(kernel["static_shared"] > 0 for kernel in kernels)
    for kernel in kernels:
        assert kernel["static_shared"] <= 48 << 10, kernel


def test_products_use_tensor_cores(kernels) -> None:
    """Of rows, where they are halves; InfoNCE's in every dtype: fp32 is split into halves."""
    for kernel in kernels:
        of_rows = kernel["kernel"] in OF_ROWS and kernel["dtype"] != "fp32"
        expected = of_rows or is_attention(kernel["kernel"])
        assert (kernel["tensor_core"] > 0) == expected, kernel


def test_rows_arrive_by_asynchronous_copies(kernels) -> None:
    for kernel in kernels:
        if kernel["kernel"] in OF_ROWS:
            engine = kernel["architecture"] != "sm_80"  # the copy engine came with sm_90
            assert kernel["copies_bulk" if engine else "copies_16"] > 0, kernel
        elif is_attention(kernel["kernel"]):
            assert kernel["copies_16"] > 0, kernel


def test_gradients_are_written_in_16_bytes(kernels) -> None:
    for kernel in kernels:
        of_pairs = [in_vectors(name, kernel["dtype"]) for name in WRITES_PAIRS]
        if kernel["kernel"] in ("cosine", "similarity_backward", "scale", *of_pairs):
            assert kernel["stores_128"] > 0, kernel


def test_every_problem_fits(report) -> None:
    expected = len(static_report.PROBLEMS) * len(static_report.ARCHITECTURES)
    assert len(report["problems"]) == expected * len(static_report.DTYPES)
    for row in report["problems"]:
        assert row["blocks"] >= 1, row


def test_main_case_leaves_room_for_two_blocks(report) -> None:
    """One computes while the other loads. (sm_80 has shared memory for one.)"""
    rows = [
        row
        for row in report["problems"]
        if row["problem"] == str(static_report.Problem("cosine", (2, 8), 2048))
        and row["dtype"] == "bf16"
        and row["architecture"] != "sm_80"
    ]
    assert len(rows) == 2
    for row in rows:
        assert row["blocks"] >= 2, row


def test_reads_in_flight_keep_dram_busy(report) -> None:
    """By Little's law, at the bandwidth and latency that the report assumes."""
    for row in report["problems"]:
        needed = max(row["bytes_in_flight_needed"].values())
        assert row["bytes_in_flight_working"] >= needed, row


def test_filed_report_is_current(report) -> None:
    filed = {path.name: path.read_text() for path in static_report.RESULTS.iterdir()}
    version = json.loads(filed["ptxas.json"])["nvcc"]
    if version != report["nvcc"]:
        pytest.skip(f"filed is what nvcc {version} makes, installed what {report['nvcc']} made")
    assert filed == static_report.written(report), (
        "run python benchmarks/static_report.py --write, against the package as it is now"
    )
