"""The learned affinity between local crops: `LocalAffinity` (LoGo, eqs. 5 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checks, pair_mlp
from .autograd import Unit
from .backends import AUTO, BACKENDS, resolve
from .backends.buffers import compute_dtype
from .backends.pairs import LINKS

OBJECTIVES = ("logistic", "difference")

# Standard deviation of a positive's noise, times √D (the authors' code).
NOISE = 0.3


class LocalAffinity(nn.Sequential):
    r"""f_θd, an MLP that tells how much alike two local crops are; repulsion pushes it down.

    For unit vectors ẑ = z/‖z‖ of two local crops (LoGo, CVPR 2022, arXiv 2203.17205, eqs. 5, 6, 9;
    the architecture is that of the authors' code):

    .. math::
        f(z_i, z_j) = w_3^T \, r(N_2(W_2 \, r(N_1(W_1 [\hat z_i; \hat z_j] + b_1)) + b_2)) + b_3
        \qquad r = \max(0, \cdot), \; N = \text{batch norm over all pairs}

    ``forward`` is :math:`\ell_a`, the mean of softplus(f) over the L(L − 1) ordered pairs i ≠ j of
    each image, so that an instance serves as ``logo_loss(affinity=...)``. `objective` is what θd
    minimises. A step of the two together (eq. 9):

        affinity.requires_grad_(True)
        objective = affinity.objective(z_local)  # sees z_local as a constant
        ...                                      # backward, step of θd's optimiser
        affinity.requires_grad_(False)           # θd* is a constant of the encoder's loss
        loss = logo_loss(x, y, t, affinity=affinity, repulsion_features=z_local)

    It *is* the ``nn.Sequential`` of Linear, BatchNorm1d, ReLU, Linear, BatchNorm1d, ReLU, Linear on
    concatenated pairs: the same ``state_dict``, the same numbers, the same running statistics,
    SyncBatchNorm after ``convert_sync_batchnorm``. It never concatenates, though. The first product
    is taken once per crop for each half of W₁, and sums, batch norm, ReLU and softplus of the pairs
    are kernels around the second; ``backend="reference"`` is the plain form.

    Args:
        dim: D, numbers of a crop.
        hidden: widths of the two hidden layers.
        backend: "auto", "reference", "cpu", "triton" or "cuda".
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: a size that is no positive integer, another number of hidden layers
            than two, an unknown backend.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (256, 256),
        *,
        backend: str = AUTO,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.positive_integer("dim", dim)
        if len(hidden) != 2:
            raise ValueError(f"hidden must be the widths of two layers, got {tuple(hidden)}")
        for width in hidden:
            checks.positive_integer("hidden", width)
        checks.one_of("backend", backend, (AUTO, *BACKENDS))
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            nn.Linear(2 * dim, hidden[0], **options),
            nn.BatchNorm1d(hidden[0], **options),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1], **options),
            nn.BatchNorm1d(hidden[1], **options),
            nn.ReLU(),
            nn.Linear(hidden[1], 1, **options),
        )
        self.dim, self.backend = dim, backend

    def forward(self, local: Tensor | Sequence[Tensor]) -> Tensor:
        """ℓa: mean softplus(f) over the ordered pairs of local crops of each image.

        Args:
            local: [B, L, D], L ≥ 2, float32, bfloat16, float16 or float64, any strides, or a
                sequence of L tensors [B, D]. Gradients flow to it, and to θd where that requires
                them: they are computed only there.

        Returns:
            [B], float32, float64 for a float64 module. Once differentiable.

        Raises:
            TypeError: no floating tensor.
            ValueError: a wrong shape, L < 2, or a single pair in training mode.
            RuntimeError: a named backend that cannot serve the call, with its reason.
        """
        units = self._units(local)
        if self._is_plain(units):
            return self._plain(units, units, 0, "softplus")
        return self._pairs(*self._halves(units), 0, "softplus")

    def objective(self, local: Tensor | Sequence[Tensor], form: str = "logistic") -> Tensor:
        r"""What θd minimises, a scalar: crops of one image alike, crops of two images not (eq. 6).

        .. math::
            \text{"logistic"} &: E \, \mathrm{softplus}(-f(\hat z_i + \nu, \hat z_j + \nu'))
            + E \, \mathrm{softplus}(f(\hat z_i, \hat z_j^-)) \\
            \text{"difference"} &: E f(\hat z_i, \hat z_j^-) - E f(\hat z_i, \hat z_j)
            \qquad \text{(−Ω of eq. 6, not bounded below)}

        Over images and ordered pairs i ≠ j; z⁻ is crop j of the next image of the batch, in a
        circle, so never of the same one. ν, ν′ are normal with standard deviation 0.3/√D, drawn
        once per image for each place of the pair (the authors' code). Positives and negatives pass
        batch norm as two batches.

        Args:
            local: as for ``forward``, B ≥ 2; detached: no gradient flows to it.
            form: "logistic" (the authors' code) or "difference" (the paper).

        Raises:
            TypeError, ValueError, RuntimeError: as ``forward``; B = 1; an unknown form.
        """
        checks.one_of("form", form, OBJECTIVES)
        units = self._units(local).detach()
        if len(units) < 2:
            raise ValueError("local must hold at least 2 images to have negatives, got B = 1")
        logistic = form == "logistic"
        positive = "softplus_negated" if logistic else "identity"
        negative = "softplus" if logistic else "identity"
        noise = None
        if logistic:
            noise = torch.randn(2, len(units), 1, self.dim, device=units.device, dtype=units.dtype)
            noise = noise * (NOISE / self.dim**0.5)
        if self._is_plain(units):
            first, second = (units, units) if noise is None else units + noise
            alike = self._plain(first, second, 0, positive)
            unlike = self._plain(units, units, 1, negative)
        else:
            a, c = self._halves(units)
            if noise is None:
                alike = self._pairs(a, c, 0, positive)
            else:  # a product of B rows instead of B·L
                u, v = self._split()
                alike = self._pairs(
                    a + F.linear(noise[0], u), c + F.linear(noise[1], v), 0, positive
                )
            unlike = self._pairs(a, c, 1, negative)
        return (unlike + alike if logistic else unlike - alike).mean()

    def extra_repr(self) -> str:
        return f"dim={self.dim}, backend={self.backend!r}"

    def _units(self, local: Tensor | Sequence[Tensor]) -> Tensor:
        """ẑ [B, L, D] in the dtype of the products that follow."""
        z = checks.crops("local", local, "B, L, D")
        if z.shape[0] == 0:
            raise ValueError("local must not be empty, got B = 0")
        if z.shape[1] < 2:
            raise ValueError(f"local must hold at least 2 crops of an image, got L = {z.shape[1]}")
        if z.shape[2] != self.dim:
            raise ValueError(
                f"local has D = {z.shape[2]}, but this affinity was made for {self.dim}"
            )
        weight: Tensor = self[0].weight  # type: ignore[assignment]
        if z.device != weight.device:
            raise ValueError(f"local is on {z.device}, the affinity on {weight.device}; move one")
        units = Unit.apply(z, compute_dtype(z, weight))
        return units if torch.is_autocast_enabled(z.device.type) else units.to(weight.dtype)

    def _is_plain(self, units: Tensor) -> bool:
        return resolve(self.backend, "pair_mlp", units).pair_stage is None

    def _split(self) -> tuple[Tensor, Tensor]:
        """W₁ = [U, V], each [H, D]."""
        u, v = self[0].weight.split(self.dim, 1)  # type: ignore[operator]
        return u, v

    def _halves(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """a = U·ẑ and c = V·ẑ + b₁, [B, L, H]; where autocast is on, in its dtype."""
        device, dtype = units.device.type, units.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return pair_mlp.Halves.apply(units, self[0].weight, self[0].bias, dtype)

    def _pairs(self, a: Tensor, c: Tensor, roll: int, link: str) -> Tensor:
        """Mean over the pairs of each image of link(f), [B]."""
        pairs = a.shape[1] * (a.shape[1] - 1)
        x = pair_mlp.hidden(self[1], a, c, roll, self.backend)  # type: ignore[arg-type]
        y = pair_mlp.Product.apply(x, self[3].weight, self[3].bias)
        return pair_mlp.output(self[4], self[6], y, pairs, LINKS[link], self.backend)  # type: ignore[arg-type]

    def _plain(self, first: Tensor, second: Tensor, roll: int, link: str) -> Tensor:
        """The same from [zᵢ; zⱼ], concatenated."""
        images, crops, _ = first.shape
        i, j = (~torch.eye(crops, dtype=torch.bool, device=first.device)).nonzero(as_tuple=True)
        pairs = torch.cat([first[:, i], second.roll(-roll, 0)[:, j]], -1)
        f = super().forward(pairs.flatten(0, 1)).view(images, -1)
        f = f.to(compute_dtype(f))
        if link == "identity":
            return f.mean(1)
        # exact where softplus's threshold would drop what fp64 resolves
        f = f if link == "softplus" else -f
        return (F.relu(f) + torch.log1p(torch.exp(-f.abs()))).mean(1)
