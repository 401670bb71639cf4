"""torch's modes: inference tensors in every place, fake and `meta` tensors, deterministic sizes."""

import copy
import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from logo_kernels import (
    LocalAffinity,
    LoGoLoss,
    LoGoTerms,
    NegativeQueue,
    block_cosine_similarity,
    info_nce,
    logo_loss,
)
from public_calls import BACKENDS, affinity_of, alike, calls
from support import error


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def of_inference(make):
    with torch.inference_mode():
        return make()


# Inference tensors

FLOAT = torch.float64
GIVEN = {
    "x": (3, 2, 4), "y": (3, 3, 4), "t": (3, 2, 4), "r": (3, 3, 4), "n": (6, 4), "tau": (),
}  # fmt: skip


def losses(backend, x, y, t, r, n, tau):
    """Every function of every tensor that it may be given."""
    torch.manual_seed(0)
    affinity = LocalAffinity(4, (5, 5), backend=backend, dtype=FLOAT).requires_grad_(False)
    on, nce = {"backend": backend}, {"backend": backend, "similarity": "info_nce"}
    learned = {"affinity": affinity, "repulsion_features": r, "repulsion_weight": 0.5}
    return {
        "cosine": logo_loss(x, y, t, repulsion_features=r, repulsion_weight=0.5, **on),
        "own targets": logo_loss(x, y, reduction="none", return_terms=True, **on).total.sum(),
        "queue": logo_loss(x, y, t, negatives=n, temperature=tau, repulsion_features=r, **nce),
        "one global crop": logo_loss(x[:, :1], y, t[:, :1], negatives=n, **nce),
        "batch": logo_loss(x, y, negatives="batch", temperature=tau, **nce),
        "info_nce": info_nce(x[:, 0], t, n, temperature=tau, **on).sum(),
        "similarity": block_cosine_similarity(x, y, **on).square().sum(),
        "learned": logo_loss(x, y, t, **learned, **on),
        "plain affinity": logo_loss(x, y, affinity=alike, repulsion_features=r, **on),
        "LocalAffinity": affinity(y).sum(),
        "objective": affinity.objective(y),
    }


def gradients(backend, kinds):
    """Of all losses to the leaves among the inputs; `kinds` says what each input is."""
    generator, inputs = torch.Generator().manual_seed(1), {}
    for (name, shape), kind in zip(GIVEN.items(), kinds, strict=True):
        value = torch.randn(shape, generator=generator, dtype=FLOAT)
        value = value if shape else value.abs() + 0.2
        if kind == "inference":
            value = of_inference(value.clone)
        inputs[name] = value.requires_grad_() if kind == "leaf" else value
    leaves = [value for value in inputs.values() if value.requires_grad]
    found = []
    for loss in losses(backend, **inputs).values():
        found.append(loss.detach())
        if loss.requires_grad:
            found += torch.autograd.grad(loss, leaves, allow_unused=True)
    return found


@pytest.mark.parametrize("kinds", list(itertools.product(("inference", "leaf"), repeat=6)))
def test_inference_tensors_are_constants(backend, kinds):
    wanted = gradients(backend, ["constant" if kind == "inference" else kind for kind in kinds])
    for got, want in zip(gradients(backend, kinds), wanted, strict=True):
        assert (got is None) == (want is None)
        assert got is None or torch.equal(got, want)


def test_inside_inference_mode(backend):
    inputs = {name: torch.rand(shape, dtype=FLOAT) + 0.1 for name, shape in GIVEN.items()}
    wanted = losses(backend, **inputs)
    found = of_inference(lambda: losses(backend, **inputs))
    for name, want in wanted.items():
        assert torch.equal(found[name], want.detach()), name


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", calls("reference"))
def test_upstream_gradients_of_inference_mode(backend, name, create_graph):
    call = calls(backend)[name]
    inputs = [value.requires_grad_() for value in call.inputs()]
    outputs = call.function(*inputs)
    upstream = torch.linspace(1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    wanted = torch.autograd.grad(outputs, inputs, upstream, retain_graph=True)
    given = of_inference(upstream.clone)
    found = torch.autograd.grad(outputs, inputs, given, create_graph=create_graph)
    for got, want in zip(found, wanted, strict=True):
        assert error(got, want) < 1e-15


def test_a_queue_of_inference_mode_takes_keys():
    torch.manual_seed(0)
    queue = of_inference(lambda: NegativeQueue(4, 6))
    torch.manual_seed(0)
    twin = NegativeQueue(4, 6)
    keys = torch.randn(3, 4)
    for one in (queue, twin):
        one.enqueue(keys)
        of_inference(lambda one=one: one.enqueue(keys + 1))
        one.enqueue(of_inference(keys.clone))
    assert torch.equal(queue.keys, twin.keys)
    assert torch.equal(queue.pointer, twin.pointer)
    x = torch.randn(2, 2, 4, requires_grad=True)
    logo_loss(x, similarity="info_nce", negatives=queue.keys).backward()


def test_a_copied_affinity_of_inference_mode_learns(backend):
    affinity = copy.deepcopy(of_inference(lambda: LocalAffinity(4, (5, 5), backend=backend)))
    affinity(torch.randn(3, 3, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in affinity.parameters())


# No data: fake tensors and `meta`

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def shapes(tensors):
    return [None if one is None else (tuple(one.shape), one.dtype, one.stride()) for one in tensors]


def results(backend, dtype, device):
    """Shapes, dtypes and strides of values and gradients of every call and of the modules."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = {}
    for name, call in calls(backend, wide).items():
        inputs = [value.to(device).requires_grad_() for value in call.inputs(dtype)]
        outputs = call.function(*inputs)
        outputs.sum().backward()
        found[name] = shapes([outputs, *(value.grad for value in inputs)])
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_fake_tensors_have_the_right_shapes(backend, dtype):
    wanted = results(backend, dtype, "cpu")
    with FakeTensorMode():
        found = results(backend, dtype, "cpu")
    assert found == wanted


def modules(device, dtype, backend):
    """(name, shapes) of the modules and of what they give."""
    options = {"device": device, "dtype": dtype}
    queue = NegativeQueue(8, 16, **options)
    queue.enqueue(torch.randn(5, 8, **options))
    queue.enqueue(torch.randn(3, 8, 2, **options).mT)
    yield "queue", shapes([queue.keys, queue.pointer])
    x, y = (torch.randn(4, v, 8, **options).requires_grad_() for v in (2, 3))
    loss = LoGoLoss(similarity="info_nce", return_terms=True, reduction="none", backend=backend)
    terms = loss(x, y, negatives=queue.keys)
    assert isinstance(terms, LoGoTerms)
    terms.total.sum().backward()
    yield "terms", shapes([*terms, x.grad, y.grad])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for training, frozen in itertools.product((True, False), repeat=2):
        affinity = LocalAffinity(8, (4, 4), device=device, dtype=wide, backend=backend)
        affinity.train(training).requires_grad_(not frozen)
        z = torch.randn(4, 3, 8, **options).requires_grad_()
        value = affinity(z)
        value.sum().backward()
        given = [value, z.grad]
        if not frozen:
            for form in ("logistic", "difference"):
                objective = affinity(z, objective=form)
                objective.backward()
                given.append(objective)
        yield (
            f"affinity {training} {frozen}",
            shapes([*given, *(p.grad for p in affinity.parameters())]),
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_modules_without_data(backend, dtype):
    wanted = dict(modules("cpu", dtype, backend))
    with FakeTensorMode():
        assert dict(modules("cpu", dtype, backend)) == wanted
    assert dict(modules("meta", dtype, "auto")) == wanted


def test_fake_tensors_beside_plain_ones():
    """As a planner runs a model that is there: its parameters are converted, not read."""
    affinity, y = affinity_of("cpu", torch.float32), torch.randn(2, 3, 3)
    before = copy.deepcopy(affinity.state_dict())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        value = affinity(mode.from_tensor(y))
        assert value.shape == (2,)
        terms = logo_loss(mode.from_tensor(y), mode.from_tensor(y), affinity=affinity)
        assert terms.shape == ()
    for name, value in affinity.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_fake_tensors_are_checked_too():
    with FakeTensorMode():
        with pytest.raises(ValueError, match="local_crops has D = 4"):
            logo_loss(torch.randn(2, 2, 3), torch.randn(2, 2, 4))
        with pytest.raises(ValueError, match="at least 2 crops"):
            LocalAffinity(3, (4, 4))(torch.randn(2, 1, 3))


# Defaults of torch


def test_defaults_do_not_reach_what_has_its_own(backend):
    wanted = list(modules("cpu", torch.float32, backend))
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        found = list(modules("cpu", torch.float32, backend))
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert found == wanted


def test_modules_follow_the_defaults_as_torchs_own_do():
    torch.set_default_dtype(torch.float64)
    try:
        affinity, queue = LocalAffinity(4, (5, 5)), NegativeQueue(4, 6)
        with torch.device("meta"):
            elsewhere = LocalAffinity(4, (5, 5)), NegativeQueue(4, 6)
    finally:
        torch.set_default_dtype(torch.float32)
    assert affinity[0].weight.dtype == torch.float64
    assert queue.keys.dtype == torch.float32
    assert all(value.is_meta for one in elsewhere for value in one.state_dict().values())
