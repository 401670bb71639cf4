"""Time and peak memory of InfoNCE against the number of negatives K, as a chart.

    python benchmarks/over_k.py               info_nce_over_k.json and .png, to results/<device>
    python benchmarks/over_k.py --simd avx2   as a CPU without AVX-512 would; to its own <device>

Forward and backward of 1024 crops (B = 256, G = L = 2, D = 128, fp32). Peers that keep logits stop
where these outgrow PEER_BYTES. On a CPU only: on a GPU the figures of bench_info_nce.py count, for
which the ledger vouches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import contrast_peers as peers
import machine
import report
import simd
from bench_info_nce import loss
from cases import InfoNCECase
from inputs import info_nce_inputs
from memory import peak_bytes
from timing import clock_of, per_call

NEGATIVES = [4096 * 4**power for power in range(5)]  # to 1,048,576
PEER_BYTES = 2 << 30  # of one array of logits
ROUNDS = 5

CONTESTANTS: dict[str, Callable[..., Tensor]] = {
    "ours": loss,
    "six calls": peers.six_calls,
    "once": peers.once,
    "attention": peers.attention,
}
COLOURS = {"ours": "#3b6ea5", "six calls": "#b0413e", "once": "#d99a3d", "attention": "#4a7c59"}


def measure() -> list[dict[str, Any]]:
    """One entry per K and contestant, timed in turns."""
    rows = []
    for negatives in NEGATIVES:
        case = InfoNCECase(256, 2, 2, negatives, 128, "float32", "")
        inputs = info_nce_inputs(case, "cpu")
        steps = {
            name: partial(inputs.step, function)
            for name, function in CONTESTANTS.items()
            if name in ("ours", "attention") or 1024 * negatives * 4 <= PEER_BYTES
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS + 1):  # the first one warms up
            for name, step in steps.items():
                seconds[name].append(per_call(step, 1, clock_of("cpu")))
        for name, step in steps.items():
            rows.append(
                {
                    "negatives": negatives, "contestant": name,
                    "seconds": statistics.median(seconds[name][1:]),
                    "peak_bytes": peak_bytes(step, "cpu"),
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def draw(facts: dict[str, Any], rows: list[dict[str, Any]], png: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
    for at, (key, scale, label) in zip(
        axes, (("seconds", 1e3, "milliseconds"), ("peak_bytes", 1e-6, "peak MB")), strict=True
    ):
        for name, colour in COLOURS.items():
            chosen = [row for row in rows if row["contestant"] == name]
            at.plot(
                [row["negatives"] for row in chosen], [row[key] * scale for row in chosen],
                "o-", color=colour, label=name, linewidth=2 if name == "ours" else 1.2,
            )  # fmt: skip
        at.set_xscale("log", base=2)
        at.set_yscale("log")
        at.set_xticks(NEGATIVES, [f"{negatives:,}" for negatives in NEGATIVES], fontsize=8)
        at.set_xlabel("negatives K")
        at.set_ylabel(label)
        at.grid(color="#dddddd", linewidth=0.6)
        at.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=9)
    figure.suptitle(
        f"InfoNCE of 1024 crops, D = 128, fp32, forward and backward, eager, on {facts['device']}",
        fontsize=10,
    )
    figure.savefig(png, dpi=130)
    plt.close(figure)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simd", choices=tuple(simd.ENVIRONMENTS), help="default: the widest")
    held_to = parser.parse_args(arguments).simd
    if held_to is not None and not simd.is_held_to(held_to):
        command = [sys.executable, __file__, *arguments]
        return subprocess.run(command, env=simd.environment(held_to), check=False).returncode
    if held_to is not None:
        simd.use(held_to)
    facts = machine.describe("cpu")
    folder = report.RESULTS / machine.folder_name(facts["device"])
    folder.mkdir(parents=True, exist_ok=True)
    rows = measure()
    path = folder / "info_nce_over_k.json"
    path.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    draw(facts, rows, path.with_suffix(".png"))
    print(f"filed in {path.parent}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
