"""The cosine loss on the CPU: alike for any number of threads, and without global crops."""

import pytest
import torch

from support import ALL, assert_repels, crops, run_cosine


def test_results_do_not_depend_on_threads_or_runs(cpu, threads):
    """Sums over images are formed in a fixed order."""
    x, y, _, _ = crops(300, 2, 4, 128)
    results = []
    for count in (1, 2, 3, 1):
        threads(count)
        results.append(run_cosine((cpu.name, "cpu"), x, y, None, None))
    for terms, grads in results[1:]:
        for a, b in zip([*terms, *grads], [*results[0][0], *results[0][1]], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("dim", [64, 37])  # rows in place, and in a panel
@pytest.mark.parametrize("dtype", ALL)
def test_local_crops_alone(cpu, dtype, dim, features):
    assert_repels(cpu, dtype, dim, features)
