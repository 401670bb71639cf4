"""`LocalAffinity`, the module: its plain form, and the choice between that and the kernels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .. import checks
from ..autograd import need_gradients, no_tangents, reverse_mode_only
from ..backends import AUTO, BACKENDS, backend_for
from ..buffers import compute_dtype
from ..units import autocast_dtype
from . import functions
from .pairs import key_of
from .units import Unit

_NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)
LAYERS = (
    (nn.Linear,), _NORMS, (nn.ReLU,), (nn.Linear,), _NORMS, (nn.ReLU,), (nn.Linear,)
)  # fmt: skip

_WHOLE = (nn.Parameter, Tensor, type(None))  # no parts of a tensor on several ranks

OBJECTIVES = ("logistic", "difference")

# Standard deviation of a positive's noise, times √D (the authors' code).
NOISE = 0.3


@torch.compiler.assume_constant_result
def has_kernels(backend: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a backend has kernels for these pairs.

    A constant for torch.compile: some backends ask the compiled extension, and a call into it
    cannot be traced.
    """
    return backend_for(backend, key_of(device, dtype)).fuses_affinity


def _untouched(layers: tuple[Any, ...]) -> bool:
    """Whether these are the very types expected, with no hook and no forward of their own."""
    if len(layers) != len(LAYERS):
        return False
    compiling = torch.compiler.is_compiling()
    for layer, kinds in zip(layers, LAYERS, strict=True):
        if type(layer) not in kinds or layer._forward_hooks or layer._forward_pre_hooks:
            return False
        if layer._backward_hooks or layer._backward_pre_hooks:
            return False
        if not compiling and "forward" in layer.__dict__:
            return False
    return True


def _check_whole(weight: Any) -> None:
    if hasattr(weight, "full_tensor"):
        raise RuntimeError(
            "the parameters of this LocalAffinity are sharded (fully_shard); only a call of the "
            "module gathers them: call affinity(local, objective=...) instead of "
            "affinity.objective(local)"
        )


def _parameters_fit(
    first: Any, norm: Any, _: Any, second: Any, other: Any, __: Any, last: Any
) -> bool:
    """Whether all parameters are there, and the last layer gives one number."""
    whole = True
    for layer in (first, norm, second, other, last):
        own = layer._parameters  # an attribute of a module costs the host a microsecond
        whole = whole and own["weight"] is not None and own["bias"] is not None
    whole = whole and last._parameters["weight"].shape[0] == 1
    return whole and (torch.compiler.is_compiling() or not _has_any_global_hook())


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
    are kernels around the second. The plain form runs with ``backend="reference"``, and wherever a
    layer was replaced, wrapped or hooked, or lacks a parameter.

    Args:
        dim: D, numbers of a crop.
        hidden: widths of the two hidden layers.
        backend: "auto", "reference", "cpu", "triton" or "cuda".
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size that is not positive, another number of hidden layers than two, an
            unknown backend.

    Examples:
        >>> affinity = LocalAffinity(dim=8, hidden=(16, 16))
        >>> local = torch.randn(4, 3, 8, requires_grad=True)
        >>> affinity(local).shape
        torch.Size([4])
        >>> affinity.objective(local).backward()  # a gradient for θd, none for the crops
        >>> affinity[0].weight.grad.shape, local.grad
        (torch.Size([16, 16]), None)
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

    def forward(self, local: Tensor | Sequence[Tensor], *, objective: str | None = None) -> Tensor:
        """ℓa: mean softplus(f) over the ordered pairs of local crops of each image.

        Args:
            local: [B, L, D], L ≥ 2, float32, bfloat16, float16 or float64, any strides, or a
                sequence of L tensors [B, D]. Gradients flow to it and to the parameters of θd;
                those that nothing requires are not computed.
            objective: "logistic" or "difference": returns `objective` of that form instead.
                DistributedDataParallel and fully_shard see nothing but ``forward``: an affinity
                that they wrap is trained by ``affinity(local, objective="logistic")``.

        Returns:
            [B], float32, float64 for a float64 module. Once differentiable.

        Raises:
            TypeError: no floating tensor.
            ValueError: a wrong shape, or L < 2.
            RuntimeError: a named backend that cannot serve the call, with its reason.

        Examples:
            >>> affinity = LocalAffinity(dim=8).eval()
            >>> a, b = torch.randn(2, 1, 8).unbind()
            >>> same, swapped = affinity([a, b]), affinity([b, a])  # both orders of a pair count
            >>> torch.allclose(same, swapped), bool(same > 0)
            (True, True)
        """
        if objective is not None:
            return self.objective(local, objective)
        z = self._crops(local)
        dtype = self._dtype(z)
        if self._is_fused(z, dtype):
            settings, parameters = functions.of_module(self, dtype, self.backend)
            if torch.is_grad_enabled() and need_gradients(*parameters):
                return functions.Affinity.apply(z, settings, None, *parameters)
            return functions.Affinity.apply(z, settings, parameters)
        units = self._units(z)
        return self._concatenated(units, units, 0, "softplus")

    def objective(self, local: Tensor | Sequence[Tensor], form: str = "logistic") -> Tensor:
        r"""What θd minimises, a scalar: crops of one image alike, crops of two images not (eq. 6).

        .. math::
            \text{"logistic"} &: E \, \mathrm{softplus}(-f(\hat z_i + \nu, \hat z_j + \nu'))
            + E \, \mathrm{softplus}(f(\hat z_i, \hat z_j^-)) \\
            \text{"difference"} &: E f(\hat z_i, \hat z_j^-) - E f(\hat z_i, \hat z_j)
            \qquad \text{(−Ω of eq. 6, not bounded below)}

        E is the mean over images and ordered pairs i ≠ j. z⁻ is crop j of the next image of the
        batch; the first image follows the last, so z⁻ never comes from the same image. ν and ν′ are
        normal with standard deviation 0.3/√D, drawn once per image for each place of the pair (the
        authors' code). Positives and negatives pass batch norm as two batches.

        On an affinity inside DistributedDataParallel, this method (``ddp.module.objective``) would
        leave each rank its own gradient: ``ddp(local, objective=form)`` averages them.

        Args:
            local: as for ``forward``, B ≥ 2; detached: no gradient flows to it.
            form: "logistic" (the authors' code) or "difference" (the paper).

        Returns:
            A scalar, float32, float64 for a float64 module. Once differentiable.

        Raises:
            TypeError: as ``forward``.
            ValueError: as ``forward``; B = 1; an unknown form.
            RuntimeError: as ``forward``.

        Examples:
            >>> affinity = LocalAffinity(dim=8)
            >>> affinity.objective(torch.randn(4, 2, 8), "difference").shape
            torch.Size([])
        """
        checks.one_of("form", form, OBJECTIVES)
        z = self._crops(local).detach()
        if len(z) < 2:
            raise ValueError("local must hold at least 2 images to have negatives, got B = 1")
        dtype = self._dtype(z)
        logistic, noise, deviation = form == "logistic", None, NOISE / self.dim**0.5
        if logistic:
            noise = torch.randn(2, len(z), 1, self.dim, device=z.device, dtype=dtype)
        if self._is_fused(z, dtype):
            settings, parameters = functions.of_module(self, dtype, self.backend)
            return functions.Objective.apply(z, settings, noise, deviation, *parameters)
        units = self._units(z)
        first, second = (units, units) if noise is None else units + noise * deviation
        alike = self._concatenated(first, second, 0, "softplus_negated" if logistic else "identity")
        unlike = self._concatenated(units, units, 1, "softplus" if logistic else "identity")
        return (unlike + alike if logistic else unlike - alike).mean()

    def __getitem__(self, index: Any) -> Any:
        """A layer; of a slice, an ``nn.Sequential`` of those layers."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, backend={self.backend!r}"

    def _crops(self, local: Tensor | Sequence[Tensor]) -> Tensor:
        """[B, L, D], checked."""
        z = checks.crops("local", local, "B, L, D")
        if z.shape[0] == 0:
            raise ValueError("local must not be empty, got B = 0")
        if z.shape[1] < 2:
            raise ValueError(f"local must hold at least 2 crops of an image, got L = {z.shape[1]}")
        if z.shape[2] != self.dim:
            raise ValueError(
                f"local has D = {z.shape[2]}, but this affinity was made for {self.dim}"
            )
        first = self._first_parameter(z)
        if z.device != first.device:
            raise ValueError(f"local is on {z.device}, the affinity on {first.device}; move one")
        reverse_mode_only("LocalAffinity", z)
        no_tangents("LocalAffinity", self.parameters())
        if not torch.compiler.is_compiling() and first.is_inference():
            self._check_inference(z, first)
        return z

    def _check_inference(self, z: Tensor, first: Tensor) -> None:
        """Inference tensors can be read; neither written nor saved for backward."""
        if torch.is_inference_mode_enabled():
            return
        if self.training or (torch.is_grad_enabled() and need_gradients(z, first)):
            raise RuntimeError(
                "this LocalAffinity was made under torch.inference_mode, so that autograd cannot "
                "save its parameters and training cannot write its statistics; make it outside, or "
                "take copy.deepcopy of it"
            )

    def _first_parameter(self, z: Tensor) -> Tensor:
        """For what all parameters have in common; the crops', should there be none."""
        layer = self._modules.get("0")
        weight = None if layer is None else layer._parameters.get("weight")
        return next(self.parameters(), z) if weight is None else weight

    def _dtype(self, z: Tensor) -> torch.dtype:
        """Of ẑ and of the products: autocast's where it is on, else the parameters'."""
        return autocast_dtype(z.device.type) or self._first_parameter(z).dtype

    def _is_fused(self, z: Tensor, dtype: torch.dtype) -> bool:
        """Whether kernels replace the layers: all are as they were made, and none is hooked."""
        layers = tuple(self._modules.values())
        if not _untouched(layers):
            return False
        if type(layers[0]._parameters["weight"]) not in _WHOLE:
            _check_whole(layers[0]._parameters["weight"])
        return _parameters_fit(*layers) and has_kernels(self.backend, z.device, dtype)

    def _units(self, z: Tensor) -> Tensor:
        """ẑ for the plain form; autocast rounds it there."""
        first = self._first_parameter(z)
        autocast = autocast_dtype(z.device.type) is not None
        return Unit.apply(z, compute_dtype(z, first) if autocast else first.dtype, self.backend)

    def _concatenated(self, first: Tensor, second: Tensor, roll: int, link: str) -> Tensor:
        """[B]: the mean of link(f) over each image's pairs, from concatenated [zᵢ; zⱼ]."""
        images, crops, _ = first.shape
        pair = torch.arange(crops * (crops - 1), device=first.device)
        i, j = pair // (crops - 1), pair % (crops - 1)
        j = j + (j >= i)
        pairs = torch.cat([first[:, i], second.roll(-roll, 0)[:, j]], -1)
        f = super().forward(pairs.flatten(0, 1)).view(images, -1)
        f = f.to(compute_dtype(f))
        if link == "identity":
            return f.mean(1)
        # exact where softplus's threshold would drop what fp64 resolves
        f = f if link == "softplus" else -f
        return (F.relu(f) + torch.log1p(torch.exp(-f.abs()))).mean(1)
