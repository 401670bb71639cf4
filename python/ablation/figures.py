"""How the report's pictures are drawn."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from ablation.comparison import BASE, IN_BATCH, MULTI_CROP, Cell, Plan
from plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, save


def panels(count: int, height: float = 3.4, **options: Any) -> tuple[plt.Figure, list[Axes]]:
    figure, panels = plt.subplots(1, count, figsize=(4.2 * count, height), squeeze=False, **options)
    return figure, list(panels[0])


def colour(arm: str) -> str:
    if arm.startswith(IN_BATCH):
        return PURPLE if arm.endswith(MULTI_CROP) else RED
    if arm in (BASE, MULTI_CROP):
        return GREY if arm == BASE else BLUE
    return ORANGE if arm.startswith("cosine") else SKY if arm.endswith("clipped") else GREEN


def marker(plan: Plan, cell: Cell) -> str:
    return "x" if cell[1] == BASE else "os^Dv"[plan.crops.index(cell[2]) % 5]


def sd(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def bars(axes: Axes, groups: list[list[float]], offset: float, colour: str, label: str) -> None:
    """One bar per framework, with the seeds as dots on it."""
    for place, values in enumerate(groups):
        if values:
            axes.bar(
                place + offset, statistics.mean(values), 0.36, yerr=sd(values), capsize=4,
                color=colour, alpha=0.7, label=label if place == 0 else None,
            )  # fmt: skip
            axes.plot([place + offset] * len(values), values, "k.", markersize=4)


def line(
    axes: Axes, x: list[int], groups: list[list[float]], colour: str, style: str, label: str
) -> None:
    points = [(a, statistics.mean(v), sd(v)) for a, v in zip(x, groups, strict=True) if v]
    if points:
        places, means, spreads = zip(*points, strict=True)
        axes.errorbar(
            places, means, yerr=spreads, color=colour, linestyle=style, marker="o", markersize=4,
            capsize=3, label=label,
        )  # fmt: skip


def finish(figure: plt.Figure, with_legend: Axes | None, title: str, path: Path) -> None:
    figure.suptitle(title, fontsize=9)
    if with_legend is not None:
        handles, labels = with_legend.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncol=4)
    figure.tight_layout()
    save(figure, path)
