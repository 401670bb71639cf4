"""The cosine loss and its gradients, the same tests for every backend, against float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from logo_kernels import logo_loss
from oracles import eager_cosine, exact_cosine
from support import ALL, EPS, LAYOUTS, crops, error, leaves, run_cosine, serves

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("case", sorted(p.stem for p in GOLDEN.glob("cosine_*.npz")))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_golden(backend, case, dtype, tolerance):
    """Float64 numbers from outside the project."""
    serves(backend, dtype)
    golden = np.load(GOLDEN / f"{case}.npz")
    x, y, t = (
        torch.tensor(golden[name]).to(dtype) for name in ("global_crops", "local_crops", "targets")
    )
    terms, grads = run_cosine(
        backend, x, y, t, None,
        repulsion_weight=float(golden["arg_lam"]), pair_reduction=str(golden["arg_pair_reduction"]),
    )  # fmt: skip
    for term, name in zip(terms, ("total", "gg", "lg", "ll"), strict=True):
        assert abs(float(term) - float(golden[name])) < tolerance
    for grad, name in zip(grads, ("grad_global", "grad_local"), strict=True):
        assert error(grad, torch.tensor(golden[name])) < tolerance


# (G, L, D): G = 1 has no gg; L = 0, 1 no ll; 2 and 8 the published and the benchmark's shapes;
# 3 + 5 and 7 + 11 fit no register tile; D = 1, 7, 33 are shorter than a vector, or not a multiple.
SHAPES = [(2, 0, 33), (1, 1, 7), (2, 1, 16), (2, 2, 64), (2, 8, 96), (3, 5, 1), (7, 11, 33)]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(("globals_", "locals_", "dim"), SHAPES)
def test_no_worse_than_eager(backend, dtype, globals_, locals_, dim):
    """Error against float64 at most twice that of eager PyTorch in the same dtype."""
    serves(backend, dtype)
    x, y, t, r = crops(5, globals_, locals_, dim, dtype, targets=True, features=True)
    want, want_grads = exact_cosine(x, y, t, r, 0.3, "sum", "mean")
    terms, grads = run_cosine(backend, x, y, t, r, repulsion_weight=0.3)

    ex, ey, er = leaves(x, y, r)
    eager = eager_cosine(ex, ey, t, er, 0.3).mean()
    eager.backward()
    floor = EPS[torch.float32 if dtype != torch.float64 else dtype]
    assert error(terms[0], want[0]) <= 2 * error(eager, want[0]) + 8 * floor
    for grad, exact_grad, leaf in zip(
        grads, want_grads, [v for v in (ex, ey, er) if v is not None], strict=True
    ):
        if exact_grad is None:  # L = 1: nothing repels
            assert grad is None or not grad.any()
            continue
        scale = float(exact_grad.abs().max())
        allowed = 2 * error(leaf.grad, exact_grad) + EPS[dtype] * scale + 8 * floor
        assert error(grad, exact_grad) <= allowed


@pytest.mark.parametrize("pair_reduction", ["sum", "mean"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("targets", [False, True])
@pytest.mark.parametrize("features", [False, True])
def test_every_option(backend, pair_reduction, reduction, targets, features):
    x, y, t, r = crops(4, 2, 3, 19, targets=targets, features=features)
    upstream = torch.linspace(-1, 2, 4, dtype=torch.float64) if reduction == "none" else None
    want, want_grads = exact_cosine(x, y, t, r, 0.7, pair_reduction, reduction, upstream)
    terms, grads = run_cosine(
        backend, x, y, t, r, upstream,
        repulsion_weight=0.7, pair_reduction=pair_reduction, reduction=reduction,
    )  # fmt: skip
    for term, value in zip(terms, want, strict=True):
        assert term.shape == value.shape
        assert error(term, value) < 2e-6
    for grad, value in zip(grads, want_grads, strict=True):
        assert error(grad, value) < 2e-6


@pytest.mark.parametrize("constants", ALL)
@pytest.mark.parametrize("dtype", ALL)
def test_mixed_dtypes(backend, dtype, constants):
    """Autocast gives targets and features in another dtype than the crops."""
    serves(backend, dtype)
    serves(backend, constants)
    x, y, _, _ = crops(3, 2, 4, 21, dtype)
    _, _, t, r = crops(3, 2, 4, 21, constants, targets=True, features=True, seed=1)
    want, want_grads = exact_cosine(x, y, t, r, 0.5, "sum", "mean")
    terms, grads = run_cosine(backend, x, y, t, r, repulsion_weight=0.5)
    assert error(terms[0], want[0]) < 5e-6
    for grad, value, of in zip(grads, want_grads, (dtype, dtype, constants), strict=True):
        assert error(grad, value) < max(EPS[of] * float(value.abs().max()), 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(backend, layout, dtype):
    """Any strides give the numbers of a contiguous copy; inputs are not written to."""
    name, device = backend
    x, y, t, r = crops(4, 2, 4, 64, dtype, targets=True, features=True)
    want, want_grads = exact_cosine(x, y, t, r, 0.5, "sum", "mean")
    arranged = [LAYOUTS[layout](v.to(device)) for v in (x, y, t, r)]
    before = [v.clone() for v in arranged]
    inputs = [v.detach().requires_grad_() for v in arranged]
    assert [v.stride() for v in inputs] == [v.stride() for v in arranged]
    loss = logo_loss(*inputs[:3], repulsion_features=inputs[3], repulsion_weight=0.5, backend=name)
    loss.backward()
    assert error(loss, want[0]) < 1e-5
    for leaf, value in zip((inputs[0], inputs[1], inputs[3]), want_grads, strict=True):
        assert error(leaf.grad, value) < EPS[dtype]
    for after, value in zip(arranged, before, strict=True):
        assert torch.equal(after, value)


def test_expanded(backend):
    """One crop for all images, by expand: a stride of zero."""
    name, device = backend
    x, y, _, _ = crops(3, 2, 3, 32)
    x, y = x[:1].expand(3, 2, 32), y[:, :1].expand(3, 3, 32)
    want, want_grads = exact_cosine(x, y, None, None, 0.5, "sum", "mean")
    leaf = [v.to(device).detach() for v in (x, y)]
    leaf = [torch.as_strided(v, v.shape, v.stride()).requires_grad_() for v in leaf]
    loss = logo_loss(*leaf, repulsion_weight=0.5, backend=name)
    grads = torch.autograd.grad(loss, leaf)
    assert error(loss, want[0]) < 1e-5
    for grad, value in zip(grads, want_grads, strict=True):
        assert error(grad, value) < 1e-5


@pytest.mark.parametrize("dtype", ALL)
def test_zero_rows(backend, dtype):
    """Cosines and gradient of a zero row are 0, its image's other rows are right."""
    serves(backend, dtype)
    x, y, _, _ = crops(4, 2, 3, 40, dtype)
    x[0, 1] = 0
    y[1, 2] = 0
    y[2] = 0
    x[3] = 0
    y[3] = 0
    want, want_grads = exact_cosine(x, y, None, None, 0.5, "sum", "none", torch.ones(4).double())
    terms, grads = run_cosine(
        backend, x, y, None, None, torch.ones(4), repulsion_weight=0.5, reduction="none"
    )
    assert error(terms[0], want[0]) < 1e-5
    for grad, value, rows in zip(grads, want_grads, (x, y), strict=True):
        zero = (rows == 0).all(-1)
        assert zero.any()
        assert (grad[zero] == 0).all()
        assert error(grad[~zero], value[~zero]) < max(4 * EPS[dtype], 1e-6)


EXTREMES = {
    torch.float64: (1e-320, 1e-200, 1e200, 1e307),
    torch.float32: (1e-44, 1e-38, 1e-20, 1e20, 3e37),
    torch.bfloat16: (1e-39, 1e-30, 1e20, 3e37),
    torch.float16: (6e-8, 1e-5, 1e4),
}


@pytest.mark.parametrize(
    ("dtype", "size"), [(dtype, size) for dtype, sizes in EXTREMES.items() for size in sizes]
)
def test_any_finite_norm(backend, dtype, size):
    """Rows of extreme norm have the cosines and gradients of the same rows in exact arithmetic.

    Where a gradient, which grows as 1/‖x‖, is beyond its dtype, it is the largest finite value.
    """
    serves(backend, dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 24, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 3, 24, generator=generator, dtype=torch.float64)
    x[0] *= size  # image 0: extreme globals; 1: one extreme local; 2: all rows ordinary
    y[1, 1] *= size
    x, y = x.to(dtype), y.to(dtype)
    assert x.isfinite().all()
    # The oracle squares, so it sees rows scaled by powers of two, which cosines do not notice.
    halves = [
        2.0 ** (torch.frexp(v.double().abs().amax(-1, keepdim=True))[1].double() / -2)
        for v in (x, y)
    ]
    scaled = [v.double() * h * h for v, h in zip((x, y), halves, strict=True)]
    want, want_grads = exact_cosine(*scaled, None, None, 0.5, "sum", "none", torch.ones(3).double())
    most = torch.finfo(dtype).max
    want_grads = [(g * h * h).clamp(-most, most) for g, h in zip(want_grads, halves, strict=True)]
    terms, grads = run_cosine(
        backend, x, y, None, None, torch.ones(3), repulsion_weight=0.5, reduction="none"
    )
    assert error(terms[0], want[0]) < 1e-5
    for grad, value in zip(grads, want_grads, strict=True):
        assert grad.isfinite().all()
        for row, wanted in zip(grad.flatten(0, 1), value.flatten(0, 1), strict=True):
            least = torch.finfo(dtype).smallest_normal * EPS[dtype]  # a subnormal's spacing
            allowed = max(8 * EPS[dtype], 1e-5) * float(wanted.abs().max()) + least
            assert error(row, wanted) <= allowed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_inf_come_out_as_nan(backend, dtype, value):
    x, y, _, _ = crops(3, 2, 3, 24, dtype)
    y[1, 0, 5] = value
    terms, grads = run_cosine(backend, x, y, None, None, torch.ones(3), reduction="none")
    assert terms[0].isnan().tolist() == [False, True, False]
    assert grads[1][1, 0].isnan().any()
    assert grads[0][[0, 2]].isfinite().all()
    assert grads[1][[0, 2]].isfinite().all()


def test_fp16_gradients_survive_the_mean_and_the_scaler(backend):
    """1/B and a row norm of 100 put gradients below fp16's normal range; a loss scaler's 65536
    must bring them back with fp16's full precision."""
    x, y, _, _ = crops(64, 2, 2, 48, torch.float16)
    x, y = x * 16, y * 16
    _, want = exact_cosine(x, y, None, None, 0.5, "sum", "mean", torch.tensor(65536.0).double())
    _, grads = run_cosine(backend, x, y, None, None, torch.tensor(65536.0), repulsion_weight=0.5)
    for grad, value in zip(grads, want, strict=True):
        assert error(grad, value) <= 2 * EPS[torch.float16] * float(value.abs().max())


def test_fp16_overflow_of_the_scaled_gradient_is_inf(backend):
    """A loss scaler lowers its scale when it meets an inf, so none may be hidden."""
    x, y, _, _ = crops(2, 2, 2, 48, torch.float16)
    _, grads = run_cosine(backend, x * 1e-2, y * 1e-2, None, None, torch.tensor(2.0**24))
    assert grads[0].isinf().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_element_is_written(backend, dtype):
    """Fresh buffers are full of NaN: one that a kernel forgets would show."""
    from logo_kernels import ops
    from logo_kernels.backends import CosineResult

    name, device = backend
    x, y, t, r = crops(3, 3, 4, 37, dtype, targets=True, features=True, device=device)
    result = CosineResult(
        *ops.cosine(x, y, t, r, 0.5, 1, 0.1, True, "none", True, True, True, name)
    )
    for tensor in result:
        assert tensor.isfinite().all()
    assert all(tensor.numel() for tensor in result[:5])
    assert result.row_scale.numel() == (3 * (3 + 4 + 4) if dtype == torch.float16 else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_column_counts(backend, dtype):
    """Rows that are converted, in several chunks that are no multiple of each other."""
    if backend[0] == "triton":
        pytest.skip("tests/triton_kernels covers its loops over D at less cost")
    x, y, _, _ = crops(2, 2, 8, 7001, dtype)
    want, want_grads = exact_cosine(x, y, None, None, 0.5, "sum", "mean")
    terms, grads = run_cosine(backend, x, y, None, None, repulsion_weight=0.5)
    assert error(terms[0], want[0]) < 1e-5
    for grad, value in zip(grads, want_grads, strict=True):
        assert error(grad, value) < 2 * EPS[dtype] * float(value.abs().max()) + 1e-8


def test_many_crops_and_long_rows(backend):
    """64 crops; and rows longer than a panel."""
    big = (64, 96) if backend[0] != "triton" else (62, 32)
    for globals_, locals_, dim in [(2, big[0], big[1]), (2, 2, 5000)]:
        x, y, _, _ = crops(2, globals_, locals_, dim)
        want, want_grads = exact_cosine(x, y, None, None, 0.1, "mean", "mean")
        terms, grads = run_cosine(
            backend, x, y, None, None, repulsion_weight=0.1, pair_reduction="mean"
        )
        assert error(terms[0], want[0]) < 1e-5
        for grad, value in zip(grads, want_grads, strict=True):
            assert error(grad, value) < 1e-5
