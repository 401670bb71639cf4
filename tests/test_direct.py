"""Operators are called past the dispatcher only where nothing would miss them there."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from logo_kernels.direct import direct


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


class Wrapped(torch.Tensor):
    pass


@pytest.fixture
def call():
    return direct(lambda *_: "dispatched", lambda *_: "run")


ARGUMENTS = (torch.ones(2), torch.nn.Parameter(torch.ones(2)), None, True, 1, 0.5, "auto")


def test_runs_at_once(call):
    assert call(*ARGUMENTS, torch.float32) == "run"


@pytest.mark.parametrize(
    "watcher",
    [
        Mode,
        lambda: torch.device("cpu"),
        lambda: torch.autograd.profiler.profile(use_cpu=True),
        lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
    ],
    ids=["dispatch mode", "function mode", "profiler of autograd", "profiler"],
)
def test_dispatched_under(call, watcher):
    with watcher():
        assert call(*ARGUMENTS) == "dispatched"
    assert call(*ARGUMENTS) == "run"


def test_dispatched_for_a_subclass(call):
    wrapped = torch.ones(2).as_subclass(Wrapped)
    assert call(torch.ones(2), wrapped) == "dispatched"


def test_dispatched_while_traced():
    add = direct(lambda v: v + 1, lambda v: v.detach() * 0)
    traced = torch.jit.trace(lambda v: add(v), torch.ones(2), check_trace=False)
    assert traced(torch.tensor([1.0, 3.0])).tolist() == [2.0, 4.0]


def test_dispatched_in_a_compiled_graph():
    add = direct(lambda v: v + 1, lambda v: v * 0)
    compiled = torch.compile(lambda v: add(v), fullgraph=True, backend="eager")
    assert compiled(torch.tensor([1.0, 3.0])).tolist() == [2.0, 4.0]
    torch._dynamo.reset()
