"""Plans of the cosine and of similarity fit every GPU from sm_80 on; asked of the library alone."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from architectures import ARCHITECTURES, KIB
from logo_kernels.backends import Request, cuda
from logo_kernels.backends.cuda import CudaBackend
from logo_kernels.backends.extension import extension

RESERVED = 1 * KIB  # that CUDA takes of each block
DIMS = [1, 2, 7, 8, 31, 64, 128, 200, 256, 384, 512, 768, 1000, 1024, 2048, 4096, 8192, 65536]
ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.id)

plan_for = extension.cuda.plan


@ARCHITECTURE
@pytest.mark.parametrize("element_bytes", [2, 4])
def test_every_plan_fits(architecture, element_bytes):
    """All rows of the table: a launch may ask for what the plan says, as often as it counts on."""
    for rows in range(2, 129):
        for dim in DIMS:
            plan = plan_for(rows, dim, element_bytes, architecture.shared_per_block)
            assert plan["threads"] > 0, (rows, dim)
            assert plan["threads"] % 32 == 0
            assert plan["threads"] <= 512
            assert 0 < plan["shared_bytes"] <= architecture.shared_per_block
            of_all = plan["blocks"] * (plan["shared_bytes"] + RESERVED)
            assert plan["blocks"] >= 1
            assert of_all <= architecture.shared_per_multiprocessor
            # the parts of an image are all there, and the stages all its rows
            assert plan["chunk"] * (plan["chunks"] - 1) < dim <= plan["chunk"] * plan["chunks"]
            assert plan["stage_bytes"] >= rows * plan["chunk"] * element_bytes
            assert plan["stages"] * plan["stage_bytes"] < plan["shared_bytes"]


@ARCHITECTURE
@pytest.mark.parametrize("element_bytes", [2, 4])
def test_a_block_that_is_alone_reads_further_ahead(architecture, element_bytes):
    """Two images, or parts of them, are on their way while it works on one, where they fit."""
    for rows in range(2, 129):
        for dim in DIMS:
            plan = plan_for(rows, dim, element_bytes, architecture.shared_per_block)
            if plan["blocks"] == 1 and plan["stages"] == 2:
                another = plan["shared_bytes"] + plan["stage_bytes"]
                assert another > architecture.shared_per_block, (rows, dim)


@pytest.mark.parametrize(
    ("rows", "element_bytes", "blocks", "stages"),
    [
        (6, 2, 4, 2),  # the paper's crops and targets
        (10, 2, 4, 1),  # 2 + 8 crops of 2048
        (12, 2, 4, 1),  # and two targets
        (16, 2, 3, 1),
        (20, 2, 2, 1),  # features of their own
        (12, 4, 2, 1),
    ],
)
def test_plans_of_2048_on_an_h200(rows, element_bytes, blocks, stages):
    plan = plan_for(rows, 2048, element_bytes, 227 * KIB)
    assert (plan["blocks"], plan["stages"], plan["chunks"]) == (blocks, stages, 1)


@pytest.fixture
def gpus(monkeypatch):
    """A backend on a machine whose devices 0, 1, .. have these bytes of shared memory a block."""

    def make(*shared):
        library = SimpleNamespace(
            shared_bytes=lambda index: shared[index],
            plan=plan_for,
            max_rows=extension.cuda.max_rows or 128,
            probe=lambda index: None,
        )
        monkeypatch.setattr(cuda, "extension", SimpleNamespace(cuda=library))
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: (8, 0))
        monkeypatch.setattr("torch.cuda.device", nullcontext)
        # The device of the tensors counts, not the current one.
        monkeypatch.setattr("torch.cuda.current_device", lambda: pytest.fail("asked"))
        cuda._unfit.cache_clear()
        return CudaBackend()

    yield make
    cuda._unfit.cache_clear()


def asked(*dtypes, rows=128, dim=2048, index=0):
    return Request("cosine", "cuda", frozenset(dtypes), rows, dim, index)


def test_what_fits_nowhere_is_refused_with_a_reason(gpus):
    """No error at launch: where the plan has no threads, the backend says so."""
    backend = gpus(48 * KIB)
    assert plan_for(128, 2048, 2, 48 * KIB)["threads"] == 0
    assert "48 KiB" in backend.refuses(asked(torch.bfloat16))
    assert "128 rows" in backend.refuses(asked(torch.bfloat16))
    assert backend.refuses(asked(torch.bfloat16, rows=16)) is None


def test_rows_of_one_dtype_are_kept_in_it(gpus):
    """And those of two in fp32, which takes more."""
    both = [torch.bfloat16, torch.float16]
    shared = next(
        size
        for size in range(40 * KIB, 227 * KIB, KIB)
        if plan_for(128, 8, 2, size)["threads"] and not plan_for(128, 8, 4, size)["threads"]
    )
    backend = gpus(shared)
    assert backend.refuses(asked(both[0], dim=8)) is None
    assert backend.refuses(asked(*both, dim=8)) is not None


def test_gpus_of_one_machine_may_differ(gpus):
    backend = gpus(227 * KIB, 48 * KIB)
    assert backend.refuses(asked(torch.float32, index=0)) is None
    assert "48 KiB" in backend.refuses(asked(torch.float32, index=1))
