"""Kernels compiled for GPUs that are not there: registers, spills, tensor cores, wide accesses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

AOT = Path(__file__).parent / "aot.py"
ROOT = AOT.parents[2]


def compiled(*arguments: str) -> list[dict]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(AOT), "--json", *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def reports() -> list[dict]:
    """All quick cases for sm_90; the main ones for sm_80 and sm_100, the largest for sm_89, 120."""
    found = compiled("--quick", "--arch", "90")
    found += compiled("--main", "--arch", "80", "100")
    return found + compiled("--shared", "--arch", "89", "120")


# Bytes that ptxas of one version or another puts aside, and by how many instructions: a few words,
# to hold one more program; and what fp32 products of many rows take, with operands in two parts.
SPILLED = {
    "hidden_sums fp16 256+10 D=256": (8, 2),
    "info_nce fp32 4096+65536 D=128": (8, 5),
    "similarity_backward fp32 64+64 D=2048": (224, 256),
    "cosine fp32 2+62 D=2048 sm_89": (16, 4),
    "cosine fp32 2+62 D=2048 sm_120": (128, 56),
}


def test_nothing_spills(reports) -> None:
    for report in reports:
        case = report["case"]
        there = f"{case} sm_{report['arch']}"
        local, instructions = SPILLED.get(there, SPILLED.get(case, (0, 0)))
        assert report["local"] <= local, report
        assert report["spills"] <= instructions, report


def test_shared_memory_fits(reports) -> None:
    for report in reports:
        assert report["shared"] <= report["shared_limit"], report


def test_shared_memory_is_what_plans_are_checked_by(reports) -> None:
    """At least what the compiler takes, and not so much more that plans would be wasteful."""
    found = [report for report in reports if report["shared_estimate"] is not None]
    assert {report["arch"] for report in found} >= {80, 89, 90, 100, 120}
    for report in found:
        assert report["shared"] <= report["shared_estimate"], report
        if report["products"]:
            assert report["shared_estimate"] <= 3 * report["shared"], report
    flagship = [r for r in found if r["case"] == "info_nce bf16 4096+65536 D=128"]
    assert {report["arch"] for report in flagship} >= {80, 90, 100}
    for report in flagship:
        assert report["shared_estimate"] <= 1.2 * report["shared"], report


def test_products_use_tensor_cores_where_meant(reports) -> None:
    """In fp32 as well, in parts of tf32."""
    for report in reports:
        assert (report["mma"] > 0) == report["products"], report


def test_sums_of_a_block_begin_at_zero(reports) -> None:
    """Tensor cores cut off what they add; Triton makes a product and a sum one product again."""
    found = [
        report
        for report in reports
        if report["case"].startswith(("cosine", "similarity")) and report["arch"] != 100
    ]
    assert found
    for report in found:
        assert report["carried"] == 0, report


def test_wgmma_is_asynchronous(reports) -> None:
    """Short of registers, ptxas lets each wgmma wait for the one before, and says so nowhere."""
    found = [r for r in reports if r["arch"] == 90 and r["wgmma_groups"]]
    assert found
    for report in found:
        assert 2 * report["wgmma_groups"] <= report["mma"], report


# They write a number for each row, or partial sums.
NARROW_STORES = (
    "similarity", "hidden_moments", "output_moments", "moments", "output",
    "output_sums", "facts",
)  # fmt: skip


def test_rows_are_read_and_written_in_16_bytes(reports) -> None:
    """All cases have aligned rows: most accesses, those of rows, are of 128 bits."""
    for report in reports:
        assert "128×" in report["loads"], report
        if report["case"].split()[0] not in NARROW_STORES:
            assert "128×" in report["stores"], report


def test_the_prologue_reads_nothing_but_16_bytes(reports) -> None:
    """Queries, positives and negatives, these along D or along K."""
    found = [report for report in reports if report["case"].startswith("prologue")]
    assert len(found) == 3
    for report in found:
        assert re.fullmatch(r"128×\d+", report["loads"]), report


def test_rows_of_pairs_are_all_read_in_16_bytes(reports) -> None:
    """What is left over is vectors of H numbers, and a number for each row."""
    wide = {
        "hidden_sums": 8, "output_moments": 4, "output": 8, "output_sums": 4, "output_backward": 8,
    }  # fmt: skip
    for report in reports:
        operation, _, *shape = report["case"].split()
        if operation in wide and shape == ["256+8", "D=256"]:
            assert int(re.match(r"128×(\d+)", report["loads"])[1]) >= wide[operation], report


def test_main_case_leaves_room_for_four_programs(reports) -> None:
    """Some wait for memory while others compute. (sm_80 has shared memory for three.)"""
    for report in reports:
        if "2+8 D=2048" in report["case"] and "cosine" in report["case"]:
            assert report["programs"] >= (4 if report["arch"] > 80 else 3), report


def test_sums_over_programs_are_ordered(reports) -> None:
    """What programs have stored is seen by the last of them."""
    summing = r"cosine|epilogue|info_nce_backward.* learned"
    found = [report for report in reports if re.match(summing, report["case"])]
    assert {report["case"].split()[0] for report in found} == {
        "cosine", "epilogue", "info_nce_backward"
    }  # fmt: skip
    for report in found:
        assert report["acquire_release"], report


def test_pulls_are_stored_when_all_have_read_cosines(reports) -> None:
    """In place, from a tile that several warps hold, of which one stores."""
    found = [report for report in reports if report["case"].startswith("epilogue")]
    assert found
    for report in found:
        assert report["waits_in_place"], report


def test_numbers_that_change_compile_nothing() -> None:
    """Batch, temperature, weights, crops and positives of InfoNCE, step by step."""
    (counts,) = compiled("--compilations")
    kernels = (
        "info_nce_prologue_kernel",
        "info_nce_kernel",
        "info_nce_epilogue_kernel",
        "info_nce_backward_kernel",
    )
    assert counts == {kernel: [1, 1] for kernel in kernels}
