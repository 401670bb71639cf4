"""Peak memory of one step, above what was allocated before it; and what is free for one."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .timing import Step

METHOD = {
    "cpu": "sum of the allocations and releases that torch.profiler records, at its highest",
    "cuda": "torch.cuda.max_memory_allocated above the allocation before the step",
}


def peak_bytes(step: Step, device: str) -> int:
    """The most memory that one step, already warm, holds at once; results and gradients count.

    On the CPU this sees what torch's allocator hands out, by torch.profiler: exact and repeatable
    where resident memory depends on what the C library keeps.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        return peak_of_trace(json.loads(trace.read_text())["traceEvents"])


def peak_of_trace(events: Iterable[dict[str, Any]]) -> int:
    """The highest running sum of the [memory] events of a trace, in the order of time."""
    changes = [
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    ]
    held = peak = 0
    for _, change in sorted(changes, key=lambda at: at[0]):
        held += change
        peak = max(peak, held)
    return peak


def free_bytes(device: str) -> int:
    """What a step could still allocate; on a CPU no more than what this container may have."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    available = re.search(r"^MemAvailable: *(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    if available is None:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        free = 1024 * int(available[1])
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    return min(free, int(limit)) if limit.isdigit() else free


def _text(path: str) -> str:
    """Of a file that not every system has."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
