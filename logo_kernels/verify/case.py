"""What the cases of all operations share: numbers, where they are put, and a step with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import BOUNDS, OF_HALVES

# What a loss scaler or a weight hands to backward; a one would leave it nothing to multiply.
UPSTREAM = 1.75

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Place:
    """The backend and the device of a run; `exact`: in float64, whatever the case's dtype."""

    backend: str
    device: str
    exact: bool = False

    def put(self, numbers: Tensor) -> Tensor:
        return numbers.to(self.device, torch.float64 if self.exact else numbers.dtype)

    def leaf(self, numbers: Tensor) -> Tensor:
        """`put`, with a gradient wanted; strides are kept."""
        return self.put(numbers.clone()).requires_grad_()


class Case:
    """What runs through the public functions alone, so that it holds for any backend."""

    operation: str
    dtype: torch.dtype

    def results(self, place: Place) -> Results:
        """All that comes out by name: the loss, and each gradient."""
        raise NotImplementedError

    def bound(self, result: Tensor) -> float:
        """How far a result may be off."""
        return BOUNDS[result.dtype] if result.dtype == self.dtype else OF_HALVES

    def least(self, _name: str) -> float:
        """The least size of the numbers that a result sums up; 0 unless they may cancel."""
        return 0.0


class Numbers:
    """A stream of normal numbers, the same on every machine."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=self._generator)

    def crops(
        self, images: int, counts: Sequence[int], dim: int, view_major: bool = False
    ) -> list[Tensor]:
        """Blocks [B, V, D] in fp32. Crops of one image share a direction.

        So cosines are near a half, as in training, and an error in a loss term shows.
        """
        image = self.normal(images, 1, dim)
        blocks = [image + self.normal(images, count, dim) for count in counts]
        return [v.transpose(0, 1).contiguous().transpose(0, 1) if view_major else v for v in blocks]


def extreme(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Every second image [V, D] of [B, V, D] with norms that no sum of squares survives, and zeros.

    Powers of two, so that nothing rounds. fp16 has small rows and no large ones, whose gradients
    it could not hold.
    """
    small, large = (2.0**-10, 1.0) if dtype == torch.float16 else (2.0**-100, 2.0**100)
    cycle = torch.tensor([1.0, small, 0.0, large])
    image, row = torch.arange(rows.shape[0]), torch.arange(rows.shape[1])
    factors = cycle[(image[:, None] // 2 + row) % 4]
    factors[::2] = 1
    return rows * factors.unsqueeze(-1)


def step(
    value: Tensor, upstream: Tensor | float, leaves: dict[str, Tensor | None], name: str = "loss"
) -> Results:
    """The value and the gradients that backward gives from `upstream`."""
    gradient = upstream if isinstance(upstream, Tensor) else torch.full_like(value, upstream)
    value.backward(gradient.to(value.device, value.dtype))
    found = {name: value.detach()}
    for leaf, tensor in leaves.items():
        if tensor is not None:
            assert tensor.grad is not None, f"no gradient reached {leaf}"
            found[f"gradient of {leaf}"] = tensor.grad
    return found


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def identity(operation: str, sizes: Sequence[object], *words: object) -> str:
    """The name of a case: what differs from the plainest one is in it."""
    shown = [str(word) for word in words if word]
    return " ".join([operation, "x".join(map(str, sizes)), *shown])
