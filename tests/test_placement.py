"""Everything is made where the crops are: no constant comes from the host, whatever torch's
defaults are."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from logo_kernels import NegativeQueue
from support import crops
from training_steps import STEPS, evaluate, step_of

SIZES = 6, 2, 4, 64  # B, G, L, D


class OnOneDevice(TorchDispatchMode):
    """Refuses operators that read or make a tensor anywhere but on `device`."""

    def __init__(self, device):
        super().__init__()
        self.device, self.seen = torch.device(device).type, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, made)):
            if isinstance(value, torch.Tensor):
                self.seen += 1
                assert value.device.type == self.device, f"{function} on {value.device}"
        return made


def inputs(device="cpu"):
    x, y, _, _ = crops(*SIZES)
    return x.to(device).requires_grad_(), y.to(device).requires_grad_()


@contextmanager
def other_defaults():
    """Of torch: they would take every tensor that is made without a word on its place or dtype."""
    dtype = torch.get_default_dtype()
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(dtype)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("which", STEPS)
def test_no_constant_from_the_host(which, create_graph):
    """On `meta`, where every tensor that the host made shows as one of another device."""
    step, problem = step_of(which, "auto", "meta"), inputs("meta")
    with OnOneDevice("meta") as mode:
        loss, *gradients = evaluate(step, *problem, create_graph)
    assert mode.seen > 10
    assert loss.shape == ()
    assert [g.shape for g in gradients] == [v.shape for v in problem]


@pytest.mark.parametrize("which", STEPS)
def test_defaults_of_torch_do_not_matter(backend, which):
    name, device = backend
    if device != "cpu":
        pytest.skip("a test of the Python around the kernels")
    torch.manual_seed(0)
    step, problem = step_of(which, name, device), inputs()
    torch.manual_seed(1)
    wanted = evaluate(step, *problem)
    torch.manual_seed(1)
    with other_defaults():
        found = evaluate(step, *problem)
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_the_queue_takes_keys_where_it_is():
    keys = torch.randn(3, 8)
    queue, elsewhere = NegativeQueue(8, 20, device="meta"), keys.to("meta")
    with OnOneDevice("meta") as mode:
        queue.enqueue(elsewhere)
    assert mode.seen > 10
    with other_defaults():
        queue = NegativeQueue(8, 20, device="cpu")
        queue.enqueue(keys)
    assert queue.keys.dtype == torch.float32
    torch.testing.assert_close(queue.keys[:3], torch.nn.functional.normalize(keys))
