"""From figures to headline, and what becomes of a peer that fails or is wrong."""

import functools
import importlib.util
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench_cosine
import bench_info_nce
import comparison
import contrast_peers
import inputs
import ledger
import peers
import warm_cache
from cases import CosineCase, InfoNCECase
from comparison import COPY, headline
from logo_kernels import backends
from peers import Prepared
from timing import OURS, per_call

CASE = CosineCase(3, 2, 3, 8, "float32", "small")


def figures(**ratios):
    return {
        OURS: {"median": 2e-3},
        COPY: {"median": 1e-3, "ratio": {"median": 0.5}},
        **{name: {"ratio": {"median": ratio}} for name, ratio in ratios.items()},
    }


def test_best_peer_has_the_lowest_ratio():
    columns = headline(
        figures(pairs=80.0, products=7.0, sums=0.9), ["pairs", "products", "sums"], 4
    )
    assert (columns["best_peer"], columns["best_ratio"]) == ("sums", 0.9)
    assert columns["fraction_of_copy"] == 0.5
    assert columns["bytes_per_second"] == 2000


def test_copy_is_no_peer():
    assert headline(figures(), [], 4)["best_peer"] is None


def test_gpu_bandwidth_is_of_gpu_time_with_a_flushed_cache():
    times = figures(sums=3.0)
    times[OURS]["device_seconds"] = {"cold": 4e-5, "warm": 2e-5}
    times[COPY]["device_seconds"] = {"cold": 3e-5, "warm": 1e-5}
    columns = headline(times, ["sums"], 4_000_000)
    assert columns["fraction_of_copy"] == pytest.approx(0.75)
    assert columns["bytes_per_second"] == pytest.approx(1e11)


class FewRounds:
    """pytest-benchmark's fixture with its real stats left out."""

    def __init__(self):
        self.extra_info = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, target, teardown, rounds, iterations):
        from time import perf_counter

        for _ in range(rounds):
            self.stats.stats.data.append(per_call(target, iterations, perf_counter))
            teardown()


def compared(ours, prepared, **others):
    benchmark = FewRounds()
    contest = comparison.Contest(
        inputs.cosine_inputs(CASE, "cpu"), {"reference": ours, **others},
        partial(bench_cosine.loss, backend="reference"), prepared,
    )  # fmt: skip
    comparison.compare(benchmark, CASE, "cpu", contest)
    return benchmark.extra_info


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("timing.Pace", lambda: SHORT)


SHORT = SimpleNamespace(slice_seconds=1e-4, case_seconds=0.1, least_rounds=2, most_rounds=3)


def test_wrong_and_failing_peers_are_left_out_by_name():
    def raises(*crops):
        raise RuntimeError("no compiler\nand a long story")

    info = compared(
        bench_cosine.loss,
        [
            Prepared("sums", peers.sums),
            Prepared("wrong", lambda x, y, t: 1.01 * peers.sums(x, y, t)),
            Prepared("raises", raises),
        ],
    )
    assert info["best_peer"] == "sums"
    assert set(info["contestants"]) == {OURS, "sums", COPY}
    assert info["excluded"]["raises"] == "RuntimeError: no compiler"
    assert "off by" in info["excluded"]["wrong"]
    assert info["contestants"][OURS]["peak_bytes"] >= CASE.images * 5 * CASE.dim * 4


def test_ours_is_not_timed_when_it_is_wrong():
    with pytest.raises(AssertionError, match="a wrong result is not timed"):
        compared(lambda x, y, t: 1.01 * bench_cosine.loss(x, y, t), [])


def test_another_backend_of_ours_is_a_contestant_but_no_peer():
    peer = Prepared("sums", peers.sums)
    info = compared(bench_cosine.loss, [peer], triton=bench_cosine.loss)
    assert set(info["contestants"]) == {OURS, "ours, triton", "sums", COPY}
    assert info["best_peer"] == "sums"
    assert info["contestants"]["ours, triton"]["ratio"]["median"] > 0
    assert info["backend"] == "reference"
    assert info["kernels"] == {OURS: [], "ours, triton": ledger.kernels_of("cosine", "triton")[:1]}


def test_no_backend_of_ours_may_be_wrong():
    with pytest.raises(AssertionError, match=r"ours, triton: .* a wrong result is not timed"):
        compared(bench_cosine.loss, [], triton=lambda x, y, t: 1.01 * bench_cosine.loss(x, y, t))


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
    monkeypatch.setitem(backends.PREFERENCE, "cpu", backends.PREFERENCE["cuda"])
    fresh = functools.lru_cache(backends._choose.__wrapped__)
    monkeypatch.setattr(backends, "_choose", fresh)

    def function(*crops, backend="auto"):
        return backend

    made = comparison.by_backend(function, "cosine", "cpu", inputs.cosine_inputs(CASE, "cpu"))
    assert list(made) == found
    assert [call() for call in made.values()] == ["auto", *found[1:]]


def test_a_cpu_has_one():
    made = comparison.by_backend(
        bench_cosine.loss, "cosine", "cpu", inputs.cosine_inputs(CASE, "cpu")
    )
    assert list(made.values()) == [bench_cosine.loss]


def test_a_backend_is_left_out_everywhere(monkeypatch):
    """`--without`: auto's choice, and the contestants, of the loss and of its scaling."""
    path = Path(bench_cosine.__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("conftest_of_the_benchmarks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(backends, "PREFERENCE", dict(backends.PREFERENCE))
    module.pytest_configure(SimpleNamespace(getoption={"--without": ["cuda"]}.get))
    assert backends.PREFERENCE == {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")}


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
    functions = contrast_peers.INFO_NCE if name == "bench_info_nce" else peers.COSINE
    assert ran == list(functions.values())
    assert line == f"{case.id}: {1 + len(functions)} compiled, {len(functions)} failed"
