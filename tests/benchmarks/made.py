"""What the benchmarks record, made for tests: rows, a fixture that records, reports of tests."""

import json
import time
from types import SimpleNamespace

from harness.case import upstream_of
from harness.gate import Expected
from harness.timing import per_call

KERNEL = "logo_kernels/backends/triton/cosine.py"
CUDA_KERNEL = "csrc/cuda/cosine.cu"
CUDA_SCALE = "csrc/cuda/scale.cu"
SUMMARY = {"min": 1e-3, "low_quartile": 1e-3, "high_quartile": 1e-3, "iqr": 0.0}


class FewRounds:
    """pytest-benchmark's fixture with its real stats left out."""

    def __init__(self):
        self.extra_info = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, target, teardown, rounds, iterations):
        for _ in range(rounds):
            self.stats.stats.data.append(per_call(target, iterations, time.perf_counter))
            teardown()


def figures(median, ratio=None, peak=0):
    made = {"median": median, "peak_bytes": peak, **SUMMARY}
    return made if ratio is None else {**made, "ratio": {"median": ratio, **SUMMARY}}


def row(**changes):
    made = {
        "operation": "cosine", "case": "cosine-256x2x8x2048-float32",
        "size": "(256, 2, 8, 2048)", "dtype": "float32", "view_major": False, "features": False,
        "device": "cpu", "simd": "avx2", "backend": "cpu",
        "moved_bytes": 46_137_344, "flops": 1, "excluded": {},
        "contestants": {
            "ours": figures(2.5e-3, 1.0, 20_971_520),
            "ours, compiled": figures(4e-3, 1.6, 20_000_000), "pairs": figures(0.25, 100.0),
            "pairs, compiled": figures(12.5e-3, 5.0),
            "sums": figures(20e-3, 8.0), "sums, compiled": figures(5e-3, 2.0, 25_165_824),
            "copy": figures(2e-3, 0.8),
        },
        "best_ours": "ours", "best_peer": "sums, compiled", "best_ratio": 2.0,
        "bytes_per_second": 18.45e9, "fraction_of_copy": 0.8,
    }  # fmt: skip
    return made | changes


def on_gpu(**changes):
    """By the wall clock ours is best as a graph, by GPU time eagerly."""
    made = row(device="cuda", simd=None, backend="triton", kernels={"ours": [KERNEL]})
    contestants = made["contestants"]
    contestants["ours, compiled, CUDA graph"] = figures(1.25e-3, 1.0, 512)
    contestants["sums, compiled, CUDA graph"] = figures(2e-3, 1.6, 512)
    times = {
        "ours": 21.5e-6, "ours, compiled": 22e-6, "ours, compiled, CUDA graph": 30e-6,
        "pairs": 215e-6, "pairs, compiled": 86e-6, "copy": 17.2e-6,
        "sums": 43e-6, "sums, compiled": 40e-6, "sums, compiled, CUDA graph": 64.5e-6,
    }  # fmt: skip
    for name, seconds in times.items():
        contestants[name]["device_seconds"] = {"cold": seconds, "warm": 1e-6}
        contestants[name]["gpu_ratio"] = {"median": seconds / 21.5e-6, **SUMMARY}
    made |= {
        "best_ours": "ours, compiled, CUDA graph", "best_peer": "sums, compiled, CUDA graph",
        "best_ratio": 1.6, "gpu": {"ours": "ours", "peer": "sums, compiled", "ratio": 1.86},
    }  # fmt: skip
    return made | changes


def write(path, rows, device="AMD EPYC, 2 threads, AVX512"):
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"device": device, "torch": "2.13.0"}
    path.write_text(
        json.dumps({"machine_info": facts, "benchmarks": [{"extra_info": made} for made in rows]})
    )
    return path


def difference(crops, reference, function):
    """As the benchmarks ask for it: fp16 under a loss scaler's upstream."""
    upstream = upstream_of(str(crops.leaves[0].dtype).removeprefix("torch."), "cpu")
    return Expected(crops, reference, upstream).difference(crops, function, upstream)


FACTS = {
    "device": "NVIDIA H200", "driver_version": "580", "clocks.sm": "1980 MHz",
    "python": "3.12", "torch": "2.11", "triton": "3.6", "cuda": "13.0",
}  # fmt: skip
ROW = {
    "operation": "cosine", "case": "cosine-1024x2x8x2048-bfloat16", "device": "cuda",
    "backend": "triton", "contestants": {"ours": {"median": 5e-5}}, "best_peer": "sums",
    "best_ratio": 3.0, "fraction_of_copy": 0.9, "kernels": {"ours": [KERNEL]},
}  # fmt: skip
BOTH = ROW | {
    "backend": "cuda", "size": "(1024, 2, 8, 2048)", "dtype": "bfloat16", "view_major": False,
    "moved_bytes": 92_274_688, "bytes_per_second": 4e12, "excluded": {},
    "contestants": {
        "ours": {"median": 1e-4, "peak_bytes": 1},
        "ours, triton": {"median": 2e-4, "peak_bytes": 1, "ratio": {"median": 2.0}},
        "sums": {"median": 3e-4, "peak_bytes": 1, "ratio": {"median": 3.0}},
    },
    "kernels": {"ours": [CUDA_KERNEL, CUDA_SCALE], "ours, triton": [KERNEL, CUDA_SCALE]},
}  # fmt: skip
GOOD = {"passed": 5, "failed": 0}


def of(operation="cosine", **values):
    """(backend, operation) -> value."""
    return {(backend, operation): value for backend, value in values.items()}


def junit(tmp_path, *cases):
    """The report of pytest on tests (module, name, what is inside)."""
    path = tmp_path / "tests.xml"
    body = "".join(
        f'<testcase classname="{classname}" name="{name}">{inside}</testcase>'
        for classname, name, inside in cases
    )
    path.write_text(f"<testsuites><testsuite>{body}</testsuite></testsuites>")
    return path
