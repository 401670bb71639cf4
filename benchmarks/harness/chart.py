"""The chart of the cosine operations: how far behind the peers are, how far ahead a copy is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import forms, tables
from .tables import Row

STYLES = {"eager": "o", "compiled": "D", "CUDA graph": "s"}
COLOURS = {"pairs": "#b0413e", "broadcast": "#7d5ba6", "products": "#d99a3d", "sums": "#4a7c59"}


def chart(facts: dict[str, Any], rows: list[Row], png: Path) -> None:
    """Left: how many times longer the best peer takes. Right: the share of a copy's bandwidth.

    Of GPU time, where there is any.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if row["operation"] in ("cosine", "similarity")]
    labels = [f"{row['operation']} {row['size']}\n{tables.kind_of(row)}" for row in rows]
    clock = tables.clocks_of(rows)[-1]
    places = range(len(rows))
    figure, (left, right) = plt.subplots(
        1, 2, sharey=True, figsize=(11, 1.6 + 0.46 * len(rows)), layout="constrained",
        width_ratios=(3, 2),
    )  # fmt: skip
    best_ratios = [tables.best_of(row, clock)[2] for row in rows]
    for place, row, best in zip(places, rows, best_ratios, strict=True):
        for name in filter(tables.is_peer, row["contestants"]):
            family, form = forms.split(name)
            left.plot(
                tables.ratio_of(row, name, clock), place, STYLES[forms.FORMS[form]],
                color=COLOURS.get(family, "#666666"), markersize=6, alpha=0.9,
            )  # fmt: skip
        if best:
            left.barh(place, best - 1, left=1, height=0.62, color="#3b6ea5", zorder=0)
            left.annotate(
                tables.times(best), (1, place), xytext=(-5, 0),
                textcoords="offset points", ha="right", va="center", fontsize=8,
            )  # fmt: skip
    left.set_xscale("log")
    left.axvline(1, color="black", linewidth=1)
    lowest = min([1.0, *(best for best in best_ratios if best)])
    left.set_xlim(left=0.45 * lowest)
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_yticks(list(places), labels, fontsize=8)
    left.set_xlabel(f"{clock} time of a peer / of the best form of ours (log scale)")
    left.set_title("Bars: the best peer takes so many times longer", fontsize=10)
    handles = [
        plt.Line2D([], [], marker=marker, linestyle="", color="#666666", label=label)
        for label, marker in STYLES.items() if label in tables.forms_of(rows)
    ] + [
        plt.Line2D([], [], marker="s", linestyle="", color=COLOURS.get(family, "#666666"),
                   label=family)
        for family in tables.families_of(rows)
    ]  # fmt: skip
    left.legend(handles=handles, fontsize=8, loc="upper center", ncols=len(handles),
                bbox_to_anchor=(0.5, -0.8 / (1 + len(rows))), frameon=False)  # fmt: skip
    bars = right.barh(
        places, [100 * row["fraction_of_copy"] for row in rows], height=0.62, color="#3b6ea5"
    )
    right.bar_label(bars, fmt="%.0f %%", fontsize=8, padding=3)
    right.axvline(100, color="black", linewidth=1)
    right.set_xlim(0, max(118, *(115 * row["fraction_of_copy"] for row in rows)))
    right.set_xlabel("bandwidth, % of that of a copy of the same bytes")
    right.set_title("100 %: as fast as a copy of the bytes", fontsize=10)
    for axes in (left, right):
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Forward and backward on {facts['device']}", fontsize=11)
    figure.savefig(png, dpi=130)
    plt.close(figure)
