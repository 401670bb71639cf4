"""The registered operators of the learned affinity's pair stage; see backends/pairs.py."""

from __future__ import annotations

from typing import Any

import torch

from .backends import resolve
from .backends.compiled_pairs import CompiledPairStage

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


class _Outputs(CompiledPairStage):
    """What the kernels would write to, unwritten."""

    def _launch(self, *given: object) -> None:
        pass


def _register(name: str, rows: int) -> None:
    """The operator pair_`name`: of its arguments, those of `PairStage` and the backend, the one at
    `rows` says by its shape and dtype which backends there are to choose from.
    """

    def run(*arguments: Any) -> Any:
        *given, backend = arguments
        crops = given[rows].view(1, -1, given[rows].shape[-1])
        stage = resolve(backend, "pair_mlp", crops).pair_stage
        assert stage is not None, "affinity.py sends what has no pair stage to the reference"
        return getattr(stage, name)(*given)

    def fake(*arguments: Any) -> Any:
        *given, _ = arguments
        return getattr(_Outputs(), name)(*given)

    _library.impl(f"pair_{name}", run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"logo_kernels::pair_{name}", fake, lib=_library)


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
