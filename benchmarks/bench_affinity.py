"""`LocalAffinity`: forward, and backward to the crops and to θd."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

import forms
from affinity_peers import AFFINITY as PEERS
from cases import AFFINITY, AffinityCase
from comparison import Contest, by_backend, compare, of_ours
from forms import Function
from inputs import Inputs, affinity_inputs, upstream_of
from logo_kernels import LocalAffinity
from timing import matrix_product

CASES = AFFINITY

# Of millions of hidden numbers, some lie so close to relu's kink that rounding decides the side,
# and the gradient jumps by one pair's share. That moved gradients by up to 2e-2 here, a compiled
# peer's as well as ours; mistakes in a formula move them by their own size.
KINKS = 5e-2


# The order of `inputs.affinity_inputs`: z, then these.
NAMES = (
    "0.weight", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias", "6.weight", "6.bias",
    "0.bias", "3.bias",
)  # fmt: skip


def loss_by(case: AffinityCase, device: str, backend: str = "auto") -> Function:
    """Ours in the peers' signature: a module whose parameters are replaced at every call."""
    widths = (case.hidden, case.hidden)
    affinity = LocalAffinity(case.dim, widths, backend=backend, device=device)
    for norm in (affinity[1], affinity[4]):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None

    def loss(z: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(affinity, dict(zip(NAMES, parameters, strict=True)), (z,)).mean()

    return loss


def contest(case: AffinityCase, device: str) -> Contest:
    inputs = affinity_inputs(case, device)
    crops = Inputs([torch.empty_like(inputs.leaves[0])], [], False)
    by = by_backend(partial(loss_by, case, device), "pair_mlp", device, crops)
    return Contest(
        inputs,
        ours=of_ours(by, device, case.moved_bytes()),
        reference=loss_by(case, device, "reference"),
        peers=forms.prepare(PEERS, device, case.moved_bytes()),
        upstream=upstream_of(case.dtype, device),
        product=matrix_product(case.flops(), case.dtype, device),
        gradient_tolerance=KINKS,
    )


def test_affinity(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))
