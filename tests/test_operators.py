"""Operators made from records: their schema, and when they are called past the dispatcher."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from logo_kernels import operators
from logo_kernels.operators import Operator, Written


class Call(NamedTuple):
    x: Tensor
    other: Tensor | None
    count: Written
    factor: float
    wanted: bool
    dtype: torch.dtype

    def key(self):
        return "test", self.x.device, (self.x.dtype,), 0, 1

    def written(self):
        return [] if self.count is None else [self.count]


class Result(NamedTuple):
    scaled: Tensor
    absent: Tensor | None

    @classmethod
    def empty(cls, call):
        return cls(torch.empty_like(call.x), call.x.new_empty(2) if call.wanted else None)


class GradientCall(NamedTuple):
    upstream: Tensor

    def key(self):
        return "test", self.upstream.device, (self.upstream.dtype,), 0, 1


class Gradient(NamedTuple):
    grad: Tensor

    @classmethod
    def empty(cls, call):
        return cls(torch.empty_like(call.upstream))


BACKWARD = Operator("test_scale_backward", GradientCall, Gradient)
SCALE = Operator("test_scale", Call, Result)


@pytest.fixture(autouse=True)
def seen(monkeypatch):
    """A backend that doubles, and notes whether it was called past the dispatcher."""
    seen = []

    def scale(call, result):
        seen.append(type(call.x))
        result.scaled.copy_(call.factor * call.x.detach())
        if call.count is not None:
            call.count.numpy()[...] += 1  # as a kernel does, unseen by autograd
        if result.absent is not None:
            result.absent.fill_(3)

    def scale_backward(call, result):
        result.grad.copy_(2 * call.upstream)

    backend = SimpleNamespace(test_scale=scale, test_scale_backward=scale_backward)
    monkeypatch.setattr(operators, "backend_for", lambda *_: backend)
    return seen


@pytest.fixture
def dispatched(monkeypatch):
    """Whether the registered operator was called."""
    calls = []
    registered = SCALE.registered
    monkeypatch.setattr(SCALE, "registered", lambda *given: calls.append(1) or registered(*given))
    return calls


def call(x=None, **options):
    given = {"other": None, "count": None, "factor": 2.0, "wanted": False, "dtype": torch.float32}
    return Call(torch.ones(3) if x is None else x, **(given | options))


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


class Wrapped(torch.Tensor):
    pass


def test_schema_follows_from_the_fields():
    assert str(SCALE.registered._schema) == (
        "logo_kernels::test_scale(Tensor x, Tensor? other, Tensor(count!)? count, float factor, "
        "bool wanted, ScalarType dtype, str backend) -> (Tensor scaled, Tensor absent)"
    )


@pytest.mark.parametrize("x", [torch.ones(3), torch.nn.Parameter(torch.ones(3))])
def test_fills_at_once(dispatched, x):
    result = SCALE(call(x), "auto")
    assert not dispatched
    assert result.scaled.tolist() == [2, 2, 2]
    assert result.absent is None


WATCHERS = {
    "dispatch mode": Mode,
    "function mode": lambda: torch.device("cpu"),
    "profiler of autograd": lambda: torch.autograd.profiler.profile(use_cpu=True),
    "profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
}


@pytest.mark.parametrize("watcher", WATCHERS.values(), ids=WATCHERS)
def test_dispatched_under(dispatched, watcher):
    with watcher():
        result = SCALE(call(), "auto")
    assert len(dispatched) == 1
    assert result.scaled.tolist() == [2, 2, 2]
    assert result.absent is None
    SCALE(call(), "auto")
    assert len(dispatched) == 1


@pytest.mark.parametrize("field", ["x", "other"])
def test_dispatched_for_a_subclass(dispatched, field):
    wrapped = torch.ones(3).as_subclass(Wrapped)
    SCALE(call(**{field: wrapped}), "auto")
    assert dispatched


def test_dispatched_for_meta(dispatched, seen):
    result = SCALE(call(torch.ones(3, device="meta"), wanted=True), "auto")
    assert dispatched
    assert not seen
    assert [one.shape for one in result] == [(3,), (2,)]


def test_dispatched_while_traced():
    traced = torch.jit.trace(
        lambda x: SCALE(call(x), "auto").scaled, torch.ones(3), check_trace=False
    )
    assert traced(torch.tensor([1.0, 3.0, 5.0])).tolist() == [2, 6, 10]


def test_dispatched_in_a_compiled_graph():
    compiled = torch.compile(
        lambda x: SCALE(call(x, wanted=True), "auto"), fullgraph=True, backend="aot_eager"
    )
    result = compiled(torch.tensor([1.0, 3.0]))
    assert result.scaled.tolist() == [2, 6]
    assert result.absent.tolist() == [3, 3]
    torch._dynamo.reset()


def test_batched_gradients():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, upstream):
            return BACKWARD(GradientCall(upstream), "auto").grad

    x = torch.ones(3, requires_grad=True)
    upstream = torch.arange(6.0).view(2, 3)
    (found,) = torch.autograd.grad(Double.apply(x), x, upstream, is_grads_batched=True)
    assert torch.equal(found, 2 * upstream)


@pytest.mark.parametrize("watcher", [None, Mode])
def test_a_constant_gets_no_gradient(watcher):
    x = torch.ones(3, requires_grad=True)
    with watcher() if watcher else torch.enable_grad():
        assert not SCALE(call(x), "auto").scaled.requires_grad


@pytest.mark.parametrize("watcher", [None, Mode])
def test_autograd_knows_what_was_written(watcher):
    count = torch.zeros(())
    before = count._version
    with watcher() if watcher else torch.enable_grad():
        SCALE(call(count=count), "auto")
    assert count.item() == 1
    assert count._version > before
