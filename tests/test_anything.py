"""The public interface under everything at once, as Hypothesis draws it: functions, options, sizes,
dtypes, layouts, norms, torch's modes, instruction sets. The oracle is the reference in float64.

Short by default. Long, seed by seed:

    for seed in $(seq 20); do
        LOGO_EXAMPLES=5000 pytest -q tests/test_anything.py --hypothesis-seed=$seed
    done
"""

import os
from contextlib import nullcontext

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from logo_kernels import LocalAffinity, LoGoLoss, block_cosine_similarity, info_nce, logo_loss
from logo_kernels.backends.extension import extension
from support import EPS, LAYOUTS

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("LOGO_EXAMPLES", "150"))
BACKENDS = ["auto", "reference"] + (["cpu"] * 6 if extension else [])
SIMDS = list(extension.simds()) if extension else [None]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


class Seen(TorchDispatchMode):
    """What a profiler, a counter of operators or a debugger does: sees all, changes nothing."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


# Problems


class Problem:
    """A function, its inputs by name, and which of them gradients flow to."""

    def __init__(self, function, inputs, differentiable):
        self.function, self.inputs, self.differentiable = function, inputs, differentiable
        # Of a gradient: its size before it is divided by a norm; of a value: by what it may err.
        self.size, self.rounding = 1.0, 0.0


def one_of(data, *values):
    return data.draw(st.sampled_from(values))


def block(data, images, crops, dim, dtype, generator):
    """[B, V, D] with values that `dtype` can hold: ordinary, large, tiny or zero rows."""
    made = torch.randn(images, crops, dim, generator=generator)
    kind = one_of(
        data, "ordinary", "ordinary", "ordinary", "scaled", "zero row", "one image", "unit"
    )
    if kind == "scaled":
        made = made * one_of(data, 2.0**-9, 2.0**-3, 2.0**5, 2.0**9)
    elif kind == "zero row":
        made[generator.initial_seed() % images, generator.initial_seed() % crops] = 0
    elif kind == "unit":
        made = made / made.norm(dim=-1, keepdim=True)
    made = made.to(dtype)
    if kind == "one image":
        return made[:1].expand(images, -1, -1)
    return LAYOUTS[one_of(data, *LAYOUTS)](made) if data.draw(st.booleans()) else made


def least_norm(*blocks):
    """Of rows that are not zero."""
    norms = torch.cat([b.double().norm(dim=-1).flatten() for b in blocks if b is not None])
    return float(norms[norms > 0].min()) if (norms > 0).any() else 1.0


def temperature_of(data, narrow):
    number = (
        one_of(data, 0.07, 0.2, 1.0, 30.0) if narrow else one_of(data, 0.005, 0.03, 0.2, 1.0, 1e4)
    )
    kind = one_of(data, float, float, torch.float32, torch.float64)
    if kind is float:
        return number
    return torch.tensor(number, dtype=kind)


def logo_problem(data, dtype, generator, module):
    images, dim = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    globals_, locals_ = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 4))
    if globals_ == 1 and locals_ == 0:
        globals_ = 2
    other = one_of(data, dtype, torch.float32)
    similarity = one_of(data, "cosine", "info_nce")
    inputs = {"x": block(data, images, globals_, dim, dtype, generator)}
    if locals_:
        inputs["y"] = block(data, images, locals_, dim, dtype, generator)
    if data.draw(st.booleans()):
        inputs["t"] = block(data, images, globals_, dim, other, generator)
    if locals_ and data.draw(st.booleans()):
        inputs["r"] = block(
            data, images, locals_, dim, one_of(data, dtype, torch.float32), generator
        )
    options = {
        "pair_reduction": one_of(data, "sum", "mean"),
        "reduction": one_of(data, "mean", "sum", "none"),
        "affinity": one_of(data, "cosine", "cosine", None),
        "repulsion_weight": one_of(data, 0.0, 1e-4, 0.3, -1.0),
    }
    terms, tau = data.draw(st.booleans()), None
    if similarity == "info_nce":
        options["similarity"] = similarity
        narrow = any(v.dtype in (torch.bfloat16, torch.float16) for v in inputs.values())
        temperature = temperature_of(data, narrow)
        tau = float(temperature)
        if isinstance(temperature, torch.Tensor):
            inputs["tau"] = temperature
        else:
            options["temperature"] = temperature
        if images == 1 or data.draw(st.booleans()):
            keys = data.draw(st.integers(1, 60))
            inputs["n"] = block(data, keys, 1, dim, one_of(data, dtype, torch.float32), generator)
        else:
            options["negatives"] = "batch"
    as_lists, as_module = data.draw(st.booleans()), module

    def function(backend, x, y=None, t=None, r=None, n=None, tau=None):
        given = dict(options)
        if n is not None:
            given["negatives"] = n[:, 0]
        if tau is not None:
            given["temperature"] = tau
        if as_lists:
            x, y, t, r = (None if v is None else list(v.unbind(1)) for v in (x, y, t, r))
        if as_module:
            called = {"negatives": given.pop("negatives", None), "repulsion_features": r}
            made = LoGoLoss(return_terms=terms, backend=backend, **given)(x, y, t, **called)
        else:
            made = logo_loss(
                x, y, t, repulsion_features=r, return_terms=terms, backend=backend, **given
            )
        if not terms:
            return made
        return made.total + 0 * made.gg.detach() + 0.25 * (made.lg + made.ll + made.gg).detach()

    problem = Problem(function, inputs, ["x", "y", "r", "tau"])
    pairs = (globals_ + locals_) ** 2 * (images if options["reduction"] == "sum" else 1)
    rows = [inputs.get(name) for name in ("x", "y", "r")]
    describe(problem, inputs, pairs, tau, rows)
    return problem


def describe(problem, inputs, pairs, tau, rows):  # tau: None without InfoNCE
    """By how much what is rounded may move results: a logit by a few roundings over τ."""
    widest = torch.float32
    halves = [v.dtype for v in inputs.values() if v.dtype in (torch.bfloat16, torch.float16)]
    eps = EPS[widest]
    if tau is not None and halves:  # their unit vectors may be rounded before products
        eps = max(EPS[dtype] for dtype in halves)
    if all(v.dtype == torch.float64 for v in inputs.values()):
        eps = EPS[torch.float64]
    sharp = 1.0 if tau is None else max(1.0, 1 / tau)
    problem.rounding = 16 * eps * pairs * sharp
    problem.size = pairs * sharp / min(1.0, least_norm(*rows))


def info_nce_problem(data, dtype, generator):
    rows, dim = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))
    positives, keys = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 80))
    inputs = {
        "q": block(data, rows, 1, dim, dtype, generator),
        "k": block(data, rows, positives, dim, one_of(data, dtype, torch.float32), generator),
        "n": block(data, keys, 1, dim, one_of(data, dtype, torch.float32), generator),
    }
    narrow = any(v.dtype in (torch.bfloat16, torch.float16) for v in inputs.values())
    temperature, number = temperature_of(data, narrow), None
    if isinstance(temperature, torch.Tensor):
        inputs["tau"] = temperature
    else:
        number = temperature

    def function(backend, q, k, n, tau=None):
        tau = number if tau is None else tau
        return info_nce(q[:, 0], k, n[:, 0], temperature=tau, backend=backend)

    problem = Problem(function, inputs, ["q", "tau"])
    describe(problem, inputs, positives, float(temperature), [inputs["q"]])
    return problem


def similarity_problem(data, dtype, generator):
    images, dim = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 70))
    inputs = {"a": block(data, images, data.draw(st.integers(1, 7)), dim, dtype, generator)}
    if data.draw(st.booleans()):
        inputs["b"] = block(data, images, data.draw(st.integers(1, 7)), dim, dtype, generator)

    def function(backend, a, b=None):
        return block_cosine_similarity(a, b, backend=backend)

    problem = Problem(function, inputs, ["a", "b"])
    describe(problem, inputs, 1, None, list(inputs.values()))
    problem.rounding += 2 * EPS[dtype]  # of the result, which has the dtype of the crops
    problem.size *= 16
    return problem


def affinity_problem(data, dtype, generator):
    """Where batch norm has constants, or all is float64: of few pairs it is no stable function."""
    images, dim = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 12))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    training = wide == torch.float64 and data.draw(st.booleans())
    inputs = {"y": block(data, images, data.draw(st.integers(2, 4)), dim, dtype, generator)}
    if training:
        inputs["y"] = torch.randn(inputs["y"].shape, generator=generator, dtype=wide)
    hidden = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    form = one_of(data, None, None, "logistic", "difference") if images > 1 else None
    torch.manual_seed(generator.initial_seed())
    state = LocalAffinity(dim, hidden, device="cpu", dtype=torch.float32).state_dict()

    def function(backend, y):
        exact = backend == "reference" and y.dtype == torch.float64
        module = LocalAffinity(
            dim, hidden, backend=backend, device="cpu", dtype=torch.float64 if exact else wide
        )
        module.load_state_dict(state)
        module.train(training)
        torch.manual_seed(0)
        noise_differs = form == "logistic" and wide != torch.float64
        return module(y, objective="difference" if noise_differs else form)

    problem = Problem(function, inputs, ["y"] if form is None else [])
    describe(problem, inputs, 4, None, [inputs["y"]])
    if training:
        problem.rounding = 1e-6
        problem.size = 1e6
    problem.rounding *= 16
    problem.size *= 16
    return problem


def problem_of(data):
    dtype = one_of(data, *DTYPES)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    kind = one_of(data, "logo", "logo", "module", "info_nce", "similarity", "affinity")
    if kind in ("logo", "module"):
        return logo_problem(data, dtype, generator, kind == "module")
    made = {"info_nce": info_nce_problem, "similarity": similarity_problem}
    return made.get(kind, affinity_problem)(data, dtype, generator)


# Modes: (function of the backend's inputs, leaves by name, upstreams) -> value, gradients or None


def forward_and_backward(call, leaves, upstream):
    value = call(**leaves)
    return value.detach(), by_backward(value, leaves, upstream)


def by_backward(value, leaves, upstream, **options):
    wanted = {name: v for name, v in leaves.items() if v.requires_grad}
    if not value.requires_grad or not wanted:
        return dict.fromkeys(wanted)
    found = torch.autograd.grad(
        value, list(wanted.values()), upstream.to(value), allow_unused=True, **options
    )
    return dict(zip(wanted, found, strict=True))


def without_gradients(mode):
    def run(call, leaves, upstream):
        with mode():
            return call(**leaves).clone(), None

    return run


def checkpointed(call, leaves, upstream):
    """Of what gradients flow to: checkpoint itself saves what it is given."""
    given = {name: v for name, v in leaves.items() if v.requires_grad}
    others = {name: v for name, v in leaves.items() if not v.requires_grad}

    def again(*values):
        return call(**others, **dict(zip(given, values, strict=True)))

    value = checkpoint(again, *given.values(), use_reentrant=False)
    return value.detach(), by_backward(value, leaves, upstream)


def second_of_two(call, leaves, upstream):
    value = call(**leaves)
    by_backward(value, leaves, 3 * upstream, retain_graph=True)
    return value.detach(), by_backward(value, leaves, upstream)


def batched(call, leaves, upstream):
    value = call(**leaves)
    two = torch.stack([-upstream, upstream])
    found = by_backward(value, leaves, two, is_grads_batched=True)
    return value.detach(), {name: None if g is None else g[1] for name, g in found.items()}


def created(call, leaves, upstream):
    """And no second derivative of what has a first; at once, if an input is gone (a stack)."""
    value = call(**leaves)
    try:
        found = by_backward(value, leaves, upstream, create_graph=True)
    except RuntimeError as error:
        if "differentiated once" not in str(error):
            raise
        return forward_and_backward(call, leaves, upstream)
    for gradient in found.values():
        if gradient is not None and gradient.requires_grad and gradient.any():
            with pytest.raises(RuntimeError, match="differentiated once"):
                gradient.sum().backward(retain_graph=True)
    return value.detach(), {n: None if g is None else g.detach() for n, g in found.items()}


def inside(context):
    def run(call, leaves, upstream):
        with context():
            return forward_and_backward(call, leaves, upstream)

    return run


class OtherDefaults:
    def __enter__(self):
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


class TwoThreads:
    def __enter__(self):
        self.before = torch.get_num_threads()
        torch.set_num_threads(2)

    def __exit__(self, *_):
        torch.set_num_threads(self.before)


def raises(words):
    return pytest.raises(RuntimeError, match=words)


def refused(call, leaves, upstream):
    """Forward mode and transforms: an error, for all that gradients flow to."""
    for name, leaf in leaves.items():
        if not leaf.requires_grad:
            continue
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(leaf.detach().clone(), torch.ones(leaf.shape).to(leaf))
            depends = by_backward(call(**leaves), leaves, upstream)[name] is not None
            with raises("no forward-mode derivative") if depends else nullcontext():
                call(**{**leaves, name: dual})
        with raises("inside a transform"):
            torch.func.grad(lambda v, name=name: call(**{**leaves, name: v}).sum())(leaf.detach())
    return forward_and_backward(call, leaves, upstream)


MODES = {
    "plain": forward_and_backward,
    "no_grad": without_gradients(torch.no_grad),
    "inference_mode": without_gradients(torch.inference_mode),
    "checkpoint": checkpointed,
    "the second of two backwards": second_of_two,
    "batched": batched,
    "create_graph": created,
    "dispatch mode": inside(Seen),
    "other defaults": inside(OtherDefaults),
    "two threads": inside(TwoThreads),
    "saved on CPU": inside(torch.autograd.graph.save_on_cpu),
    "refused": refused,
    "anomaly": inside(lambda: torch.autograd.set_detect_anomaly(True, check_nan=False)),
}


def allowed(got, want, problem, dtype, scale):
    """The error that a gradient may have: its own rounding, and that of what it is made of."""
    return EPS[dtype] * want.abs() * 2 + problem.rounding * problem.size * scale + smallest(dtype)


def smallest(dtype):
    return float(torch.finfo(dtype).smallest_normal) * EPS[dtype] * 2 + 1e-30


def check(data, problem):
    leaves, exact = {}, {}
    for name, value in problem.inputs.items():
        flows = name in problem.differentiable and data.draw(st.booleans())
        inference = not flows and one_of(data, False, False, True)
        if inference:
            with torch.inference_mode():
                value = value.clone()
        leaves[name] = value.requires_grad_() if flows else value
        exact[name] = value.detach().double().clone().requires_grad_(flows)
    backend, mode = one_of(data, *BACKENDS), one_of(data, *MODES)
    if extension:
        extension.use_simd(one_of(data, *SIMDS))
    want = problem.function("reference", **exact)
    upstream = torch.linspace(-1, 2, want.numel(), dtype=torch.float64).view_as(want)
    want_gradients = by_backward(want, exact, upstream)
    rounded = upstream if want.dtype == torch.float64 else upstream.float()

    def call(**given):
        return problem.function(backend, **given)

    value, gradients = MODES[mode](call, leaves, rounded)
    note(f"{backend} {mode} {[(n, v.dtype, v.shape) for n, v in leaves.items()]}")
    assert value.shape == want.shape
    differs = (value.double() - want.detach()).abs()
    assert bool((differs <= problem.rounding * (1 + want.detach().abs())).all()), differs.max()
    if gradients is None:
        return
    for name, expected in want_gradients.items():
        got = gradients[name]
        expected = torch.zeros_like(exact[name]) if expected is None else expected
        got = torch.zeros_like(leaves[name]) if got is None else got
        assert got.dtype == leaves[name].dtype
        assert got.shape == expected.shape
        largest = torch.finfo(got.dtype).max
        expected = expected.clamp(-largest, largest)
        scale = 64.0 / float(exact["tau"].detach()) ** 2 if name == "tau" else 1.0
        wide = (got.double() - expected).abs()
        bound = allowed(got, expected, problem, got.dtype, scale * len(upstream.flatten()))
        assert bool((wide <= bound).all()), f"{name}: {wide.max()}"


@settings(
    max_examples=EXAMPLES, deadline=None, database=None, print_blob=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(data=st.data())
def test_anything(data):
    before = extension.current_simd() if extension else None
    try:
        check(data, problem_of(data))
    finally:
        if extension:
            extension.use_simd(before)
