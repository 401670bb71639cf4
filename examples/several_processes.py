"""InfoNCE whose negatives are the targets of all processes: MoCo v3's and SimCLR's negatives.

    python examples/several_processes.py                                # one process, all images
    torchrun --nproc-per-node 2 examples/several_processes.py           # each half of them

Both print the same losses, to rounding: with `group=` a rank's loss sees every other image of the
step, wherever it is, and DDP's average of gradients is the gradient of one process with all images.
"""

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from logo_kernels import LoGoLoss
from pictures import crop, encoder, patterns

IMAGES, G, L, DIM = 64, 2, 2, 64  # IMAGES: of all processes


def main(steps: int = 20) -> None:
    launched = "RANK" in os.environ  # by torchrun
    if launched:
        dist.init_process_group("gloo")  # on GPUs "nccl", and each rank its own device
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if launched else (0, 1)
    share = slice(rank * IMAGES // ranks, (rank + 1) * IMAGES // ranks)

    torch.manual_seed(
        0
    )  # the same network on all ranks, and the same crops, of which each takes its
    network = encoder(DIM)
    parallel = DistributedDataParallel(network) if launched else network
    criterion = LoGoLoss(
        similarity="info_nce",
        temperature=0.2,
        repulsion_weight=0.01,
        group=dist.group.WORLD if launched else None,
    )
    optimizer = torch.optim.Adam(parallel.parameters(), lr=1e-3)
    images = patterns(IMAGES)

    for step in range(steps):
        views = [crop(images, 0.6, 1.0) for _ in range(G)] + [
            crop(images, 0.3, 0.6) for _ in range(L)
        ]
        z = (
            parallel(torch.cat([view[share] for view in views]))
            .view(G + L, -1, DIM)
            .transpose(0, 1)
        )
        loss = criterion(z[:, :G], z[:, G:], negatives="batch")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        mean = loss.detach()
        if launched:
            dist.all_reduce(mean)
            mean /= ranks
        if rank == 0 and step % 5 == 4:
            print(f"step {step:3}  loss {mean:.5f}")
    if launched:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
