"""`LocalAffinity`: forward, and backward to the crops and to θd."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

import peers
from affinity_peers import AFFINITY as PEERS
from cases import AFFINITY, AffinityCase
from comparison import Contest, by_backend, compare
from inputs import Inputs, affinity_inputs
from logo_kernels import LocalAffinity
from timing import matrix_product_step

CASES = AFFINITY

# Of millions of hidden numbers, some lie so close to relu's kink that rounding decides the side,
# and the gradient jumps by one pair's share. That moved gradients by up to 2e-2 here, a compiled
# peer's as well as ours; mistakes in a formula move them by their own size.
KINKS = 5e-2


@cache
def module(dim: int, hidden: int, backend: str, device: str) -> nn.Module:
    """Without running statistics; its parameters are replaced at every call."""
    affinity = LocalAffinity(dim, (hidden, hidden), backend=backend, device=device)
    for norm in (affinity[1], affinity[4]):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return affinity


# The order of `inputs.affinity_inputs`: z, then these.
NAMES = (
    "0.weight", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias", "6.weight", "6.bias",
    "0.bias", "3.bias",
)  # fmt: skip


def loss(z: Tensor, *parameters: Tensor, backend: str = "auto") -> Tensor:
    """Ours in the peers' signature."""
    hidden = parameters[0].shape[0]
    affinity = module(z.shape[2], hidden, backend, z.device.type)
    return functional_call(affinity, dict(zip(NAMES, parameters, strict=True)), (z,)).mean()


def contest(case: AffinityCase, device: str) -> Contest:
    inputs = affinity_inputs(case, device)
    crops = Inputs([torch.empty_like(inputs.leaves[0])], [], False)
    return Contest(
        inputs,
        ours=by_backend(loss, "pair_mlp", device, crops),
        reference=partial(loss, backend="reference"),
        peers=peers.prepare(PEERS, device, case.moved_bytes()),
        baselines={"matrix product": matrix_product_step(case.flops(), case.dtype, device)},
        gradient_tolerance=KINKS,
    )


def test_affinity(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))
