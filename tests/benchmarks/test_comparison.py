"""From figures to headline, and what becomes of a peer that fails or is wrong."""

import functools
import importlib.util
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench_cosine
import bench_info_nce
import bench_overhead
import comparison
import contrast_peers
import inputs
import ledger
import peers
import warm_cache
from cases import CosineCase, InfoNCECase
from comparison import COPY, Own, headline
from forms import Prepared
from logo_kernels import available_backends, backends
from timing import OURS, DeviceRounds, Rounds, per_call

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


class FewRounds:
    """pytest-benchmark's fixture with its real stats left out."""

    def __init__(self):
        self.extra_info = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, target, teardown, rounds, iterations):
        for _ in range(rounds):
            self.stats.stats.data.append(per_call(target, iterations, time.perf_counter))
            teardown()


def compared(ours, prepared, device="cpu", **others):
    benchmark = FewRounds()
    own = {OURS: Own(ours, "reference")}
    own |= {name: Own(function, "triton") for name, function in others.items()}
    contest = comparison.Contest(
        inputs.cosine_inputs(CASE, "cpu"), own,
        partial(bench_cosine.loss, backend="reference"), prepared,
    )  # fmt: skip
    comparison.compare(benchmark, CASE, device, contest)
    return benchmark.extra_info


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("timing.Pace", lambda: SHORT)


SHORT = SimpleNamespace(slice_seconds=1e-4, case_seconds=0.1, least_rounds=2, most_rounds=3)


def test_wrong_and_failing_peers_are_left_out_by_name():
    def raises(*crops):
        raise RuntimeError("no compiler\nand a long story")

    def raises_without_a_word(*crops):
        raise IndexError

    info = compared(
        bench_cosine.loss,
        [
            Prepared("sums", peers.sums),
            Prepared("wrong", lambda x, y, t: 1.01 * peers.sums(x, y, t)),
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

    peer = Prepared("sums", peers.sums)
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
    prepared = [Prepared("sums", peers.sums), Prepared("sums, compiled", slow)]
    info = compared(bench_cosine.loss, prepared, device="cuda", **{COMPILED: slow})
    assert (info["best_ours"], info["best_peer"]) == (OURS, "sums")
    assert info["gpu"] == {"ours": COMPILED, "peer": "sums, compiled", "ratio": pytest.approx(3)}
    assert info["contestants"][OURS]["device_seconds"] == {"cold": 4e-6, "warm": 1e-6}
    assert info["contestants"]["sums"]["gpu_ratio"]["median"] == pytest.approx(4)
    assert info["fraction_of_copy"] == pytest.approx(0.5)
    assert info["bytes_per_second"] == pytest.approx(CASE.moved_bytes() / 2e-6)
    assert info["simd"] is None


def test_fp16_is_checked_and_timed_under_a_loss_scale(monkeypatch):
    """Gradients of 1e-7 are lost in fp16 with an upstream of one, as any user's would be."""
    case = CosineCase(600, 2, 3, 64, "float16", "")
    made = bench_cosine.contest(case, "cpu")
    assert made.upstream.item() == 65536
    seen = []
    monkeypatch.setattr(
        inputs.torch.autograd, "backward",
        lambda value, upstream, backward=inputs.torch.autograd.backward: (
            seen.append(upstream.item()), backward(value, upstream)
        ),
    )  # fmt: skip
    monkeypatch.setattr(comparison, "peak_bytes", lambda step, device: 0)
    made.ours = {OURS: made.ours[OURS]}
    made.peers = [peer for peer in made.peers if peer.name in peers.COSINE]
    benchmark = FewRounds()
    comparison.compare(benchmark, case, "cpu", made)
    assert set(seen) == {65536.0}
    assert benchmark.extra_info["excluded"] == {}
    assert set(benchmark.extra_info["contestants"]) == {OURS, *peers.COSINE, COPY}
    assert bench_cosine.contest(CASE, "cpu").upstream is None


@pytest.mark.parametrize("case", bench_overhead.CASES["cpu"], ids=lambda case: case.operation)
def test_overhead_is_told_in_times_of_an_empty_function(monkeypatch, case):
    made = bench_overhead.contest(case, "cpu")
    assert made.peers == []
    assert made.baselines[bench_overhead.EMPTY]().shape == ()
    monkeypatch.setattr(
        bench_overhead, "compare",
        lambda *given: Rounds({OURS: [6.0, 60.0, 6.0], bench_overhead.EMPTY: [2.0, 20.0, 1.0]}),
    )  # fmt: skip
    benchmark = FewRounds()
    bench_overhead.test_overhead(benchmark, case, "cpu")
    assert benchmark.extra_info["times_of_empty"]["median"] == 3
    goal = {"cosine": 2.5, "info_nce": 4.0, "affinity": 8.0}[case.operation]
    assert (benchmark.extra_info["of"], benchmark.extra_info["goal"]) == (case.operation, goal)


class Stub:
    """A backend that is there, or is not, or refuses."""

    def __init__(self, name, missing=None, refuses=None):
        self.name, self.reasons = name, (missing, refuses)

    def missing(self):
        return self.reasons[0]

    def refuses(self, problem):
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
    monkeypatch.setattr(backends, "order", lambda problem: tuple(backends.BACKENDS))
    fresh = functools.lru_cache(backends.remembered.__wrapped__)
    monkeypatch.setattr(backends, "remembered", fresh)

    def function(*crops, backend):
        return backend

    crops = inputs.cosine_inputs(CASE, "cpu")
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
    crops = inputs.cosine_inputs(CASE, "cpu")
    made = comparison.by_backend(comparison.named(bench_cosine.loss), "cosine", "cpu", crops)
    assert list(made) == ["cpu"]
    assert list(comparison.of_ours(made, "cpu", 1)) == [OURS, COMPILED]


def conftest_of_the_benchmarks():
    path = Path(bench_cosine.__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("conftest_of_the_benchmarks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_backend_is_left_out_everywhere(monkeypatch):
    """`--without`: neither auto's choice, nor there to be named."""
    for backend in backends.BACKENDS.values():
        monkeypatch.setattr(backend, "missing", lambda: None)
    options = {"--without": ["cuda"], "--simd": None}
    conftest_of_the_benchmarks().pytest_configure(SimpleNamespace(getoption=options.get))
    assert {name for name, reason in available_backends().items() if reason} == {"cuda"}
    assert available_backends()["cuda"] == "left out by --without cuda"


def test_the_first_cases_of_all_operations_come_first(tmp_path):
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", Path(bench_cosine.__file__).parent, "--co", "-q",
         "--device=cuda", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True,
    ).stdout  # fmt: skip
    files = [line.split("::")[0].rpartition("/")[2] for line in listed.splitlines() if "::" in line]
    assert len(files) > 15
    assert set(files[: len(set(files))]) == set(files)
    of_cosine = [line for line in listed.splitlines() if "test_cosine[" in line]
    names = [line.partition("[")[2].rstrip("]") for line in of_cosine]
    assert names == [case.id for case in bench_cosine.CASES["cuda"]]


def test_whatever_is_compiled_on_a_gpu_is_compiled_beforehand():
    jobs = list(warm_cache.jobs("cuda"))
    assert [name for name, _ in jobs[:5]] == list(warm_cache.MODULES)
    of_info_nce = [case for name, case in jobs if name == "bench_info_nce"]
    assert of_info_nce == list(bench_info_nce.CASES["cuda"])
    timed = {path.stem for path in Path(bench_cosine.__file__).parent.glob("bench_*.py")}
    assert timed == {*warm_cache.MODULES, "bench_training_step"}  # whose peer is not compiled


@pytest.mark.parametrize(
    ("name", "case"),
    [("bench_overhead", CASE), ("bench_info_nce", InfoNCECase(2, 2, 2, 5, 8, "float32", ""))],
)
def test_compiled_beforehand(monkeypatch, name, case):
    """Each compiled peer runs once with the inputs of its case; eager ones do not."""
    ran = []
    monkeypatch.setattr(
        "torch.compile", lambda function, **options: lambda *crops: ran.append(function) or 1 / 0
    )
    line = warm_cache.warm((name, case), "cpu")
    compiled = list(contrast_peers.INFO_NCE.values()) if name == "bench_info_nce" else []
    assert ran[1:] == compiled  # ours is the first; overhead has no peers
    assert line == f"{case.id}: {2 + len(compiled)} compiled, {1 + len(compiled)} failed"
