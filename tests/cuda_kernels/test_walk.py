"""How a block walks over its images: stages, chunks, the order of threads, one launch."""

import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from kernels import Kernels
from logo_kernels import block_cosine_similarity, logo_loss
from logo_kernels.backends import cuda
from oracles import exact_cosine
from support import EPS, assert_repels, crops, error, leaves, run_cosine

HALVES = (torch.bfloat16, torch.float16)
ALL = (torch.float32, *HALVES)
BACKEND = ("emulated", "cpu")


def assert_exact(problem, dtype):
    """Loss and gradient of `problem` against float64."""
    want, want_grads = exact_cosine(*problem, 0.3, "sum", "mean")
    terms, grads = run_cosine(BACKEND, *problem, repulsion_weight=0.3)
    assert error(terms[0], want[0]) < 1e-5
    for grad, value in zip(grads, want_grads, strict=True):
        subnormal = 2.0**-25 if dtype == torch.float16 else 0
        assert error(grad, value) <= (EPS[dtype] + 1e-5) * float(value.abs().max()) + subnormal


# (images, G, L, D, targets and features): 10 rows of 2048, the main case; more images than the
# emulated multiprocessors hold, so that the ring of stages turns; images too large for two stages:
# 32 rows, two rows of 65536, and columns that no chunk divides.
RESIDENT = {"main": (2, 2, 8, 2048, False), "ring": (160, 2, 4, 256, False)}
CHUNKED = {
    "chunks": (11, 2, 14, 4096, True),
    "two long rows": (2, 2, 0, 65536, False),
    "ragged chunks": (2, 2, 30, 2040, False),
}


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("name", [*RESIDENT, *CHUNKED])
def test_every_walk(emulated, name, dtype):
    images, globals_, locals_, dim, both = (RESIDENT | CHUNKED)[name]
    rows = (globals_ + locals_) * (2 if both else 1)
    plan = emulated.library.plan(rows, dim, dtype.itemsize, emulated.library.shared_bytes(0))
    assert (plan["chunks"] == 1) == (name in RESIDENT)
    assert_exact(crops(images, globals_, locals_, dim, dtype, targets=both, features=both), dtype)
    statistics = emulated.library.statistics()
    if name in ("ring", "chunks"):
        assert statistics.blocks < images
    assert statistics.threads == plan["threads"]
    assert statistics.shared_bytes == plan["shared_bytes"]


@pytest.mark.parametrize("dtype", ALL)
def test_hardware_that_is_used(emulated, dtype):
    """Tensor cores for halves alone; aligned rows copied asynchronously, by what is there."""
    bulk = emulated.library.settings.architecture >= 90
    assert_exact(crops(3, 2, 4, 64, dtype), dtype)
    statistics = emulated.library.statistics()
    assert (statistics.mma > 0) == (dtype in HALVES)
    vectors = 3 * 6 * 64 * dtype.itemsize // 16
    assert statistics.bulk_copies == (3 * 6 if bulk else 0)  # one a row
    assert statistics.async_copies == (0 if bulk else vectors)  # each crop is read once
    assert_exact(crops(3, 2, 4, 63, dtype), dtype)  # misaligned: converted by the threads
    statistics = emulated.library.statistics()
    assert statistics.bulk_copies == statistics.async_copies == 0


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("dim", [64, 37, 16384])  # in vectors, and not; in chunks
@pytest.mark.parametrize("dtype", ALL)
def test_local_crops_alone(emulated, dtype, dim, features):
    assert_repels(emulated, dtype, dim, features)


@pytest.mark.parametrize("name", ["main", "chunks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_order_of_threads_and_copies(emulated, name, dtype):
    """A missing barrier, or a stage that is filled or read too early, shows in some order."""
    images, globals_, locals_, dim, both = (RESIDENT | CHUNKED)[name]
    problem = crops(images, globals_, locals_, dim, dtype, targets=both, features=both)
    results = []
    for seed in range(6):
        emulated.library.settings.seed = seed
        results.append(run_cosine(BACKEND, *problem))
    for terms, grads in results[1:]:
        for value, first in zip([*terms, *grads], [*results[0][0], *results[0][1]], strict=True):
            assert torch.equal(value, first)


@pytest.mark.parametrize("dim", [2048, 16384])  # resident, with slices of D; in chunks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_norms_among_ordinary_images(emulated, dtype, dim):
    """The images before and after one that is done again with scaled rows."""
    x, y, t, r = crops(9, 2, 6, dim, dtype)
    scale = torch.ones(9, 1, 1, dtype=torch.float64)
    scale[4], scale[7] = 2.0**-100, 2.0**90
    want, want_grads = exact_cosine(x, y, t, r, 0.3, "sum", "none", torch.ones(9).double())
    scaled = [(v.double() * scale).to(dtype) for v in (x, y)]
    terms, grads = run_cosine(
        BACKEND, *scaled, t, r, torch.ones(9), repulsion_weight=0.3, reduction="none"
    )
    assert error(terms[0], want[0]) < 1e-5
    for grad, value in zip(grads, want_grads, strict=True):
        largest = value.abs().amax((1, 2), keepdim=True)
        assert error(grad * scale / largest, value / largest) <= EPS[dtype] + 1e-5


@pytest.mark.parametrize("dim", [2048, 16384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ordinary_images_are_done_once(emulated, dtype, dim):
    """Poison that a race brings into the norms would pass as an extreme one and be set right."""
    x, y, t, r = crops(1, 2, 6, dim, dtype)
    barriers = {}
    for size in (1.0, 2.0**80):
        counts = set()
        for seed in range(3):
            emulated.library.settings.seed = seed
            run_cosine(BACKEND, x * size, y, t, r)
            counts.add(emulated.library.statistics().barriers)
        (barriers[size],) = counts
    assert barriers[1.0] < barriers[2.0**80]


def test_one_launch_for_loss_and_gradient(emulated):
    """And one more for backward, unless the upstream gradient is one."""
    x, y, _, _ = leaves(*crops(5, 2, 3, 64))
    loss = logo_loss(x, y, backend="emulated")
    assert emulated.library.launches() == 1
    loss.backward()
    assert emulated.library.launches() == 1
    a, _ = leaves(x, y)
    out = block_cosine_similarity(a, backend="emulated")
    assert emulated.library.launches() == 2
    out.sum().backward()
    assert emulated.library.launches() == 3


def test_rows_are_read_once_where_no_gradient_is_wanted(emulated):
    """The second walk over chunks is for the gradient alone."""
    x, y, _, _ = crops(1, 2, 14, 8192)
    logo_loss(x, y, backend="emulated")
    without = emulated.library.statistics()
    logo_loss(x.requires_grad_(), y, backend="emulated")
    with_gradient = emulated.library.statistics()
    for count in ("bulk_copies", "async_copies"):
        assert getattr(with_gradient, count) == 2 * getattr(without, count)


def test_launches_share_a_workspace(emulated):
    """Each leaves the counter at zero for the next, whatever the sizes of their batches."""
    for images in (1, 70, 3, 70):
        x, y, _, _ = crops(images, 2, 3, 16, seed=images)
        want, _ = exact_cosine(x, y, None, None, 0.3, "sum", "mean")
        terms, _ = run_cosine(BACKEND, x, y, None, None, repulsion_weight=0.3)
        assert error(terms[0], want[0]) < 1e-6
    assert len(emulated._zeros._kept) == 1


def test_two_threads_at_once(emulated):
    problems = [crops(4, 2, 3, 48, seed=seed) for seed in range(2)]
    wanted = [run_cosine(BACKEND, *problem) for problem in problems]
    wrong = []

    def work(index):
        for _ in range(5):
            terms, _ = run_cosine(BACKEND, *problems[index])
            if not all(torch.equal(a, b) for a, b in zip(terms, wanted[index][0], strict=True)):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_failed_launch_says_which(emulated, monkeypatch):
    """Which launch, of which shape, on which device, and CUDA's own words."""
    monkeypatch.setattr("logo_kernels.backends.cuda.place", lambda tensor: (5, 0))
    x, y, _, _ = crops(3, 2, 4, 64, torch.bfloat16)
    with pytest.raises(RuntimeError) as caught:
        Kernels(emulated).cosine(
            x, y, None, None, 1.0, None, True, "sum", "mean", False, False, False
        )
    message = str(caught.value)
    for part in ("cosine", "B=3 G=2 L=4 D=64 bfloat16", "device 5", "device"):
        assert part in message
    with pytest.raises(RuntimeError, match=r"similarity_backward.*V=2 W=2 D=64"):
        Kernels(emulated).similarity_backward(
            torch.zeros(3, 2, 2, dtype=x.dtype), x, None, True, False
        )


def test_a_build_that_a_device_cannot_run(emulated, monkeypatch):
    """A reason for auto to go on, in CUDA's own words; no launch that fails."""
    assert emulated.library.probe(0) is None
    monkeypatch.setattr(cuda, "extension", SimpleNamespace(cuda=emulated.library))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr("torch.cuda.device", nullcontext)
    assert cuda._unfit.__wrapped__(0) is None
    assert "invalid device ordinal" in cuda._unfit.__wrapped__(5)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    assert "8.0" in cuda._unfit.__wrapped__(0)


def test_a_question_leaves_the_current_device(emulated, monkeypatch):
    """It is asked of the device of the tensors, before a launch and outside of its guard."""
    entered = []

    @contextmanager
    def on(device):
        entered.append(device)
        yield
        entered.append(None)

    def probe(device):
        assert entered == [device]

    library = SimpleNamespace(probe=probe)
    monkeypatch.setattr(cuda, "extension", SimpleNamespace(cuda=library))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr("torch.cuda.device", on)
    assert cuda._unfit.__wrapped__(1) is None
    assert entered == [1, None]
    for question in (emulated.library.shared_bytes, emulated.library.workspace_bytes):
        assert question(1) > 0
        assert emulated.library.current_device() == 0


def test_too_many_rows_are_refused(emulated):
    x, y, t, r = crops(1, 2, 63, 8, targets=True, features=True)
    with pytest.raises(RuntimeError, match=r"at most 128 rows.*130"):
        logo_loss(x, y, t, repulsion_features=r, backend="emulated")
    x, y, t, r = crops(1, 2, 62, 24, targets=True, features=True)  # 64 crops of each kind
    assert_exact((x, y, t, r), torch.float32)
