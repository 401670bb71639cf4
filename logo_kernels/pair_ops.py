"""The registered operators of the learned affinity's pair stage; see backends/pairs.py."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import resolve
from .backends.buffers import compute_dtype
from .backends.pairs import PairStage

_library = torch.library.Library("logo_kernels", "FRAGMENT")

_library.define("pair_hidden_moments(Tensor a, Tensor c, int roll, str backend) -> Tensor")
_library.define("pair_hidden(Tensor a, Tensor c, Tensor norm, int roll, str backend) -> Tensor")
_library.define(
    "pair_hidden_sums(Tensor grad, Tensor a, Tensor c, Tensor norm, int roll, str backend) "
    "-> (Tensor to_a, Tensor to_c, Tensor sums)"
)
_library.define(
    "pair_hidden_backward(Tensor to_a, Tensor to_c, Tensor a, Tensor c, Tensor norm, "
    "Tensor correction, int roll, str backend) -> (Tensor grad_a, Tensor grad_c)"
)
_library.define("pair_output_moments(Tensor y, str backend) -> Tensor")
_library.define(
    "pair_output(Tensor y, Tensor norm, Tensor weight, Tensor bias, int pairs, int link, "
    "str backend) -> (Tensor value, Tensor slope)"
)
_library.define(
    "pair_output_sums(Tensor y, Tensor norm, Tensor slope, Tensor grad, int pairs, str backend) "
    "-> Tensor"
)
_library.define(
    "pair_output_backward(Tensor y, Tensor norm, Tensor weight, Tensor slope, Tensor grad, "
    "Tensor correction, int pairs, str backend) -> Tensor"
)


def _stage(backend: str, rows: Tensor) -> PairStage:
    stage = resolve(backend, "pair_mlp", rows.view(1, -1, rows.shape[-1])).pair_stage
    assert stage is not None, "affinity.py sends what has no pair stage to the reference"
    return stage


def _wide(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=compute_dtype(like))


def _hidden_moments(a: Tensor, c: Tensor, roll: int, backend: str) -> Tensor:
    return _stage(backend, a).hidden_moments(a, c, roll)


def _hidden_moments_fake(a: Tensor, c: Tensor, roll: int, backend: str) -> Tensor:
    return _wide(a, 2, a.shape[2])


def _hidden(a: Tensor, c: Tensor, norm: Tensor, roll: int, backend: str) -> Tensor:
    return _stage(backend, a).hidden(a, c, norm, roll)


def _hidden_fake(a: Tensor, c: Tensor, norm: Tensor, roll: int, backend: str) -> Tensor:
    images, crops, width = a.shape
    return a.new_empty(images * crops * (crops - 1), width)


def _hidden_sums(
    grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, roll: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _stage(backend, a).hidden_sums(grad, a, c, norm, roll)


def _hidden_sums_fake(
    grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, roll: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _wide(a, *a.shape), _wide(a, *a.shape), _wide(a, 2, a.shape[2])


def _hidden_backward(
    to_a: Tensor,
    to_c: Tensor,
    a: Tensor,
    c: Tensor,
    norm: Tensor,
    correction: Tensor,
    roll: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _stage(backend, a).hidden_backward(to_a, to_c, a, c, norm, correction, roll)


def _hidden_backward_fake(
    to_a: Tensor,
    to_c: Tensor,
    a: Tensor,
    c: Tensor,
    norm: Tensor,
    correction: Tensor,
    roll: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(c)


def _output_moments(y: Tensor, backend: str) -> Tensor:
    return _stage(backend, y).output_moments(y)


def _output_moments_fake(y: Tensor, backend: str) -> Tensor:
    return _wide(y, 2, y.shape[1])


def _output(
    y: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, pairs: int, link: int, backend: str
) -> tuple[Tensor, Tensor]:
    return _stage(backend, y).output(y, norm, weight, bias, pairs, link)


def _output_fake(
    y: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, pairs: int, link: int, backend: str
) -> tuple[Tensor, Tensor]:
    return _wide(y, y.shape[0] // pairs), _wide(y, y.shape[0])


def _output_sums(
    y: Tensor, norm: Tensor, slope: Tensor, grad: Tensor, pairs: int, backend: str
) -> Tensor:
    return _stage(backend, y).output_sums(y, norm, slope, grad, pairs)


def _output_sums_fake(
    y: Tensor, norm: Tensor, slope: Tensor, grad: Tensor, pairs: int, backend: str
) -> Tensor:
    return _wide(y, 2, y.shape[1])


def _output_backward(
    y: Tensor,
    norm: Tensor,
    weight: Tensor,
    slope: Tensor,
    grad: Tensor,
    correction: Tensor,
    pairs: int,
    backend: str,
) -> Tensor:
    return _stage(backend, y).output_backward(y, norm, weight, slope, grad, correction, pairs)


def _output_backward_fake(
    y: Tensor,
    norm: Tensor,
    weight: Tensor,
    slope: Tensor,
    grad: Tensor,
    correction: Tensor,
    pairs: int,
    backend: str,
) -> Tensor:
    return torch.empty_like(y)


for _name, _implementation, _fake in (
    ("pair_hidden_moments", _hidden_moments, _hidden_moments_fake),
    ("pair_hidden", _hidden, _hidden_fake),
    ("pair_hidden_sums", _hidden_sums, _hidden_sums_fake),
    ("pair_hidden_backward", _hidden_backward, _hidden_backward_fake),
    ("pair_output_moments", _output_moments, _output_moments_fake),
    ("pair_output", _output, _output_fake),
    ("pair_output_sums", _output_sums, _output_sums_fake),
    ("pair_output_backward", _output_backward, _output_backward_fake),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"logo_kernels::{_name}", _fake, lib=_library)

hidden_moments = torch.ops.logo_kernels.pair_hidden_moments.default
hidden = torch.ops.logo_kernels.pair_hidden.default
hidden_sums = torch.ops.logo_kernels.pair_hidden_sums.default
hidden_backward = torch.ops.logo_kernels.pair_hidden_backward.default
output_moments = torch.ops.logo_kernels.pair_output_moments.default
output = torch.ops.logo_kernels.pair_output.default
output_sums = torch.ops.logo_kernels.pair_output_sums.default
output_backward = torch.ops.logo_kernels.pair_output_backward.default
