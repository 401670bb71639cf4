"""Cases of the learned affinity: what `LocalAffinity` and its objective give, and all gradients."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import LocalAffinity
from .case import UPSTREAM, Case, Numbers, Place, Results, extreme, identity, name_of, step
from .errors import BOUNDS

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
RELUS = (2, 5)  # their places in the nn.Sequential
# Batch norm takes away what the bias before it adds: the gradient is rounding alone.
BEFORE_NORMS = ("0.bias", "3.bias")
LAYERS = 6  # each rounds what it hands on to the dtype of the case, forward and backward


class SameNoise(TorchFunctionMode):
    """torch.randn gives the same numbers on every device and in every dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype  # whose numbers all others hold

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None
    ) -> Any:
        options = options or {}
        if function is not torch.randn:
            return function(*arguments, **options)
        noise = torch.randn(*arguments, generator=torch.Generator().manual_seed(1))
        return noise.to(self.dtype).to(options.get("device"), options.get("dtype"))


@dataclass(frozen=True)
class Affinity(Case):
    """A module of the dtype of its crops [B, L, D]."""

    sizes: tuple[int, int, int]  # B, L, D
    hidden: tuple[int, int]
    dtype: torch.dtype
    form: str | None = None  # of the objective; None: forward
    training: bool = True
    extreme: bool = False

    operation = "affinity"

    def __str__(self) -> str:
        return identity(
            self.operation, (*self.sizes, *self.hidden), name_of(self.dtype),
            self.form or "forward", not self.training and "eval", self.extreme and "extreme",
        )  # fmt: skip

    def bound(self, _result: Tensor) -> float:
        return BOUNDS[self.dtype] * LAYERS

    def least(self, name: str) -> float:
        """Means of size one may differ by next to nothing, and so may what the last layer gets."""
        return 1.0 if name == "loss" or name.startswith("gradient of 6.") else 0.0

    def results(self, place: Place) -> Results:
        crops = self.crops()
        module = LocalAffinity(
            self.sizes[2], self.hidden, backend=place.backend, device=place.device,
            dtype=F64 if place.exact else self.dtype,
        ).train(self.training)  # fmt: skip
        module.load_state_dict(self.module(crops).state_dict())
        local = place.leaf(crops) if self.form is None else place.put(crops)
        value = self._run(module, local)
        leaves: dict[str, Tensor | None] = {
            name: parameter
            for name, parameter in module.named_parameters()
            if not self._is_nought(name)
        }
        if self.form is None:
            leaves["local crops"] = local
        upstream = torch.linspace(0.5, 2, len(value)) if value.ndim else UPSTREAM
        found = {
            # Of a weight's gradient, some rows cancel in batch norm: the whole is one row.
            name: result if result is local.grad else result.flatten()
            for name, result in step(value, upstream, leaves).items()
        }
        seen = {name: buffer for name, buffer in module.named_buffers() if "running" in name}
        return found | (seen if self.training else {})

    def crops(self) -> Tensor:
        (crops,) = Numbers().crops(self.sizes[0], self.sizes[1:2], self.sizes[2])
        return (extreme(crops, self.dtype) if self.extreme else crops).to(self.dtype)

    def _run(self, module: LocalAffinity, local: Tensor) -> Tensor:
        if self.form is None:
            return module(local)
        with SameNoise(self.dtype):
            return module.objective(local, self.form)

    def _is_nought(self, parameter: str) -> bool:
        """Whether its gradient is zero but for rounding."""
        return self.training and parameter in BEFORE_NORMS

    def module(self, crops: Tensor) -> LocalAffinity:
        """In float64, of numbers that the dtype of the case has.

        Each bias puts zero into a gap between the values of its unit over the pairs, so that
        rounding never decides whether ReLU lets a value pass.
        """
        module = LocalAffinity(self.sizes[2], self.hidden, backend="reference", dtype=F64)
        module.train(self.training)
        numbers = Numbers(seed=1)  # apart from those of the crops
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                weights = numbers.normal(*parameter.shape)
                if parameter.ndim == 2 and name != "0.weight":
                    weights /= parameter.shape[1] ** 0.5
                if parameter.ndim == 1 and name.endswith("weight"):
                    weights = 1 + weights.abs()
                parameter.copy_(weights.to(self.dtype))
            norms = [layer for layer in module if isinstance(layer, nn.BatchNorm1d)]
            for norm in norms:
                assert norm.running_mean is not None
                norm.running_mean.copy_(numbers.normal(norm.num_features) / 8)
                norm.bias.zero_()
            for norm, relu in zip(norms, RELUS, strict=True):
                seen = self.inputs_of(module, relu, crops.double())
                norm.bias.copy_(-middle_of_gap(seen).to(self.dtype).double())
        return module

    def inputs_of(self, module: LocalAffinity, layer: int, crops: Tensor) -> Tensor:
        """What reaches a layer, of all pairs: [P, H]."""
        seen: list[Tensor] = []
        copy = deepcopy(module)  # whose running statistics may follow

        def watch(_layer: Any, given: tuple[Tensor, ...]) -> None:
            seen.append(given[0].detach())

        copy[layer].register_forward_pre_hook(watch)
        self._run(copy, crops)
        return torch.cat(seen)


def middle_of_gap(values: Tensor) -> Tensor:
    """[P, H] -> [H]: the middle of the widest gap in a column, its ends left out."""
    ordered = values.sort(0).values
    few = len(ordered) // 8
    ordered = ordered[few : len(ordered) - few]
    widest = ordered.diff(dim=0).argmax(0, keepdim=True)
    return (ordered.gather(0, widest) + ordered.gather(0, widest + 1))[0] / 2


FEW = [
    Affinity((4, 3, 20), (33, 12), F32),
    Affinity((4, 3, 20), (33, 12), F32, training=False),
    Affinity((4, 3, 20), (33, 12), F32, "logistic"),
    Affinity((4, 3, 20), (33, 12), F32, "difference"),
    Affinity((4, 3, 20), (32, 16), BF16),
    Affinity((4, 3, 20), (32, 16), BF16, "logistic"),
    Affinity((4, 3, 20), (33, 12), F16),
    Affinity((1, 13, 16), (70, 300), F32),  # more crops than a tile, more columns
]


def _more() -> Iterator[Affinity]:
    """In halves without the objective's difference: its gradients cancel to their rounding."""
    for dtype in (F32, BF16, F16, F64):
        forms = (None, "logistic") if dtype in (BF16, F16) else (None, "logistic", "difference")
        for form, training in product(forms, (True, False)):
            yield Affinity((3, 4, 24), (20, 9), dtype, form, training)
        yield Affinity((2, 8, 16), (264, 64), dtype)
        yield Affinity((1, 13, 16), (70, 300), dtype)
        yield Affinity((9, 2, 40), (16, 8), dtype, "logistic")
        yield Affinity((4, 3, 33), (16, 8), dtype, extreme=True)
        yield Affinity((3, 2, 2056), (16, 8), dtype)  # a unit vector takes a block of threads


MORE = list(_more())
