"""Which tests speak for the kernels of a backend and an operation, and how many passed."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from .ledger import OPERATIONS
from .steps import Outcome

GPU_BACKENDS = ("triton", "cuda")

# Which tests are a backend's: those whose first parameter names it, as the shared fixture of
# tests/conftest.py has it, and the folders that are about it alone. "cuda" by itself would also be
# the emulated tests of the same kernels, "emulated-80", and those of the choice among backends,
# which run no kernel. What is compiled ahead of time is for GPUs that are not there.
SELECTED = {"triton": "([triton or triton_kernels) and not test_aot", "cuda": "[cuda"}
NO_KERNEL_RUNS = "test_backends"
# Without those of nvcc's figures, which are of the checkout, and have a step of their own.
EMULATED = "([emulated or emulation or cuda_kernels) and not test_static"
OF_THE_EMULATOR = ("cuda_kernels", "emulation")

Tests = dict[str, int]  # {"passed": n, "failed": n}


def count_tests(junit: Path, backend: str, run: Outcome) -> dict[str, Tests]:
    """Passed and failed tests of a backend by operation.

    A test that names no operation counts for all. So does the run itself, as a failed one, where
    it did not come to its end: what it did not reach has not passed.
    """
    counts = {operation: {"passed": 0, "failed": 0} for operation in OPERATIONS}
    complete = run.code in (0, 1) and junit.is_file()  # 1: some tests failed
    if not complete:
        for count in counts.values():
            count["failed"] += 1
    if not junit.is_file():
        return counts
    for case in ElementTree.parse(junit).iter("testcase"):
        module, name = case.get("classname", ""), case.get("name", "")
        owner = backend_of_test(module, name)
        if owner not in (backend, None):
            continue
        if case.find("failure") is not None or case.find("error") is not None:
            kind = "failed"
        elif case.find("skipped") is None and owner is not None:
            kind = "passed"
        else:
            continue
        for operation in operations_of_test(module, name):
            counts[operation][kind] += 1
    return counts


def operations_of_test(module: str, name: str) -> list[str]:
    """Whose kernels a test is about, by what its file, its name or its parameters say; else all."""
    said = f"{module} {name}"
    found = [
        operation
        for operation, beginnings in OPERATIONS.items()
        if re.search(rf"(?<![a-z])({'|'.join(beginnings)})", said)
    ]
    return found or list(OPERATIONS)


def backend_of_test(module: str, name: str) -> str | None:
    """Whose kernels a test runs, on hardware or "emulated"; None if the name does not tell."""
    path = module.split(".")
    first_parameter = re.match(r"[^\[]*\[(\w+)[-\]]", name)
    backend = first_parameter.group(1) if first_parameter else None
    if backend == "emulated" or any(folder in path for folder in OF_THE_EMULATOR):
        return "emulated"
    if "triton_kernels" in path:
        return "triton"
    return backend if backend in GPU_BACKENDS and NO_KERNEL_RUNS not in path else None
