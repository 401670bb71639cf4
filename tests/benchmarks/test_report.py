"""Tables, chart and the README's block from a small made JSON."""

import json

import pytest

import ledger
import report

KERNEL = "logo_kernels/backends/triton/cosine.py"
CUDA_KERNEL = "csrc/cuda/cosine.cu"
SUMMARY = {"min": 1e-3, "low_quartile": 1e-3, "high_quartile": 1e-3, "iqr": 0.0}


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
    for name, time in times.items():
        contestants[name]["device_seconds"] = {"cold": time, "warm": 1e-6}
        contestants[name]["gpu_ratio"] = {"median": time / 21.5e-6, **SUMMARY}
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


def cells(made, **facts):
    """Of a table with one row: title -> cell."""
    lines = report.tables({"device": "here", **facts}, [made]).splitlines()
    header, _, body = (line for line in lines if line.startswith("|"))
    return dict(zip(*(line.strip("| ").split(" | ") for line in (header, body)), strict=True))


def test_table_of_peers(tmp_path):
    text = report.tables(*report.load(write(tmp_path / "a.json", [row()])))
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
    heading = report.tables({"device": "here"}, [on_gpu()]).splitlines()[0]
    assert "eager / compiled / CUDA graph" in heading
    assert "by GPU time with a flushed L2" in heading


def test_a_peer_that_was_left_out_is_named(tmp_path):
    made = row(excluded={"products, compiled": "RuntimeError: no compiler"})
    text = report.tables(*report.load(write(tmp_path / "a.json", [made])))
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
    text = report.tables({"device": "here"}, [on_gpu_by_both(), on_gpu()])
    assert "| wall: ours | wall: ours, triton | wall: best peer | GPU: ours |" in text
    assert "| **21.5 µs** / 22 µs / 30 µs | – | 1.86× (sums, compiled) |" in text
    assert "backend cuda, triton." in text


def test_a_contestant_is_shown_only_with_its_kernels():
    row = on_gpu_by_both()
    triton, cuda, scale = KERNEL, CUDA_KERNEL, "csrc/cuda/scale.cu"

    def ours(*allowed):
        kept = report.restricted(row, set(allowed).__contains__)
        return kept and report.ours_of(kept)

    own = ["ours", "ours, compiled", "ours, compiled, CUDA graph"]
    assert ours(triton, cuda, scale) == [*own, "ours, triton"]
    assert ours(cuda, scale) == own
    assert ours(triton, cuda) is None
    assert ours(triton, scale) is None
    assert report.restricted(row | {"kernels": {}}, lambda kernel: True) is None
    assert report.ours_of(row) == [*own, "ours, triton"]  # the row itself is left as it was


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
    for figures in made["contestants"].values():
        figures |= {"device_seconds": {"cold": 2e-3}, "gpu_ratio": {"median": 1.0}}
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
    assert report.seconds(value) == text


def test_chart_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    png = tmp_path / "chart.png"
    report.chart({"device": "here"}, [row(), row(best_peer=None, best_ratio=None)], png)
    report.chart({"device": "here"}, [on_gpu()], png)
    assert png.read_bytes().startswith(b"\x89PNG")


def readme(tmp_path, text=f"# Title\n{report.BEGIN}\nold\n{report.END}\nend\n"):
    path = tmp_path / "README.md"
    path.write_text(text)
    return path


def test_readme_is_written_and_then_current(tmp_path):
    write(tmp_path / "benchmarks/results/amd-epyc/benchmarks.json", [row()])
    path = readme(tmp_path)
    assert not report.readme_is_current(path, tmp_path)
    block = report.readme_block(tmp_path)
    path.write_text(report.with_block(path.read_text(), block))
    assert report.readme_is_current(path, tmp_path)
    text = path.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\nend\n")
    assert "**2.00×**" in text
    path.write_text(text.replace("**2.00×**", "**3.00×**"))
    assert not report.readme_is_current(path, tmp_path)


@pytest.mark.parametrize(
    "text", ["no markers", report.END + report.BEGIN, 2 * (report.BEGIN + report.END)]
)
def test_markers_must_be_one_pair(tmp_path, text):
    with pytest.raises(ValueError, match="the README needs one"):
        report.readme_is_current(readme(tmp_path, text), tmp_path)


def test_gpu_figures_only_of_verified_kernels(tree):
    folder = tree / "benchmarks/results/nvidia-h200"
    write(folder / "benchmarks.json", [on_gpu()], device="NVIDIA H200")
    assert report.readme_block(tree) == ""
    entry = {
        "sha256": ledger.source_hash(ledger.kernels(tree)[KERNEL]),
        "tests": {"passed": 1, "failed": 0}, "sanitizer": {},
    }  # fmt: skip
    facts = {"device": "NVIDIA H200", "date": "2026-11-22"}
    (folder / "ledger.json").write_text(json.dumps({**facts, "kernels": {KERNEL: entry}}))
    assert "**21.5 µs** / 22 µs" in report.readme_block(tree)
    (tree / KERNEL).write_text((tree / KERNEL).read_text() + "# changed\n")
    assert report.readme_block(tree) == ""


def test_the_projects_readme_shows_only_verified_gpu_figures():
    """Whatever stands in the block must be what the committed results give today."""
    path = ledger.ROOT / "README.md"
    if not path.is_file() or report.BEGIN not in path.read_text():
        pytest.skip("the README has no benchmark block yet")
    assert report.readme_is_current(path)
