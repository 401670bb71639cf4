"""The formulas of harness/traffic.py against what ranks were counted to send and to multiply."""

import pytest
import torch

import loss_ranks
import scaling
from harness.traffic import Step
from spawned import saved


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_as_counted(ranks, tmp_path_factory):
    images = loss_ranks.IMAGES // ranks
    of_batch = Step(ranks, images, 2, loss_ranks.CROPS, loss_ranks.DIM, element_bytes=8)
    of_queue = Step(ranks, images, 2, loss_ranks.CROPS, loss_ranks.DIM, element_bytes=2, queue=40)
    for sent, operations, enqueued in (
        one["counted"] for one in saved(loss_ranks.rank, ranks, tmp_path_factory)
    ):
        assert sent == of_batch.sent_bytes()
        assert operations == of_batch.operations()
        assert enqueued == of_queue.sent_bytes()


def test_the_page_has_these_tables():
    assert scaling.PAGE.read_text() == scaling.page(), "python benchmarks/scaling.py --write"
