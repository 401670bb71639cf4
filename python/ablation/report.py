"""The ablation's report: tables, paired differences, verdicts, and pictures."""

import math
import statistics
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from ablation import figures
from ablation.comparison import (
    BASE,
    MULTI_CROP,
    RULE,
    Cell,
    Difference,
    Expected,
    Plan,
    Runs,
    reference,
)
from config import Config
from plots import BLUE, GREY

METRICS = {
    "knn": "kNN mAP",
    "linear": "linear mAP",
    "linear_10": "linear mAP, 10 % of the labels",
}
FRAMEWORKS = {"simsiam": "SimSiam", "moco": "MoCo"}


def write(
    results: list[dict[str, Any]], expected: Expected, shared: Config, command: str, out: Path
) -> None:
    """README.md and its pictures from the finished runs of the expected ones."""
    runs, plan = Runs(results), Plan.of(expected)
    sections = [
        heading(results, expected, shared, command),
        summary(runs, plan),
        multi_crop(runs, plan, out),
        repulsion(runs, plan, out),
    ]
    if len(plan.crops) > 1:
        sections.append(local_crops(runs, plan, out))
    sections += [cost(runs, plan, out), missing(runs, plan)]
    (out / "README.md").write_text("\n\n".join(sections) + "\n")


def heading(results: list[dict[str, Any]], expected: Expected, shared: Config, command: str) -> str:
    steps = shared.scenes[0] // shared.batch_size * shared.epochs
    versions = ", ".join(sorted({f"torch {r['torch']}" for r in results})) or "no run yet"
    return f"""\
# Ablation on the scenes

`{command}` wrote this page from `runs.jsonl`: {len(results)} of {len(expected)} runs ({versions}).
Every arm trains for {steps} steps (epochs: {shared.epochs}, of {shared.scenes[0]} scenes, in
batches of {shared.batch_size}) and is evaluated once, at the end, on {shared.scenes[1]} test
scenes. Cells are mean ± sample standard deviation over the seeds. {RULE}"""


def summary(runs: Runs, plan: Plan) -> str:
    """What holds, counted from all comparisons, and how many of them chance alone would call."""
    lines = ["## In short", ""]
    compared: list[Difference] = []

    def count(title: str, pairs: list[tuple[Cell, Cell]]) -> None:
        for metric, label in METRICS.items():
            found = [runs.difference(a, b, metric) for a, b in pairs]
            found = [d for d in found if d.n > 1]
            compared.extend(found)
            verdicts = [d.verdict for d in found]
            if not found:
                lines.append(f"- {title}, {label}: no two seeds to compare yet.")
                continue
            if len(found) == 1:
                lines.append(f"- {title}, {label}: {found[0]}, {verdicts[0]}.")
                continue
            lines.append(
                f"- {title}, {label}: better in {verdicts.count('better')} of {len(found)} "
                f"comparisons, worse in {verdicts.count('worse')}, within noise in "
                f"{verdicts.count('within noise')}."
            )

    first = plan.crops[0]
    for f in plan.frameworks:
        name = FRAMEWORKS.get(f, f)
        count(
            f"{name}: multi-crop against global crops only",
            [((f, MULTI_CROP, first), (f, BASE, first))],
        )
        cells = [c for c in plan.repelling() if c[0] == f]
        count(f"{name}: repulsion against λ = 0, L = {first}", [(c, reference(c)) for c in cells])
        for more in plan.crops[1:]:
            cells = [c for c in plan.varied() if c[:1] + c[2:] == (f, first)]
            count(f"{name}: L = {more} against {first}", [((*c[:2], more), c) for c in cells])
    # P(|mean| >= 2 sd / √n) of normal differences around 0 is Student's t beyond 2.
    chance = sum(2 * student.sf(2, d.n - 1) for d in compared)
    lines += [
        "",
        f"Pure noise would pass the rule in about {chance:.0f} of these {len(compared)} "
        "comparisons, half of them as *better*: a single verdict is a hint, a pattern over arms "
        "and metrics is evidence.",
    ]
    return "\n".join(lines)


def table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


def values_table(runs: Runs, cells: list[Cell]) -> str:
    rows = [
        [
            FRAMEWORKS.get(c[0], c[0]),
            c[1],
            "0" if c[1] == BASE else str(c[2]),
            *(runs.summary(c, m) for m in METRICS),
        ]
        for c in cells
    ]
    return table(["", "arm", "L", *METRICS.values()], rows)


def differences_table(runs: Runs, pairs: list[tuple[Cell, Cell, str]]) -> str:
    """Pairs: (cell, what it is compared with, what to call the comparison)."""
    rows = []
    for cell, other, name in pairs:
        found = [runs.difference(cell, other, metric) for metric in METRICS]
        rows.append([FRAMEWORKS.get(cell[0], cell[0]), name, *(f"{d}: {d.verdict}" for d in found)])
    return table(["", "difference", *METRICS.values()], rows)


def multi_crop(runs: Runs, plan: Plan, out: Path) -> str:
    first = plan.crops[0]
    cells = [(f, arm, first) for f in plan.frameworks for arm in (BASE, MULTI_CROP)]
    pairs = [
        ((f, MULTI_CROP, first), (f, BASE, first), f"{MULTI_CROP} − {BASE}")
        for f in plan.frameworks
    ]
    figure, panels = figures.panels(len(METRICS))
    for axes, (metric, label) in zip(panels, METRICS.items(), strict=True):
        for i, (arm, colour) in enumerate(((BASE, GREY), (MULTI_CROP, BLUE))):
            figures.bars(
                axes, [runs.values((f, arm, first), metric) for f in plan.frameworks],
                offset=0.4 * i - 0.2, colour=colour, label=arm,
            )  # fmt: skip
        axes.set_xticks(
            range(len(plan.frameworks)), [FRAMEWORKS.get(f, f) for f in plan.frameworks]
        )
        axes.set(ylabel=label, title=label)
    figures.finish(figure, panels[0], "bars: mean ± sd; dots: seeds", out / "multi-crop.png")
    return (
        f"## Does multi-crop help?\n\n{values_table(runs, cells)}\n\n"
        f"{differences_table(runs, pairs)}\n\n"
        "![multi-crop against global crops only](multi-crop.png)"
    )


def repulsion(runs: Runs, plan: Plan, out: Path) -> str:
    cells = plan.repelling()
    shown = list(dict.fromkeys(c for cell in cells for c in (reference(cell), cell)))
    pairs = [(c, reference(c), f"{c[1]} − λ = 0") for c in cells]
    figure, panels = figures.panels(
        len(METRICS), height=max(3.0, 0.33 * len(cells) + 1.2), sharey=True
    )
    for axes, (metric, label) in zip(panels, METRICS.items(), strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for place, cell in enumerate(reversed(cells)):
            d = runs.difference(cell, reference(cell), metric)
            if d.n == 0:
                continue
            error = 2 * d.sd / math.sqrt(d.n) if d.n > 1 else 0.0
            axes.errorbar(
                d.mean,
                place,
                xerr=error,
                fmt="o",
                capsize=3,
                markersize=4,
                color=figures.colour(cell[1]),
            )
        names = [f"{FRAMEWORKS.get(c[0], c[0])}: {c[1]}" for c in reversed(cells)]
        axes.set_yticks(range(len(cells)), names)
        axes.set(xlabel=f"{label} − that of λ = 0", title=label)
    figures.finish(
        figure, None, "dots: mean paired difference; bars: ± 2·sd/√n", out / "repulsion.png"
    )
    return (
        "## Does repulsion help, which kind, at which λ?\n\n*cosine*: ll is the mean cosine. "
        "*learned*: ll is `LocalAffinity`, in the encoder's loss with weight λ (the step of "
        "`--preset paper`). *clipped*: its own step, its gradient's norm at most 0.015 of the "
        "attraction's (that of `--preset official`). *in-batch*: negatives "
        f"from the batch instead of the queue.\n\n{values_table(runs, shown)}\n\n"
        f"{differences_table(runs, pairs)}\n\n![differences from λ = 0](repulsion.png)\n\n"
        f"{learned(runs, plan)}"
    )


def learned(runs: Runs, plan: Plan) -> str:
    """Whether θd told crops of one image from those of two."""
    rows = [
        [FRAMEWORKS.get(c[0], c[0]), c[1], str(c[2]), runs.summary(c, "objective")]
        for c in plan.cells
        if c[1].startswith("learned")
    ]
    return (
        "What θd minimised, the mean over the last half of the steps. An affinity that cannot tell "
        "crops of one image from those of two has 2·log 2 = 1.386 (0 by eq. 6, the *difference*). "
        "Where it stays there, ll says nothing about the images, and its gradient is noise.\n\n"
        + table(["", "arm", "L", "objective"], rows)
    )


def local_crops(runs: Runs, plan: Plan, out: Path) -> str:
    first, *more = plan.crops
    arms = plan.varied()
    arms = [c for c in arms if c[2] == first]
    cells = [(*c[:2], crops) for c in arms for crops in plan.crops]
    pairs = [((*c[:2], m), c, f"{c[1]}: L = {m} − L = {first}") for c in arms for m in more]
    against = [
        ((*c[:2], m), reference((*c[:2], m)), f"L = {m}: {c[1]} − λ = 0")
        for m in more
        for c in arms
        if c[1] != MULTI_CROP
    ]
    figure, panels = figures.panels(len(METRICS))
    for axes, (metric, label) in zip(panels, METRICS.items(), strict=True):
        for c in arms:
            figures.line(
                axes, plan.crops, [runs.values((*c[:2], m), metric) for m in plan.crops],
                figures.colour(c[1]), "-" if c[0] == "simsiam" else "--",
                f"{FRAMEWORKS.get(c[0], c[0])}, {c[1]}",
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(plan.crops, [str(m) for m in plan.crops])
        axes.set(xlabel="L, local crops of an image", ylabel=label, title=label)
    figures.finish(figure, panels[0], "mean ± sd over the seeds", out / "local-crops.png")
    return (
        f"## How many local crops?\n\n{values_table(runs, cells)}\n\n"
        f"{differences_table(runs, pairs + against)}\n\n![metrics over L](local-crops.png)"
    )


def cost(runs: Runs, plan: Plan, out: Path) -> str:
    rows = []
    figure, panels = figures.panels(len(plan.frameworks), height=5.6)
    for axes, f in zip(panels, plan.frameworks, strict=True):
        for cell in (c for c in plan.cells if c[0] == f):
            ms, knn = runs.values(cell, "cpu_ms_per_step"), runs.values(cell, "knn")
            forwards = runs.values(cell, "forwards")
            name = cell[1] if cell[1] == BASE else f"{cell[1]}, L = {cell[2]}"
            forward = str(forwards[0]) if forwards else "–"
            times, quality = runs.summary(cell, "cpu_ms_per_step", 0), runs.summary(cell, "knn")
            rows.append([FRAMEWORKS.get(f, f), name, times, forward, quality])
            if ms:
                axes.errorbar(
                    statistics.mean(ms), statistics.mean(knn), yerr=figures.sd(knn), capsize=2,
                    fmt=figures.marker(plan, cell), color=figures.colour(cell[1]), label=name,
                )  # fmt: skip
        axes.set(xlabel="CPU ms per step", ylabel=METRICS["knn"], title=FRAMEWORKS.get(f, f))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2, fontsize=7)
    figures.finish(figure, None, "at equal steps; mean ± sd over the seeds", out / "cost.png")
    heads = ["", "arm", "CPU ms per step", "encoder forwards per image", METRICS["knn"]]
    return (
        "## At what cost?\n\nMilliseconds are CPU time of a run's one thread: what else the "
        "machine does shows less than on the clock. Forwards are crops of an image that pass an "
        "encoder in a step; MoCo's global crops pass two.\n\n"
        f"{table(heads, rows)}\n\n![kNN over the time of a step](cost.png)"
    )


def missing(runs: Runs, plan: Plan) -> str:
    """Which arms have how many seeds."""
    lines = [
        f"- {FRAMEWORKS.get(c[0], c[0])}, {c[1]}, L = {c[2]}: {len(runs.cells.get(c, {}))} of "
        f"{plan.seeds} seeds"
        for c in plan.cells
        if len(runs.cells.get(c, {})) < plan.seeds
    ]
    if not lines:
        return f"## Seeds\n\nEvery arm has all {plan.seeds} seeds."
    return (
        "## Unfinished\n\nThe sweep was stopped before these were done; the same command goes on "
        "with them.\n\n" + "\n".join(lines)
    )
