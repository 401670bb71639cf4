"""Fresh memory is full of NaN in every test, and a backend that leaves it so is found."""

import pytest
import torch

from logo_kernels import info_nce
from logo_kernels.backends import BACKENDS, Backend, remembered
from support import ALL, leaves, queries_and_keys

WAYS = {
    "empty": lambda like: torch.empty(3, 5, dtype=like.dtype),
    "empty_like": torch.empty_like,
    "empty_strided": lambda like: torch.empty_strided((3, 5), (7, 1), dtype=like.dtype),
    "new_empty": lambda like: like.new_empty(3, 5),
    "new_empty_strided": lambda like: like.new_empty_strided((3, 5), (1, 3)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ALL)
def test_whatever_asks_for_it(way, dtype):
    assert WAYS[way](torch.zeros(3, 5, dtype=dtype)).isnan().all()
    # and where no number is NaN, it is the largest
    assert (WAYS[way](torch.zeros(3, 5, dtype=torch.int32)) == 2**31 - 1).all()


class Idle(Backend):
    """Serves everything, and writes nothing."""

    name = "idle"

    def missing(self):
        return None

    def refuses(self, problem):
        return None

    def info_nce(self, *arguments):
        pass

    info_nce_backward = info_nce


def test_a_backend_that_writes_nothing(monkeypatch):
    monkeypatch.setitem(BACKENDS, "idle", Idle())
    remembered.cache_clear()
    q, k, n = queries_and_keys(3, 2, 7, 5)
    (q,) = leaves(q)
    losses = info_nce(q, k, n, backend="idle")
    assert losses.isnan().all()
    losses.sum().backward()
    assert q.grad.isnan().all()
