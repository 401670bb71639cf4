"""The emulator catches mistakes that are planted in kernels, and passes the kernels without them.

Where a mistake shows as a wrong result, it does so for some of the seeds at least.
"""

import subprocess
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from emulation.build import build

SEEDS = range(8)
RANDOM = np.random.default_rng(0)


def wrong_seeds(planted: ModuleType, run: Callable[[], tuple[np.ndarray, np.ndarray]]) -> int:
    """For how many seeds the result is not the expected one, bit for bit."""
    wrong = 0
    for seed in SEEDS:
        planted.settings.seed = seed
        result, expected = run()
        wrong += not np.array_equal(result, expected)
    return wrong


def messages(planted: ModuleType, run: Callable[[], str]) -> list[str]:
    found = []
    for seed in SEEDS:
        planted.settings.seed = seed
        found.append(run())
        assert found[-1] in ("", planted.last_message())
    return found


# Barriers of a block


@pytest.mark.parametrize("threads", [32, 256, 1024])
@pytest.mark.parametrize(("mistake", "caught"), [("none", False), ("no_barrier", True)])
def test_sum_of_a_block(planted, threads, mistake, caught):
    def run():
        x = RANDOM.integers(-50, 50, (5, threads)).astype(np.float32)
        sums = np.zeros(5, np.float32)
        mark = getattr(planted.Mistake, mistake)
        assert planted.block_sum(x.ctypes.data, sums.ctypes.data, 5, threads, mark) == ""
        return sums, x.sum(1)

    wrong = wrong_seeds(planted, run)
    assert wrong > 0 if caught else wrong == 0
    statistics = planted.statistics()
    assert planted.launches() == len(SEEDS)
    assert (statistics.blocks, statistics.threads) == (5, threads)
    assert statistics.shared_bytes == 4 * threads
    steps = threads.bit_length() - 1
    assert statistics.barriers == 5 * (steps + (mistake == "none"))


def uniform_barrier(planted, threads, mistake):
    out = np.full((5, threads), -1, np.int32)
    mark = getattr(planted.Mistake, mistake)
    return planted.uniform_barrier(out.ctypes.data, threads, mark), out


def test_barriers_count_predicates(planted):
    for seed in SEEDS:
        planted.settings.seed = seed
        message, out = uniform_barrier(planted, 96, "none")
        assert message == ""
        np.testing.assert_array_equal(out, np.repeat([[32], [1], [0], [0], [1]], 96, axis=1))


@pytest.mark.parametrize(
    ("mistake", "parts"),
    [
        (
            "part_of_block",
            ["threads 0-31 at __syncthreads (", "threads 32-95 at __syncthreads_count"],
        ),
        ("early_exit", ["threads 0-94 at __syncthreads (95 of 96 threads)", "thread 95 exited"]),
        ("wrong_kind", ["__syncthreads_or", "__syncthreads"]),
    ],
)
def test_divergent_barrier(planted, mistake, parts):
    for message in messages(planted, lambda: uniform_barrier(planted, 96, mistake)[0]):
        assert message.startswith("block 0: divergent barrier: ")
        if mistake == "part_of_block":
            assert "__syncthreads, while others" in message or "__syncthreads_count" in message
        else:
            assert all(part in message for part in parts), message
    # Nothing of it is left for the next launch.
    assert uniform_barrier(planted, 96, "none")[0] == ""


def producers(planted, mistake):
    x = RANDOM.standard_normal((6, 64), np.float32)
    out = np.zeros_like(x)
    message = planted.producers(
        x.ctypes.data, out.ctypes.data, 6, getattr(planted.Mistake, mistake)
    )
    return message, out, x[:, ::-1]


def test_named_barriers(planted):
    def run():
        message, out, expected = producers(planted, "none")
        assert message == ""
        return out, expected

    assert wrong_seeds(planted, run) == 0


def test_named_barrier_of_a_wrong_count(planted):
    for message in messages(planted, lambda: producers(planted, "wrong_count")[0]):
        assert "named barrier" in message or message.startswith("block 0: deadlock: ")


def test_named_barrier_without_a_thread(planted):
    for message in messages(planted, lambda: producers(planted, "part_of_warps")[0]):
        assert message.startswith("block 0: deadlock: ")
        assert "named barrier 1 (127 of 128 threads)" in message


# Warps


@pytest.mark.parametrize("step", [-1, 1])
@pytest.mark.parametrize(("mistake", "caught"), [("none", False), ("no_warp_barrier", True)])
def test_neighbours_in_a_warp(planted, step, mistake, caught):
    def run():
        x = RANDOM.standard_normal(32, np.float32)
        out = np.zeros_like(x)
        mark = getattr(planted.Mistake, mistake)
        assert planted.neighbours(x.ctypes.data, out.ctypes.data, step, mark) == ""
        return out, x[np.clip(np.arange(32) + step, 0, 31)]

    # In a fixed order of the lanes one of the two steps would come out right.
    wrong = wrong_seeds(planted, run)
    assert wrong > len(SEEDS) / 2 if caught else wrong == 0


def test_shuffles_votes_and_reductions(planted):
    x = RANDOM.integers(-1000, 1000, 64).astype(np.int32)
    warps, lanes = x.reshape(2, 32), np.arange(32)
    segments = lanes // 8 * 8
    up = np.where(lanes % 16 < 3, lanes, lanes - 3)
    down = np.where(lanes + 5 > 31, lanes, lanes + 5)
    odd = ((warps & 1).astype(np.uint64) << lanes.astype(np.uint64)).sum(1).astype(np.uint32)
    votes = 2 * (warps == x[40]).any(1) + (warps >= x[40]).all(1)

    def of_warp(values):
        return np.repeat(np.asarray(values).astype(np.uint32).view(np.int32), 32)

    expected = [
        warps[:, np.full(32, 3)],
        warps[:, segments + (lanes + 3) % 8],
        warps[:, up],
        warps[:, down],
        warps[:, lanes ^ 9],
        of_warp(odd),
        of_warp(votes),
        of_warp(warps.sum(1)),
        of_warp(warps.max(1)),
        of_warp(warps.min(1)),
        np.repeat(x.reshape(8, 8).sum(1), 8),
    ]
    for seed in SEEDS:
        planted.settings.seed = seed
        out = np.zeros((11, 64), np.int32)
        assert planted.shuffles(x.ctypes.data, out.ctypes.data) == ""
        for row, wanted in zip(out, expected, strict=True):
            np.testing.assert_array_equal(row, wanted.ravel())


def divided_warp(planted, mistake):
    x = RANDOM.integers(0, 100, 32).astype(np.int32)
    out = np.zeros_like(x)
    message = planted.divided_warp(
        x.ctypes.data, out.ctypes.data, getattr(planted.Mistake, mistake)
    )
    return message, out, x


def test_halves_of_a_warp_apart(planted):
    def run():
        message, out, x = divided_warp(planted, "none")
        assert message == ""
        ballot = sum(int(bit) << lane for lane, bit in enumerate(x & 1) if lane >= 16)
        upper = np.full(16, ballot, np.uint32).view(np.int32)
        return out, np.concatenate([x[:16].reshape(8, 2)[:, ::-1].ravel(), upper])

    assert wrong_seeds(planted, run) == 0


def test_divergent_shuffle(planted):
    for message in messages(planted, lambda: divided_warp(planted, "part_of_warp")[0]):
        assert message == (
            "block 0: divergent warp collective: threads 16-31 at __ballot_sync with mask "
            "0xffffffff; threads 0-15 at a shuffle with mask 0xffffffff"
        )
    for message in messages(planted, lambda: divided_warp(planted, "not_in_mask")[0]):
        assert "not in its own mask" in message


def test_atomics(planted):
    x = RANDOM.integers(0, 8, 1000).astype(np.int32)
    for seed in SEEDS:
        planted.settings.seed = seed
        counts, tickets, saw = (
            np.zeros(8, np.uint32),
            np.zeros(1, np.uint32),
            np.zeros(1, np.uint32),
        )
        total = np.zeros(1, np.float32)
        addresses = [array.ctypes.data for array in (counts, total, tickets, saw)]
        assert planted.histogram(x.ctypes.data, 1000, *addresses, 5) == ""
        np.testing.assert_array_equal(counts, np.bincount(x, minlength=8))
        assert (total[0], tickets[0], saw[0]) == (x.sum(), 0, 1000)


# Memory


@pytest.mark.parametrize("dynamic", [False, True])
def test_unwritten_shared_memory_is_nan(planted, dynamic):
    values, bits = np.zeros(96, np.float32), np.zeros(96, np.uint32)
    assert planted.unwritten(values.ctypes.data, bits.ctypes.data, dynamic) == ""
    assert np.isnan(values).all()
    halves = bits.view(np.uint16)
    assert np.isnan(halves.view(np.float16)).all()
    assert np.isnan((halves.astype(np.uint32) << 16).view(np.float32)).all()
    assert np.isnan(bits.view(np.float64)).all()


@pytest.mark.parametrize(
    ("offset", "report"),
    [
        (0, None),
        (255, None),
        (256, "up to 1 bytes past the end of the 256 bytes"),
        (1000, "up to 745 bytes past the end of the 256 bytes"),
        (-1, "up to 1 bytes before the 256 bytes"),
        (-600, "up to 600 bytes before the 256 bytes"),
    ],
)
def test_write_out_of_bounds(planted, offset, report):
    for message in messages(planted, lambda: planted.write_at(offset, 256)):
        assert message == "" if report is None else report in message
    assert planted.write_at(0, 256) == ""


def test_limits_of_a_launch(planted):
    invalid, configuration = "invalid argument", "invalid configuration argument"
    assert planted.empty(1, 1024, 48 << 10, 0) == ""
    assert planted.empty(1, 1025, 0, 0) == configuration
    assert planted.empty(1, 0, 0, 0) == configuration
    assert planted.empty(0, 32, 0, 0) == configuration
    assert planted.empty(1, 32, (48 << 10) + 1, 0) == invalid
    assert planted.empty(1, 32, 100 << 10, 100 << 10) == ""
    assert planted.empty(1, 32, (100 << 10) + 1, 100 << 10) == invalid
    assert planted.empty(1, 32, 227 << 10, 227 << 10) == ""
    assert planted.empty(1, 32, 0, (227 << 10) + 1) == invalid
    planted.settings.shared_per_block = 163 << 10  # that of sm_80
    assert planted.empty(1, 32, 0, 227 << 10) == invalid
    assert planted.launches() == 3


def test_occupancy(planted):
    assert planted.occupancy(256, 0) == 8
    assert planted.occupancy(32, 0) == 32
    assert planted.occupancy(256, 100 << 10) == 2
    assert planted.occupancy(256, 113 << 10) == 2
    assert planted.occupancy(256, (113 << 10) + 1) == 1
    assert planted.occupancy(256, 227 << 10) == 1
    assert planted.occupancy(256, 228 << 10) == 0


# Copies that run beside the threads

TILES = 7


def copied(planted, function, mistake):
    x = RANDOM.standard_normal((TILES, 64, 4), np.float32)
    x = np.concatenate([x.ravel(), np.zeros(4, np.float32)])  # a misaligned copy stays in bounds
    out = np.zeros((TILES, 64, 4), np.float32)
    mark = getattr(planted.Mistake, mistake)
    message = getattr(planted, function)(x.ctypes.data, out.ctypes.data, TILES, mark)
    return message, out, x[:-4].reshape(out.shape)[:, ::-1]


@pytest.mark.parametrize("function", ["copy_groups", "copy_in_bulk"])
def test_copies(planted, function):
    def run():
        message, out, expected = copied(planted, function, "none")
        assert message == ""
        return out, expected

    assert wrong_seeds(planted, run) == 0
    statistics = planted.statistics()
    counts = (statistics.async_copies, statistics.bulk_copies)
    assert counts == ((64 * TILES, 0) if function == "copy_groups" else (0, TILES))


@pytest.mark.parametrize(
    ("function", "mistake"),
    [
        ("copy_groups", "no_wait"),
        ("copy_groups", "no_commit"),
        ("copy_groups", "no_barrier"),
        ("copy_groups", "filled_while_in_use"),
        ("copy_in_bulk", "no_wait"),
        ("copy_in_bulk", "wrong_parity"),
        ("copy_in_bulk", "filled_while_in_use"),
    ],
)
def test_copy_without_its_wait(planted, function, mistake):
    def run():
        message, out, expected = copied(planted, function, mistake)
        return (np.zeros(1), expected) if message else (out, expected)

    assert wrong_seeds(planted, run) > 0


@pytest.mark.parametrize("function", ["copy_groups", "copy_in_bulk"])
def test_copies_land_at_once_or_late(planted, function):
    """Either is told apart from the other by a reader that does not wait."""
    at_once = late = 0
    for seed in SEEDS:
        planted.settings.seed = seed
        _, out, expected = copied(planted, function, "no_wait")
        at_once += int((out == expected).sum())
        late += int(np.isnan(out).sum())
    assert at_once > 0
    assert late > 0


@pytest.mark.parametrize(
    ("function", "mistake", "report"),
    [
        ("copy_groups", "misaligned", "cp.async: addresses and size must be multiples of 16"),
        ("copy_in_bulk", "misaligned", "cp.async.bulk: addresses and size must be multiples of 16"),
        ("copy_in_bulk", "too_many_bytes", "0 arrivals and 16 bytes missing"),
        ("copy_in_bulk", "too_few_bytes", "0 arrivals and -16 bytes missing"),
        ("copy_in_bulk", "no_init", "mbarrier used before its initialisation"),
        ("copy_in_bulk", "no_fence", "no fence after the mbarrier's init"),
    ],
)
def test_copy_with_wrong_accounts(planted, function, mistake, report):
    for message in messages(planted, lambda: copied(planted, function, mistake)[0]):
        assert report in message


def test_bulk_copies_need_their_architecture(planted):
    planted.settings.architecture = 80
    assert "sm_90" in copied(planted, "copy_in_bulk", "none")[0]
    assert copied(planted, "copy_groups", "none")[0] == ""


# Addresses


def test_reads_past_an_array_are_found():
    program = build("addresses")
    right = subprocess.run([program], capture_output=True, text=True)
    assert (right.returncode, right.stdout) == (0, "384\n"), right.stderr
    wrong = subprocess.run([program, "past"], capture_output=True, text=True)
    assert wrong.returncode != 0
    assert "heap-buffer-overflow" in wrong.stderr
    assert "sum_kernel" in wrong.stderr
