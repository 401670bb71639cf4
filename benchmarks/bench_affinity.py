"""`LocalAffinity`: forward, and backward to the crops and to every parameter of θd.

A peer maps z [B, L, D] and θd's tensors to the mean of ``LocalAffinity.forward`` over images, with
batch norm in training mode; gradients come from autograd. Running statistics are left out, for
ours too: they are a few numbers, alike for everyone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from harness.case import ELEMENT_BYTES, Case, Inputs, crops, summed_in, upstream_of
from harness.comparison import Contest, compare, contest_of
from harness.forms import Function
from harness.timing import matrix_product
from logo_kernels import LocalAffinity

# Of millions of hidden numbers, some lie so close to relu's kink that rounding decides the side,
# and the gradient jumps by one pair's share. That moved gradients by up to 2e-2 here, a compiled
# peer's as well as ours; mistakes in a formula move them by their own size.
KINKS = 5e-2

# The order of `inputs_of`: z, then these.
NAMES = (
    "0.weight", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias", "6.weight", "6.bias",
    "0.bias", "3.bias",
)  # fmt: skip


def split(name: str) -> list[str]:
    """A parameter's layer and its name there."""
    return name.split(".")


@dataclass(frozen=True)
class AffinityCase(Case):
    images: int
    local_crops: int
    dim: int
    dtype: str
    why: str
    hidden: int = 256  # of both layers
    frozen: bool = False

    operation = "affinity"

    def shape(self) -> tuple[int | str, ...]:
        return self.images, self.local_crops, self.dim

    def moved_bytes(self) -> int:
        """Read crops and θd, write their gradients; batch norms and biases are left out."""
        crops = self.images * self.local_crops * self.dim
        weights = self.hidden * (2 * self.dim + self.hidden)
        return 2 * (crops + weights) * ELEMENT_BYTES[self.dtype]

    def flops(self) -> int:
        """Forward products and twice as many backward: the first of each crop, both halves of W₁,
        the second of each pair.
        """
        crops = self.images * self.local_crops
        pairs = crops * (self.local_crops - 1)
        return 3 * 2 * self.hidden * (2 * crops * self.dim + pairs * self.hidden)


CASES = {
    "cpu": (
        AffinityCase(256, 8, 2048, "float32", "the paper's D: concatenation costs most"),
        AffinityCase(256, 2, 128, "float32", "the authors' L and D: two pairs of an image"),
        AffinityCase(256, 2, 2048, "float32", "one product of a crop or of a pair: the same"),
        AffinityCase(256, 4, 128, "float32", "short rows: the second product decides"),
        AffinityCase(256, 4, 2048, "float32", "in between"),
        AffinityCase(256, 8, 128, "float32", "many crops, short rows"),
        AffinityCase(1024, 2, 128, "float32", "the authors' L and D, a larger batch"),
        AffinityCase(1024, 2, 2048, "float32", "a product of a crop or of a pair, a larger batch"),
        AffinityCase(1024, 4, 128, "float32", "short rows, a larger batch"),
        AffinityCase(1024, 4, 2048, "float32", "in between, a larger batch"),
        AffinityCase(1024, 8, 128, "float32", "pairs larger than the caches"),
        AffinityCase(1024, 8, 2048, "float32", "0.9 GB of concatenated pairs"),
    ),
    "cuda": (
        AffinityCase(1024, 8, 2048, "float32", "the paper's D: concatenation costs most"),
        AffinityCase(1024, 2, 2048, "float32", "one product of a crop or of a pair: the same"),
        AffinityCase(1024, 8, 128, "float32", "the second product decides"),
        AffinityCase(256, 2, 128, "float32", "the authors' L and D: host overhead decides"),
        AffinityCase(256, 8, 2048, "float32", "the README's, beside the CPU's"),
    ),
}


def inputs_of(case: AffinityCase, device: str) -> Inputs:
    """Crops and θd as leaves, all but the two biases that batch norm takes away again.

    Where θd is frozen, the crops alone.
    """
    (z,) = crops([case.local_crops], case, device)
    torch.manual_seed(1)
    hidden = case.hidden

    def uniform(rows: int, columns: int) -> list[Tensor]:
        """Weight and bias as nn.Linear starts with."""
        bound = columns**-0.5
        weight = torch.empty(rows, columns, device=device).uniform_(-bound, bound)
        return [weight, torch.empty(rows, device=device).uniform_(-bound, bound)]

    def norm() -> list[Tensor]:
        scale = 1 + 0.1 * torch.randn(hidden, device=device)
        return [scale, 0.1 * torch.randn(hidden, device=device)]

    w1, b1 = uniform(hidden, 2 * case.dim)
    w2, b2 = uniform(hidden, hidden)
    leaves = [z, w1, *norm(), w2, *norm(), *uniform(1, hidden)]
    learned = 1 if case.frozen else len(leaves)
    given = [one.to(z.dtype) for one in (*leaves, b1, b2)]
    return Inputs([leaf.requires_grad_() for leaf in given[:learned]], given[learned:])


def loss_by(case: AffinityCase, device: str, backend: str = "auto") -> Function:
    """Ours in the peers' signature: a module that is given its parameters at every call.

    They go straight to their places: `functional_call` takes the host as long as the module does.
    """
    widths = (case.hidden, case.hidden)
    affinity = LocalAffinity(case.dim, widths, backend=backend, device=device)
    for norm in (affinity[1], affinity[4]):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None

    places = [(affinity[int(layer)]._parameters, name) for layer, name in map(split, NAMES)]

    def loss(z: Tensor, *parameters: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # which traces no such assignment
            return functional_call(affinity, dict(zip(NAMES, parameters, strict=True)), (z,)).mean()
        for (held, name), parameter in zip(places, parameters, strict=True):
            held[name] = parameter
        return affinity(z).mean()

    return loss


def concatenated(
    z: Tensor,
    w1: Tensor, gamma1: Tensor, beta1: Tensor,
    w2: Tensor, gamma2: Tensor, beta2: Tensor,
    w3: Tensor, b3: Tensor,
    b1: Tensor, b2: Tensor,
) -> Tensor:  # fmt: skip
    """An MLP on the ordered pairs of each image, gathered at once: [B L (L − 1), 2 D]."""
    unit = F.normalize(z, dim=-1)
    i, j = (~torch.eye(z.shape[1], dtype=torch.bool, device=z.device)).nonzero_static(
        size=z.shape[1] * (z.shape[1] - 1)
    ).T  # fmt: skip
    pairs = torch.cat([unit[:, i], unit[:, j]], -1).flatten(0, 1)
    h = F.batch_norm(F.linear(pairs, w1, b1), None, None, gamma1, beta1, training=True)
    y = F.batch_norm(F.linear(h.relu(), w2, b2), None, None, gamma2, beta2, training=True)
    return F.softplus(F.linear(y.relu(), w3, b3)).mean(dtype=summed_in(z))


PEERS: dict[str, Function] = {"concatenated": concatenated}


def contest(case: AffinityCase, device: str) -> Contest:
    inputs = inputs_of(case, device)
    return contest_of(
        case, device, inputs, partial(loss_by, case, device), PEERS,
        resolved_by=inputs.leaves[:1],  # the crops: parameters are no blocks
        upstream=upstream_of(case.dtype, device),
        product=matrix_product(case.flops(), case.dtype, device),
        gradient_tolerance=KINKS,
    )  # fmt: skip


def test_affinity(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))
