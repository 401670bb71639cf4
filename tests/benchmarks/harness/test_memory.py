"""Peak memory: of a made trace, and of steps whose allocations are known."""

import pytest
import torch

from harness import memory


def event(at, change):
    return {"name": "[memory]", "ts": at, "args": {"Bytes": change}}


def test_peak_is_the_highest_running_sum():
    trace = [event(3, -40), event(1, 100), event(2, 50), event(4, 20), {"name": "aten::add"}]
    assert memory.peak_of_trace(trace) == 150


def test_memory_released_before_does_not_count():
    assert memory.peak_of_trace([event(1, -100), event(2, 60)]) == 0


def test_two_tensors_at_once():
    def step():
        first = torch.empty(1 << 20, dtype=torch.uint8)
        second = torch.empty(1 << 20, dtype=torch.uint8)
        del first, second
        return torch.empty(1 << 19, dtype=torch.uint8)

    assert memory.peak_bytes(step, "cpu") == 2 << 20


@pytest.mark.parametrize(
    ("limit", "free"), [("", 3000 * 1024), ("max\n", 3000 * 1024), ("2048\n", 2048)]
)
def test_free_memory_of_a_container(monkeypatch, limit, free):
    files = {
        "/proc/meminfo": "MemTotal:  9000 kB\nMemAvailable:   3000 kB\n",
        "/sys/fs/cgroup/memory.max": limit,
    }
    monkeypatch.setattr(memory, "_text", files.__getitem__)
    assert memory.free_bytes("cpu") == free


def test_free_memory_of_a_gpu_counts_what_torch_holds_unused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 30)
    assert memory.free_bytes("cuda") == 140


def test_free_memory_where_linux_does_not_tell(monkeypatch):
    monkeypatch.setattr(memory, "_text", lambda path: "")
    assert memory.free_bytes("cpu") > 1 << 20
