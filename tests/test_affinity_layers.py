"""`LocalAffinity` whose layers were replaced, hooked, wrapped or moved is still the nn.Sequential.

Each change, on every backend, against the same layers in float64 over concatenated pairs: values,
gradients, running statistics. A change that the kernels cannot know must send them away.
"""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from logo_kernels import LocalAffinity, available_backends, logo_loss
from support import error

IMAGES, CROPS, DIM = 6, 3, 5
HIDDEN = 4, 4


class LoRA(nn.Module):
    """Passes on the weight of what it wraps, and computes something else."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.more = nn.Linear(base.in_features, base.out_features, bias=False)

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + self.more(x)


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def old_style(wrap):
    """Deprecated, and still used."""

    def wrapped(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrap(layer)

    return wrapped


def replaced(index, layer):
    return lambda a: a.__setitem__(index, layer())


def own_forward(a):
    of_class = a[5].forward
    a[5].forward = lambda x: 3 * of_class(x)


def reset(index, name):
    def change(a):
        setattr(a[index], name, None)

    return change


def twice(index):
    def change(a):
        layer = Twice(a[index].in_features, a[index].out_features)
        layer.load_state_dict(a[index].state_dict())
        a[index] = layer

    return change


def widened(a):
    a[3], a[4], a[6] = nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Linear(7, 1)


def exchanged(a):
    a[1], a[2] = a[2], a[1]


def pruned_for_good(a):
    prune.l1_unstructured(a[3], "weight", amount=0.5)
    prune.remove(a[3], "weight")


CHANGES = {
    "none": lambda a: None,
    "GELU": replaced(2, nn.GELU),
    "LeakyReLU": replaced(5, lambda: nn.LeakyReLU(0.3)),
    "inplace ReLU": replaced(2, lambda: nn.ReLU(inplace=True)),
    "ReLU6": replaced(2, nn.ReLU6),
    "dropout of everything": replaced(2, lambda: nn.Sequential(nn.ReLU(), nn.Dropout(1.0))),
    "LoRA": lambda a: a.__setitem__(3, LoRA(a[3])),
    "LoRA on the first layer": lambda a: a.__setitem__(0, LoRA(a[0])),
    "a subclass with a forward": twice(3),
    "a subclass with a forward, last": twice(6),
    "two outputs": replaced(6, lambda: nn.Linear(4, 2)),
    "Identity for batch norm": replaced(1, nn.Identity),
    "Identity for the other batch norm": replaced(4, nn.Identity),
    "LayerNorm": replaced(1, lambda: nn.LayerNorm(4)),
    "GroupNorm": replaced(4, lambda: nn.GroupNorm(1, 4)),
    "batch norm without parameters": replaced(1, lambda: nn.BatchNorm1d(4, affine=False)),
    "batch norm without statistics": replaced(
        4, lambda: nn.BatchNorm1d(4, track_running_stats=False)
    ),
    "batch norm of another eps": replaced(1, lambda: nn.BatchNorm1d(4, eps=0.1, momentum=0.3)),
    "batch norm, cumulative": replaced(1, lambda: nn.BatchNorm1d(4, momentum=None)),
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "one batch norm evaluates": lambda a: a[1].eval(),
    "first bias missing": replaced(0, lambda: nn.Linear(10, 4, bias=False)),
    "second bias missing": replaced(3, lambda: nn.Linear(4, 4, bias=False)),
    "last bias missing": replaced(6, lambda: nn.Linear(4, 1, bias=False)),
    "bias set to None": reset(3, "bias"),
    "other widths": widened,
    "a layer more": lambda a: a.append(nn.Tanh()),
    "a layer inserted": lambda a: a.insert(3, nn.Tanh()),
    "a layer popped": lambda a: a.pop(5),
    "a layer deleted": lambda a: a.__delitem__(2),
    "extended": lambda a: a.extend([nn.Tanh(), nn.Linear(1, 1)]),
    "add_module": lambda a: a.add_module("scale", nn.Linear(1, 1)),
    "two layers exchanged": exchanged,
    "one layer twice": lambda a: a.__setitem__(4, a[1]),
    "forward hook": lambda a: a[5].register_forward_hook(lambda m, i, o: 2 * o),
    "forward pre-hook": lambda a: a[3].register_forward_pre_hook(lambda m, i: (i[0] + 1,)),
    "hook on the last layer": lambda a: a[6].register_forward_hook(lambda m, i, o: o * o),
    "backward hook": lambda a: a[3].register_full_backward_hook(lambda m, i, o: (3 * i[0],)),
    "backward pre-hook": lambda a: a[3].register_full_backward_pre_hook(lambda m, o: (3 * o[0],)),
    "forward of its own": own_forward,
    "weight_norm": lambda a: old_style(nn.utils.weight_norm)(a[3]),
    "weight_norm on the first layer": lambda a: old_style(nn.utils.weight_norm)(a[0]),
    "spectral_norm": lambda a: old_style(nn.utils.spectral_norm)(a[3]),
    "pruned": lambda a: prune.l1_unstructured(a[3], "weight", amount=0.5),
    "pruned bias": lambda a: prune.random_unstructured(a[6], "bias", amount=1),
    "pruned for good": pruned_for_good,
    "parametrised weight_norm": lambda a: parametrizations.weight_norm(a[3]),
    "parametrised orthogonal": lambda a: parametrizations.orthogonal(a[3]),
    "parametrised batch norm": lambda a: parametrize.register_parametrization(
        a[1], "weight", Doubled()
    ),
    "some frozen": lambda a: a[0].requires_grad_(False) and a[4].requires_grad_(False),
    "one frozen": lambda a: a[3].weight.requires_grad_(False),
    "all but the last frozen": lambda a: a[:6].requires_grad_(False),
}  # fmt: skip


# The choice between layers and kernels is the same for all backends that have kernels.
@pytest.fixture
def stage():
    reason = available_backends()["cpu"]
    if reason is not None:
        pytest.skip(f"cpu: {reason}")
    return "cpu"


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    return request.getfixturevalue("stage") if request.param == "cpu" else request.param


def crops():
    return torch.randn(IMAGES, CROPS, DIM, generator=torch.Generator().manual_seed(3))


def changed(name, backend):
    torch.manual_seed(1)
    affinity = LocalAffinity(DIM, HIDDEN, backend=backend)
    with torch.no_grad():
        for parameter in affinity.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    CHANGES[name](affinity)
    return affinity


def over_pairs(affinity, z, roll=0):
    """f over the ordered pairs of crops [B, L(L − 1)], by the layers one after another."""
    u = z / z.norm(dim=-1, keepdim=True)
    i, j = (~torch.eye(z.shape[1], dtype=torch.bool)).nonzero(as_tuple=True)
    x = torch.cat([u[:, i], u.roll(-roll, 0)[:, j]], -1).flatten(0, 1)
    for layer in affinity:
        x = layer(x)
    return x.view(len(z), -1)


def evaluated(affinity, z, function, constant_crops):
    """Value, gradient of z, those of the parameters by name, buffers by name."""
    z = z.clone().requires_grad_(not constant_crops)
    torch.manual_seed(7)  # of dropout
    value = function(affinity, z)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view_as(value)
    if value.requires_grad:
        value.backward(weights)
    found = {"value": value.detach(), "z": z.grad}
    found |= {f"gradient of {name}": p.grad for name, p in affinity.named_parameters()}
    found |= {f"buffer {name}": b.clone() for name, b in affinity.named_buffers()}
    return found


def plain_forward(affinity, z):
    return F.softplus(over_pairs(affinity, z), threshold=1000).mean(1)


def plain_difference(affinity, z):
    z = z.detach()
    alike = over_pairs(affinity, z).mean()
    return over_pairs(affinity, z, roll=1).mean() - alike


FORMS = {
    "forward": (lambda a, z: a(z), plain_forward),
    "difference": (lambda a, z: a(z, objective="difference"), plain_difference),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CHANGES)
def test_it_is_the_sequential(backend, name, form, training):
    ours, plain = FORMS[form]
    for constant in (False, True):
        affinity, twin = changed(name, backend), changed(name, backend).double()
        for one in (affinity, twin):
            evaluating = [module for module in one.modules() if not module.training]
            one.train(training)
            for module in evaluating:
                module.eval()
        wanted = evaluated(twin, crops().double(), plain, constant)
        found = evaluated(affinity, crops(), ours, constant)
        assert found.keys() == wanted.keys()
        for what, want in wanted.items():
            got = found[what]
            if want is None or got is None:
                # the layers give zeros where nothing flows, the kernels none
                assert got is None or not got.any(), what
                assert want is None or not want.any(), what
                continue
            assert error(got, want) < 2e-5 * (1 + float(want.abs().max())), what


def test_the_expected_layers_run_kernels(stage):
    """And what is replaced by its equal still does: else each test above is of the plain form."""

    def fused(affinity):
        return affinity._is_fused(crops(), torch.float32)

    assert fused(changed("none", stage))
    for name in ("SyncBatchNorm", "other widths", "some frozen", "batch norm of another eps",
                 "batch norm without statistics", "pruned for good", "inplace ReLU"):  # fmt: skip
        assert fused(changed(name, stage)), name
    for name in ("GELU", "LoRA", "forward hook", "weight_norm", "a layer popped", "add_module"):
        assert not fused(changed(name, stage)), name


GLOBAL_HOOKS = {
    "forward": (nn.modules.module.register_module_forward_hook,
                lambda m, i, o: 2 * o if isinstance(m, nn.ReLU) else None),
    "forward, before": (nn.modules.module.register_module_forward_pre_hook,
                        lambda m, i: (i[0] + 1,) if isinstance(m, nn.ReLU) else None),
    "backward": (nn.modules.module.register_module_full_backward_hook,
                 lambda m, i, o: (3 * i[0],) if isinstance(m, nn.ReLU) else None),
}  # fmt: skip


@pytest.mark.parametrize("which", GLOBAL_HOOKS)
def test_hooks_of_all_modules(stage, which):
    register, hook = GLOBAL_HOOKS[which]
    affinity = changed("none", stage)
    before = evaluated(copy.deepcopy(affinity), crops(), lambda a, z: a(z), False)
    handle = register(hook)
    try:
        wanted = evaluated(copy.deepcopy(affinity), crops(), plain_forward, False)
        found = evaluated(copy.deepcopy(affinity), crops(), lambda a, z: a(z), False)
    finally:
        handle.remove()
    assert error(before["z"], wanted["z"]) > 1e-4
    for what, want in wanted.items():
        assert error(found[what], want) < 2e-5 * (1 + float(want.abs().max())), what
    after = evaluated(copy.deepcopy(affinity), crops(), lambda a, z: a(z), False)
    assert torch.equal(after["z"], before["z"])


def test_hooks_of_the_whole_and_removed_ones(stage):
    """A hook on the module itself runs by nn.Module; one that was removed leaves the kernels."""
    affinity = changed("none", stage)
    want = affinity.eval()(crops())
    handle = affinity.register_forward_hook(lambda m, i, o: 2 * o)
    assert torch.equal(affinity(crops()), 2 * want)
    handle.remove()
    on_layer = affinity[2].register_forward_hook(lambda m, i, o: 2 * o)
    assert not affinity._is_fused(crops(), torch.float32)
    on_layer.remove()
    assert affinity._is_fused(crops(), torch.float32)
    assert torch.equal(affinity(crops()), want)


def test_a_subclass_with_a_forward_is_called(stage):
    class Scaled(LocalAffinity):
        def forward(self, local, *, objective=None):
            return 2 * super().forward(local, objective=objective)

    torch.manual_seed(1)
    affinity = Scaled(DIM, HIDDEN, backend=stage).eval()
    x, y = torch.randn(IMAGES, 2, DIM), crops()
    terms = logo_loss(x, y, affinity=affinity, return_terms=True)
    assert error(terms.ll, 2 * plain_forward(affinity, y).mean()) < 1e-5


@pytest.mark.parametrize("parts", [(1,), (4,), (1, 4), (3,), (6,), (1, 3, 4, 6)])
def test_parts_of_bf16(stage, parts):
    """Behind a first layer of fp32 they are widened: only what they hold is rounded."""
    affinity, exact = changed("none", stage), changed("none", stage)
    for part in parts:
        affinity[part].bfloat16()
        exact[part].bfloat16()
    wanted = evaluated(exact.double(), crops().double(), plain_forward, False)
    found = evaluated(affinity, crops(), lambda a, z: a(z), False)
    for what in ("value", "z"):
        assert error(found[what], wanted[what]) < 2e-5, what
    for what, want in wanted.items():
        allowed = 0.01 if found[what].dtype == torch.bfloat16 else 2e-5
        assert error(found[what], want) < allowed * (1 + float(want.abs().max())), what


def test_slices_and_what_nn_sequential_has():
    affinity = changed("none", "auto")
    for part in (affinity[:3], affinity[2:], affinity[::2], affinity[-1:]):
        assert type(part) is nn.Sequential
    assert [*affinity[2:]] == [*affinity][2:]
    assert affinity[:0](crops()) is not None
    assert affinity[-1] is affinity[6]
    assert len(affinity) == 7
    assert list(affinity[2:].state_dict()) == [n for n in affinity.state_dict() if n[0] >= "2"]
    both = nn.Sequential(*affinity)
    assert both.state_dict().keys() == affinity.state_dict().keys()


@pytest.mark.parametrize(
    "wrap", ["weight_norm", "spectral_norm", "pruned", "parametrised weight_norm"]
)
def test_wrapped_layers_learn(stage, wrap):
    """Every parameter moves, those that a pre-hook or a parametrisation turns into a weight too."""
    affinity = changed(wrap, stage)
    before = {name: p.detach().clone() for name, p in affinity.named_parameters()}
    step = torch.optim.SGD(affinity.parameters(), lr=0.5)
    for _ in range(3):
        step.zero_grad()
        affinity.objective(crops()).backward()
        step.step()
    of_layer = [
        n for n in before if n.startswith("3.") and n != "3.bias"
    ]  # norms have their own bias
    assert of_layer
    assert not [n for n in of_layer if torch.equal(affinity.get_parameter(n), before[n])]
