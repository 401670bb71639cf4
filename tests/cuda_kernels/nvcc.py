"""What nvcc has made of the kernels, for tests: tools that look into the extension."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if str(BENCHMARKS) not in sys.path:  # their modules lie beside the package, not in it
    sys.path.insert(0, str(BENCHMARKS))

from hardware import static_report  # noqa: E402

DEFAULT_ARCHITECTURES = static_report.DEFAULT_ARCHITECTURES


def tool(name: str) -> str:
    """Its path; the test is skipped where there is none."""
    found = static_report.find_tool(name)
    if found is None:
        pytest.skip(f"needs {name}, from the CUDA toolkit or Triton's wheel")
    return found


def embedded(library: Path | str) -> tuple[set[str], set[str]]:
    """Architectures of the machine code and of the PTX inside a library."""
    cuobjdump = tool("cuobjdump")
    found = []
    for option, ending in (("--list-elf", "cubin"), ("--list-ptx", "ptx")):
        listed = subprocess.run(
            [cuobjdump, option, str(library)], capture_output=True, text=True, check=False
        )
        # It takes a library without kernels for a failure.
        assert listed.returncode == 0 or "not contain device code" in listed.stderr, listed.stderr
        found.append(set(re.findall(rf"\.(sm_\w+)\.{ending}$", listed.stdout, re.MULTILINE)))
    return found[0], found[1]
