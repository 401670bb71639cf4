"""What a user would write for InfoNCE against the other images of the batch.

A peer maps x [B, G, D], y [B, L, D], t [B, G, D] to the scalar of ``logo_loss(x, y, t,
similarity="info_nce", negatives="batch", temperature=TEMPERATURE, affinity=None)``.

- ``once``    the logits of every crop with every target once, an image's own masked out
- ``NTXent``  pytorch-metric-learning's NTXentLoss, told the pairs of eqs. 3 and 4
- ``Inf-CL``  inf_cl's Triton kernels, where each image has one query and one target (on a GPU)
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from cases import ELEMENT_BYTES, InfoNCECase
from contrast_peers import TEMPERATURE, total
from memory import free_bytes


def once(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """One product; the positives' logits are the masked blocks."""
    images, crops, dim = x.shape[0], x.shape[1] + y.shape[1], x.shape[2]
    queries = F.normalize(torch.cat([x, y], 1), dim=-1)
    targets = F.normalize(t, dim=-1)
    logits = queries.view(-1, dim) @ targets.view(-1, dim).mT / TEMPERATURE
    image = torch.arange(images, device=x.device)
    own = image.repeat_interleave(crops)[:, None] == image.repeat_interleave(t.shape[1])
    lse = logits.masked_fill(own, -torch.inf).logsumexp(-1).view(images, crops, 1)
    return total(lse - queries @ targets.mT / TEMPERATURE, x)


def ntxent(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Its mean is over positive pairs; ours sums an image's pairs and averages over images."""
    from pytorch_metric_learning.losses import NTXentLoss

    images, globals_, dim = x.shape
    loss = NTXentLoss(temperature=TEMPERATURE)
    targets = t.reshape(-1, dim)
    image = torch.arange(images, device=x.device)
    of_target = image.repeat_interleave(globals_)

    def attraction(queries: Tensor, skip_itself: bool) -> Tensor:
        of_query = image.repeat_interleave(queries.shape[1])
        same = of_query[:, None] == of_target
        positive = same.clone()
        if skip_itself:
            positive.fill_diagonal_(False)
        anchors, positives = positive.nonzero(as_tuple=True)
        others, negatives = (~same).nonzero(as_tuple=True)
        mean = loss(
            queries.reshape(-1, dim), of_query, (anchors, positives, others, negatives),
            targets, of_target,
        )  # fmt: skip
        return mean * len(anchors) / images

    return 0.5 * attraction(x, True) + attraction(y, False)


def infcl(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Its denominator has all targets: the positive, and those of the other images."""
    from inf_cl import cal_flash_loss

    if x.shape[1] != 1 or y.shape[1] != 1:
        raise ValueError("Inf-CL has one query and one positive per image")
    queries, targets = F.normalize(y[:, 0], dim=-1), F.normalize(t[:, 0], dim=-1)
    losses = cal_flash_loss(queries, targets, scale=1 / TEMPERATURE, head_dim=y.shape[2])
    return losses.mean() + 0 * x.sum()  # one global crop has no pair, and a gradient of zero


BATCH: dict[str, Callable[..., Tensor]] = {"once": once, "NTXent": ntxent}
ON_A_GPU: dict[str, Callable[..., Tensor]] = {"Inf-CL": infcl}
PACKAGES = {"NTXent": "pytorch_metric_learning", "Inf-CL": "inf_cl"}


def missing(name: str, case: InfoNCECase, device: str) -> str | None:
    """Why a peer cannot run at a case, or None."""
    package = PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        return f"{package} is not installed"
    if name == "Inf-CL" and (case.global_crops, case.local_crops) != (1, 1):
        return "it has one query and one positive per image"
    if name != "NTXent":
        return None
    needed, free = ntxent_bytes(case), free_bytes(device)
    if needed <= free:
        return None
    return f"it needs {needed / 2**30:.0f} GiB at the least, and {free / 2**30:.0f} GiB are free"


def ntxent_bytes(case: InfoNCECase) -> int:
    """At the least: of each positive pair with each negative pair, a flag and two numbers."""
    most = 0
    for crops, positives in (
        (case.global_crops, case.global_crops - 1),
        (case.local_crops, case.global_crops),
    ):
        queries = case.images * crops
        negative_pairs = queries * (case.images - 1) * case.global_crops
        most = max(most, queries * positives * negative_pairs)
    return most * (1 + 2 * ELEMENT_BYTES[case.dtype])
