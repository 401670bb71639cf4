"""Pictures of a run: loss terms, kNN, the crops of one image, similarities before and after."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # No display is needed.

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from augment import Examples
from config import METHODS
from errors import writing

# Okabe and Ito's palette, readable with every kind of colour vision.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#777777",
)  # fmt: skip
SKY = "#56B4E9"
METHOD_COLOURS = {
    "simsiam": BLUE, "simsiam-multicrop": ORANGE, "simsiam-logo": GREEN,
    "moco": SKY, "moco-multicrop": RED, "moco-logo": PURPLE,
}  # fmt: skip

plt.rcParams.update(
    {
        "figure.dpi": 130,
        "savefig.bbox": "tight",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
    }
)


def losses(metrics: dict[str, np.ndarray], method: str, path: Path) -> None:
    """The terms of the loss, and the monitors of a collapse, over the epochs."""
    figure, (terms, monitors) = plt.subplots(1, 2, figsize=(10, 3.6))
    epoch = metrics["epoch"]
    labels = {
        "gg": ("global to global (eq. 3)", BLUE),
        "lg": ("local to global (eq. 4)", ORANGE),
        "ll": ("local to local, repelled (eq. 5)", GREEN),
    }
    for name, (label, colour) in labels.items():
        if name != "gg" and not METHODS[method].local_crops:
            continue
        _trace(terms, epoch, metrics[name], colour, label)
    _trace(terms, epoch, metrics["total"], "black", "total (eq. 9)")
    terms.set(xlabel="epoch", ylabel="mean over pairs", title=f"{method}: loss terms")
    terms.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2)

    _trace(monitors, epoch, metrics["z_std"], BLUE, "channel std of z/|z| × √D")
    monitors.set(xlabel="epoch", ylim=(0, 1.25), title="collapse monitors")
    monitors.set_ylabel("std (1: spread, 0: collapsed)", color=BLUE)
    rank = monitors.twinx()
    rank.spines["right"].set_visible(True)
    rank.grid(False)
    _trace(rank, epoch, metrics["z_rank"], RED, "effective rank of z")
    rank.set_ylabel("effective rank", color=RED)
    rank.set_ylim(0, None)
    figure.tight_layout()
    save(figure, path)


def _trace(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    """The raw values faintly, their running mean on top."""
    axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
    width = max(1, len(y) // 40)
    kernel = np.ones(width)
    smooth = np.convolve(y, kernel, "same") / np.convolve(np.ones_like(y), kernel, "same")
    axes.plot(x, smooth, color=colour, label=label, linewidth=1.6)


def knn(
    histories: dict[str, list[dict]], pixels: float, untrained: float, metric: str, path: Path
) -> None:
    """KNN of each method over the epochs, with what needs no training as lines."""
    figure, axes = plt.subplots(figsize=(6, 3.8))
    for method, history in histories.items():
        x = [0.0, *(h["epoch"] for h in history)]
        y = [untrained, *(h["knn"] for h in history)]
        axes.plot(x, y, marker="o", markersize=3, color=METHOD_COLOURS[method], label=method)
    axes.axhline(pixels, color=GREY, linestyle="--", label="raw pixels")
    axes.axhline(untrained, color=GREY, linestyle=":", label="untrained encoder")
    axes.set(xlabel="epoch", ylabel=f"kNN {metric}", title=f"kNN {metric} on test images")
    axes.legend()
    save(figure, path)


def crops(examples: Examples, path: Path) -> None:
    """The first example image with its crops' outlines, and the crops as the network sees them."""
    count = len(examples.images)
    views = [v[::count] for v in examples.views]  # View-major: every count-th row is image 0.
    boxes = [b[::count] for b in examples.boxes]
    columns = max(len(v) for v in views)
    figure = plt.figure(figsize=(3.2 + 1.45 * columns, 3.1), layout="constrained")
    grid = figure.add_gridspec(2, columns + 2)
    whole = figure.add_subplot(grid[:, :2])
    _image(whole, examples.images[0])
    whole.set_title(
        "one image, its global (solid) and local (dashed) crops", fontsize=9, loc="left"
    )
    colours = iter(plt.get_cmap("tab10").colors * 9)
    for row, kind in enumerate(("global", "local")[: len(views)]):
        for i, (box, view) in enumerate(zip(boxes[row], views[row], strict=True)):
            colour = next(colours)
            left, top, right, bottom = box.tolist()
            whole.add_patch(
                Rectangle(
                    (left, top),
                    right - left,
                    bottom - top,
                    fill=False,
                    edgecolor=colour,
                    linewidth=2,
                    linestyle=("-", "--")[row],
                )
            )
            axes = figure.add_subplot(grid[row, 2 + i])
            _image(axes, view)
            axes.set_title(f"{kind} {i + 1}", fontsize=8, color=colour)
    save(figure, path)


def similarity(before: Tensor, after: Tensor, examples: Examples, path: Path) -> None:
    """Cosines of z between the crops of a few images, before and after training: [N*V, N*V]."""
    images = len(examples.images)
    # [V*N, ...] view-major -> a flat list, image by image.
    thumbnails = [
        part[image]
        for image in range(images)
        for views in examples.views
        for part in views.view(-1, images, *views.shape[1:])
    ]
    size = len(thumbnails)
    count = size // images
    same = torch.arange(size)[:, None] // count == torch.arange(size) // count
    off_diagonal = ~torch.eye(size, dtype=torch.bool)

    figure, panels = plt.subplots(1, 2, figsize=(12, 5.9), layout="constrained")
    for axes, matrix, title in zip(
        panels, (before, after), ("before training", "after training"), strict=True
    ):
        within, between = matrix[same & off_diagonal].mean(), matrix[~same].mean()
        heat = axes.imshow(matrix.numpy(), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        axes.set_title(f"{title}: mean cosine {within:.2f} within an image, {between:.2f} between")
        axes.grid(False)
        axes.set(xticks=[], yticks=[], xlim=(-2, size - 0.5), ylim=(size - 0.5, -2))
        axes.spines[:].set_visible(False)
        for edge in range(count, size, count):
            axes.plot([-0.5, size - 0.5], [edge - 0.5] * 2, color="black", linewidth=1.2)
            axes.plot([edge - 0.5] * 2, [-0.5, size - 0.5], color="black", linewidth=1.2)
        for i, thumbnail in enumerate(thumbnails):  # beside its row and above its column
            for x, y in ((i, -1.2), (-1.2, i)):
                inset = axes.inset_axes((x - 0.46, y - 0.46, 0.92, 0.92), transform=axes.transData)
                _image(inset, thumbnail)
    figure.colorbar(heat, ax=panels, shrink=0.7, label="cosine similarity of z")
    save(figure, path)


def _image(axes: Axes, image: Tensor) -> None:
    """Image [C, H, W], stretched to its own range."""
    pixels = image.float().cpu().numpy()
    pixels = (pixels - pixels.min()) / max(np.ptp(pixels), 1e-6)
    if image.shape[0] == 1:
        axes.imshow(pixels[0], cmap="gray", interpolation="nearest")
    else:
        axes.imshow(pixels.transpose(1, 2, 0), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)


def save(figure: plt.Figure, path: Path) -> None:
    try:
        with writing(path):
            figure.savefig(path)
    finally:
        plt.close(figure)
