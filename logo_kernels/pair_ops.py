"""The registered operators of the learned affinity's pair stage; see backends/pairs.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .backends import remembered
from .backends import unit as units
from .backends.compiled_pairs import (
    CompiledPairStage,
    hidden_gradient_results,
    hidden_layer_results,
    output_gradient_results,
    output_layer_results,
)
from .backends.pairs import PairStage
from .direct import direct

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


_library.define("unit(Tensor z, ScalarType dtype, str backend) -> (Tensor unit, Tensor factors)")
_library.define(
    "unit_backward(Tensor grad, Tensor unit, Tensor factors, ScalarType dtype, bool view_major, "
    "str backend) -> Tensor"
)
# mean, var and batches, the running statistics, are written to where `batch` is true.
_RUNNING = (
    "Tensor weight, Tensor bias, Tensor(a!)? mean, Tensor(b!)? var, Tensor(c!)? batches, "
    "bool batch, float momentum, float eps"
)
_library.define(
    f"pair_hidden_layer(Tensor a, Tensor c, {_RUNNING}, int roll, str backend) "
    "-> (Tensor x, Tensor norm)"
)
_library.define(
    "pair_hidden_gradient(Tensor grad, Tensor a, Tensor c, Tensor norm, bool batch, int roll, "
    "str backend) -> (Tensor grad_a, Tensor grad_c, Tensor facts)"
)
_library.define(
    f"pair_output_layer(Tensor y, {_RUNNING}, Tensor last, Tensor last_bias, int pairs, int link, "
    "str backend) -> (Tensor value, Tensor slope, Tensor norm)"
)
_library.define(
    "pair_output_gradient(Tensor y, Tensor norm, Tensor last, Tensor slope, Tensor grad, "
    "bool batch, bool parameters, int pairs, str backend) -> (Tensor grad_y, Tensor facts)"
)


def find_stage(backend: str, device: torch.device, dtype: torch.dtype) -> PairStage | None:
    """That of the backend which is chosen for rows of this dtype; None: the reference is."""
    return remembered(backend, "pair_mlp", device, (dtype,), 0, 1).pair_stage


def _stage(backend: str, like: Tensor) -> PairStage:
    stage = find_stage(backend, like.device, like.dtype)
    assert stage is not None, "affinity.py sends what has no pair stage to the reference"
    return stage


class _Outputs(CompiledPairStage):
    """What the kernels would write to, unwritten."""

    def _launch(self, *given: object) -> None:
        pass

    def _call(self, *given: object) -> None:
        raise NotImplementedError  # these are given addresses, which fake tensors have not


def _define(name: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"logo_kernels::{name}", fake, lib=_library)


def _register(name: str, rows: int) -> None:
    """The operator pair_`name`: of its arguments, those of `PairStage` and the backend, the one at
    `rows` says by its shape and dtype which backends there are to choose from.
    """

    def run(*arguments: Any) -> Any:
        *given, backend = arguments
        return getattr(_stage(backend, given[rows]), name)(*given)

    def fake(*arguments: Any) -> Any:
        *given, _ = arguments
        return getattr(_Outputs(), name)(*given)

    _define(f"pair_{name}", run, fake)


def _unit(z: Tensor, dtype: torch.dtype, backend: str) -> tuple[Tensor, Tensor]:
    stage = find_stage(backend, z.device, dtype)
    return units.unit(z, dtype) if stage is None else stage.unit(z, dtype)


def _unit_backward(
    grad: Tensor,
    unit: Tensor,
    factors: Tensor,
    dtype: torch.dtype,
    view_major: bool,
    backend: str,
) -> Tensor:
    stage = find_stage(backend, unit.device, unit.dtype)
    backward = units.unit_backward if stage is None else stage.unit_backward
    return backward(grad.contiguous(), unit, factors, dtype, view_major)


def _followed(mean: Tensor | None, var: Tensor | None, batches: Tensor | None) -> None:
    """For autograd: the kernels have written to these."""
    written = [tensor for tensor in (mean, var, batches) if tensor is not None]
    if written:
        torch.autograd.graph.increment_version(written)


def _hidden_layer(
    a: Tensor,
    c: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    batch: bool,
    momentum: float,
    eps: float,
    roll: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    made = _stage(backend, a).hidden_layer(
        a, c, weight, bias, mean, var, batches, batch, momentum, eps, roll
    )
    if batch:
        _followed(mean, var, batches)
    return made


def _hidden_gradient(
    grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, batch: bool, roll: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _stage(backend, a).hidden_gradient(grad, a, c, norm, batch, roll)


def _output_layer(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    batch: bool,
    momentum: float,
    eps: float,
    last: Tensor,
    last_bias: Tensor,
    pairs: int,
    link: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    made = _stage(backend, y).output_layer(
        y, weight, bias, mean, var, batches, batch, momentum, eps, last, last_bias, pairs, link
    )
    if batch:
        _followed(mean, var, batches)
    return made


def _output_gradient(
    y: Tensor,
    norm: Tensor,
    last: Tensor,
    slope: Tensor,
    grad: Tensor,
    batch: bool,
    parameters: bool,
    pairs: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _stage(backend, y).output_gradient(y, norm, last, slope, grad, batch, parameters, pairs)


_define("unit", _unit, lambda z, dtype, _: units.unit_results(z, dtype))
_define(
    "unit_backward",
    _unit_backward,
    lambda grad, unit, factors, dtype, view_major, _: units.gradient_result(
        grad, dtype, view_major
    ),
)
_define("pair_hidden_layer", _hidden_layer, lambda a, *_: hidden_layer_results(a))
_define("pair_hidden_gradient", _hidden_gradient, lambda _, a, *__: hidden_gradient_results(a))
_define(
    "pair_output_layer",
    _output_layer,
    lambda y, *given: output_layer_results(y, pairs=given[-3]),
)
_define("pair_output_gradient", _output_gradient, lambda y, *_: output_gradient_results(y))
_register("hidden_moments", rows=0)
_register("hidden", rows=0)
_register("hidden_sums", rows=1)
_register("hidden_backward", rows=2)
_register("output_moments", rows=0)
_register("output", rows=0)
_register("output_sums", rows=0)
_register("output_backward", rows=0)

hidden_moments = torch.ops.logo_kernels.pair_hidden_moments.default
hidden = torch.ops.logo_kernels.pair_hidden.default
hidden_sums = torch.ops.logo_kernels.pair_hidden_sums.default
hidden_backward = torch.ops.logo_kernels.pair_hidden_backward.default
output_moments = torch.ops.logo_kernels.pair_output_moments.default
output = torch.ops.logo_kernels.pair_output.default
output_sums = torch.ops.logo_kernels.pair_output_sums.default
output_backward = torch.ops.logo_kernels.pair_output_backward.default
# Those of which a step has many calls.
unit = direct(torch.ops.logo_kernels.unit.default, _unit)
unit_backward = direct(torch.ops.logo_kernels.unit_backward.default, _unit_backward)
hidden_layer = direct(torch.ops.logo_kernels.pair_hidden_layer.default, _hidden_layer)
hidden_gradient = direct(torch.ops.logo_kernels.pair_hidden_gradient.default, _hidden_gradient)
output_layer = direct(torch.ops.logo_kernels.pair_output_layer.default, _output_layer)
output_gradient = direct(torch.ops.logo_kernels.pair_output_gradient.default, _output_gradient)
