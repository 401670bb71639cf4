"""The cosine loss on the CPU: what several threads have to agree on."""

import torch

from support import crops, run_cosine


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
