"""A sweep: who runs at which value, and what it files."""

import json

import pytest
import torch

import bench_info_nce
from harness import report, sweep
from harness.timing import OURS

SMALL = sweep.Sweep(
    name="over_size", title="Made", parameter="size", values=[2, 4],
    steps=lambda size: dict.fromkeys([OURS, "peer"] if size < 4 else [OURS], lambda: torch.ones(4)),
)  # fmt: skip


def test_peers_with_logits_stop_where_these_outgrow_their_memory(monkeypatch):
    monkeypatch.setattr(bench_info_nce, "LOGITS_BYTES", 1024 * 8 * 4)
    assert list(bench_info_nce.steps_over_k(8)) == [OURS, "six calls", "once", "attention"]
    assert list(bench_info_nce.steps_over_k(9)) == [OURS, "attention"]


def test_figures_and_a_chart_are_filed(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert sweep.main(SMALL, "", ["made.py"]) == 0
    (folder,) = tmp_path.iterdir()
    rows = json.loads((folder / "over_size.json").read_text())["rows"]
    found = [(made["size"], made["contestant"]) for made in rows]
    assert found == [(2, OURS), (2, "peer"), (4, OURS)]
    assert (folder / "over_size.png").read_bytes().startswith(b"\x89PNG")


def test_it_starts_itself_again_for_other_instructions(monkeypatch):
    started = []

    def run(command, env, check):
        started.append((command[1:], env["ATEN_CPU_CAPABILITY"]))
        return type("Done", (), {"returncode": 7})

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    assert sweep.main(SMALL, "", ["made.py", "--simd", "avx2"]) == 7
    assert started == [(["made.py", "--simd", "avx2"], "avx2")]
