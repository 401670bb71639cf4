"""No kernel touches a byte beside its tensors: AddressSanitizer watches, arrays fit exactly."""

import re
import subprocess
from pathlib import Path

from emulation.build import build

ROOT = Path(__file__).resolve().parents[2]


def test_every_launcher_is_launched():
    """Those that operations.h declares, by any list or by themselves."""
    declared = (ROOT / "csrc/include/logo/operations.h").read_text()
    launchers = re.findall(r"(?:LAUNCHER|COMPOSITE)\((\w+), \w+Problem", declared)
    launchers += re.findall(r"^Status (\w+)\(const \w+Problem&", declared, re.MULTILINE)
    assert {"cosine", "unit_backward", "affinity_output_gradient", "scale"} <= set(launchers)
    program = (ROOT / "tests/cuda_kernels/bounds.cpp").read_text()
    assert set(re.findall(r"\bcuda::(\w+)", program)) >= set(launchers)


def test_nothing_outside_is_touched():
    done = subprocess.run([build("bounds")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "188 problems within bounds" in done.stdout
