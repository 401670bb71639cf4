"""All of torch's ways to differentiate: each gives the right number, or an error that says why."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.autograd.functional as functional
from torch.utils.checkpoint import checkpoint

from logo_kernels import LocalAffinity, NegativeQueue, info_nce, logo_loss
from public_calls import BACKENDS, EACH, NAMES, affinity_of, alike, calls
from support import error

REFUSED = "can be differentiated once|inside a transform of torch.func|no forward-mode derivative"


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def problem(name, index, backend):
    """A scalar function of input `index` alone, and that input."""
    function, inputs = calls(backend)[name].function, calls(backend)[name].inputs()

    def scalar(value):
        return function(*inputs[:index], value, *inputs[index + 1 :]).sum()

    return scalar, inputs[index]


# Second derivatives


def to_weights(function, value):
    """Of a weight upstream, whose gradient is asked for by name."""
    weight = torch.tensor(1.3, dtype=value.dtype, requires_grad=True)
    (first,) = torch.autograd.grad(function(value * weight), weight, create_graph=True)
    return torch.autograd.grad(first, weight, torch.tensor(2.0, dtype=value.dtype))


def by_penalty(function, value):
    weight = torch.tensor(1.3, dtype=value.dtype, requires_grad=True)
    value = value.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(value * weight), value, create_graph=True)
    return torch.autograd.grad(first.square().sum() + weight.square(), weight)


def beside_another_loss(function, value):
    value = value.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(value), value, create_graph=True)
    (first.square().sum() + value.square().sum()).backward()


def accumulated(function, value):
    """backward(create_graph=True), then a backward through .grad."""
    value = value.clone().requires_grad_()
    function(value).backward(create_graph=True)
    value.grad.sum().backward()


def to_upstream(function, value):
    """The gradient is linear in the upstream one, and refuses all the same."""
    value = value.clone().requires_grad_()
    upstream = torch.tensor(2.0, dtype=value.dtype, requires_grad=True)
    (first,) = torch.autograd.grad(function(value), value, upstream, create_graph=True)
    return torch.autograd.grad(first.sum(), upstream)


SECOND = {
    "to weights": to_weights,
    "penalty": by_penalty,
    "beside another loss": beside_another_loss,
    "accumulated": accumulated,
    "to the upstream gradient": to_upstream,
    "hessian": functional.hessian,
    "hessian, vectorised": lambda f, v: functional.hessian(f, v, vectorize=True),
    "hvp": lambda f, v: functional.hvp(f, v, torch.ones_like(v)),
    "vhp": lambda f, v: functional.vhp(f, v, torch.ones_like(v)),
    "jvp by two backwards": lambda f, v: functional.jvp(f, v, torch.ones_like(v)),
    "gradgradcheck": lambda f, v: torch.autograd.gradgradcheck(f, v.clone().requires_grad_()),
}


@pytest.mark.parametrize("way", SECOND)
@pytest.mark.parametrize(("name", "index"), EACH)
def test_second_derivatives_are_refused(backend, name, index, way):
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        SECOND[way](*problem(name, index, backend))


@pytest.mark.parametrize("form", ["forward", "logistic", "difference"])
def test_second_derivative_to_the_affinity_is_refused(backend, form):
    if backend == "reference":
        pytest.skip("the plain form is twice differentiable in its parameters")
    affinity, objective = affinity_of(backend), None if form == "forward" else form
    value = affinity(calls(backend)["LocalAffinity"].inputs()[0], objective=objective).sum()
    last = affinity[6].weight
    (first,) = torch.autograd.grad(value, last, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.autograd.grad(first.square().sum(), affinity[3].weight)


def test_a_single_global_crop_has_zeros(backend):
    """It is no query, so all of its derivatives are zero."""
    function, value = problem("one global crop", 0, backend)
    assert not functional.jacobian(function, value).any()
    assert not functional.hessian(function, value).any()


def test_second_derivative_of_a_plain_affinity(backend):
    """Only repulsion is in the graph, and it is all torch's: the right number."""
    x, y, r = calls(backend)["cosine"].inputs()

    def loss(r):
        return logo_loss(
            x, y, affinity=alike, repulsion_features=r, repulsion_weight=0.5, backend=backend
        )

    found = functional.hessian(loss, r)
    assert error(found, functional.hessian(lambda r: 3 * 0.5 * alike(r).mean(), r)) < 1e-12
    assert found.any()


# Forward mode, and the transforms of torch.func


def by_dual(function, value):
    with forward_ad.dual_level():
        return function(forward_ad.make_dual(value, torch.ones_like(value)))


def by_forward_over_backward(function, value):
    """An upstream gradient with a tangent: the gradient would have to have one."""
    leaf = value.clone().requires_grad_()
    result = function(leaf)
    with forward_ad.dual_level():
        upstream = forward_ad.make_dual(torch.ones_like(result), torch.ones_like(result))
        return torch.autograd.grad(result, leaf, upstream)


def in_functional_call(function, value):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.value = torch.nn.Parameter(value.clone())

        def forward(self):
            return function(self.value)

    return torch.func.grad(lambda v: torch.func.functional_call(Module(), {"value": v}, ()))(value)


OTHER_MODES = {
    "dual": by_dual,
    "jacobian, forward mode": lambda f, v: functional.jacobian(
        f, v, vectorize=True, strategy="forward-mode"
    ),
    "hessian, forward over reverse": lambda f, v: functional.hessian(
        f, v, vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "grad": lambda f, v: torch.func.grad(f)(v),
    "grad_and_value": lambda f, v: torch.func.grad_and_value(f)(v),
    "vjp": lambda f, v: torch.func.vjp(f, v),
    "jvp": lambda f, v: torch.func.jvp(f, (v,), (torch.ones_like(v),)),
    "jacrev": lambda f, v: torch.func.jacrev(f)(v),
    "jacfwd": lambda f, v: torch.func.jacfwd(f)(v),
    "func.hessian": lambda f, v: torch.func.hessian(f)(v),
    "linearize": lambda f, v: torch.func.linearize(f, v),
    "vmap": lambda f, v: torch.vmap(f)(torch.stack([v, v])),
    "vmap over something else": lambda f, v: torch.vmap(lambda s: s * f(v))(torch.ones(2)),
    "functionalize": lambda f, v: torch.func.functionalize(f)(v),
    "functional_call": in_functional_call,
}


@pytest.mark.parametrize("way", OTHER_MODES)
@pytest.mark.parametrize(("name", "index"), EACH)
def test_other_modes_are_refused(backend, name, index, way):
    with pytest.raises(RuntimeError, match=REFUSED):
        OTHER_MODES[way](*problem(name, index, backend))


@pytest.mark.parametrize(("name", "index"), EACH)
def test_upstream_gradients_with_a_tangent_are_refused(backend, name, index):
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        by_forward_over_backward(*problem(name, index, backend))


@pytest.mark.parametrize("needs", [False, True])
def test_tangents_of_constants_end_there(backend, needs):
    """Targets and negatives are constants: nothing depends on them."""
    x, y, _ = calls(backend)["cosine"].inputs()
    x.requires_grad_(needs)
    t, n = torch.randn_like(x), torch.randn(5, 3, dtype=x.dtype)

    def losses(t, n):
        nce = {"similarity": "info_nce", "backend": backend}
        return [
            logo_loss(x, y, t, backend=backend),
            logo_loss(x, y, t, negatives="batch", **nce),
            logo_loss(x, y, t, negatives=n, **nce),
            info_nce(x[:, 0], t, n, backend=backend),
        ]

    wanted = losses(t, n)
    with forward_ad.dual_level():
        for got, want in zip(
            losses(*(forward_ad.make_dual(v, v) for v in (t, n))), wanted, strict=True
        ):
            assert forward_ad.unpack_dual(got).tangent is None
            assert torch.equal(got, want)
            assert not needs or got.requires_grad


def test_tangents_of_parameters_are_refused(backend):
    affinity, (y,) = affinity_of(backend), calls(backend)["LocalAffinity"].inputs()
    for objective in (None, "logistic"):
        with forward_ad.dual_level():
            weight = affinity[3].weight.detach()
            changed = {"3.weight": forward_ad.make_dual(weight, weight)}
            with pytest.raises(RuntimeError, match="no forward-mode"):
                torch.func.functional_call(affinity, changed, (y,), {"objective": objective})


def test_a_plain_affinity_has_a_tangent(backend):
    x, y, r = calls(backend)["cosine"].inputs()
    _, want = torch.func.jvp(lambda r: 3 * 0.5 * alike(r).mean(), (r,), (torch.ones_like(r),))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(r, torch.ones_like(r))
        loss = logo_loss(
            x, y, affinity=alike, repulsion_features=dual, repulsion_weight=0.5, backend=backend
        )
        assert error(forward_ad.unpack_dual(loss).tangent, want) < 1e-12


def test_functional_call(backend):
    """Other parameters for a call, and no transform: what the module with these would give."""
    affinity, (y,) = affinity_of(backend), calls(backend)["LocalAffinity"].inputs()
    other = {name: p.detach() * 0.7 for name, p in affinity.named_parameters()}
    for objective in (None, "difference"):
        leaves = {name: p.clone().requires_grad_() for name, p in other.items()}
        got = torch.func.functional_call(affinity, leaves, (y,), {"objective": objective}).sum()
        got.backward()
        twin = affinity_of(backend)
        twin.load_state_dict(other, strict=False)
        want = twin(y, objective=objective).sum()
        want.backward()
        assert torch.equal(got, want)
        for name, parameter in twin.named_parameters():
            assert torch.equal(leaves[name].grad, parameter.grad)


def test_the_queue_takes_no_keys_in_a_transform():
    queue = NegativeQueue(3, 8)
    before = queue.keys.clone()
    with pytest.raises(RuntimeError, match="inside a transform"):
        torch.vmap(lambda keys: (queue.enqueue(keys), keys)[1])(torch.randn(2, 4, 3))
    with pytest.raises(RuntimeError, match="inside a transform"):
        torch.func.grad(lambda keys: (queue.enqueue(keys), keys.sum())[1])(torch.randn(4, 3))
    assert torch.equal(queue.keys, before)
    with forward_ad.dual_level():  # keys are constants
        queue.enqueue(forward_ad.make_dual(torch.ones(4, 3), torch.ones(4, 3)))
    assert forward_ad._current_level < 0
    assert error(queue.keys[:4], torch.full((4, 3), 3**-0.5)) < 1e-6


# Many upstream gradients at once


def loop(outputs, inputs, upstreams, **options):
    one_by_one = [
        torch.autograd.grad(outputs, inputs, one, retain_graph=True, **options) for one in upstreams
    ]
    return [torch.stack(of_input) for of_input in zip(*one_by_one, strict=True)]


def batched(outputs, inputs, upstreams, **options):
    return torch.autograd.grad(outputs, inputs, upstreams, is_grads_batched=True, **options)


def by_vmap(outputs, inputs, upstreams):
    return torch.vmap(lambda one: torch.autograd.grad(outputs, inputs, one))(upstreams)


def by_vmap_of_vmap(outputs, inputs, upstreams):
    def of_one(one):
        return torch.autograd.grad(outputs, inputs, one)

    found = torch.vmap(torch.vmap(of_one))(torch.stack([upstreams, 2 * upstreams]))
    return [gradient[0] for gradient in found]


BATCHED = {
    "is_grads_batched": batched,
    "is_grads_batched, graph kept": lambda *given: batched(*given, retain_graph=True),
    "is_grads_batched, create_graph": lambda *given: batched(*given, create_graph=True),
    "vmap": by_vmap,
    "vmap of vmap": by_vmap_of_vmap,
}
PRECISION = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3}


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("name", NAMES)
def test_batched_gradients(backend, name, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    call = calls(backend, wide)[name]
    given = call.inputs(dtype)
    for count in (1, 3):
        inputs = [value.clone().requires_grad_() for value in given]
        outputs = call.function(*inputs)
        upstreams = torch.randn(count, *outputs.shape).to(outputs.dtype)
        wanted = loop(outputs, inputs, upstreams)
        for way in BATCHED.values():
            inputs = [value.clone().requires_grad_() for value in given]
            found = way(call.function(*inputs), inputs, upstreams)
            for got, want in zip(found, wanted, strict=True):
                assert got.dtype == want.dtype
                assert error(got, want) <= PRECISION[dtype] * (1e-3 + float(want.abs().max()))


@pytest.mark.parametrize("form", ["forward", "logistic", "difference"])
def test_batched_gradients_to_the_affinity(backend, form):
    (y,) = calls(backend)["LocalAffinity"].inputs()
    y = y.clone().requires_grad_()
    affinity, objective = affinity_of(backend), None if form == "forward" else form
    inputs = [*affinity.parameters()] + ([y] if objective is None else [])

    def outputs():
        torch.manual_seed(0)
        return affinity(y, objective=objective)

    upstreams = torch.randn(3, *outputs().shape, dtype=torch.float64)
    wanted = loop(outputs(), inputs, upstreams)
    for way in BATCHED.values():
        for got, want in zip(way(outputs(), inputs, upstreams), wanted, strict=True):
            assert error(got, want) < 1e-13


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_jacobians(backend, name, vectorize):
    """Against differences of values."""
    call = calls(backend)[name]
    inputs = tuple(call.inputs())
    found = functional.jacobian(call.function, inputs, vectorize=vectorize)
    for index, (value, jacobian) in enumerate(zip(inputs, found, strict=True)):
        directions = torch.randn_like(value)

        def moved(step, index=index, directions=directions):
            changed = list(inputs)
            changed[index] = changed[index] + step * directions
            return call.function(*changed)

        want = (moved(1e-6) - moved(-1e-6)) / 2e-6
        got = (
            (jacobian * directions).flatten(want.ndim).sum(-1)
            if value.ndim
            else jacobian * directions
        )
        assert error(got, want) < 1e-6 * (1 + float(want.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(backend, name):
    call = calls(backend)[name]
    inputs = [value.requires_grad_() for value in call.inputs()]
    assert torch.autograd.gradcheck(call.function, inputs, check_batched_grad=True)


# What torch does between forward and backward


def gradients(call, wrap, **options):
    inputs = [value.requires_grad_() for value in call.inputs()]
    outputs = wrap(call.function, inputs)
    outputs.backward(torch.linspace(1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs))
    return [outputs.detach(), *(value.grad for value in inputs)]


def in_anomaly_mode(function, inputs):
    with torch.autograd.detect_anomaly(check_nan=True):
        return function(*inputs)


def saved_on_cpu(function, inputs):
    with torch.autograd.graph.save_on_cpu():
        return function(*inputs)


def saved_as_bytes(function, inputs):
    def pack(tensor):
        return tensor.dtype, tensor.shape, tensor.detach().contiguous().numpy().tobytes()

    def unpack(packed):
        dtype, shape, content = packed
        return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return function(*inputs)


def with_hooks(function, inputs):
    for value in inputs:
        value.register_hook(lambda gradient: gradient * 1.0)
    return function(*inputs)


WRAPPED = {
    "checkpoint": lambda f, inputs: checkpoint(f, *inputs, use_reentrant=False),
    "checkpoint, reentrant": lambda f, inputs: checkpoint(f, *inputs, use_reentrant=True),
    "anomaly mode": in_anomaly_mode,
    "saved tensors on the CPU": saved_on_cpu,
    "saved tensors as bytes": saved_as_bytes,
    "hooks": with_hooks,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("way", WRAPPED)
@pytest.mark.parametrize("name", NAMES)
def test_wrapped_calls(backend, name, way):
    call = calls(backend)[name]
    wanted = gradients(call, lambda function, inputs: function(*inputs))
    for got, want in zip(gradients(call, WRAPPED[way]), wanted, strict=True):
        assert error(got, want) <= 1e-15  # bytes have no strides, by which sums are ordered


def test_parts_of_the_graph(backend):
    """backward(inputs=...), unused inputs, two losses that share crops."""
    x, y, r = (value.requires_grad_() for value in calls(backend)["cosine"].inputs())

    def loss(**options):
        return logo_loss(x, y, repulsion_features=r, backend=backend, **options)

    wanted = torch.autograd.grad(loss(), (x, y, r))
    loss().backward(inputs=[y])
    assert x.grad is None
    assert r.grad is None
    assert torch.equal(y.grad, wanted[1])
    unused = torch.randn_like(x).requires_grad_()
    found = torch.autograd.grad(loss(), (x, unused), allow_unused=True)
    assert torch.equal(found[0], wanted[0])
    assert found[1] is None
    both = torch.autograd.grad(loss() + loss(affinity=None), (x, r))
    assert error(both[0], 2 * wanted[0]) < 1e-12
    assert error(both[1], wanted[2]) < 1e-12


def test_an_affinity_of_inference_mode_is_refused_where_autograd_needs_it(backend):
    with torch.inference_mode():
        affinity = LocalAffinity(3, (4, 4), backend=backend)
    y = torch.randn(2, 3, 3)
    with pytest.raises(RuntimeError, match="made under torch"):
        affinity(y)
    with pytest.raises(RuntimeError, match="made under torch"):
        affinity.objective(y)
    affinity.eval()
    with torch.no_grad():
        want = affinity(y)
    with torch.inference_mode():
        assert torch.equal(affinity(y), want)
    affinity.requires_grad_(False)
    assert torch.equal(affinity(y), want)
