"""From figures to headline, and what becomes of a peer that fails or is wrong."""

import functools
import time
from functools import partial
from types import SimpleNamespace

import pytest

import bench_cosine
from bench_cosine import CosineCase, sums
from benchmarks.made import FewRounds
from hardware import ledger
from harness import comparison, package
from harness.comparison import COPY, Own, headline
from harness.forms import Prepared
from harness.timing import OURS, DeviceRounds, Rounds
from logo_kernels import backends

CASE = CosineCase(3, 2, 3, 8, "float32", "small")


COMPILED = f"{OURS}, compiled"


def test_the_best_form_of_each_side_is_compared():
    rounds = Rounds({
        OURS: [2.0, 4.0], COMPILED: [1.0, 2.0],
        "pairs": [80.0, 160.0], "sums": [6.0, 12.0], "sums, compiled": [3.0, 6.0],
    })  # fmt: skip
    columns = headline(rounds, [OURS, COMPILED], ["pairs", "sums", "sums, compiled"])
    assert columns == {"ours": COMPILED, "peer": "sums, compiled", "ratio": 3.0}


def test_without_peers_there_is_no_ratio():
    columns = headline(Rounds({OURS: [1.0], COMPILED: [2.0]}), [OURS, COMPILED], [])
    assert columns == {"ours": OURS, "peer": None, "ratio": None}


def compared(ours, prepared, device="cpu", **others):
    benchmark = FewRounds()
    own = {OURS: Own(ours, "reference")}
    own |= {name: Own(function, "triton") for name, function in others.items()}
    contest = comparison.Contest(
        bench_cosine.inputs_of(CASE, "cpu"), own,
        partial(bench_cosine.loss, backend="reference"), prepared,
    )  # fmt: skip
    comparison.compare(benchmark, CASE, device, contest)
    return benchmark.extra_info


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("harness.timing.Pace", lambda: SHORT)


SHORT = SimpleNamespace(slice_seconds=1e-4, case_seconds=0.1, least_rounds=2, most_rounds=3)


def test_wrong_and_failing_peers_are_left_out_by_name():
    def raises(*crops):
        raise RuntimeError("no compiler\nand a long story")

    def raises_without_a_word(*crops):
        raise IndexError

    info = compared(
        bench_cosine.loss,
        [
            Prepared("sums", sums),
            Prepared("wrong", lambda x, y, t: 1.01 * sums(x, y, t)),
            Prepared("raises", raises),
            Prepared("speechless", raises_without_a_word),
            Prepared("absent", raises, "it is not installed"),
        ],
    )
    assert info["best_peer"] == "sums"
    assert set(info["contestants"]) == {OURS, "sums", COPY}
    assert "off by" in info["excluded"].pop("wrong")
    assert info["excluded"] == {
        "raises": "RuntimeError: no compiler", "speechless": "IndexError",
        "absent": "it is not installed",
    }  # fmt: skip
    assert info["contestants"][OURS]["peak_bytes"] >= CASE.images * 5 * CASE.dim * 4
    assert info["simd"] in ("avx512", "avx2", "portable")


@pytest.mark.parametrize("name", [OURS, COMPILED])
def test_ours_is_not_timed_when_it_is_wrong_in_any_form(name):
    def wrong(x, y, t):
        return 1.01 * bench_cosine.loss(x, y, t)

    functions = {OURS: bench_cosine.loss, COMPILED: bench_cosine.loss} | {name: wrong}
    with pytest.raises(AssertionError, match=f" {name}: .* a wrong result is not timed"):
        compared(functions.pop(OURS), [], **functions)


def test_a_form_of_ours_that_does_not_compile_is_left_out():
    def raises(*crops):
        raise RuntimeError("graph break")

    info = compared(bench_cosine.loss, [], **{COMPILED: raises})
    assert info["excluded"] == {COMPILED: "RuntimeError: graph break"}
    assert info["best_ours"] == OURS
    with pytest.raises(RuntimeError, match="graph break"):
        compared(raises, [])


def test_another_backend_of_ours_is_a_contestant_but_no_peer():
    def slow(*crops):
        time.sleep(0.02)
        return bench_cosine.loss(*crops)

    peer = Prepared("sums", sums)
    others = {COMPILED: slow, "ours, triton": bench_cosine.loss}
    info = compared(bench_cosine.loss, [peer], **others)
    assert set(info["contestants"]) == {OURS, COMPILED, "ours, triton", "sums", COPY}
    assert (info["best_ours"], info["best_peer"]) == (OURS, "sums")
    assert info["contestants"][OURS]["ratio"]["median"] == 1
    assert info["contestants"][COMPILED]["ratio"]["median"] > 1
    assert info["backend"] == "reference"
    assert info["kernels"] == {OURS: [], "ours, triton": ledger.kernels_of("cosine", "triton")[:1]}


def test_no_backend_of_ours_may_be_wrong():
    def wrong(x, y, t):
        return 1.01 * bench_cosine.loss(x, y, t)

    with pytest.raises(AssertionError, match=r"ours, triton: .* a wrong result is not timed"):
        compared(bench_cosine.loss, [], **{"ours, triton": wrong})


def test_gpu_time_has_a_best_of_its_own(monkeypatch):
    """Ours eager takes 4 and compiled 2 µs of GPU time, the copy 1: the wall clock does not say."""
    cold = {OURS: 4e-6, COMPILED: 2e-6, "sums": 8e-6, "sums, compiled": 6e-6, COPY: 1e-6}

    def made(contestants):
        cold_rounds = Rounds({name: [cold[name]] for name in contestants})
        return DeviceRounds(cold_rounds, Rounds({name: [1e-6] for name in contestants}))

    def slow(*crops):
        time.sleep(0.02)
        return bench_cosine.loss(*crops)

    monkeypatch.setattr(comparison, "device_rounds", made)
    monkeypatch.setattr(comparison, "clock_of", lambda device: time.perf_counter)
    monkeypatch.setattr(comparison, "copy_step", lambda moved, device: lambda: None)
    monkeypatch.setattr(comparison, "peak_bytes", lambda step, device: 0)
    prepared = [Prepared("sums", sums), Prepared("sums, compiled", slow)]
    info = compared(bench_cosine.loss, prepared, device="cuda", **{COMPILED: slow})
    assert (info["best_ours"], info["best_peer"]) == (OURS, "sums")
    assert info["gpu"] == {"ours": COMPILED, "peer": "sums, compiled", "ratio": pytest.approx(3)}
    assert info["contestants"][OURS]["device_seconds"] == {"cold": 4e-6, "warm": 1e-6}
    assert info["contestants"]["sums"]["gpu_ratio"]["median"] == pytest.approx(4)
    assert info["fraction_of_copy"] == pytest.approx(0.5)
    assert info["bytes_per_second"] == pytest.approx(CASE.moved_bytes() / 2e-6)
    assert info["simd"] is None


class Stub:
    """A backend that is there, or is not, or refuses."""

    def __init__(self, name, missing=None, refuses=None):
        self.name, self.reasons = name, (missing, refuses)

    def missing(self):
        return self.reasons[0]

    def refuses(self, request):
        return self.reasons[1]


@pytest.mark.parametrize(
    ("cuda", "triton", "found"),
    [
        ((None, None), (None, None), ["cuda", "triton"]),
        (("not built", None), (None, None), ["triton"]),
        ((None, None), (None, "too many rows"), ["cuda"]),
        ((None, "too many rows"), (None, None), ["triton"]),
        (("not built", None), ("not installed", None), ["reference"]),
    ],
)
def test_backends_of_a_gpu(monkeypatch, cuda, triton, found):
    stubs = [Stub("cuda", *cuda), Stub("triton", *triton), Stub("reference")]
    monkeypatch.setattr(backends, "BACKENDS", {stub.name: stub for stub in stubs})
    monkeypatch.setattr(backends, "order", lambda request: tuple(backends.BACKENDS))
    fresh = functools.lru_cache(backends.backend_for.__wrapped__)
    monkeypatch.setattr(package, "backend_for", fresh)

    def function(*crops, backend):
        return backend

    crops = bench_cosine.inputs_of(CASE, "cpu").leaves
    monkeypatch.setitem(comparison.KERNELS, "cpu", comparison.KERNELS["cuda"])
    made = comparison.by_backend(comparison.named(function), "cosine", "cpu", crops)
    assert list(made) == found
    assert [call() for call in made.values()] == ["auto", *found[1:]]

    forms = comparison.of_ours(made, "cuda", 1)
    names = [OURS, COMPILED, "ours, compiled, CUDA graph"]
    assert list(forms) == names + [f"ours, {name}" for name in found[1:]]
    assert [own.backend for own in forms.values()] == 3 * found[:1] + found[1:]
    assert [own() for name, own in forms.items() if name not in names] == found[1:]


def test_a_cpu_has_one():
    crops = bench_cosine.inputs_of(CASE, "cpu").leaves
    made = comparison.by_backend(comparison.named(bench_cosine.loss), "cosine", "cpu", crops)
    assert list(made) == ["cpu"]
    assert list(comparison.of_ours(made, "cpu", 1)) == [OURS, COMPILED]
