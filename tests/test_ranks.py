"""A group of 1, 2 and 4 processes against one process with the images of all, in float64."""

import pytest
import torch

import loss_ranks as ranks
from logo_kernels import LoGoLoss, NegativeQueue, logo_loss
from logo_kernels.contrast import contrast
from oracles import pairwise_contrast
from spawned import free_port, saved
from support import crops, error

EXACT = 1e-12

needs_distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)


@pytest.fixture(scope="module", params=[1, 2, 4])
def found(request, tmp_path_factory):
    """What the ranks return, in their order."""
    return saved(ranks.rank, request.param, tmp_path_factory)


def joined(name, found):
    """Of all ranks: (total, terms, gradients to x, y and τ), as one process has them."""
    totals, terms, to_x, to_y, to_tau = zip(*(one[name] for one in found), strict=True)
    if totals[0].ndim:  # of single images
        return torch.cat(totals), torch.cat(terms, 1), torch.cat(to_x), torch.cat(to_y), sum(to_tau)
    means = (torch.stack(v).mean(0) for v in (totals, terms, to_tau))
    total, terms, to_tau = means
    share = 1 / len(found)  # DDP averages the gradients of the ranks
    return total, terms, share * torch.cat(to_x), share * torch.cat(to_y), to_tau


def alike(got, want, scale=1.0):
    for one, whole in zip(got, want, strict=True):
        assert one.shape == whole.shape
        assert error(one, scale * whole) < EXACT * max(1, float(whole.abs().max()))


@needs_distributed
@pytest.mark.parametrize("name", [*ranks.OPTIONS, "module", "mesh"])
def test_as_one_process(found, name):
    want = ranks.step_of(slice(None), None, **ranks.OPTIONS.get(name, {}))
    scale = 1 / len(found) if name == "sum" else 1.0  # by the average over ranks
    alike(joined(name, found), want, scale)


@needs_distributed
def test_weights_after_training(found):
    """By DDP and by FSDP, with gradients that are not synchronised at each step."""
    want = ranks.train(ranks.encoder_of(), slice(None), None, ranks.encoder_of())
    assert error(want, ranks.weights(ranks.encoder_of())) > 0.1
    for one in found:
        for way in {"ddp", "fsdp"} & one.keys():
            assert error(one[way], want) < EXACT


@needs_distributed
def test_compiled_into_one_graph(found):
    for one in found:
        for got, want in zip(*one.get("compiled", ((), ())), strict=True):
            assert error(got, want) < EXACT


@needs_distributed
def test_groups_within_the_world(found):
    """Two of four ranks, by a group and by one dimension of a mesh."""
    if len(found) < 4:
        return
    want = ranks.step_of(slice(None), None)
    for name in ("pair", "dimension"):
        for members in (found[0::2], found[1::2]):
            alike(joined(name, members), want)


@needs_distributed
def test_a_group_of_others(found):
    for one in found:
        mesh, others, of_queue, of_module = one.get("outside", (None,) * 4)
        if mesh is None:
            continue
        assert mesh == of_queue
        assert "a mesh of one dimension, got a DeviceMesh of 2, (2, 2)" in mesh
        assert "mesh['dp']" in mesh
        assert others == of_module
        assert "ValueError: group has no place for this process" in others


@needs_distributed
def test_uneven_batches(found):
    """Every rank says so, and none waits."""
    if len(found) == 1:
        return
    shape, dtype = found[0]["uneven"]
    assert all(one["uneven"] == [shape, dtype] for one in found)
    assert "one shape [B, P, D] and one dtype on all ranks" in shape
    assert "[3, 2, 16] float64 on rank 0, [2, 2, 16] float64 on rank 1" in shape
    assert "bfloat16 on rank 0, [3, 2, 16] float32 on rank 1" in dtype


@needs_distributed
def test_one_queue(found):
    """Equal on all ranks to the last bit, and as one process fills it."""
    for one in found:
        for mine, first in zip(one["queue"], found[0]["queue"], strict=True):
            assert torch.equal(mine, first)
    queue = NegativeQueue(5, 11)
    queue.keys.copy_(found[0]["queue"][0])
    batches = [(2, 2, 2, 2), (3, 0, 1, 2), (0, 0, 0, 0), (4, 9, 1, 30)]
    for step, counts in enumerate(batches):
        brought = [ranks.keys_of(step, rank, counts[rank]) for rank in range(len(found))]
        queue.enqueue(torch.cat(brought))
        keys, pointer = found[0]["queue"][1 + 2 * step : 3 + 2 * step]
        assert torch.equal(queue.keys, keys)
        assert torch.equal(queue.pointer, pointer)


@needs_distributed
def test_a_rank_that_dies(tmp_path):
    """The others end with an error, soon."""
    given = 3, free_port(), str(tmp_path)
    context = torch.multiprocessing.spawn(ranks.dying, given, nprocs=3, join=False)
    for process in context.processes:
        process.join(50)
    assert [process.exitcode for process in context.processes] == [0, 0, ranks.DEAD]
    for rank in range(2):
        said, seconds = torch.load(tmp_path / f"{rank}.pt")
        assert said
        assert seconds < 30


def test_own_first(backend):
    """As the images of a rank are among those of all, by every backend's own rule."""
    name, device = backend
    x, y, t, _ = crops(6, 2, 3, 24, targets=True)
    want = pairwise_contrast(
        x.double(), y.double(), t.double(), None, "batch", 0.2, 0.0, "sum"
    )[0]  # fmt: skip
    for first in (0, 2, 4):
        mine = slice(first, first + 2)
        others = torch.cat([t[:first], t[first + 2 :]])
        negatives = torch.cat([t[mine], others]).flatten(0, 1)
        given = [v.to(device) for v in (x[mine], y[mine], t[mine], negatives)]
        total, _ = contrast(*given, 0.2, "sum", "none", name, False, own_first=True)
        assert error(total, want[mine]) < 1e-5 * float(want.abs().max())


def test_a_group_that_is_none():
    """Before init_process_group torch's world is None: this process alone."""
    x, y, t, _ = crops(4, 2, 2, 8, targets=True)
    options = {"similarity": "info_nce", "negatives": "batch"}
    alone = logo_loss(x, y, t, **options)
    if torch.distributed.is_available():
        assert torch.equal(
            logo_loss(x, y, t, group=torch.distributed.group.WORLD, **options), alone
        )
    for make in (
        lambda: logo_loss(x, y, t, group="world", **options),
        lambda: LoGoLoss(group=3),
        lambda: NegativeQueue(3, 4, group="world"),
    ):
        with pytest.raises(TypeError, match="group must be a ProcessGroup, a DeviceMesh or None"):
            make()


@needs_distributed
def test_a_group_where_it_means_nothing(tmp_path):
    x, y, t, _ = crops(4, 2, 2, 8, targets=True)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        world = torch.distributed.group.WORLD
        for options in ({}, {"similarity": "info_nce", "negatives": torch.randn(5, 8)}):
            with pytest.raises(ValueError, match="group is for negatives='batch'"):
                logo_loss(x, y, t, group=world, **options)
    finally:
        torch.distributed.destroy_process_group()
