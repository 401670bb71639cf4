"""`LocalAffinity` on two ranks: one θd, whatever wraps it, as one process would learn it."""

import copy

import pytest
import torch

import affinity_distributed as ranks
from spawned import saved
from support import error


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the two ranks return: by name, one of each rank."""
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    both = saved(ranks.rank, ranks.RANKS, tmp_path_factory)
    return {name: [one[name] for one in both] for name in ranks.WAYS}


# Of the others a rank returns what it has of the whole, or a refusal.
REPLICATED = [way for way in ranks.WAYS if "ddp" in way or "synchronised" in way]


@pytest.mark.parametrize("way", REPLICATED)
def test_ranks_hold_the_same(found, way):
    """Weights, and where statistics are shared the running ones, after ten steps."""
    first, other = found[way]
    assert not isinstance(first, str), first
    assert torch.equal(first, other)


def test_it_has_learnt(found):
    before = ranks.weights(ranks.affinity_of(), ranks.encoder_of())
    for way in ("ddp", "ddp and its module", "ddp, frozen norms"):
        assert error(found[way][0], before) > 0.01


def test_the_loss_may_take_the_wrapper_or_its_module(found):
    assert error(found["ddp"][0], found["ddp and its module"][0]) < 1e-5


@pytest.mark.parametrize("way", ["ddp, frozen norms", "ddp of the affinity alone"])
def test_as_one_process(found, way):
    """Where no statistics are taken: a step of the affinity, and one of the encoder between."""
    want = ranks.of_one_process(encoder_steps=way == "ddp, frozen norms")
    assert error(found[way][0], want) < 1e-5


@pytest.mark.parametrize("way", ["fully_shard", "fully_shard of layers"])
def test_sharded_as_one_process(found, way):
    assert not isinstance(found[way][0], str), found[way][0]
    want = ranks.of_one_process(encoder_steps=False)
    for rank in found[way]:
        assert error(rank[: len(want)], want) < 1e-5


def test_sharded_and_synchronised_as_by_hand(found):
    assert error(found["fully_shard, synchronised"][0], found["synchronised"][0]) < 1e-5


def test_forward_as_on_the_whole_batch(found):
    affinity = ranks.affinity_of(frozen_norms=True)
    affinity(ranks.crops()).mean().backward()
    want = torch.cat([p.grad.flatten() for p in affinity.parameters()])
    assert error(found["forward by ddp, frozen norms"][0], want) < 1e-6


def test_a_sharded_affinity_in_the_loss(found):
    sharded, plain = found["fully_shard in the loss"][0]
    assert plain.any()
    assert error(sharded, plain) < 1e-7


def test_objective_of_a_sharded_module_is_refused(found):
    for refusal in found["objective of a sharded module"]:
        assert isinstance(refusal, str)
        assert "call affinity(local, objective=...)" in refusal


def test_copies_learn_apart():
    """What the tests above would not see: with nothing between them, ranks do differ."""
    affinity = ranks.affinity_of()
    twin = copy.deepcopy(affinity)
    for one, part in ((affinity, slice(0, 4)), (twin, slice(4, 8))):
        ranks.train(one, ranks.encoder_of(), [part], encoder_steps=False)
    assert error(ranks.weights(affinity), ranks.weights(twin)) > 1e-3
