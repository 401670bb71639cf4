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
        "device": "cpu", "backend": "cpu", "moved_bytes": 46_137_344, "flops": 1, "excluded": {},
        "contestants": {
            "ours": figures(2.5e-3, peak=20_971_520), "pairs": figures(0.25, 100.0),
            "pairs, compiled": figures(12.5e-3, 5.0),
            "sums": figures(20e-3, 8.0), "sums, compiled": figures(5e-3, 2.0, 25_165_824),
            "copy": figures(2e-3, 0.8),
        },
        "best_peer": "sums, compiled", "best_ratio": 2.0, "bytes_per_second": 18.45e9,
        "fraction_of_copy": 0.8,
    }  # fmt: skip
    return made | changes


def on_gpu(**changes):
    made = row(device="cuda", backend="triton", kernels={"ours": [KERNEL]}, **changes)
    made["contestants"]["ours"]["device_seconds"] = {"cold": 21.5e-6, "warm": 20e-6}
    return made


def write(path, rows, device="AMD EPYC, 2 threads, AVX512"):
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"device": device, "torch": "2.13.0"}
    path.write_text(
        json.dumps({"machine_info": facts, "benchmarks": [{"extra_info": made} for made in rows]})
    )
    return path


def test_table_of_peers(tmp_path):
    text = report.tables(*report.load(write(tmp_path / "a.json", [row()])))
    assert text.splitlines()[-1] == (
        "| (256, 2, 8, 2048) | float32 | 2.5 ms | 100× / 5.00× | 8.00× / **2.00×** | 46.1 | 18.4 "
        "| 80 % | 21 (best peer 25.2) |"
    )
    assert "AMD EPYC, 2 threads, AVX512; torch 2.13.0; backend cpu." in text


def test_a_peer_that_was_left_out_is_named(tmp_path):
    made = row(excluded={"products, compiled": "RuntimeError: no compiler"})
    text = report.tables(*report.load(write(tmp_path / "a.json", [made])))
    assert "- products, compiled at cosine-256x2x8x2048-float32: RuntimeError: no compiler" in text


def test_gpu_rows_show_both_clocks(tmp_path):
    text = report.tables(*report.load(write(tmp_path / "a.json", [on_gpu()])))
    assert "2.5 ms (GPU 21.5 µs)" in text


def on_gpu_by_both():
    """The CUDA kernels are auto's choice; the Triton kernel, scaled by CUDA's, is beside them."""
    made = on_gpu() | {
        "backend": "cuda",
        "kernels": {
            "ours": [CUDA_KERNEL, "csrc/cuda/scale.cu"],
            "ours, triton": [KERNEL, "csrc/cuda/scale.cu"],
        },
    }
    beside = figures(3e-3, 1.2) | {"device_seconds": {"cold": 25e-6, "warm": 24e-6}}
    made["contestants"] = {**made["contestants"], "ours, triton": beside}
    return made


def test_both_backends_of_a_gpu_are_shown(tmp_path):
    overhead = on_gpu_by_both() | {"operation": "overhead"}
    overhead["contestants"]["empty Function"] = figures(1e-3, 0.4)
    rows = [on_gpu_by_both(), on_gpu(), overhead]
    text = report.tables(*report.load(write(tmp_path / "a.json", rows)))
    assert "| ours | ours, triton | pairs | sums | MB moved |" in text
    assert "| 2.5 ms (GPU 21.5 µs) | 3 ms (GPU 25 µs) | 100× / 5.00× |" in text
    assert "| 2.5 ms (GPU 21.5 µs) | – | 100× / 5.00× |" in text
    assert "| 2.5 ms | 1 ms | 1.5 ms | 3 ms | 5 ms (sums, compiled) |" in text
    assert "backend cuda, triton." in text


def test_a_contestant_is_shown_only_with_its_kernels():
    row = on_gpu_by_both()
    triton, cuda, scale = KERNEL, CUDA_KERNEL, "csrc/cuda/scale.cu"

    def ours(*allowed):
        kept = report.restricted(row, set(allowed).__contains__)
        return kept and report.ours_of(kept)

    assert ours(triton, cuda, scale) == ["ours", "ours, triton"]
    assert ours(cuda, scale) == ["ours"]
    assert ours(triton, cuda) is None
    assert ours(triton, scale) is None
    assert report.restricted(row | {"kernels": {}}, lambda kernel: True) is None
    assert report.ours_of(row) == ["ours", "ours, triton"]  # the row itself is left as it was


def test_other_tables(tmp_path):
    overhead = row(operation="overhead")
    overhead["contestants"]["empty Function"] = figures(1e-3, 0.4)
    step = row(operation="training_step", best_peer="pairs")
    text = report.tables(*report.load(write(tmp_path / "a.json", [overhead, step])))
    assert "| (256, 2, 8, 2048) | 2.5 ms | 1 ms | 1.5 ms | 5 ms (sums, compiled) |" in text
    assert "| (256, 2, 8, 2048) | 2.5 ms | 250 ms | 100× |" in text


def test_table_of_info_nce(tmp_path):
    """2.5 ms for 1e9 operations, of which a matrix product takes 1 ms: 400 GFLOP/s, 40 %."""
    made = row(operation="info_nce", size="(256, 2, 2, 4096, 128)", flops=1_000_000_000)
    made["contestants"] = {
        "ours": figures(2.5e-3, peak=4_000_000), "six calls": figures(25e-3, 10.0),
        "six calls, compiled": figures(5e-3, 2.0, 8_000_000), "copy": figures(1e-4, 0.04),
        "matrix product": figures(1e-3, 0.4),
    }  # fmt: skip
    made["best_peer"] = "six calls, compiled"
    text = report.tables(*report.load(write(tmp_path / "a.json", [made])))
    assert (
        "| (256, 2, 2, 4096, 128) | float32 | 2.5 ms | 10.0× / **2.00×** | 400 | 40 % | "
        "4 (best peer 8) |" in text
    )
    assert "matrix product |" in text
    assert "copy |" not in text


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
    assert "GPU 21.5 µs" in report.readme_block(tree)
    (tree / KERNEL).write_text((tree / KERNEL).read_text() + "# changed\n")
    assert report.readme_block(tree) == ""


def test_the_projects_readme_shows_only_verified_gpu_figures():
    """Whatever stands in the block must be what the committed results give today."""
    path = ledger.ROOT / "README.md"
    if not path.is_file() or report.BEGIN not in path.read_text():
        pytest.skip("the README has no benchmark block yet")
    assert report.readme_is_current(path)
