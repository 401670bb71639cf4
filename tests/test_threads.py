"""Losses of several Python threads at once: no number differs from those of one thread.

Launchers release the GIL, so the C++ code runs at once on every Python.
"""

import sys
import sysconfig
import threading

import pytest
import torch

from logo_kernels import LocalAffinity, NegativeQueue, block_cosine_similarity, logo_loss

THREADS, ROUNDS = 6, 10


def step(seed: int) -> list[torch.Tensor]:
    """Of sizes that differ from thread to thread: values and gradients of every operation."""
    generator = torch.Generator().manual_seed(seed)
    images, dim = 5 + seed, 24 + 8 * seed
    x, y = (torch.randn(images, n, dim, generator=generator).requires_grad_() for n in (2, 4))
    keys = torch.randn(40 + seed, dim, generator=generator)
    weights = torch.randn(dim // 2 * 4, 4 * dim, generator=generator)
    local = LocalAffinity(dim, (8, 8))
    with torch.no_grad():
        for parameter in local.parameters():
            parameter.copy_(weights.flatten()[: parameter.numel()].view_as(parameter) / 8)
    losses = [
        logo_loss(x, y, repulsion_weight=0.1),
        logo_loss(x, y, similarity="info_nce", negatives=keys),
        logo_loss(x, y, similarity="info_nce", negatives="batch"),
        logo_loss(x, y, affinity=local, repulsion_weight=0.1),
        block_cosine_similarity(x, y).square().sum(),
    ]
    torch.stack(losses).sum().backward()
    queue = NegativeQueue(dim, 16)
    queue.enqueue(y.detach())
    return [*losses, x.grad, y.grad, queue.keys, *(p.grad for p in local.parameters())]


def test_threads_do_not_disturb_each_other():
    want = [step(seed) for seed in range(THREADS)]
    together = threading.Barrier(THREADS)
    wrong: list[object] = []

    def work(seed: int) -> None:
        try:
            for _ in range(ROUNDS):
                together.wait(60)
                for got, one in zip(step(seed), want[seed], strict=True):
                    if not torch.equal(got, one):
                        wrong.append((seed, got, one))
        except Exception as error:
            together.abort()
            wrong.append((seed, error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python cannot run without a GIL"
)
def test_the_gil_stays_off():
    assert not sys._is_gil_enabled()
