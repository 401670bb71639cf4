"""The learned affinity on the CPU: threads, and arrays that no cache holds."""

import pytest
import torch

from affinity_inputs import CALLS, inputs, results
from affinity_oracle import Definition
from support import EPS, error


@pytest.mark.parametrize("shape", [(97, 4, 80, 3), (4099, 2, 17, 1)])
def test_the_same_for_any_number_of_threads(cpu, threads, shape):
    v = inputs(shape, torch.float32)
    runs = []
    for count in (1, 2, 3):
        threads(count)
        runs.append([results(call, cpu.pair_stage, v) for call in CALLS])
    for other in runs[1:]:
        for made, again in zip(runs[0], other, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(made, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arrays_larger_than_the_caches(cpu, dtype):
    """These are written past the caches; a row must still be where it belongs."""
    v = inputs((150, 8, 1024 if dtype == torch.float32 else 2048, 1), dtype)
    for call in ("hidden", "output_backward"):
        (got,) = results(call, cpu.pair_stage, v)
        (want,) = results(call, Definition(torch.float32), v)
        assert error(got, want) <= EPS[dtype] * float(want.abs().max())
