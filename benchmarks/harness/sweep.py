"""Time and peak memory against one size, as JSON and as a chart; on a CPU only.

On a GPU the figures of the benchmarks count, for which the ledger vouches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import machine, report, simd
from .memory import peak_bytes
from .timing import OURS, Step, clock_of, per_call

ROUNDS = 5
COLOURS = ("#3b6ea5", "#b0413e", "#d99a3d", "#4a7c59")


@dataclass(frozen=True)
class Sweep:
    name: str  # of the files
    title: str
    parameter: str
    values: Sequence[int]
    steps: Callable[[int], dict[str, Step]]  # contestants that can run at a value; `OURS` first


def measure(sweep: Sweep) -> list[dict[str, Any]]:
    """One entry per value and contestant, timed in turns."""
    rows = []
    for value in sweep.values:
        steps = sweep.steps(value)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS + 1):  # the first one warms up
            for name, step in steps.items():
                seconds[name].append(per_call(step, 1, clock_of("cpu")))
        for name, step in steps.items():
            rows.append(
                {
                    sweep.parameter: value, "contestant": name,
                    "seconds": statistics.median(seconds[name][1:]),
                    "peak_bytes": peak_bytes(step, "cpu"),
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def draw(sweep: Sweep, facts: dict[str, Any], rows: list[dict[str, Any]], png: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = dict.fromkeys(row["contestant"] for row in rows)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
    for at, (key, scale, label) in zip(
        axes, (("seconds", 1e3, "milliseconds"), ("peak_bytes", 1e-6, "peak MB")), strict=True
    ):
        for name, colour in zip(names, COLOURS, strict=False):
            chosen = [row for row in rows if row["contestant"] == name]
            at.plot(
                [row[sweep.parameter] for row in chosen], [row[key] * scale for row in chosen],
                "o-", color=colour, label=name, linewidth=2 if name == OURS else 1.2,
            )  # fmt: skip
        at.set_xscale("log", base=2)
        at.set_yscale("log")
        at.set_xticks(sweep.values, [f"{value:,}" for value in sweep.values], fontsize=8)
        at.set_xlabel(sweep.parameter)
        at.set_ylabel(label)
        at.grid(color="#dddddd", linewidth=0.6)
        at.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=9)
    figure.suptitle(f"{sweep.title}, on {facts['device']}", fontsize=10)
    figure.savefig(png, dpi=130)
    plt.close(figure)


def main(sweep: Sweep, description: str | None, command: list[str]) -> int:
    """Of a script's `sys.argv`; `--simd` starts it once more, in a process that is held to it."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simd", choices=tuple(simd.ENVIRONMENTS), help="default: the widest")
    held_to = parser.parse_args(command[1:]).simd
    if held_to is not None:
        if not simd.is_held_to(held_to):
            again = [sys.executable, *command]
            return subprocess.run(again, env=simd.environment(held_to), check=False).returncode
        simd.use(held_to)
    facts = machine.describe("cpu")
    folder = report.RESULTS / machine.folder_name(facts["device"])
    folder.mkdir(parents=True, exist_ok=True)
    rows = measure(sweep)
    path = folder / f"{sweep.name}.json"
    path.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    draw(sweep, facts, rows, path.with_suffix(".png"))
    print(f"filed in {path.parent}")
    return 0
