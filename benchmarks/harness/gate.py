"""No speed without the right answer: loss and gradients against the package's in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .case import Inputs

# ‖error‖ / ‖gradient‖, and |error| / max(1, |loss|). Rounding alone gives about 2e-7, 9e-3, 1e-3.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}


class Expected:
    """What the reference backend gives for the same inputs in float64."""

    def __init__(
        self,
        inputs: Inputs,
        reference: Callable[..., Tensor],
        upstream: Tensor | None = None,
        gradient_tolerance: float | None = None,
    ) -> None:
        """The tolerance of gradients is that of results unless a function has kinks."""
        self.gradient_tolerance = gradient_tolerance
        exact = inputs.double()
        self.upstream = None if upstream is None else upstream.double()
        self.value = exact.step(reference, self.upstream).detach()
        self.gradients = [leaf.grad for leaf in exact.leaves]

    def difference(
        self, inputs: Inputs, function: Callable[..., Tensor], upstream: Tensor | None = None
    ) -> str | None:
        """Where `function` is wrong, or None. Runs one step; NaN is wrong."""
        value = inputs.step(function, upstream).detach().double()
        tolerance = TOLERANCE[inputs.leaves[0].dtype]
        if value.shape != self.value.shape:
            return f"result has shape {list(value.shape)}, expected {list(self.value.shape)}"
        error = ((value - self.value).norm() / self.value.norm().clamp_min(1)).item()
        if not error <= tolerance:
            return f"result is off by {error:.1e} (relative), allowed {tolerance:.0e}"
        tolerance = self.gradient_tolerance or tolerance
        for leaf, expected in zip(inputs.leaves, self.gradients, strict=True):
            if leaf.grad is None:
                return "no gradient"
            # A gradient of zero (one global crop has no pair) must be zero, not 0 / 0.
            scale = expected.norm().clamp_min(torch.finfo(torch.float64).tiny)
            error = ((leaf.grad.double() - expected).norm() / scale).item()
            if not error <= tolerance:
                return f"gradient is off by {error:.1e} (relative), allowed {tolerance:.0e}"
        return None
