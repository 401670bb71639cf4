"""Peak memory: of a made trace, and of steps whose allocations are known."""

import torch

import memory


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
