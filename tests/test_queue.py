"""The queue of negatives."""

import pytest
import torch

from logo_kernels import NegativeQueue, logo_loss
from support import crops, error


def rows(count, dim=4, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def unit(keys):
    return torch.nn.functional.normalize(keys, dim=-1)


# 5 divides no batch below: writes wrap in every place
@pytest.mark.parametrize("sizes", [[5], [2, 2, 2], [3, 4, 1], [1] * 7, [12], [4, 13, 2]])
def test_first_in_first_out(sizes):
    queue = NegativeQueue(4, 5)
    everything = rows(sum(sizes))
    start = 0
    for size in sizes:
        queue.enqueue(everything[start : start + size])
        start += size
    if start >= 5:
        kept = torch.cat([queue.keys[int(queue.pointer) :], queue.keys[: int(queue.pointer)]])
        assert error(kept, unit(everything[-5:])) < 1e-6  # oldest first
    else:
        assert error(queue.keys[:start], unit(everything)) < 1e-6


def test_keys_are_unit_vectors_from_the_start():
    queue = NegativeQueue(7, 20)
    assert error(queue.keys.norm(dim=1), torch.ones(20)) < 1e-6
    queue.enqueue(torch.full((3, 7), 1e30))
    assert error(queue.keys.norm(dim=1), torch.ones(20)) < 1e-6


def test_crops_of_several_kinds():
    """[B, P, D] is taken row by row; a transposed view as well."""
    keys = rows(6).view(2, 3, 4).transpose(0, 1)  # [3, 2, 4]
    queue = NegativeQueue(4, 6)
    queue.enqueue(keys)
    assert error(queue.keys, unit(keys.reshape(6, 4))) < 1e-6


def test_written_in_place():
    """No copy of the queue per step, and no gradient into the keys."""
    queue = NegativeQueue(4, 8)
    before = queue.keys.data_ptr()
    keys = rows(3).requires_grad_()
    queue.enqueue(keys)
    assert queue.keys.data_ptr() == before
    assert not queue.keys.requires_grad


def test_checkpoint_holds_keys_and_place():
    queue, other = NegativeQueue(4, 5), NegativeQueue(4, 5)
    queue.enqueue(rows(7))
    other.load_state_dict(queue.state_dict())
    for value in (queue, other):
        value.enqueue(rows(2, seed=1))
    assert torch.equal(queue.keys, other.keys)
    assert int(queue.pointer) == int(other.pointer) == 4


def test_enqueue_before_backward():
    """Backward needs no negatives: the order of the two does not matter."""
    queue = NegativeQueue(16, 32)
    x, y, t, _ = crops(3, 2, 2, 16, targets=True)
    gradients = []
    for early in (False, True):
        lx = x.clone().requires_grad_()
        held = NegativeQueue(16, 32)
        held.load_state_dict(queue.state_dict())
        loss = logo_loss(lx, y, t, similarity="info_nce", negatives=held.keys)
        if early:
            held.enqueue(t)
        loss.backward()
        gradients.append(lx.grad)
    assert torch.equal(*gradients)


def test_half_precision():
    queue = NegativeQueue(4, 5, dtype=torch.bfloat16)
    queue.enqueue(rows(3).double())
    assert queue.keys.dtype == torch.bfloat16
    assert error(queue.keys[:3], unit(rows(3))) < 1e-2


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((0, 5), ValueError, "dim must be positive"),
        ((4, -1), ValueError, "size must be positive"),
        ((4, 2.5), TypeError, "size must be an integer"),
    ],
)
def test_refuses_sizes(arguments, kind, message):
    with pytest.raises(kind, match=message):
        NegativeQueue(*arguments)


def test_refuses_keys():
    queue = NegativeQueue(4, 5)
    with pytest.raises(ValueError, match=r"\[B, 4\]"):
        queue.enqueue(rows(3, 5))
    with pytest.raises(ValueError, match="shape"):
        queue.enqueue(rows(3)[0])
    with pytest.raises(TypeError, match="int64"):
        queue.enqueue(torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="floating dtype"):
        NegativeQueue(4, 5, dtype=torch.int32)
