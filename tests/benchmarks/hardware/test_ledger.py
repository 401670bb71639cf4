"""The ledger: which kernels count, when they are verified, and what a ledger may not claim."""

import itertools
import json
import re
import warnings

import pytest

from benchmarks.made import CUDA_KERNEL, KERNEL
from hardware import counts, ledger
from hardware.ledger import CHANGED, NEVER, VERIFIED
from logo_kernels import verify


def write_ledger(tree, kernel=KERNEL, **changes):
    """A ledger in which a kernel passed as it is; `changes` go to its entry."""
    entry = {
        "sha256": ledger.source_hash(ledger.kernels(tree)[kernel]),
        "tests": {"passed": 3, "failed": 0},
        "sanitizer": {"memcheck": "passed", "racecheck": "not available"},
        "benchmarks": {"case": {"seconds": 1e-5}},
    } | changes
    written = {
        "device": "NVIDIA H200", "driver": "580", "clocks": {"clocks.sm": "1980 MHz"},
        "versions": {"torch": "2.11"}, "date": "2026-11-22T00:00:00+00:00",
        "kernels": {kernel: entry},
    }  # fmt: skip
    path = tree / "benchmarks/results/nvidia-h200/ledger.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written))
    return written, path


def status_of(tree, kernel=KERNEL):
    return {line.kernel: line.status for line in ledger.status(tree)}[kernel]


def test_kernels_are_the_files_that_launch_them(tree):
    found = ledger.kernels(tree)
    assert set(found) == {KERNEL, CUDA_KERNEL, "csrc/cuda/scale.cu"}
    assert [path.name for path in found[KERNEL]] == ["cosine.py", "rows.py", "tiles.py"]


def test_a_kernel_may_be_launched_from_beside_it(tree):
    """It belongs to the module that launches it, and so does all that this one is made of."""
    folder = tree / "logo_kernels/backends/triton"
    (folder / "walk.py").write_text(
        "import triton\n\n\n@triton.jit\ndef walk_kernel(p):\n    return p\n"
    )
    (folder / "host.py").write_text(
        "from .walk import walk_kernel\n\n\ndef run(x):\n    walk_kernel[(1,)](x)\n"
    )
    found = ledger.kernels(tree)
    host = KERNEL.replace("cosine", "host")
    assert [path.name for path in found[host]] == ["host.py", "walk.py"]
    assert KERNEL.replace("cosine", "walk") not in found


def test_imports_are_followed_between_folders_of_a_backend(tree):
    """And no further: what is beyond it compiles to nothing."""
    folder = tree / "logo_kernels/backends/triton/attention"
    folder.mkdir()
    (folder / "info_nce.py").write_text(
        "from ...protocol import Call\nfrom .. import tiles\nfrom . import walk\n\n\n"
        "def run(x):\n    walk.walk(x)\n    info_nce_kernel[(1,)](x)\n"
    )
    (folder / "walk.py").write_text("from ..rows import load\n")
    (tree / "logo_kernels/protocol.py").touch()
    (tree / "logo_kernels/backends/protocol.py").touch()
    files = ledger.kernels(tree)["logo_kernels/backends/triton/attention/info_nce.py"]
    assert [path.name for path in files] == ["info_nce.py", "tiles.py", "walk.py", "rows.py"]


def test_a_cuda_kernel_is_compiled_from_what_it_includes(tree):
    found = ledger.kernels(tree)
    names = [path.relative_to(tree).as_posix() for path in found[CUDA_KERNEL]]
    assert names == [
        CUDA_KERNEL, "csrc/cuda/copy.cuh", "csrc/cuda/plan.h", "csrc/include/logo/math.h"
    ]  # fmt: skip
    assert [path.name for path in found["csrc/cuda/scale.cu"]] == ["scale.cu", "scale.cuh"]


def test_the_projects_own_cuda_kernels():
    """Every header that the project's kernels include is one of the project's, and is found."""
    found = ledger.kernels()
    cuda = [kernel for kernel in found if ledger.backend_of(kernel) == "cuda"]
    names = ("cosine", "info_nce", "scale", "similarity", "unit")
    assert set(cuda) >= {f"csrc/cuda/{name}.cu" for name in names}
    assert sum("hidden" in kernel or "output" in kernel for kernel in cuda) == 2
    for kernel in cuda:
        headers = {path.name for path in found[kernel][1:]}
        included = {
            name.rpartition("/")[2]
            for path in found[kernel]
            for name in re.findall(r'#include "(.+)"', path.read_text())
        }
        assert headers == included
        assert {"device.h", "operations.h", "dtypes.h"} <= headers
    assert "layout.h" not in {path.name for path in found["csrc/cuda/scale.cu"]}


@pytest.mark.parametrize(
    ("operation", "backend", "scaled_by", "kernels"),
    [
        ("cosine", "triton", None, [KERNEL]),  # it has no scale.py here
        ("cosine", "triton", "cuda", [KERNEL, "csrc/cuda/scale.cu"]),
        ("cosine", "cuda", None, [CUDA_KERNEL, "csrc/cuda/scale.cu"]),
        ("cosine", "cuda", "reference", [CUDA_KERNEL]),
        ("cosine", "cpu", "cpu", []),
        ("info_nce", "cuda", None, ["csrc/cuda/info_nce.cu", "csrc/cuda/info_nce_before.cu"]),
        ("affinity", "cuda", None, ["csrc/cuda/affinity_hidden.cu", "csrc/cuda/unit.cu"]),
        ("similarity", "cuda", None, []),
        ("similarity", "reference", None, []),
    ],
)
def test_kernels_behind_an_operation(tree, operation, backend, scaled_by, kernels):
    """Of new files too, by their names."""
    for name in ("info_nce_before", "info_nce", "unit", "affinity_hidden"):
        (tree / f"csrc/cuda/{name}.cu").write_text("__global__ void kernel() {}\n")
    assert ledger.kernels_of(operation, backend, tree, scaled_by) == kernels


def test_every_kernel_is_of_one_operation():
    """As its file is named; and each backend has some of each operation."""
    found = {
        (ledger.backend_of(kernel), ledger.operation_of(kernel)) for kernel in ledger.kernels()
    }
    assert found == set(itertools.product(counts.GPU_BACKENDS, ledger.OPERATIONS))


@pytest.mark.parametrize("name", ["norms", "my_cosine"])
def test_a_kernel_of_no_operation_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}.cu is of no operation"):
        ledger.operation_of(f"csrc/cuda/{name}.cu")


def test_operations_are_those_that_users_verify():
    assert list(ledger.OPERATIONS) == list(verify.OPERATIONS)


def test_verified_while_the_source_is_what_passed(tree):
    write_ledger(tree)
    assert status_of(tree) == VERIFIED
    assert ledger.is_verified(KERNEL, "NVIDIA H200", tree)
    assert not ledger.is_verified(KERNEL, "NVIDIA A100", tree)
    assert status_of(tree, CUDA_KERNEL) == NEVER
    assert ledger.inconsistencies(tree) == []


@pytest.mark.parametrize("changed", ["cosine.py", "rows.py", "tiles.py"])
def test_a_change_anywhere_in_its_source_shows(tree, changed):
    write_ledger(tree)
    path = tree / "logo_kernels/backends/triton" / changed
    path.write_text(path.read_text() + "# changed\n")
    assert status_of(tree) == CHANGED
    assert not ledger.is_verified(KERNEL, "NVIDIA H200", tree)
    assert ledger.inconsistencies(tree) == []  # a change is news, not an error


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ("csrc/cuda/cosine.cu", CHANGED),
        ("csrc/cuda/copy.cuh", CHANGED),
        ("csrc/cuda/plan.h", CHANGED),
        ("csrc/include/logo/math.h", CHANGED),
        ("csrc/cuda/scale.cu", VERIFIED),
        ("csrc/cuda/scale.cuh", VERIFIED),
        ("csrc/include/logo/unused.h", VERIFIED),
    ],
)
def test_a_change_of_a_header_shows_where_it_is_included(tree, changed, status):
    write_ledger(tree, CUDA_KERNEL)
    assert status_of(tree, CUDA_KERNEL) == VERIFIED
    path = tree / changed
    path.write_text(path.read_text() + "// changed\n")
    assert status_of(tree, CUDA_KERNEL) == status
    assert ledger.is_verified(CUDA_KERNEL, "NVIDIA H200", tree) == (status == VERIFIED)


def test_a_change_elsewhere_does_not(tree):
    write_ledger(tree)
    (tree / "logo_kernels/backends/triton/environment.py").write_text("import sys\n")
    assert status_of(tree) == VERIFIED


@pytest.mark.parametrize(
    "changes",
    [
        {"tests": {"passed": 3, "failed": 1}},
        {"tests": {"passed": 0, "failed": 0}},
        {"sanitizer": {"memcheck": "failed"}},
        {"sanitizer": {"plain": "out of time"}},
        {"sanitizer": {"plain": "not available"}},
    ],
)
def test_not_verified_unless_it_passed(tree, changes):
    write_ledger(tree, **changes)
    assert status_of(tree) == NEVER
    assert ["benchmark figures without" in line for line in ledger.inconsistencies(tree)] == [True]


@pytest.mark.parametrize("verdict", ["out of time", "lost track of a launch", "came to no end"])
def test_a_tool_that_did_not_finish_has_found_nothing(tree, verdict):
    write_ledger(tree, sanitizer={"plain": "passed", "racecheck": verdict})
    assert status_of(tree) == VERIFIED


def test_claims_for_files_that_do_not_exist(tree):
    write_ledger(tree)
    (tree / KERNEL).unlink()
    assert ["no such file" in line for line in ledger.inconsistencies(tree)] == [True]


@pytest.mark.parametrize("sha256", ["", "0" * 63, "G" * 64, None])
def test_malformed_hash(tree, sha256):
    write_ledger(tree, sha256=sha256)
    assert ["malformed" in line for line in ledger.inconsistencies(tree)] == [True]


@pytest.mark.parametrize("missing", ["device", "driver", "clocks", "versions", "date"])
def test_facts_of_the_machine_are_required(tree, missing):
    written, path = write_ledger(tree)
    del written[missing]
    path.write_text(json.dumps(written))
    assert [f"no {missing}" in line for line in ledger.inconsistencies(tree)] == [True]


def test_the_projects_own_ledger_is_consistent():
    assert ledger.inconsistencies() == []


def test_what_has_to_run_on_hardware_again():
    """Reports, does not fail: a kernel may be changed where there is no GPU."""
    pending = [line for line in ledger.status() if line.status != VERIFIED]
    if pending:
        listed = "\n".join(f"  {line.kernel}: {line.status}" for line in pending)
        warnings.warn(f"not verified on hardware as they are now:\n{listed}", stacklevel=1)
