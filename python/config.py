"""Every setting of the trainer; tyro makes the command line from this dataclass."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from errors import UserError

METHODS = ("simsiam", "simsiam-multicrop", "simsiam-logo")


@dataclass(frozen=True)
class Config:
    method: Literal["simsiam", "simsiam-multicrop", "simsiam-logo", "all"] = "simsiam-logo"
    """simsiam: global crops alone. simsiam-multicrop: and local crops, drawn to the global ones
    (lambda = 0). simsiam-logo: and the local crops of one image repel each other. all: the three
    side by side."""
    dataset: Literal["scenes", "cifar10", "folder"] = "scenes"
    """scenes: composed from scikit-learn's digits. folder: one folder of images per class."""
    data: Path | None = None
    """Where cifar10 or folder lies."""
    image_size: int = 48
    """Pixels per side of the scenes, or to which the images of a folder are scaled."""
    scenes: tuple[int, int] = (4000, 1000)
    """Number of training and of test scenes."""

    global_crops: int = 2
    """G, at least 2: SimSiam needs a pair."""
    local_crops: int = 2
    """L (0 with --method simsiam)."""
    global_size: int = 32
    """Pixels per side of a global crop."""
    local_size: int = 24
    """Pixels per side of a local crop."""
    global_scale: tuple[float, float] = (0.6, 1.0)
    """Share of the image's area in a global crop."""
    local_scale: tuple[float, float] = (0.15, 0.5)
    """Share of the image's area in a local crop."""

    repulsion_weight: float = 0.01
    """lambda of eq. 9. The paper's 1e-4 belongs to its learnt affinity, D = 2048 and 200 epochs. On
    the scenes 0.3 is far too much: the attraction terms stay near 0."""
    pair_reduction: Literal["sum", "mean"] = "mean"
    """mean: one average over all attraction pairs, so that one lr suits every number of crops.
    sum: eq. 9 as published."""

    encoder: str = "small"
    """small, resnet18, or package.module:factory of any nn.Module [N, C, H, W] -> [N, F]."""
    dim: int = 256
    """D, the width of the projector (published: 2048)."""
    bottleneck: int = 64
    """The width inside the predictor (published: 512)."""

    epochs: int = 8
    batch_size: int = 64
    lr: float = 0.4
    """For a batch of 256; the rate used is lr * batch_size / 256, decayed by a cosine to 0."""
    predictor_lr: float = 10.0
    """The predictor's rate as a multiple of the others' (SimSiam: 1). In short runs it learns too
    slowly otherwise."""
    fixed_predictor_lr: bool = True
    """The predictor keeps its rate while the others decay, as in SimSiam."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0

    knn_every: int = 1
    """Epochs between kNN evaluations."""
    knn_k: int = 20
    """Neighbours that vote."""
    knn_temperature: float = 0.1
    """A neighbour's vote weighs exp(cosine / temperature)."""

    device: str = "cpu"
    """cpu or cuda."""
    bf16: bool = False
    """bfloat16 autocast in the network."""
    log_every: int = 5
    """Steps between rows of the CSV."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    out: Path | None = None
    """Folder for the results: runs/DATASET-METHOD if not given."""
    resume: bool = False
    """Continue from the checkpoint in the folder for the results, if there is one."""
    export: bool = False
    """Write the trained encoder to encoder.safetensors."""


# What may differ between the run that is resumed and the one that resumes it.
RESUME_MAY_CHANGE = {"data", "device", "out", "resume", "export"}

AT_LEAST = {
    "global_crops": 2, "local_crops": 0, "global_size": 1, "local_size": 1, "dim": 1,
    "bottleneck": 1, "epochs": 1, "batch_size": 2, "knn_every": 1, "knn_k": 1, "log_every": 1,
    "checkpoint_every": 1, "image_size": 1, "lr": 0, "repulsion_weight": 0,
}  # fmt: skip


def validate(config: Config) -> None:
    def refuse(name: str, want: str) -> None:
        got = getattr(config, name)
        got = " ".join(map(str, got)) if isinstance(got, tuple) else repr(got)
        raise UserError(f"--{name.replace('_', '-')}: got {got}; want {want}")

    for name, least in AT_LEAST.items():
        if getattr(config, name) < least:
            refuse(name, f"at least {least}")
    for name in ("global_scale", "local_scale"):
        low, high = getattr(config, name)
        if not 0 < low <= high <= 1:
            refuse(name, "0 < low <= high <= 1")
    if min(config.scenes) < 1:
        refuse("scenes", "at least 1 training and 1 test scene")
    if config.knn_temperature <= 0:
        refuse("knn_temperature", "a number above 0")
    if config.dataset != "scenes" and config.data is None:
        raise UserError(f"--dataset {config.dataset} needs --data, the folder of the images")
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:
        refuse("device", f"cpu, or cuda on a machine that has it ({str(error).splitlines()[0]})")
