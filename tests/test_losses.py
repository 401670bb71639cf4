"""The public interface: what it accepts, what it answers, and what it says when it refuses."""

import pytest
import torch
from torch import nn

import logo_kernels
from logo_kernels import LoGoLoss, LoGoTerms, logo_loss
from oracles import pairwise_cosine
from support import crops, error, leaves

X, Y, T, R = crops(4, 2, 3, 16, targets=True, features=True)


def test_public_names():
    for name in logo_kernels.__all__:
        assert hasattr(logo_kernels, name)
    assert logo_kernels.__version__.count(".") == 2


# What is wrong, the arguments, the error, and what its message must name: the argument, what it
# got, and what it wants.
REFUSED = {
    "no pair": ((X[:, :1],), {}, ValueError, "G = 1.*local_crops"),
    "no pair, L = 0": ((X[:, :1], Y[:, :0]), {}, ValueError, "G = 1.*local_crops"),
    "B = 0": ((X[:0], Y[:0]), {}, ValueError, "global_crops.*B = 0"),
    "G = 0": ((X[:, :0], Y), {}, ValueError, "global_crops.*G = 0"),
    "D = 0": ((X[..., :0],), {}, ValueError, "global_crops.*D = 0"),
    "empty sequence": (([], Y), {}, ValueError, "global_crops.*empty"),
    "rank": ((X[0],), {}, ValueError, r"global_crops.*\[B, G, D\].*\[2, 16\]"),
    "rank of a crop": (([X, X],), {}, ValueError, r"global_crops\[0\].*\[4, 2, 16\]"),
    "not a tensor": (("crops",), {}, TypeError, "global_crops.*str"),
    "crop not a tensor": (([X[:, 0], 3],), {}, TypeError, r"global_crops\[1\].*int"),
    "crops differ": (([X[:, 0], X[:2, 0]],), {}, ValueError, r"\[4, 16\].*\[2, 16\]"),
    "crop dtypes differ": (([X[:, 0], X[:, 1].half()],), {}, TypeError, "float32.*float16"),
    "integers": ((X.long(),), {}, TypeError, "global_crops.*int64"),
    "complex": ((X.to(torch.complex64),), {}, TypeError, "global_crops.*complex64"),
    "B differs": ((X, Y[:3]), {}, ValueError, "local_crops.*B = 3.*B = 4"),
    "D differs": ((X, Y[..., :5]), {}, ValueError, "local_crops.*D = 5.*D = 16"),
    "dtype differs": ((X, Y.half()), {}, TypeError, "local_crops.*float16.*float32"),
    "device differs": ((X, Y.to("meta")), {}, ValueError, "local_crops.*meta.*cpu"),
    "targets' G": ((X, Y, T[:, :1]), {}, ValueError, "targets.*G = 1.*G = 2"),
    "targets' device": ((X, Y, T.to("meta")), {}, ValueError, "targets.*meta"),
    "targets' dtype": ((X, Y, T.int()), {}, TypeError, "targets.*int32"),
    "features' L": (
        (X, Y), {"repulsion_features": R[:, :2]}, ValueError, "repulsion_features.*L = 2.*L = 3",
    ),
    "features alone": ((X,), {"repulsion_features": R}, ValueError, "repulsion_features.*local"),
    "similarity": ((X,), {"similarity": "dot"}, ValueError, "similarity.*'cosine'.*'dot'"),
    "negatives": ((X,), {"negatives": X[0]}, ValueError, "negatives.*cosine"),
    "temperature 0": ((X,), {"temperature": 0.0}, ValueError, "temperature.*0.0"),
    "temperature inf": ((X,), {"temperature": float("inf")}, ValueError, "temperature.*inf"),
    "temperature str": ((X,), {"temperature": "hot"}, TypeError, "temperature.*str"),
    "affinity name": ((X, Y), {"affinity": "dot"}, ValueError, "affinity.*'dot'"),
    "affinity type": ((X, Y), {"affinity": 3}, TypeError, "affinity.*int"),
    "affinity's shape": (
        (X, Y), {"affinity": lambda z: z.sum()}, ValueError, r"affinity.*\[4\].*\[\]",
    ),
    "affinity's type": ((X, Y), {"affinity": lambda z: 1.0}, TypeError, "affinity.*float"),
    "weight nan": ((X,), {"repulsion_weight": float("nan")}, ValueError, "repulsion_weight.*nan"),
    "weight tensor": ((X,), {"repulsion_weight": X}, TypeError, "repulsion_weight.*Tensor"),
    "pair_reduction": ((X,), {"pair_reduction": "none"}, ValueError, "pair_reduction.*'none'"),
    "reduction": ((X,), {"reduction": "max"}, ValueError, "reduction.*'max'"),
    "backend": ((X,), {"backend": "tpu"}, ValueError, "backend.*'auto'.*'tpu'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    arguments, options, kind, message = REFUSED[case]
    options = {"repulsion_weight": 1.0, **options}
    with pytest.raises(kind, match=message):
        logo_loss(*arguments, **options)


def test_module_refuses_at_construction():
    with pytest.raises(ValueError, match="pair_reduction"):
        LoGoLoss(pair_reduction="none")


@pytest.mark.parametrize("local_crops", [None, Y[:, :0], []])
def test_no_local_crops(local_crops):
    terms = logo_loss(X, local_crops, return_terms=True)
    assert terms.lg == 0
    assert terms.ll == 0
    assert terms.total == terms.gg


def test_single_crops():
    assert logo_loss(X, Y[:, :1], return_terms=True).ll == 0
    terms = logo_loss(X[:, :1], Y, repulsion_weight=0.0, return_terms=True)
    assert terms.gg == 0
    assert torch.isclose(terms.total, 3 * terms.lg)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_terms_add_up(reduction):
    """DESIGN section 2: total from the means over pairs; terms detached, total not."""
    x, y = leaves(X, Y)
    terms = logo_loss(x, y, repulsion_weight=0.5, reduction=reduction, return_terms=True)
    assert isinstance(terms, LoGoTerms)
    assert terms.total.requires_grad
    assert not any(term.requires_grad for term in terms[1:])
    assert terms.total.shape == ((4,) if reduction == "none" else ())
    assert torch.allclose(terms.total, terms.gg + 6 * terms.lg + 0.5 * 3 * terms.ll)
    terms = logo_loss(
        x, y, repulsion_weight=0.5, reduction=reduction, return_terms=True, pair_reduction="mean"
    )
    assert torch.allclose(terms.total, (2 * terms.gg + 6 * terms.lg) / 8 + 0.5 * terms.ll)


def test_terms_are_returned_only_when_asked():
    assert isinstance(logo_loss(X, Y), torch.Tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_of_the_loss(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert logo_loss(X.to(dtype), Y.to(dtype)).dtype == wide


def test_sequences_equal_stacked_tensors():
    x, y = leaves(X, Y)
    xs, ys = [v.detach().requires_grad_() for v in X.unbind(1)], list(y.unbind(1))
    a = logo_loss(x, Y, T, repulsion_features=R)
    b = logo_loss(xs, Y.unbind(1), T.unbind(1), repulsion_features=list(R.unbind(1)))
    assert torch.equal(a, b)
    a.backward()
    b.backward()
    assert torch.equal(x.grad, torch.stack([v.grad for v in xs], 1))
    logo_loss(xs, ys).backward()
    assert y.grad is not None


def test_targets_are_constants():
    x, t = leaves(X, T)
    logo_loss(x, None, t).backward()
    assert x.grad is not None
    assert t.grad is None


def test_default_targets_are_detached_global_crops():
    a, b = leaves(X, X)
    logo_loss(a, Y).backward()
    logo_loss(b, Y, b).backward()
    assert error(a.grad, b.grad) < 1e-7


def test_repulsion_reaches_features_instead_of_crops():
    x, y, r = leaves(X, Y, R)
    logo_loss(x, y, repulsion_features=r, repulsion_weight=1.0).backward()
    with_features = y.grad.clone()
    y.grad = None
    logo_loss(x, y, affinity=None).backward()
    assert torch.equal(with_features, y.grad)
    assert r.grad.abs().sum() > 0


def cosine_affinity(z):
    """The default affinity as a user would write it: [B, L, D] -> [B]."""
    unit = torch.nn.functional.normalize(z, dim=-1)
    pairs = torch.triu_indices(z.shape[1], z.shape[1], 1)
    return (unit[:, pairs[0]] * unit[:, pairs[1]]).sum(-1).mean(-1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("pair_reduction", ["sum", "mean"])
@pytest.mark.parametrize("features", [False, True])
def test_callable_affinity(reduction, pair_reduction, features):
    """A callable that computes the cosine affinity gives what "cosine" gives."""
    results = []
    for affinity in ("cosine", cosine_affinity):
        x, y, r = leaves(X, Y, R if features else None)
        terms = logo_loss(
            x, y, affinity=affinity, repulsion_features=r, repulsion_weight=0.7,
            reduction=reduction, pair_reduction=pair_reduction, return_terms=True,
        )  # fmt: skip
        terms.total.sum().backward()
        results.append([*terms, *(v.grad for v in (x, y, r) if v is not None)])
    for a, b in zip(*results, strict=True):
        assert error(a, b) < 1e-6


def test_affinity_is_not_called_in_vain():
    def fail(z):
        raise AssertionError("called")

    logo_loss(X, Y[:, :1], affinity=fail)
    logo_loss(X, Y, affinity=fail, repulsion_weight=0.0)


def test_affinity_with_zero_weight_is_reported_without_gradient():
    x, y = leaves(X, Y)
    scale = torch.ones((), requires_grad=True)
    terms = logo_loss(
        x, y, affinity=lambda z: scale * cosine_affinity(z), repulsion_weight=0.0,
        return_terms=True,
    )  # fmt: skip
    terms.total.backward()
    assert error(terms.ll, pairwise_cosine(X, Y, None, None, 0, "sum")[3].mean()) < 1e-6
    assert scale.grad is None


def test_module_equals_function():
    loss = LoGoLoss(
        repulsion_weight=0.3, pair_reduction="mean", reduction="none", return_terms=True
    )
    terms = logo_loss(
        X, Y, T, repulsion_features=R,
        repulsion_weight=0.3, pair_reduction="mean", reduction="none", return_terms=True,
    )  # fmt: skip
    for a, b in zip(loss(X, Y, T, repulsion_features=R), terms, strict=True):
        assert torch.equal(a, b)
    assert "repulsion_weight=0.3" in repr(loss)


def test_module_owns_a_learned_affinity():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, z):
            return self.scale * cosine_affinity(z)

    loss = LoGoLoss(affinity=Learned(), repulsion_weight=1.0)
    assert [name for name, _ in loss.named_parameters()] == ["affinity.scale"]
    loss(X, Y).backward()
    assert loss.affinity.scale.grad is not None
