"""What a rank does with a group: losses, training, queues. Processes import it by name."""

import copy
import os
import time
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from logo_kernels import LoGoLoss, NegativeQueue, logo_loss
from spawned import begin

IMAGES, CROPS, DIM, STEPS = 8, 3, 16, 20  # IMAGES: of all ranks; CROPS: L; two global crops
DEAD = 7  # how a rank that is to die ends


def crops(step=0):
    """x, y, t of all ranks' images in fp64; targets are not as the crops lie."""
    generator = torch.Generator().manual_seed(1000 + step)
    shapes = (IMAGES, 2, DIM), (IMAGES, CROPS, DIM), (2, IMAGES, DIM)
    x, y, t = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return x, y, t.transpose(0, 1)


def slice_of(rank, ranks):
    share = IMAGES // ranks
    return slice(rank * share, (rank + 1) * share)


def step_of(part, group, loss=logo_loss, targets=None, **options):
    """(total, terms, gradients to x, y and τ) of a part of the images."""
    x, y, t = (v[part] for v in crops())
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    if targets is not None:
        t = t.to(targets)
    options = {"similarity": "info_nce", "negatives": "batch", "temperature": tau} | options
    total, *terms = loss(x, y, t, group=group, return_terms=True, **options)
    (total if total.ndim == 0 else total.sum()).backward()
    return total.detach(), torch.stack(terms), x.grad, y.grad, tau.grad


OPTIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none", "pair_reduction": "mean"},
    "reference": {"backend": "reference", "affinity": None},
    "bf16 targets": {"targets": torch.bfloat16},
}


def encoder_of():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(DIM, 12), nn.Tanh(), nn.Linear(12, DIM)).double()


def train(encoder, part, group, average=None, unsynchronised=nullcontext):
    """Every second step adds up the gradients of two batches. `average` encodes the targets."""
    average = average or copy.deepcopy(encoder)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.5, momentum=0.9)

    def loss(step):
        x, y, _ = (v[part] for v in crops(step))
        out = encoder(torch.cat([x, y], 1))
        with torch.no_grad():
            targets = average(x)
        return logo_loss(
            out[:, :2], out[:, 2:], targets, similarity="info_nce", negatives="batch", group=group,
            repulsion_weight=0.1,
        )  # fmt: skip

    for step in range(STEPS):
        optimizer.zero_grad()
        if step % 2:
            with unsynchronised():
                loss(STEPS + step).backward()
        loss(step).backward()
        optimizer.step()
    return weights(encoder)


def weights(module):
    found = [p.detach() for p in module.parameters()]
    return torch.cat(
        [(p.full_tensor() if hasattr(p, "full_tensor") else p).flatten() for p in found]
    )


def by_ddp(part, group):
    encoder = DistributedDataParallel(encoder_of())
    return train(encoder, part, group, encoder_of(), encoder.no_sync)


def by_fsdp(part, group):
    encoder = encoder_of()
    mesh = dist.init_device_mesh("cpu", (group.size(),))
    fully_shard(encoder, mesh=mesh)
    return train(encoder, part, mesh, encoder_of(), partial(unsynchronised, encoder))


@contextmanager
def unsynchronised(sharded):
    sharded.set_requires_gradient_sync(False)
    yield
    sharded.set_requires_gradient_sync(True)


def compiled(part, group):
    """Of one graph, forward and backward; another τ is no other graph."""

    def loss(x, y, t, tau):
        return logo_loss(
            x, y, t, similarity="info_nce", negatives="batch", temperature=tau, group=group
        )

    found = []
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for function in (loss, traced):
        x, y, t = (v[part] for v in crops())
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        value = function(x, y, t, 0.3)
        value.backward()
        found.append((value.detach(), x.grad, y.grad))
    return found


def refusal(call):
    try:
        call()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def uneven(rank, group):
    """What a rank says whose batch is smaller, and the others; before and after, all is well."""
    x, y, t = crops()
    options = {"similarity": "info_nce", "negatives": "batch", "group": group}

    def loss(images, dtype=torch.float64):
        return logo_loss(x[:images], y[:images], t[:images].to(dtype), **options)

    loss(3)
    said = [
        refusal(lambda: loss(2 if rank == 1 else 3)),
        refusal(lambda: loss(3, torch.bfloat16 if rank == 0 else torch.float32)),
    ]
    loss(3)
    loss(1)  # one image has the others' targets
    return said


def queued(rank, group):
    """The keys at first and after batches of several sizes, one longer than the queue."""
    torch.manual_seed(rank)
    queue = NegativeQueue(5, 11, group=group)
    found = [queue.keys.clone()]
    for step, counts in enumerate([(2, 2, 2, 2), (3, 0, 1, 2), (0, 0, 0, 0), (4, 9, 1, 30)]):
        queue.enqueue(keys_of(step, rank, counts[rank]))
        found += [queue.keys.clone(), queue.pointer.clone()]
    other = copy.deepcopy(queue)
    assert other.group is group
    assert other.keys is not queue.keys
    return found


class Sent(TorchDispatchMode):
    """Bytes that a rank sends in a ring: of what it gathers, all but what one rank brings."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if "all_gather" in function.overloadpacket.__name__:
            self.bytes += made.nbytes - args[0].nbytes
        return made


def counted(part, group):
    """(bytes of the loss, its operations, bytes of the queue's enqueue)."""
    x, y, t = (v[part] for v in crops())
    options = {"negatives": "batch", "group": group, "affinity": None, "backend": "reference"}
    with Sent() as loss, FlopCounterMode(display=False) as operations:
        logo_loss(x, y, t, similarity="info_nce", **options)
    queue = NegativeQueue(DIM, 40, group=group, dtype=torch.bfloat16)
    with Sent() as enqueue:
        queue.enqueue(t)
    return loss.bytes, operations.get_total_flops(), enqueue.bytes


def keys_of(step, rank, count):
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(count, 5, generator=generator)


def outside(rank, ranks):
    """Groups that are none for this process, on four ranks."""
    x, y, t = crops()
    options = {"similarity": "info_nce", "negatives": "batch"}
    mesh = dist.init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("dp", "tp"))
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    others = pairs[1 - rank // 2]
    return [
        refusal(lambda: logo_loss(x, y, t, group=mesh, **options)),
        refusal(lambda: logo_loss(x, y, t, group=others, **options)),
        refusal(lambda: NegativeQueue(3, 4, group=mesh)),
        refusal(lambda: LoGoLoss(group=others, **{"similarity": "info_nce"})),
    ]


def rank(rank, ranks, port, out):
    """All that the tests look at."""
    begin(rank, ranks, port)
    world, mine = dist.group.WORLD, slice_of(rank, ranks)
    found = {name: step_of(mine, world, **options) for name, options in OPTIONS.items()}
    found["module"] = step_of(mine, world, by_module)
    mesh = dist.init_device_mesh("cpu", (ranks,))
    found["mesh"] = step_of(mine, mesh)
    found["ddp"] = by_ddp(mine, world)
    found["queue"] = queued(rank, world)
    found["counted"] = counted(mine, world)
    if ranks > 1:
        found["uneven"] = uneven(rank, world)
    if ranks == 4:
        pairs = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        found["pair"] = step_of(slice_of(rank // 2, 2), pairs[rank % 2])
        grid = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        found["dimension"] = step_of(slice_of(rank // 2, 2), grid["dp"])
        found["outside"] = outside(rank, ranks)
    else:
        found["fsdp"] = by_fsdp(mine, world)
        found["compiled"] = compiled(mine, world)
    torch.save(found, f"{out}/{rank}.pt")
    dist.destroy_process_group()


def by_module(x, y, t, group, return_terms, negatives, **options):
    module = copy.deepcopy(LoGoLoss(group=group, return_terms=return_terms, **options))
    module.temperature = options["temperature"]  # of which the copy has its own
    return module(x, y, t, negatives=negatives)


def dying(rank, ranks, port, out):
    """The last rank ends without a word after two steps; what the others say, and how soon."""
    begin(rank, ranks, port)
    began = time.monotonic()
    try:
        for step in range(1000):
            if step == 2 and rank == ranks - 1:
                os._exit(DEAD)
            step_of(slice_of(rank, ranks), dist.group.WORLD)
    except RuntimeError as error:
        torch.save((str(error), time.monotonic() - began), f"{out}/{rank}.pt")
    os._exit(0)
