"""Modules and crops for the tests of LocalAffinity, and one rank of two that share batch norm.

A module of its own: the processes of a test import the rank's function by name.
"""

import os

import torch
from torch import nn

from logo_kernels import LocalAffinity


def affinity_of(dim, hidden, backend, device="cpu", dtype=torch.float32, seed=0):
    """Weights large enough for every ReLU and softplus to bend; running statistics of their own."""
    torch.manual_seed(seed)
    affinity = LocalAffinity(dim, hidden, backend=backend)
    with torch.no_grad():
        for parameter in affinity.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for norm in (affinity[1], affinity[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return affinity.to(device, dtype)


def crops_of(images, crops, dim, dtype=torch.float32, seed=1):
    return torch.randn(images, crops, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rank_of_two(rank, port, out):
    """Three images on one rank, five on the other."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    affinity = nn.SyncBatchNorm.convert_sync_batchnorm(affinity_of(12, (8, 8), "cpu"))
    z = crops_of(8, 3, 12)
    mine = (z[:3] if rank == 0 else z[3:]).requires_grad_()
    value = affinity(mine)
    value.sum().backward()
    for parameter in affinity.parameters():
        torch.distributed.all_reduce(parameter.grad)
    torch.save(
        (value.detach(), mine.grad, [p.grad for p in affinity.parameters()], affinity.state_dict()),
        f"{out}/{rank}.pt",
    )
    torch.distributed.destroy_process_group()
