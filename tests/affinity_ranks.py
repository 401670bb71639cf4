"""One rank of two that share the affinity's batch norm: their processes import it by name."""

import torch
from torch import nn

from affinity_inputs import affinity_of, crops_of
from spawned import begin


def rank_of_two(rank, port, out):
    """Three images on one rank, five on the other."""
    begin(rank, 2, port)
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
