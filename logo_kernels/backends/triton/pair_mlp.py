"""The `triton` backend's pair stage; Triton is imported where a kernel is first called for."""

from __future__ import annotations

from torch import Tensor

from ..pairs import PairStage


class TritonPairStage(PairStage):
    """Kernels of one or two launches each; see pair_hidden.py and pair_output.py."""

    def hidden_moments(self, a: Tensor, c: Tensor, roll: int) -> Tensor:
        from .pair_hidden import hidden_moments

        return hidden_moments(a, c, roll)

    def hidden(self, a: Tensor, c: Tensor, norm: Tensor, roll: int) -> Tensor:
        from .pair_hidden import hidden

        return hidden(a, c, norm, roll)

    def hidden_sums(
        self, grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, roll: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        from .pair_hidden import hidden_sums

        return hidden_sums(grad, a, c, norm, roll)

    def hidden_backward(
        self,
        to_a: Tensor,
        to_c: Tensor,
        a: Tensor,
        c: Tensor,
        norm: Tensor,
        correction: Tensor,
        roll: int,
    ) -> tuple[Tensor, Tensor]:
        from .pair_hidden import hidden_backward

        return hidden_backward(to_a, to_c, a, c, norm, correction, roll)

    def output_moments(self, y: Tensor) -> Tensor:
        from .pair_output import output_moments

        return output_moments(y)

    def output(
        self, y: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, pairs: int, link: int
    ) -> tuple[Tensor, Tensor]:
        from .pair_output import output

        return output(y, norm, weight, bias, pairs, link)

    def output_sums(
        self, y: Tensor, norm: Tensor, slope: Tensor, grad: Tensor, pairs: int
    ) -> Tensor:
        from .pair_output import output_sums

        return output_sums(y, norm, slope, grad, pairs)

    def output_backward(
        self,
        y: Tensor,
        norm: Tensor,
        weight: Tensor,
        slope: Tensor,
        grad: Tensor,
        correction: Tensor,
        pairs: int,
    ) -> Tensor:
        from .pair_output import output_backward

        return output_backward(y, norm, weight, slope, grad, correction, pairs)
