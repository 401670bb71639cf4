"""What a user would write for the learned affinity: an MLP on concatenated pairs of crops.

A peer maps z [B, L, D] and θd's tensors to the mean of ``LocalAffinity.forward`` over images, with
batch norm in training mode; gradients come from autograd. Running statistics are left out, for
ours too: they are the same few numbers for everyone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from peers import summed_in


def concatenated(
    z: Tensor,
    w1: Tensor, gamma1: Tensor, beta1: Tensor,
    w2: Tensor, gamma2: Tensor, beta2: Tensor,
    w3: Tensor, b3: Tensor,
    b1: Tensor, b2: Tensor,
) -> Tensor:  # fmt: skip
    """The ordered pairs of each image gathered at once: [B L (L − 1), 2 D]."""
    unit = F.normalize(z, dim=-1)
    i, j = (~torch.eye(z.shape[1], dtype=torch.bool, device=z.device)).nonzero_static(
        size=z.shape[1] * (z.shape[1] - 1)
    ).T  # fmt: skip
    pairs = torch.cat([unit[:, i], unit[:, j]], -1).flatten(0, 1)
    h = F.batch_norm(F.linear(pairs, w1, b1), None, None, gamma1, beta1, training=True)
    y = F.batch_norm(F.linear(h.relu(), w2, b2), None, None, gamma2, beta2, training=True)
    return F.softplus(F.linear(y.relu(), w3, b3)).mean(dtype=summed_in(z))


AFFINITY: dict[str, Callable[..., Tensor]] = {"concatenated": concatenated}
