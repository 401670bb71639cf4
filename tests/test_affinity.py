"""LocalAffinity: on every backend against its plain form in float64, and as a module."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from affinity_inputs import affinity_of, batch_norm_of, crops_of, inputs, kernels_of
from affinity_ranks import rank_of_two
from emulation.backend import emulate
from logo_kernels import LocalAffinity, LoGoLoss, backends, logo_loss
from logo_kernels.affinity import pairs, products, units
from logo_kernels.backends import BACKENDS
from spawned import free_port
from support import EPS, Operators, error

FORMS = ["forward", "logistic", "difference"]
# B, L, D, hidden: two pairs of each image, H no multiple of a vector; more crops, two widths
SHAPES = [(4, 2, 16, (24, 7)), (3, 4, 33, (8, 40))]


def same_noise(monkeypatch):
    """torch.randn's numbers, alike on every device and in every dtype."""

    def randn(*size, device=None, dtype=None, **_):
        numbers = torch.empty(size).normal_(generator=torch.Generator().manual_seed(5))
        return numbers.to(device, dtype)

    monkeypatch.setattr("logo_kernels.affinity.module.torch.randn", randn)


def evaluate(affinity, z, form):
    """Value, gradients and the state afterwards, in float64 on the CPU."""
    z = z.detach().clone().requires_grad_()
    affinity.zero_grad()
    value = affinity(z) if form == "forward" else affinity.objective(z, form)
    weights = torch.arange(1, value.numel() + 1, device=z.device).view(value.shape)
    (value * weights).sum().backward()
    found = {"value": value.detach()}
    if form == "forward":
        found["crops"] = z.grad
    else:
        assert z.grad is None
    found |= {name: p.grad for name, p in affinity.named_parameters()}
    found |= {f"state {name}": b.clone() for name, b in affinity.named_buffers()}
    return {name: v.double().cpu() for name, v in found.items()}


def hold_against(ours, peer, exact, eps, roundings=16):
    """Each at most twice as far off as the plain form in the same dtype, or a few roundings."""
    assert ours.keys() == exact.keys()
    for name, want in exact.items():
        # a bias before a batch norm has no gradient, and what rounding leaves of it has any size
        size = max(0.1, float(want.abs().max()))
        allowed = 2 * error(peer[name], want) + roundings * eps * size
        assert error(ours[name], want) <= allowed, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(backend, form, training, shape, monkeypatch):
    kernels_of(backend)
    same_noise(monkeypatch)
    name, device = backend
    *sizes, hidden = shape
    z, found = crops_of(*sizes), []
    for kind, at, dtype in (
        ("reference", "cpu", torch.float64),
        ("reference", "cpu", torch.float32),
        (name, device, torch.float32),
    ):
        affinity = affinity_of(sizes[2], hidden, kind, at, dtype).train(training)
        if not training:  # so both are found in one test: the mean over all batches
            affinity[1].momentum = None
        found.append(evaluate(affinity, z.to(at, dtype), form))
    exact, peer, ours = found
    # On a GPU the plain form's products are not those of the peer, on a CPU: a few roundings more.
    hold_against(ours, peer, exact, EPS[torch.float32], 64 if device == "cuda" else 16)


@pytest.mark.parametrize("form", FORMS)
def test_where_products_go_to_onednn(form, monkeypatch):
    """Against float64; a ReLU that rounding opens or shuts moves a gradient by a pair's share."""
    if products.onednn() is None:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_ahead", lambda: True)
    same_noise(monkeypatch)
    z, found = crops_of(64, 4, 128), []
    for kind, dtype in (("reference", torch.float64), ("cpu", torch.float32)):
        affinity = affinity_of(128, (256, 192), kind, "cpu", dtype)
        found.append(evaluate(affinity, z.to(dtype), form))
    exact, ours = found
    assert error(ours["value"], exact["value"]) <= 1e-5 * float(exact["value"].abs().max())
    for name, want in exact.items():
        size = max(0.1, float(want.abs().max()))
        assert error(ours[name], want) <= 1e-3 * size, name


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics(backend, momentum):
    """After two batches, as the plain form keeps them; none where there are none to keep."""
    kernels_of(backend)
    found = []
    for name, device in (("reference", "cpu"), backend):
        affinity = affinity_of(12, (8, 8), name, device)
        affinity[1].momentum = affinity[4].momentum = momentum
        for seed in (1, 2):
            affinity(crops_of(4, 3, 12, seed=seed).to(device))
        found.append({k: b.cpu() for k, b in affinity.named_buffers()})
        assert affinity[1].num_batches_tracked == 2
    assert all(error(found[1][k], found[0][k]) < 1e-5 for k in found[0])


def test_without_running_statistics(backend):
    kernels_of(backend)
    values = []
    for name, device in (("reference", "cpu"), backend):
        affinity = affinity_of(12, (8, 8), name, device).eval()
        for layer in (1, 4):
            norm = affinity[layer]
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
            norm.track_running_stats = False
        values.append(affinity(crops_of(4, 3, 12).to(device)))
    assert error(values[1], values[0]) < 1e-5


@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_plain_sequential(backend, training):
    """State to and from nn.Sequential on concatenated unit crops, one pair at a time."""
    kernels_of(backend)
    name, device = backend
    affinity = affinity_of(16, (24, 8), name).train(training)
    plain = nn.Sequential(
        nn.Linear(32, 24), nn.BatchNorm1d(24), nn.ReLU(),
        nn.Linear(24, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1),
    ).train(training)  # fmt: skip
    plain.load_state_dict(affinity.state_dict())
    z = crops_of(3, 3, 16)
    unit = F.normalize(z, dim=-1)
    pairs = [torch.cat([unit[:, i], unit[:, j]], -1) for i in range(3) for j in range(3) if i != j]
    want = F.softplus(plain(torch.stack(pairs, 1).flatten(0, 1)).view(3, -1)).mean(1)
    ours = affinity.to(device)(z.to(device))
    assert error(ours, want) < 1e-5
    for key, value in affinity.cpu().state_dict().items():
        assert error(value, plain.state_dict()[key]) < 1e-6
    affinity.load_state_dict(plain.state_dict())


# On a GPU these launch nothing: views, memory, and what autograd does with a loss.
FREE = {
    "alias", "as_strided", "chunk", "detach", "empty", "empty_like", "empty_strided", "expand",
    "flatten", "new_empty", "new_empty_strided", "select", "slice", "split", "split_with_sizes",
    "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view",
}  # fmt: skip

# Operators of a step and those of the same step before they were one Function: 59, 124, 183. What
# is left are the products (6, 14, 20), the kernels, randn, loss, and sums of two gradients.
STEPS = {"encoder": 14, "objective": 41, "both": 55}


@pytest.mark.parametrize("step", STEPS)
def test_operators_of_a_step(cpu_stage, step):
    affinity = affinity_of(16, (24, 7), "cpu")
    z = crops_of(3, 2, 16).requires_grad_()
    with Operators() as calls:
        if step != "encoder":
            affinity.objective(z).backward()
        affinity.requires_grad_(False)
        if step != "objective":
            affinity(z).sum().backward()
    operators = [name for name in calls.names if name not in FREE]
    assert {"affinity_hidden_layer", "affinity_output_gradient"} <= set(operators)
    assert len(operators) <= STEPS[step], operators


def test_frozen_parameters_cost_nothing(backend):
    """θd* constant: gradients to the crops alone, no product of a parameter's shape, X not kept."""
    kernels_of(backend)
    name, device = backend
    affinity = affinity_of(16, (24, 7), name, device).requires_grad_(False)
    z = crops_of(3, 3, 16).to(device).requires_grad_()
    with Operators() as calls:
        value = affinity(z)
        kept = {tuple(v.shape) for v in value.grad_fn.saved_tensors if v is not None}
        value.sum().backward()
    assert z.grad is not None
    assert all(p.grad is None for p in affinity.parameters())
    assert (18, 7) in kept  # y of the pairs
    assert (18, 24) not in kept
    products = {shape for kind, shape in calls.results if "mm" in kind}
    assert not products & {(24, 16), (16, 24), (7, 24), (24, 7)}


def test_constant_crops_get_no_gradient(backend):
    """The objective's backward makes no product of the crops' shape, [B L, D]."""
    kernels_of(backend)
    name, device = backend
    affinity = affinity_of(16, (24, 7), name, device)
    objective = affinity.objective(crops_of(3, 3, 16).to(device).requires_grad_())
    with Operators() as calls:
        objective.backward()
    assert all(p.grad is not None for p in affinity.parameters())
    products = {shape for kind, shape in calls.results if "mm" in kind}
    assert not products & {(9, 16), (3, 3, 16)}


def test_pairs_never_have_two_crops_of_numbers(backend):
    """Nothing has the 2 D numbers of each pair, nor D: 30 pairs of D = 500 and H = 4."""
    kernels_of(backend)
    name, device = backend
    affinity = affinity_of(500, (4, 4), name, device)
    z = crops_of(5, 3, 500).to(device).requires_grad_()
    with Operators() as calls:
        affinity(z).sum().backward()
    assert max(torch.Size(shape).numel() for _, shape in calls.results) <= 5 * 3 * 500


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_crops_of_other_dtypes(backend, dtype):
    """They get gradients of their own dtype; the arithmetic is that of the module, fp32."""
    kernels_of(backend, dtype)
    name, device = backend
    z = crops_of(4, 3, 16, dtype)
    results = []
    for kind, at, wide in (("reference", "cpu", torch.float64), (name, device, dtype)):
        affinity = affinity_of(
            16, (8, 8), kind, at, torch.float64 if dtype == torch.float64 else torch.float32
        )
        leaf = z.to(at, wide).requires_grad_()
        affinity(leaf).sum().backward()
        results.append(leaf.grad)
    assert results[1].dtype == dtype
    assert error(results[1], results[0]) <= 2 * EPS[dtype] * float(results[0].abs().max()) + 1e-5


@pytest.mark.parametrize("kind", ["sequence", "view-major", "strided", "negative"])
def test_layouts(backend, kind):
    kernels_of(backend)
    name, device = backend
    z = crops_of(4, 3, 16).to(device)
    layouts = {
        "sequence": lambda: list(z.unbind(1)),
        "view-major": lambda: z.transpose(0, 1).contiguous().transpose(0, 1),
        "strided": lambda: z.repeat_interleave(2, -1)[..., ::2],
        "negative": lambda: z.flip(-1).contiguous().flip(-1),
    }
    affinity = affinity_of(16, (8, 8), name, device).eval()
    assert error(affinity(layouts[kind]()), affinity(z)) < 1e-6


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_zero_and_extreme_rows(backend, size):
    kernels_of(backend)
    name, device = backend
    z = crops_of(4, 3, 16).to(device)
    affinity = affinity_of(16, (8, 8), name, device).eval()
    ordinary = affinity(z)
    z[1] *= size
    z.requires_grad_()
    value = affinity(z)
    if size > 0:
        assert error(value, ordinary) < 1e-5
    value.sum().backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("images", [2, 3, 5])
def test_negatives_are_of_other_images(backend, images):
    """Crops of image b depend on b alone: a pair across images is never that of one image."""
    kernels_of(backend)
    name, device = backend
    affinity = affinity_of(images, (images * images, 1), name, device).eval()
    with torch.no_grad():
        # unit (p, q) of the first layer sees first crops of image p and second ones of image q
        weight = torch.zeros(images * images, 2 * images)
        for p in range(images):
            for q in range(images):
                weight[p * images + q, p] = weight[p * images + q, images + q] = 1.0
        affinity[0].weight.copy_(weight)
        affinity[0].bias.fill_(-1.5)
        affinity[3].weight.copy_(torch.eye(images).view(1, -1))  # pairs of one image alone
        for layer in (3, 6):
            affinity[layer].bias.zero_()
        affinity[6].weight.fill_(1)
        for layer in (1, 4):
            affinity[layer].running_mean.zero_()
            affinity[layer].running_var.fill_(1)
            affinity[layer].weight.fill_(1)
            affinity[layer].bias.zero_()
    z = torch.eye(images).unsqueeze(1).expand(images, 3, images).to(device)
    # E f(unlike) − E f(alike): 0 − 1/2
    assert error(affinity.objective(z, "difference"), torch.tensor(-0.5)) < 1e-4


def test_autocast(backend):
    kernels_of(backend)
    name, device = backend
    z = crops_of(6, 3, 16).to(device)
    plain = affinity_of(16, (24, 8), name, device)
    value = plain(z)
    half = affinity_of(16, (24, 8), name, device)
    with torch.autocast(device, torch.bfloat16):
        under = half(z.requires_grad_())
    assert under.dtype == torch.float32
    assert error(under, value) < 0.1
    under.sum().backward()
    assert z.grad.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in half.parameters())


def test_double_backward_raises(backend):
    kernels_of(backend)
    name, device = backend
    z = crops_of(3, 3, 16).to(device).requires_grad_()
    (grad,) = torch.autograd.grad(
        affinity_of(16, (8, 8), name, device)(z).sum(), z, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.square().sum().backward()


@pytest.mark.parametrize("similarity", ["cosine", "info_nce"])
def test_in_the_loss(backend, similarity):
    kernels_of(backend)
    name, device = backend
    affinity = affinity_of(16, (8, 8), name, device).requires_grad_(False)
    x, y = (crops_of(3, n, 16, seed=n).to(device) for n in (2, 4))
    y.requires_grad_()
    options = {"similarity": similarity, "repulsion_weight": 0.5}
    if similarity == "info_nce":
        options |= {"negatives": crops_of(1, 7, 16)[0].to(device), "temperature": 0.5}
    terms = logo_loss(x, y, affinity=affinity, return_terms=True, **options)
    assert error(terms.ll, affinity(y).mean()) < 1e-6
    module = LoGoLoss(affinity=affinity, **{k: v for k, v in options.items() if k != "negatives"})
    assert "affinity.0.weight" in module.state_dict()
    terms.total.backward()
    assert y.grad.isfinite().all()


@pytest.fixture
def cpu_stage():
    if BACKENDS["cpu"].missing() is not None:
        pytest.skip("no C++ extension")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(cpu_stage, form, training, monkeypatch):
    same_noise(monkeypatch)
    affinity = affinity_of(5, (4, 3), "cpu", dtype=torch.float64).train(training)
    z = crops_of(3, 3, 5, torch.float64).requires_grad_()
    names, leaves = zip(*affinity.named_parameters(), strict=True)
    # the biases before a batch norm in training are constants of it
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]

    def value(z, *leaves):
        parameters = dict(zip(names, leaves, strict=True))
        call = Objective(copy.deepcopy(affinity), form)
        return torch.func.functional_call(
            call, {f"affinity.{name}": leaf for name, leaf in parameters.items()}, (z,)
        )

    assert torch.autograd.gradcheck(value, (z if form == "forward" else z.detach(), *leaves))


class Objective(nn.Module):
    def __init__(self, affinity, form):
        super().__init__()
        self.affinity, self.form = affinity, form

    def forward(self, z):
        return self.affinity(z) if self.form == "forward" else self.affinity.objective(z, self.form)


def test_opcheck(cpu_stage):
    v = inputs((3, 3, 8, 1), torch.float32)
    norm, correction = v.norm, v.correction
    for operator, arguments in (
        (pairs.hidden_moments, (v.a, v.c, 1)),
        (pairs.hidden, (v.a, v.c, norm, 1)),
        (pairs.hidden_sums, (v.grad_x, v.a, v.c, norm, 1)),
        (pairs.hidden_backward, (v.to_a, v.to_c, v.a, v.c, norm, correction, 1)),
        (pairs.output_moments, (v.y,)),
        (pairs.output, (v.y, norm, v.weight, v.bias, v.pairs, 1)),
        (pairs.output_sums, (v.y, norm, v.slope, v.grad, v.pairs)),
        (pairs.output_backward, (v.y, norm, v.weight, v.slope, v.grad, correction, v.pairs)),
    ):
        torch.library.opcheck(operator.registered, (*arguments, "cpu"))


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("running", [True, False])
def test_opcheck_layers(cpu_stage, batch, running):
    """Those of unit vectors and of whole layers, which write to the running statistics."""
    if not batch and not running:
        pytest.skip("some statistics there must be")
    v = inputs((3, 3, 8, 1), torch.float32)
    *of, mean, var, batches = batch_norm_of(8, torch.float32)
    of += [mean, var, batches] if running else [None] * 3
    norm = torch.cat([v.norm, v.norm[1:2]])
    z = v.a.transpose(0, 1).contiguous().transpose(0, 1)
    unit, factors = units.unit(units.UnitCall(z, torch.bfloat16), "cpu")
    for operator, arguments in (
        ("unit", (z, torch.bfloat16)),
        ("unit_backward", (unit, unit, factors, torch.float32, True)),
        ("affinity_hidden_layer", (v.a, v.c, *of, batch, 0.1, 1e-5, 1)),
        ("affinity_hidden_gradient", (v.grad_x, v.a, v.c, norm, batch, 1)),
        ("affinity_output_layer", (v.y, *of, batch, 0.1, 1e-5, v.weight, v.bias, v.pairs, 1)),
        (
            "affinity_output_gradient",
            (v.y, norm, v.weight, v.slope, v.grad, batch, False, v.pairs),
        ),
    ):
        registered = getattr(torch.ops.logo_kernels, operator).default
        torch.library.opcheck(registered, (*arguments, "cpu"))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["cpu", "emulated"])
def test_compiles_whole(cpu_stage, compiler, monkeypatch, name, form, training):
    """Also by a backend of which the choice calls the compiled extension, as CUDA's does."""
    asked = []
    if name == "emulated":
        backend = emulate(monkeypatch, 90)
        refuses = backend.refuses

        def asking(request):
            backend.library.affinity_workspace_bytes(0, 8)
            asked.append(request)
            return refuses(request)

        monkeypatch.setattr(backend, "refuses", asking)
    # nothing is remembered of the choice: it falls while torch traces
    backends.backend_for.cache_clear()
    z = crops_of(4, 3, 16)
    eager, compiled = (Objective(affinity_of(16, (8, 8), name), form) for _ in range(2))
    step = compiler(compiled.train(training), backend="aot_eager")
    eager.train(training)
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    torch.manual_seed(4)  # of the noise
    got = step(y)
    assert len(asked) == (name == "emulated")
    torch.manual_seed(4)
    want = eager(x)
    assert error(got, want) < 1e-6
    want.sum().backward()
    got.sum().backward()
    if form == "forward":
        assert error(y.grad, x.grad) < 1e-6
    for ours, plain in zip(compiled.parameters(), eager.parameters(), strict=True):
        assert error(ours.grad, plain.grad) < 1e-5
    for ours, plain in zip(compiled.buffers(), eager.buffers(), strict=True):
        assert error(ours, plain) < 1e-6
    assert compiler.graphs > 0


def test_autograd_sees_that_running_statistics_change(cpu_stage):
    """A gradient that needs what they were raises, as with torch's batch norm."""
    affinity = affinity_of(16, (8, 8), "cpu")
    scale = torch.ones(8, requires_grad=True)
    value = (scale * affinity[1].running_mean).sum()
    affinity(crops_of(4, 3, 16))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("form", FORMS)
def test_module_of_bf16(cpu_stage, form, monkeypatch):
    """Its running statistics are no numbers of a kernel: operators of torch let them follow."""
    same_noise(monkeypatch)
    found = []
    for kind, dtype in (
        ("reference", torch.float64), ("reference", torch.bfloat16), ("cpu", torch.bfloat16),
    ):  # fmt: skip
        affinity = affinity_of(16, (8, 8), kind, dtype=torch.bfloat16).to(dtype)
        found.append(evaluate(affinity, crops_of(6, 3, 16, torch.bfloat16).to(dtype), form))
    exact, peer, ours = found
    hold_against(ours, peer, exact, EPS[torch.bfloat16])


Z = torch.ones(3, 3, 8)
REFUSED = {
    "L": (lambda f: f(Z[:, :1]), ValueError, "at least 2 crops"),
    "D": (lambda f: f(Z[..., :4]), ValueError, "has D = 4"),
    "rank": (lambda f: f(Z[0]), ValueError, r"local must be \[B, L, D\]"),
    "B": (lambda f: f(Z[:0]), ValueError, "B = 0"),
    "type": (lambda f: f(3), TypeError, "local"),
    "integers": (lambda f: f(Z.long()), TypeError, "local"),
    "no negatives": (lambda f: f.objective(Z[:1]), ValueError, "at least 2 images"),
    "form": (lambda f: f.objective(Z, "omega"), ValueError, "form"),
    "dim": (lambda f: LocalAffinity(0), ValueError, "dim"),
    "hidden": (lambda f: LocalAffinity(8, (4,)), ValueError, "two layers"),
    "width": (lambda f: LocalAffinity(8, (4, 0)), ValueError, "hidden"),
    "backend": (lambda f: LocalAffinity(8, backend="x"), ValueError, "backend"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call(LocalAffinity(8, (4, 4)))


def test_synchronised_batch_norm(cpu_stage, tmp_path):
    """Two ranks with unequal shares are one process with all images."""
    torch.multiprocessing.spawn(rank_of_two, (free_port(), str(tmp_path)), nprocs=2)
    values, crops, parameters, states = zip(
        *(torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)), strict=True
    )
    affinity, z = affinity_of(12, (8, 8), "cpu"), crops_of(8, 3, 12).requires_grad_()
    want = affinity(z)
    want.sum().backward()
    assert error(torch.cat(values), want) < 1e-5
    assert error(torch.cat(crops), z.grad) < 1e-5
    for rank in (0, 1):
        for ours, one in zip(parameters[rank], affinity.parameters(), strict=True):
            assert error(ours, one.grad) < 1e-4
        for name, one in affinity.state_dict().items():
            assert error(states[rank][name], one) < 1e-5
