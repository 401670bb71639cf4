"""Tables and chart of small made rows."""

import pytest

from benchmarks.made import CUDA_KERNEL, KERNEL, figures, on_gpu, row, write
from harness import report, tables
from harness.chart import chart


def cells(made, **facts):
    """Of a table with one row: title -> cell."""
    lines = tables.tables({"device": "here", **facts}, [made]).splitlines()
    header, _, body = (line for line in lines if line.startswith("|"))
    return dict(zip(*(line.strip("| ").split(" | ") for line in (header, body)), strict=True))


def test_table_of_peers(tmp_path):
    text = tables.tables(*report.load(write(tmp_path / "a.json", [row()])))
    assert text.splitlines()[-1] == (
        "| (256, 2, 8, 2048) | float32 | AVX2 | **2.5 ms** / 4 ms | 2.00× (sums, compiled) "
        "| 100× / 5.00× | 8.00× / **2.00×** | 46.1 | 18.4 | 80 % | 21 (best peer 25.2) |"
    )
    assert "AMD EPYC, 2 threads, AVX512; torch 2.13.0; backend cpu." in text
    assert "a cell is eager / compiled, " in text


def test_the_best_form_of_ours_is_told():
    made = row(best_ours="ours, compiled")
    assert cells(made)["ours"] == "2.5 ms / **4 ms**"
    assert cells(made)["peak MB"] == "20 (best peer 25.2)"


def test_gpu_time_and_wall_time_have_their_own_columns():
    shown = cells(on_gpu())
    assert shown["wall: ours"] == "2.5 ms / 4 ms / **1.25 ms**"
    assert shown["wall: best peer"] == "1.60× (sums, compiled, CUDA graph)"
    assert shown["GPU: ours"] == "**21.5 µs** / 22 µs / 30 µs"
    assert shown["GPU: best peer"] == "1.86× (sums, compiled)"
    assert shown["pairs"] == "10.0× / 4.00× / –"
    assert shown["sums"] == "2.00× / **1.86×** / 3.00×"
    assert "instructions" not in shown
    # a graph's memory is not seen: that of the same function compiled stands for it
    assert shown["peak MB"] == "20 (best peer 25.2)"
    heading = tables.tables({"device": "here"}, [on_gpu()]).splitlines()[0]
    assert "eager / compiled / CUDA graph" in heading
    assert "by GPU time with a flushed L2" in heading


def test_a_peer_that_was_left_out_is_named(tmp_path):
    made = row(excluded={"products, compiled": "RuntimeError: no compiler"})
    text = tables.tables(*report.load(write(tmp_path / "a.json", [made])))
    assert "- products, compiled at cosine-256x2x8x2048-float32: RuntimeError: no compiler" in text


def on_gpu_by_both():
    """The CUDA kernels are auto's choice; the Triton kernel, scaled by CUDA's, is beside them."""
    made = on_gpu() | {
        "backend": "cuda",
        "kernels": {
            "ours": [CUDA_KERNEL, "csrc/cuda/scale.cu"],
            "ours, triton": [KERNEL, "csrc/cuda/scale.cu"],
        },
    }
    beside = figures(3e-3, 2.4) | {
        "device_seconds": {"cold": 25e-6, "warm": 24e-6}, "gpu_ratio": {"median": 1.16}
    }  # fmt: skip
    made["contestants"] = {**made["contestants"], "ours, triton": beside}
    return made


def test_both_backends_of_a_gpu_are_shown():
    shown = cells(on_gpu_by_both())
    assert shown["wall: ours, triton"] == "3 ms"
    assert shown["GPU: ours, triton"] == "25 µs"
    text = tables.tables({"device": "here"}, [on_gpu_by_both(), on_gpu()])
    assert "| wall: ours | wall: ours, triton | wall: best peer | GPU: ours |" in text
    assert "| **21.5 µs** / 22 µs / 30 µs | – | 1.86× (sums, compiled) |" in text
    assert "backend cuda, triton." in text


def test_a_contestant_is_shown_only_with_its_kernels():
    row = on_gpu_by_both()
    triton, cuda, scale = KERNEL, CUDA_KERNEL, "csrc/cuda/scale.cu"

    def ours(*allowed):
        kept = report.restricted(row, set(allowed).__contains__)
        return kept and tables.ours_of(kept)

    own = ["ours", "ours, compiled", "ours, compiled, CUDA graph"]
    assert ours(triton, cuda, scale) == [*own, "ours, triton"]
    assert ours(cuda, scale) == own
    assert ours(triton, cuda) is None
    assert ours(triton, scale) is None
    assert report.restricted(row | {"kernels": {}}, lambda kernel: True) is None
    assert tables.ours_of(row) == [*own, "ours, triton"]  # the row itself is left as it was


def test_overhead_is_told_in_times_of_an_empty_function():
    made = row(
        operation="overhead", of="info_nce", goal=4.0, times_of_empty={"median": 3.456},
        best_peer=None, best_ratio=None,
    )  # fmt: skip
    made["contestants"]["empty Function"] = figures(1e-3, 0.4)
    shown = cells(made)
    assert (shown["operation"], shown["ours, eager, of it"]) == ("info_nce", "3.46×")
    assert (shown["empty Function"], shown["goal"]) == ("1 ms", "4×")
    assert shown["ours"] == "**2.5 ms** / 4 ms"


def test_table_of_a_training_step():
    made = row(operation="training_step", best_peer="pairs", best_ratio=100.0)
    shown = cells(made)
    assert (shown["with ours"], shown["with the loss pair by pair"]) == ("2.5 ms", "250 ms")
    assert (shown["times longer"], shown["instructions"]) == ("100×", "AVX2")


def contrast(**changes):
    made = row(operation="info_nce", size="(256, 2, 2, 4096, 128)", flops=1_000_000_000)
    made["contestants"] = {
        "ours": figures(2.5e-3, 1.0, 4_000_000), "six calls": figures(25e-3, 10.0),
        "six calls, compiled": figures(5e-3, 2.0, 8_000_000), "copy": figures(1e-4, 0.04),
        "matrix product": figures(1e-3, 0.4),
    }  # fmt: skip
    return made | {"best_peer": "six calls, compiled", **changes}


def test_table_of_info_nce():
    """2.5 ms for 1e9 operations, of which a matrix product takes 1 ms: 400 GFLOP/s, 40 %."""
    shown = cells(contrast())
    assert list(shown.values()) == [
        "(256, 2, 2, 4096, 128)", "float32", "AVX2", "**2.5 ms** / –",
        "2.00× (six calls, compiled)", "10.0× / **2.00×**", "400", "40 %", "4 (best peer 8)",
    ]  # fmt: skip
    assert list(shown)[-2] == "of a matrix product"


def test_a_product_of_more_operations_is_compared_by_its_rate():
    assert cells(contrast(product_flops=2_000_000_000))["of a matrix product"] == "20 %"


def test_rate_on_a_gpu_is_of_gpu_time():
    """2 ms of GPU time: 500 GFLOP/s; the product of twice as many takes 2.4 ms, so 60 %."""
    made = contrast(product_flops=2_000_000_000)
    for measured in made["contestants"].values():
        measured |= {"device_seconds": {"cold": 2e-3}, "gpu_ratio": {"median": 1.0}}
    made["contestants"]["matrix product"]["gpu_ratio"]["median"] = 1.2
    made["gpu"] = {"ours": "ours", "peer": None, "ratio": None}
    shown = cells(made)
    assert (shown["GFLOP/s"], shown["of a matrix product"]) == ("500", "60 %")
    assert shown["GPU: best peer"] == "–"


def test_what_was_not_timed_is_not_shown(tmp_path):
    untimed = row()
    del untimed["contestants"]
    assert report.load(write(tmp_path / "a.json", [untimed]))[1] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.2345, "1.23 s"),
        (0.25, "250 ms"),
        (0.9996, "1 s"),
        (36.2e-6, "36.2 µs"),
        (1e-7, "0.10 µs"),
    ],
)
def test_seconds(value, text):
    assert tables.seconds(value) == text


def test_chart_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    png = tmp_path / "chart.png"
    chart({"device": "here"}, [row(), row(best_peer=None, best_ratio=None)], png)
    chart({"device": "here"}, [on_gpu()], png)
    assert png.read_bytes().startswith(b"\x89PNG")
