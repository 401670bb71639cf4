"""A rank of two that trains a `LocalAffinity` beside an encoder; processes import it by name."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from logo_kernels import LocalAffinity, logo_loss
from spawned import begin

STEPS, IMAGES, CROPS, DIM = 10, 4, 3, 8  # IMAGES: of a rank
RANKS = 2


def affinity_of(frozen_norms=False):
    torch.manual_seed(5)
    affinity = LocalAffinity(DIM, (6, 6))
    with torch.no_grad():
        for norm in (affinity[1], affinity[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return freeze(affinity) if frozen_norms else affinity


def freeze(affinity):
    for norm in (affinity[1], affinity[4]):
        norm.eval()
    return affinity


def encoder_of():
    torch.manual_seed(6)
    return nn.Linear(5, DIM)


def images(step):
    """Of all ranks [RANKS·IMAGES, 2 + CROPS, 5]."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(RANKS * IMAGES, 2 + CROPS, 5, generator=generator)


def train(affinity, encoder, parts, form="logistic", encoder_steps=True, forward=None):
    """Alternates θd's step with the encoder's, for which θd is frozen.

    `parts`: the images of this rank, as a slice; one process takes those of all ranks, one after
    another, and averages, as DDP does with gradients.
    """
    parameters = list(affinity.parameters())
    of_affinity = torch.optim.SGD(parameters, lr=0.1)
    of_encoder = torch.optim.SGD(encoder.parameters(), lr=0.1)

    def mean(loss, step):
        total = 0.0
        for part in parts:
            torch.manual_seed(100 * step + part.start)  # each rank has its own noise
            total = total + loss(encoder(images(step)[part])) / len(parts)
        return total

    for step in range(STEPS):
        of_affinity.zero_grad()
        mean(lambda z: affinity(z[:, 2:], objective=form), step).backward()
        of_affinity.step()
        if not encoder_steps:
            continue
        for parameter in parameters:
            parameter.requires_grad_(False)
        of_encoder.zero_grad()
        options = {"affinity": forward or affinity, "repulsion_weight": 0.5}
        mean(lambda z, o=options: logo_loss(z[:, :2], z[:, 2:], **o), step).backward()
        of_encoder.step()
        for parameter in parameters:
            parameter.requires_grad_(True)


def crops(step=0):
    return encoder_of()(images(step)).detach()[:, 2:]


def weights(*modules):
    return torch.cat([whole(p.detach()).flatten() for m in modules for p in m.parameters()])


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def by_ddp(mine):
    affinity, encoder = (
        DistributedDataParallel(affinity_of()),
        DistributedDataParallel(encoder_of()),
    )
    train(affinity, encoder, [mine])
    return weights(affinity, encoder)


def by_ddp_and_its_module(mine):
    """The module itself as the affinity of the loss, as it is frozen there."""
    affinity, encoder = (
        DistributedDataParallel(affinity_of()),
        DistributedDataParallel(encoder_of()),
    )
    train(affinity, encoder, [mine], forward=affinity.module)
    return weights(affinity, encoder)


def by_ddp_of_the_affinity_alone(mine):
    affinity = DistributedDataParallel(affinity_of(frozen_norms=True))
    train(affinity, encoder_of(), [mine], encoder_steps=False)
    return weights(affinity)


def by_ddp_frozen_norms(mine):
    affinity = DistributedDataParallel(affinity_of(frozen_norms=True))
    encoder = DistributedDataParallel(encoder_of())
    train(affinity, encoder, [mine])
    return weights(affinity, encoder)


def forward_by_ddp_frozen_norms(mine):
    """ℓa as a loss: its pairs are of one image, so that ranks have those of one large batch."""
    affinity = DistributedDataParallel(affinity_of(frozen_norms=True))
    affinity(crops()[mine]).mean().backward()
    return torch.cat([p.grad.flatten() for p in affinity.parameters()])


def synchronised():
    return nn.SyncBatchNorm.convert_sync_batchnorm(affinity_of())


def by_hand_synchronised(mine):
    """DDP refuses SyncBatchNorm on a CPU; its average of gradients is one line."""
    affinity = synchronised()
    optimiser = torch.optim.SGD(affinity.parameters(), lr=0.1)
    for step in range(STEPS):
        z = crops(step)[mine]
        torch.manual_seed(100 * step + mine.start)
        optimiser.zero_grad()
        affinity(z, objective="logistic").backward()
        for parameter in affinity.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= RANKS
        optimiser.step()
    return torch.cat([weights(affinity), *(b.flatten() for b in affinity.buffers())])


def by_fully_shard(mine, affinity=None, layers=()):
    from torch.distributed.fsdp import fully_shard

    affinity = affinity or affinity_of(frozen_norms=True)
    mesh = dist.device_mesh.init_device_mesh("cpu", (RANKS,))
    for layer in layers:
        fully_shard(affinity[layer], mesh=mesh)
    fully_shard(affinity, mesh=mesh)
    train(affinity, encoder_of(), [mine], encoder_steps=False)
    return torch.cat([weights(affinity), *(b.flatten() for b in affinity.buffers())])


def by_fully_shard_synchronised(mine):
    return by_fully_shard(mine, synchronised())


def in_the_loss_by_fully_shard(mine):
    """The sharded module is the affinity of a loss; its parameters are gathered for the call."""
    from torch.distributed.fsdp import fully_shard

    affinity, plain = affinity_of().eval(), affinity_of().eval()
    fully_shard(affinity, mesh=dist.device_mesh.init_device_mesh("cpu", (RANKS,)))
    found = []
    for one in (affinity, plain):
        z = crops()[mine].requires_grad_()
        logo_loss(z[:, :2], z, affinity=one, repulsion_weight=0.5).backward()
        found.append(z.grad)
    return torch.stack(found)


def refusal_of_objective(mine):
    """The method of a sharded module sees parts of its parameters."""
    from torch.distributed.fsdp import fully_shard

    affinity = affinity_of()
    fully_shard(affinity, mesh=dist.device_mesh.init_device_mesh("cpu", (RANKS,)))
    affinity.objective(crops()[mine]).backward()


WAYS = {
    "ddp": by_ddp,
    "ddp and its module": by_ddp_and_its_module,
    "ddp of the affinity alone": by_ddp_of_the_affinity_alone,
    "ddp, frozen norms": by_ddp_frozen_norms,
    "forward by ddp, frozen norms": forward_by_ddp_frozen_norms,
    "synchronised": by_hand_synchronised,
    "fully_shard": by_fully_shard,
    "fully_shard of layers": lambda mine: by_fully_shard(mine, layers=(0, 3)),
    "fully_shard, synchronised": by_fully_shard_synchronised,
    "fully_shard in the loss": in_the_loss_by_fully_shard,
    "objective of a sharded module": refusal_of_objective,
}


def of_one_process(encoder_steps=True):
    """The same pairs, one part of the batch after another."""
    affinity, encoder = affinity_of(frozen_norms=True), encoder_of()
    parts = [slice(start, start + IMAGES) for start in range(0, RANKS * IMAGES, IMAGES)]
    train(affinity, encoder, parts, encoder_steps=encoder_steps)
    return weights(affinity, encoder) if encoder_steps else weights(affinity)


def rank(me, ranks, port, out):
    begin(me, ranks, port)
    mine, found = slice(me * IMAGES, (me + 1) * IMAGES), {}
    for name, way in WAYS.items():
        try:
            found[name] = way(mine)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    torch.save(found, f"{out}/{me}.pt")
    dist.destroy_process_group()
