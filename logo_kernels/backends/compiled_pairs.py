"""The learned affinity's pair stage by compiled launchers: what CPU and CUDA give them alike."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from . import unit as units
from .arguments import DTYPES, rows
from .buffers import compute_dtype, wide_empty
from .pairs import PairStage


def addresses(arrays: dict[str, Tensor]) -> dict[str, int]:
    """What a launcher takes for them."""
    return {name: array.data_ptr() for name, array in arrays.items()}


def hidden_layer_results(a: Tensor) -> tuple[Tensor, Tensor]:
    """Unwritten."""
    images, crops, width = a.shape
    x = a.new_empty((images * crops * (crops - 1), width))
    return x, a.new_empty((4, width), dtype=compute_dtype(a))


def hidden_gradient_results(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    facts = a.new_empty((5, a.shape[2]), dtype=compute_dtype(a))
    return torch.empty_like(a), torch.empty_like(a), facts


def output_layer_results(y: Tensor, pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    count, width = y.shape
    wide = compute_dtype(y)
    return (
        y.new_empty(count // pairs, dtype=wide),
        y.new_empty(count, dtype=wide),
        y.new_empty((4, width), dtype=wide),
    )


def output_gradient_results(y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(y), y.new_empty((6, y.shape[1]), dtype=compute_dtype(y))


def _batch_norm(
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    batch: bool,
    momentum: float,
    eps: float,
) -> tuple[int | bool | float, ...]:
    """What csrc/bindings_pair.h takes for it."""
    running = (0, 0) if mean is None or var is None else (mean.data_ptr(), var.data_ptr())
    return (
        weight.data_ptr(), bias.data_ptr(), batch, *running,
        0 if batches is None else batches.data_ptr(), momentum, eps,
    )  # fmt: skip


class CompiledPairStage(PairStage):
    """The arrays by the names that csrc/include/logo/pair_problem.h gives them."""

    @abstractmethod
    def _call(self, name: str, like: Tensor, summing: bool, *arguments: object) -> None:
        """Calls a launcher whose arguments go by their places; otherwise as `_launch`."""

    def unit(self, z: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        made, factors = units.unit_results(z, dtype)
        self._call(
            "unit", z, False, z.shape[0], z.shape[2], factors.dtype == torch.float64,
            rows(z), rows(made), factors.data_ptr(),
        )  # fmt: skip
        return made, factors

    def unit_backward(
        self, grad: Tensor, unit: Tensor, factors: Tensor, dtype: torch.dtype, view_major: bool
    ) -> Tensor:
        to_rows = units.gradient_result(grad, dtype, view_major)
        self._call(
            "unit_backward", grad, False, grad.shape[0], grad.shape[2],
            factors.dtype == torch.float64, rows(grad), rows(unit), factors.data_ptr(),
            rows(to_rows),
        )  # fmt: skip
        return to_rows

    def hidden_layer(
        self,
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
    ) -> tuple[Tensor, Tensor]:
        x, norm = hidden_layer_results(a)
        images, crops, width = a.shape
        self._call(
            "pair_hidden_layer", a, batch, (images, crops, width, roll % images, DTYPES[a.dtype]),
            _batch_norm(weight, bias, mean, var, batches, batch, momentum, eps),
            a.data_ptr(), c.data_ptr(), norm.data_ptr(), x.data_ptr(),
        )  # fmt: skip
        return x, norm

    def hidden_gradient(
        self, grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, batch: bool, roll: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_a, grad_c, facts = hidden_gradient_results(a)
        images, crops, width = a.shape
        sums = a.new_empty((2, *a.shape), dtype=facts.dtype)
        self._call(
            "pair_hidden_gradient", a, True,
            (images, crops, width, roll % images, DTYPES[a.dtype]), batch,
            a.data_ptr(), c.data_ptr(), norm.data_ptr(), grad.data_ptr(),
            sums.data_ptr(), sums.data_ptr() + a.numel() * sums.element_size(),
            facts.data_ptr(), grad_a.data_ptr(), grad_c.data_ptr(),
        )  # fmt: skip
        return grad_a, grad_c, facts

    def output_layer(
        self,
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        value, slope, norm = output_layer_results(y, pairs)
        count, width = y.shape
        self._call(
            "pair_output_layer", y, batch, (count // pairs, pairs, width, link, DTYPES[y.dtype]),
            _batch_norm(weight, bias, mean, var, batches, batch, momentum, eps),
            y.data_ptr(), norm.data_ptr(), last.data_ptr(), last_bias.data_ptr(),
            value.data_ptr(), slope.data_ptr(),
        )  # fmt: skip
        return value, slope, norm

    def output_gradient(
        self,
        y: Tensor,
        norm: Tensor,
        last: Tensor,
        slope: Tensor,
        grad: Tensor,
        batch: bool,
        parameters: bool,
        pairs: int,
    ) -> tuple[Tensor, Tensor]:
        grad_y, facts = output_gradient_results(y)
        count, width = y.shape
        summed = batch or parameters
        if not summed:
            facts.zero_()
        self._call(
            "pair_output_gradient", y, summed, (count // pairs, pairs, width, 0, DTYPES[y.dtype]),
            batch, summed, y.data_ptr(), norm.data_ptr(), last.data_ptr(), slope.data_ptr(),
            grad.data_ptr(), grad.stride(0), facts.data_ptr(), grad_y.data_ptr(),
        )  # fmt: skip
        return grad_y, facts

    @abstractmethod
    def _launch(
        self,
        name: str,
        like: Tensor,
        sizes: tuple[int, ...],
        summing: bool,
        arrays: dict[str, Tensor],
    ) -> None:
        """Calls the launcher `name` where `like` lives; summing: with room for sums of blocks."""

    def _hidden(
        self, name: str, a: Tensor, c: Tensor, roll: int, summing: bool = False, **arrays: Tensor
    ) -> None:
        images, crops, width = a.shape
        sizes = images, crops, width, roll % images, DTYPES[a.dtype]
        self._launch(name, a, sizes, summing, {"a": a, "c": c, **arrays})

    def _output(
        self,
        name: str,
        y: Tensor,
        pairs: int,
        link: int = 0,
        summing: bool = False,
        **arrays: Tensor,
    ) -> None:
        rows, width = y.shape
        sizes = rows // pairs, pairs, width, link, DTYPES[y.dtype]
        self._launch(name, y, sizes, summing, {"y": y, **arrays})

    def hidden_moments(self, a: Tensor, c: Tensor, roll: int) -> Tensor:
        moments = wide_empty(a, 2, a.shape[2])
        self._hidden("pair_hidden_moments", a, c, roll, summing=True, moments=moments)
        return moments

    def hidden(self, a: Tensor, c: Tensor, norm: Tensor, roll: int) -> Tensor:
        images, crops, width = a.shape
        x = a.new_empty(images * crops * (crops - 1), width)
        self._hidden("pair_hidden", a, c, roll, norm=norm, x=x)
        return x

    def hidden_sums(
        self, grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, roll: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        to_a, to_c = wide_empty(a, *a.shape), wide_empty(a, *a.shape)
        sums = wide_empty(a, 2, a.shape[2])
        self._hidden(
            "pair_hidden_sums", a, c, roll, summing=True,
            norm=norm, grad_x=grad, to_a=to_a, to_c=to_c, sums=sums,
        )  # fmt: skip
        return to_a, to_c, sums

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
        grad_a, grad_c = torch.empty_like(a), torch.empty_like(c)
        self._hidden(
            "pair_hidden_backward", a, c, roll,
            norm=norm, correction=correction, to_a=to_a, to_c=to_c, grad_a=grad_a, grad_c=grad_c,
        )  # fmt: skip
        return grad_a, grad_c

    def output_moments(self, y: Tensor) -> Tensor:
        moments = wide_empty(y, 2, y.shape[1])
        self._output("pair_output_moments", y, 1, summing=True, moments=moments)
        return moments

    def output(
        self, y: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, pairs: int, link: int
    ) -> tuple[Tensor, Tensor]:
        value, slope = wide_empty(y, y.shape[0] // pairs), wide_empty(y, y.shape[0])
        self._output(
            "pair_output", y, pairs, link,
            norm=norm, weight=weight, bias=bias, value=value, slope=slope,
        )  # fmt: skip
        return value, slope

    def output_sums(
        self, y: Tensor, norm: Tensor, slope: Tensor, grad: Tensor, pairs: int
    ) -> Tensor:
        sums = wide_empty(y, 2, y.shape[1])
        self._output(
            "pair_output_sums", y, pairs, summing=True,
            norm=norm, slope=slope, grad=grad, sums=sums,
        )  # fmt: skip
        return sums

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
        grad_y = torch.empty_like(y)
        self._output(
            "pair_output_backward", y, pairs,
            norm=norm, weight=weight, slope=slope, grad=grad, correction=correction, grad_y=grad_y,
        )  # fmt: skip
        return grad_y
