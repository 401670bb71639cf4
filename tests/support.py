"""Inputs of the tests, what is called to get results from them, and how these are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from logo_kernels import logo_loss
from logo_kernels.backends import BACKENDS, Backend
from logo_kernels.contrast import InfoNCECall, InfoNCEResult
from logo_kernels.cosine import CosineCall, CosineResult

WIDE = (torch.float64, torch.float32)
ALL = (*WIDE, torch.bfloat16, torch.float16)
EPS = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
}
NO_FP64 = ("triton", "cuda", "emulated")  # backends


def serves(backend: tuple[str, str], dtype: torch.dtype) -> None:
    """Skips the test of a dtype that the backend does not have."""
    if backend[0] in NO_FP64 and dtype == torch.float64:
        pytest.skip(f"{backend[0]} has no fp64 kernels; reference and cpu serve it")


def crops(
    images: int,
    globals_: int,
    locals_: int,
    dim: int,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    targets: bool = False,
    features: bool = False,
    device: str = "cpu",
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """x, y, t, r with values that every dtype represents alike (they come from `dtype`)."""
    generator = torch.Generator().manual_seed(seed)

    def block(count: int) -> Tensor:
        return torch.randn(images, count, dim, generator=generator).to(dtype).to(device)

    return (
        block(globals_),
        block(locals_) if locals_ else None,
        block(globals_) if targets else None,
        block(locals_) if locals_ and features else None,
    )


def queries_and_keys(
    rows: int,
    positives: int,
    negatives: int,
    dim: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    """q [N, D], k [N, P, D] and n [K, D] of `info_nce`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, dim), (rows, positives, dim), (negatives, dim)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def leaves(*tensors: Tensor | None, dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """Copies that require gradients, with the strides of the originals."""
    return [
        None if v is None else v.detach().clone().to(dtype or v.dtype).requires_grad_()
        for v in tensors
    ]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "view-major": lambda v: v.transpose(0, 1).contiguous().transpose(0, 1),
    "sliced": lambda v: torch.cat([v, v], dim=1)[:, : v.shape[1]],
    "misaligned": lambda v: torch.cat([v[..., :1], v], dim=-1)[..., 1:],
    "strided over D": lambda v: v.transpose(1, 2).contiguous().transpose(1, 2),
    "every second element": lambda v: v.repeat_interleave(2, dim=-1)[..., ::2],
    "reversed images": lambda v: v.flip(0).contiguous().flip(0),
}


def run_cosine(
    backend: tuple[str, str],  # name, device
    x: Tensor,
    y: Tensor | None,
    t: Tensor | None,
    r: Tensor | None,
    upstream: Tensor | None = None,
    **options: object,
) -> tuple[list[Tensor], list[Tensor | None]]:
    """(terms, gradients of x, y, r that are there) of the loss, on the CPU in float64."""
    name, device = backend
    x, y, r = leaves(*(None if v is None else v.to(device) for v in (x, y, r)))
    t = None if t is None else t.to(device)
    terms = logo_loss(x, y, t, repulsion_features=r, return_terms=True, backend=name, **options)
    terms.total.backward(None if upstream is None else upstream.to(device, terms.total.dtype))
    grads = [v.grad for v in (x, y, r) if v is not None]
    return [v.detach().cpu().double() for v in terms], [
        None if g is None else g.cpu().double() for g in grads
    ]


def assert_repels(backend: Backend, dtype: torch.dtype, dim: int, features: bool) -> None:
    """The cosine loss without global crops: as in float64, and of local crops alone."""
    _, y, _, r = crops(7, 1, 4, dim, dtype, features=features)
    options = 0.3, None, True, "sum", "mean", False, True, features

    def filled(backend: Backend, dtype: torch.dtype) -> Any:
        of = [None if v is None else v.to(dtype) for v in (None, y, None, r)]
        call = CosineCall(*of, *options)
        result = CosineResult.empty(call)
        backend.cosine(call, result)
        return result

    got, want = filled(backend, dtype), filled(BACKENDS["reference"], torch.float64)
    assert error(got.total, want.total) < 1e-5
    assert error(got.terms, want.terms) < 1e-5
    assert not got.terms[:2].any()
    assert got.grad_global is None
    scales = [None, None]
    if got.row_scale is not None:
        scales = list(got.row_scale.unsqueeze(2).split(4, 1))
    gradients = [(got.grad_local, want.grad_local)]
    if features:
        gradients.append((got.grad_features, want.grad_features))
    for (gradient, exact), scale in zip(gradients, scales, strict=False):
        value = gradient.double() * (1 if scale is None else scale)
        assert error(value, exact) <= (EPS[dtype] + 1e-6) * float(exact.abs().max())


def losses_and_gradient(
    function: Callable[..., Tensor],  # `info_nce`, or what stands beside it in oracles.py
    q: Tensor,
    k: Tensor,
    n: Tensor,
    temperature: float,
    upstream: Tensor,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    **options: object,
) -> tuple[Tensor, Tensor]:
    """The losses [N, P] and the gradient of q, on the CPU."""
    (q,) = leaves(q.to(device), dtype=dtype)
    k, n = (v.to(device, dtype or v.dtype) for v in (k, n))
    losses = function(q, k, n, temperature=temperature, **options)
    losses.backward(upstream.to(losses))
    return losses.detach().cpu(), q.grad.cpu()


def attend(
    backend: Backend,
    queries: Tensor,  # [N, D]
    negatives: Tensor,  # [K, D]
    temperature: float | Tensor,
    own: tuple[int, int] | None = None,  # (V, P): query n does not see negatives k//P == n//V
) -> tuple[Tensor, Tensor]:
    """(lse [N], mean [N, D]): the softmax over the negatives that `Backend.info_nce` finds."""
    local, positives = queries.unsqueeze(1), torch.zeros_like(queries).unsqueeze(1)
    if own is not None:
        local, positives = (
            rows.unflatten(0, (-1, count))
            for rows, count in zip((queries, negatives), own, strict=True)
        )
    learned = isinstance(temperature, Tensor)
    call = InfoNCECall(
        None, local, positives, None if own else negatives,
        1.0 if learned else temperature, temperature if learned else None, "sum", "none",
    )  # fmt: skip
    result = InfoNCEResult.empty(call)
    backend.info_nce(call, result)
    return result.lse.flatten(), result.mean.flatten(0, 1)


def beside_others(call: Any, others: Tensor) -> Any:
    """An `InfoNCECall` as on one of several processes: negatives are its positives, then others."""
    own = call.positives.flatten(0, 1)
    return call._replace(negatives=torch.cat([own, others.to(own)]), own_first=True)


class Compiler:
    """torch.compile of whole functions, whose graphs it counts.

    One compilation may hand its graph over twice, so it is the changes of the count that tell.
    """

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(
        self, function: Callable[..., Any], backend: str = "inductor", **options: object
    ) -> Callable[..., Any]:
        def counted(*given: Any) -> Any:
            self.graphs += 1
            return torch._dynamo.lookup_backend(backend)(*given)

        return torch.compile(function, backend=counted, fullgraph=True, **options)


class Operators(TorchDispatchMode):
    """Those that are called: their names, and the shapes of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.results: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        name = function.overloadpacket.__name__
        self.names.append(name)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.results.append((name, tuple(tensor.shape)))
        return result


def error(value: Tensor, exact: Tensor) -> float:
    """Largest absolute difference, in fp64; NaN counts as infinite."""
    assert value.shape == exact.shape, f"{list(value.shape)}, not {list(exact.shape)}"
    difference = (value.detach().double().cpu() - exact.detach().double().cpu()).abs()
    if difference.isnan().any():
        return float("inf")
    return float(difference.max()) if difference.numel() else 0.0
