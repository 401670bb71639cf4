"""What a figure depends on: processor or GPU, driver, clocks, threads and versions."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

GPU_FIELDS = (
    "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
    "temperature.gpu", "power.draw",
)  # fmt: skip


def describe(device: str) -> dict[str, Any]:
    """The facts that are recorded beside every set of figures; nothing that names the host."""
    facts: dict[str, Any] = {
        "device": device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = None
    if device == "cuda":
        facts["cuda"] = torch.version.cuda
        facts |= gpu_state()
    return facts


def device_name(device: str) -> str:
    """Such as "NVIDIA H200", or "AMD EPYC, 2 threads, AVX512"."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    simd = torch.backends.cpu.get_cpu_capability()
    return f"{processor()}, {torch.get_num_threads()} threads, {simd}"


def processor() -> str:
    """The processor's name as the kernel gives it, without trade marks."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = found.group(1) if found else platform.processor() or platform.machine()
    return re.sub(r"\((R|TM)\)|@.*|\bCPU\b|\bProcessor\b", "", name).strip()


def folder_name(device_name: str) -> str:
    """Where results of this device lie below benchmarks/results."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def gpu_state() -> dict[str, str]:
    """Driver and clocks as nvidia-smi tells them; empty where it does not."""
    if shutil.which("nvidia-smi") is None:
        return {}
    answer = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader", "--id=0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    values = answer.stdout.strip().split(", ")
    if answer.returncode != 0 or len(values) != len(GPU_FIELDS):
        return {}
    return dict(zip(GPU_FIELDS, values, strict=True))
